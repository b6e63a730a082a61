"""The notebook of one chain of n-gram models runs by itself, and with other parameters."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "studies" / "ngram_chain.ipynb"


@pytest.mark.parametrize(
    "parameters",
    [{}, {"grammar": "twin", "k": 0, "tokens": 2000, "generations": 5, "regime": "mix", "share": 0.1, "seed": 2}],
    ids=["as it is", "other"],
)
def test_a_chain_is_shown(parameters: dict, tmp_path) -> None:
    target = tmp_path / NOTEBOOK.name
    given = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), str(target), "-k", "python3", *given]
    done = subprocess.run(command, cwd=NOTEBOOK.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    outputs = [output for cell in nbformat.read(target, as_version=4).cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) == 3
    assert sum("text/html" in output.get("data", {}) for output in outputs) == 1
    assert sum("**Generation" in output.get("data", {}).get("text/markdown", "") for output in outputs) == (5 if not parameters else 4)
    assert not any(output.get("name") == "stderr" for output in outputs)
