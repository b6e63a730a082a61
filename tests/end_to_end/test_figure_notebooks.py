"""Each figure notebook runs by itself, with its defaults, on the newest run; plain papermill stands in for a reader's Jupyter."""

import os
import subprocess
import sys

import nbformat
import pytest
from command import ROOT

FIGURES = sorted((ROOT / "notebooks" / "figures").glob("*.ipynb"))
QUICK = ("figure_1_perplexity", "twins")  # the book's tests execute all of them too, in one kernel; each by itself takes minutes


@pytest.mark.parametrize("source", [pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow, id=path.stem) for path in FIGURES])
def test_it_runs_alone_on_the_newest_run(finished_runs, tmp_path, source):
    target = tmp_path / source.name
    command = [sys.executable, "-m", "papermill", str(source), str(target), "-k", "python3"]
    done = subprocess.run(
        command, cwd=source.parent, env=os.environ | {"COLLAPSE_RUNS": str(finished_runs)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    outputs = [output for cell in nbformat.read(target, as_version=4).cells for output in cell.get("outputs", [])]
    assert any("data" in output for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
