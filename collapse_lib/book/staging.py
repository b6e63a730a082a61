"""The folder that Jupyter Book reads: files that change only where their content does."""

from __future__ import annotations

import shutil
from pathlib import Path


class Staging:
    """Writes files into a folder only where their content changes, and knows which it has written."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: set[Path] = set()

    def text(self, name: str, content: str) -> None:
        self.bytes(name, content.encode("utf-8"))

    def copy(self, name: str, source: Path) -> None:
        self.bytes(name, source.read_bytes())

    def sweep(self, keep: str) -> None:
        """Delete what an earlier book left, except under ``keep``; its site goes too, for Sphinx keeps the pages of vanished sources."""
        files = (path for path in self.folder.rglob("*") if path.is_file() and keep not in path.relative_to(self.folder).parts)
        stale = [path for path in files if path not in self.files]
        for path in stale:
            path.unlink()
        if stale:
            shutil.rmtree(self.folder.parent / "_build", ignore_errors=True)

    def bytes(self, name: str, content: bytes) -> None:
        path = self.folder / name
        self.files.add(path)
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
