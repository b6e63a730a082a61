"""Where an export goes: a folder of its own, which is whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from collapse_lib.experiment.errors import UserError


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder for the block to fill, which becomes ``target`` when it ends well and is deleted when it does not.

    Raises ``UserError`` if anything is at ``target`` but an empty folder: an export never writes over another.
    """
    place = target.resolve()
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise UserError(f"'{target}' exists and is not an empty folder; give another --output, or delete it.")
    place.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as beside:  # on the same disk, to be moved in one piece
        folder = Path(beside) / place.name
        folder.mkdir()
        yield folder
        folder.replace(place)
