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
    place = target.resolve()
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise UserError(f"'{target}' exists and is not an empty folder; give another --output, or delete it.")
    beside = place.with_name(f"{place.name}.tmp")
    remove(beside)
    beside.mkdir(parents=True)
    try:
        yield beside
        beside.replace(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
