"""Checkers of files that other programs read, from `make checkers` or wherever they are installed; a test skips where there is none."""

from __future__ import annotations

import shutil

import pytest
from checkout import ROOT


def checker(command: str) -> str:
    """The path of a checker's command."""
    found = shutil.which(command) or shutil.which(command, path=str(ROOT / ".venv" / "checkers" / "bin"))
    return found or pytest.skip(f"needs {command}; `make checkers` installs it")
