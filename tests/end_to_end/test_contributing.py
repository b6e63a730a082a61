"""A measure is added as CONTRIBUTING.md says, literally, and is then measured, tabulated and on its page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from command import ROOT


def blocks() -> list[str]:
    """The code blocks of the section that adds a measure: the step, the line of the table, the notebook."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Add a measure")[2]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def notebook(text: str) -> nbformat.NotebookNode:
    """A notebook from cells that begin with ``# %%``."""
    cells = []
    for cell in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        kind, _, source = cell.partition("\n")
        if "markdown" in kind:
            cells.append(nbformat.v4.new_markdown_cell(re.sub(r"^# ?", "", source.strip(), flags=re.MULTILINE)))
        else:
            cells.append(nbformat.v4.new_code_cell(source.strip(), metadata={"tags": ["parameters"]} if "parameters" in kind else {}))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


@pytest.mark.slow
def test_a_measure_is_a_file_a_line_and_a_notebook(finished_runs, tmp_path):
    step, line, cells = blocks()
    project = tmp_path / "project"
    for folder in ("collapse_lib", "notebooks", "book"):
        shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__", "_build", "_generated"))
    shutil.copytree(finished_runs / "smoke", project / "papermill_runs" / "smoke")
    (project / "collapse_lib" / "steps" / "tokens_used.py").write_text(step)
    table = project / "collapse_lib" / "experiment" / "lineage.py"
    text = table.read_text()
    table.write_text(text.replace('    "classification": StepKind(', f'    {line}    "classification": StepKind(', 1))
    nbformat.write(notebook(cells), project / "notebooks" / "steps" / "tokens_used.ipynb")

    def run(*arguments: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "COLLAPSE_RUNS"} | {"PYTHONPATH": str(project)}
        done = subprocess.run([sys.executable, *arguments], cwd=project, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run("-m", "collapse_lib", "run", "smoke")
    assert "2 steps in" in said and re.search(r"generation  2 of 2  tokens_used .* different tokens", said)
    table = run("-m", "collapse_lib", "results", "smoke", "--format", "csv")
    assert len(re.findall(r"^smoke,[12],tokens_used,tokens_used,\d+\.0,tokens,", table, re.MULTILINE)) == 2
    page = "from collapse_lib.book import pages, runs; shown, _ = runs.book_runs(['smoke']); print(pages.generation_page(shown[0], 2))"
    assert "Tokens still used" in run("-c", page)
