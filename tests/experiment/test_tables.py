"""Tables that stand for runs which are not here: read as they were stored, or not at all."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest

from collapse_lib.experiment import tables
from collapse_lib.experiment.errors import UserError


@pytest.fixture
def table() -> pd.DataFrame:
    numbers = np.random.default_rng(1).normal(size=200)
    numbers[::7] = np.nan
    columns = {"run": ["one", "zwei"] * 100, "seed": np.arange(200, dtype="int16"), "value": numbers, "loss": numbers.astype("float32")}
    return pd.DataFrame(columns)


def test_a_table_is_read_as_it_was_stored(table, tmp_path):
    tables.store(table, tmp_path / "new" / "t.parquet")
    again = tables.load(tmp_path / "new" / "t.parquet", "restore it")
    pd.testing.assert_frame_equal(again, table)
    assert not again.attrs and [path.name for path in (tmp_path / "new").iterdir()] == ["t.parquet"]
    tables.store(again, tmp_path / "again.parquet")
    pd.testing.assert_frame_equal(tables.load(tmp_path / "again.parquet", ""), table)


def test_a_flipped_bit_is_noticed_or_changes_nothing(table, tmp_path):
    file, order, noticed = tmp_path / "t.parquet", random.Random(1), 0
    tables.store(table, file)
    whole = file.read_bytes()
    for _ in range(60):
        content = bytearray(whole)
        content[order.randrange(len(whole))] ^= 1 << order.randrange(8)
        file.write_bytes(content)
        try:
            found = tables.load(file, "restore it")
        except UserError as refusal:
            assert str(file) in str(refusal) and str(refusal).endswith("; restore it.")
            noticed += 1
        else:
            pd.testing.assert_frame_equal(found, table)
    assert noticed > 20


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table" * 99])
def test_what_is_no_table_is_named(tmp_path, content):
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"t\.parquet is not a Parquet file, or is damaged; restore it\."):
        tables.load(tmp_path / "t.parquet", "restore it")
    with pytest.raises(UserError, match="is missing"):
        tables.load(tmp_path / "absent.parquet", "restore it")


def test_another_table_under_the_same_hash_and_an_older_one_without(table, tmp_path):
    table.to_parquet(tmp_path / "old.parquet")  # as before hashes were kept
    pd.testing.assert_frame_equal(tables.load(tmp_path / "old.parquet", ""), table)
    changed = table.assign(value=0.0)
    changed.attrs = {tables.DIGEST: tables._digest(table)}
    changed.to_parquet(tmp_path / "changed.parquet")
    with pytest.raises(UserError, match="damaged or changed by hand"):
        tables.load(tmp_path / "changed.parquet", "")
