"""The folder that Jupyter Book reads: files that change only where their content does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from collapse_lib.experiment.files import write_json

CONTENTS = "_toc.yml"
KEPT = "executed"  # the folder, of those that are staged, in which stands what was made from what: no page, and never swept


class Staging:
    """Writes files into a folder only where their content changes, and knows which it has written."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: set[Path] = set()
        self.other_contents = False  # whether the table of contents is not that of the book before

    def text(self, name: str, content: str) -> None:
        self.bytes(name, content.encode("utf-8"))

    def copy(self, name: str, source: Path) -> None:
        self.bytes(name, source.read_bytes())

    def made(self, name: str, inputs: str, make: Callable[[], None]) -> None:
        """Files that take time to make: those that ``make`` writes here. They stay as they are while ``inputs``, a hash, is that under this name."""
        mark = self.folder / KEPT / f"{name}.json"
        known = json.loads(mark.read_text()) if mark.is_file() else {}
        if known.get("inputs") == inputs and all((self.folder / file).is_file() for file in known["files"]):
            self.files |= {self.folder / file for file in known["files"]}
            return
        before, self.files = self.files, set()
        make()
        write_json(mark, {"inputs": inputs, "files": sorted(file.relative_to(self.folder).as_posix() for file in self.files)})
        self.files |= before

    def sweep(self) -> None:
        """Delete what an earlier book left, but for what is kept.

        Its site goes too, and when the table of contents has changed: Sphinx keeps the pages of vanished sources, and does not tell a page that it
        has new neighbours.
        """
        files = (path for path in self.folder.rglob("*") if path.is_file() and KEPT not in path.relative_to(self.folder).parts)
        stale = [path for path in files if path not in self.files]
        for path in stale:
            path.unlink()
        if stale or self.other_contents:
            shutil.rmtree(self.folder.parent / "_build", ignore_errors=True)

    def bytes(self, name: str, content: bytes) -> None:
        path = self.folder / name
        self.files.add(path)
        if not path.is_file() or path.read_bytes() != content:
            self.other_contents |= name == CONTENTS
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
