"""Each chapter on the proof runs by itself, as it is: its cells are the checks, so a check that fails stops it."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

CHAPTERS = sorted((Path(__file__).resolve().parents[2] / "notebooks" / "theory").glob("*.ipynb"))


@pytest.mark.parametrize("source", CHAPTERS, ids=lambda path: path.stem)
def test_every_check_of_the_chapter_holds(source, tmp_path):
    target = tmp_path / source.name
    command = [sys.executable, "-m", "papermill", str(source), str(target), "-k", "python3"]
    done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    cells = [cell for cell in nbformat.read(target, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) >= 2
    assert sum("text/html" in output.get("data", {}) for output in outputs) >= 1
    assert not any(output.get("name") == "stderr" for output in outputs)


def test_every_check_has_its_cell():
    prose = "\n".join(cell.source for source in CHAPTERS for cell in nbformat.read(source, as_version=4).cells if cell.cell_type == "markdown")
    missing = [name for name in (*(f"T{n}" for n in range(1, 26)), "T10b", "T12b", "T23b") if f"**Check {name}" not in prose]
    assert not missing
