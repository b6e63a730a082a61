"""A copy of the checkout, as a new user has it: for tests that build from it or write into it."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_BEHIND = (".git", ".venv", "data", "build", "_build", "_generated", "__pycache__", ".ipynb_checkpoints", "*.egg-info", ".*_cache", ".hypothesis")
RUNS = ("README.md", "bench", "tinystories-small")  # those that are committed


def copy_checkout(target: Path) -> Path:
    """Copy what is, or would be, committed into the folder ``target``, which it makes."""

    def left_behind(folder: str, names: list[str]) -> set[str]:
        others = set(names) - set(RUNS) if Path(folder) == ROOT / "papermill_runs" else set()
        return others | shutil.ignore_patterns(*LEFT_BEHIND)(folder, names)

    return Path(shutil.copytree(ROOT, target, ignore=left_behind))
