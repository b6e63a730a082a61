"""Checkers of files that other programs read, from `make checkers` or wherever they are installed; a test skips where there is none."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from checkout import ROOT


def checker(command: str) -> str:
    """The path of a checker's command."""
    found = shutil.which(command) or shutil.which(command, path=str(ROOT / ".venv" / "checkers" / "bin"))
    return found or pytest.skip(f"needs {command}; `make checkers` installs it")


def axe() -> str:
    """The script of axe-core, which finds what keeps people with disabilities from a page. (Its package is installed for this one file.)"""
    folders = [*map(Path, sys.path), *(ROOT / ".venv" / "checkers").glob("lib/python*/site-packages")]
    found = [file for folder in folders if (file := folder / "axe_playwright_python" / "axe.min.js").is_file()]
    return found[0].read_text(encoding="utf-8") if found else pytest.skip("needs axe-core; `make checkers` installs it")
