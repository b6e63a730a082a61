"""Notebooks side by side: each in a kernel that others do not wait for, and only where something changed."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest

from collapse_lib.book.execution import Execution, executing
from collapse_lib.experiment.errors import NotebookFailed


def notebook(file: Path, code: str) -> Path:
    cells = [nbformat.v4.new_code_cell("name = ''", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), file)
    return file


def shown(execution: Execution) -> list[str]:
    return nbformat.read(execution.target, as_version=4).cells[-1].outputs[0].text.split()


def test_what_is_current_is_not_executed_again(tmp_path: Path) -> None:
    source = notebook(tmp_path / "source.ipynb", "import os\nprint(name, os.getpid(), os.environ['OMP_NUM_THREADS'])")
    first, second = (Execution(source, tmp_path / f"{name}.ipynb", {"name": name}, "once") for name in ("a", "b"))
    with executing([first, second]):
        assert not first.target.exists()
    (name, kernel, threads), (other_name, other_kernel, _) = shown(first), shown(second)
    assert (name, other_name, threads) == ("a", "b", "1") and (kernel == other_kernel) == (len(os.sched_getaffinity(0)) == 1)

    before = first.target.read_bytes()
    changed = Execution(notebook(tmp_path / "failing.ipynb", "1 / 0"), second.target, {"name": "b"}, "again")
    with pytest.raises(NotebookFailed, match=r"failing\.ipynb failed: ZeroDivisionError") as failed, executing([first, changed]):
        pass
    assert failed.value.saved.is_file(), "what another process said came whole"
    assert first.target.read_bytes() == before and first.is_current
    assert not changed.is_current and shown(second)[0] == "b"  # as it was executed last
