"""The command line as a user calls it: in a process of its own, from the project's folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def collapse(*arguments: str, runs: Path, **options) -> subprocess.CompletedProcess[str]:
    """Call ``collapse`` on a runs folder."""
    command = [sys.executable, "-m", "collapse_lib.cli", *arguments]
    return subprocess.run(command, env=os.environ | {"COLLAPSE_RUNS": str(runs)}, cwd=ROOT, capture_output=True, text=True, timeout=1800, **options)
