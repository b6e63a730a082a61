"""One `smoke` run, shared by every test that needs a finished run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def collapse(*arguments: str, runs: Path, **options) -> subprocess.CompletedProcess:
    """Call the command line as a user would, on a runs folder of its own."""
    command = [sys.executable, "-m", "collapse_lib.cli", *arguments]
    return subprocess.run(command, env=os.environ | {"COLLAPSE_RUNS": str(runs)}, cwd=ROOT, capture_output=True, text=True, timeout=600, **options)


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory) -> Path:
    """A runs folder that holds a finished run `smoke`."""
    runs = tmp_path_factory.mktemp("runs")
    done = collapse("run", "smoke", runs=runs)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs
