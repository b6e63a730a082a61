"""An export is whole or not there, and writes over nothing."""

from __future__ import annotations

import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.export.folder import new_folder


def test_a_folder_appears_when_it_is_full(tmp_path):
    with new_folder(tmp_path / "deep" / "target") as folder:
        (folder / "file").write_text("new")
        assert not (tmp_path / "deep" / "target").exists()
    assert (tmp_path / "deep" / "target" / "file").read_text() == "new"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["target"]


def test_an_export_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "target") as folder:
        (folder / "file").write_text("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_only_an_empty_folder_is_written_into(tmp_path):
    (tmp_path / "target").mkdir()
    with new_folder(tmp_path / "target") as folder:
        (folder / "file").write_text("first")
    for taken in (tmp_path / "target", tmp_path / "target" / "file"):
        with pytest.raises(UserError, match="exists and is not an empty folder"), new_folder(taken):
            pass
    assert (tmp_path / "target" / "file").read_text() == "first"
