"""Where an export goes: a folder of its own, which is whole or not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from collapse_lib.experiment.artefacts import remove
from collapse_lib.experiment.errors import UserError


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` for the block to fill, moved there when it ends well and deleted when it does not.

    Raises ``UserError`` if anything is at ``target`` but an empty folder: an export never writes over another.
    """
    if target.is_symlink() or target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"'{target}' exists and is not an empty folder; give another --output, or delete it.")
    beside = target.with_name(f"{target.name}.tmp")
    remove(beside)
    beside.mkdir(parents=True)
    try:
        yield beside
        if target.is_dir():
            target.rmdir()
        beside.replace(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
