"""Small tables that stand for runs which are not here: Parquet files that carry the hash of what they hold, and are whole or not there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import naming, sync

if TYPE_CHECKING:
    from pandas import DataFrame

DIGEST, MADE_FROM = "sha256", "made_from"  # among the attributes that pandas keeps in the file: a second file could part from it in a kill


def store(table: DataFrame, path: Path, made_from: Mapping[str, str] | None = None) -> None:
    """Write a table of numbers and texts to a ``.parquet`` file, beside its place and then into it; ``made_from`` says what its parts are of."""
    marked = table.copy()
    marked.attrs = {DIGEST: _digest(table)} | ({} if made_from is None else {MADE_FROM: dict(made_from)})
    beside = path.with_suffix(".tmp.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        marked.to_parquet(beside, index=False, compression="zstd")
    sync(beside)
    beside.replace(path)


def load(path: Path, remedy: str) -> DataFrame:
    """Read what ``store`` wrote; raises ``UserError``, which advises ``remedy``, when the file is not there, no table, or not as it was written.

    A table of before hashes were kept is read as it is. What its parts are of, where that was stored, is its attribute ``made_from``.
    """
    from pandas import read_parquet

    if not path.is_file():
        raise UserError(f"{path} is missing; {remedy}.")
    try:
        with naming(path):
            table = read_parquet(path)
        recorded = table.attrs.pop(DIGEST, None)
    except Exception as error:  # pyarrow's and thrift's share no base class with what a flipped name makes of pandas
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path} is not a Parquet file, or is damaged; {remedy}.") from None
    if recorded not in (None, _digest(table)):
        raise UserError(f"{path} was damaged or changed by hand since it was written; {remedy}.")
    return table


def _digest(table: DataFrame) -> str:
    """SHA-256 of names, kinds and values, 64 hex digits; it does not depend on how a version of Parquet or pandas lays them out."""
    digest = hashlib.sha256()
    for name in table.columns:
        values = table[name].to_numpy()
        if values.dtype.kind == "f":
            values = np.where(np.isnan(values), np.array(np.nan, values.dtype), values)  # Parquet keeps one kind of NaN
        is_number = values.dtype.kind in "biuf"
        digest.update(f"{name}\0{values.dtype if is_number else 'text'}\0{len(values)}\0".encode())
        digest.update(np.ascontiguousarray(values).tobytes() if is_number else "\0".join(map(str, values)).encode())
    return digest.hexdigest()
