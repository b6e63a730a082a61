"""Progress bars in executed notebooks: recorded as they ended, whoever executed the notebook."""

from __future__ import annotations

import re
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from collapse_lib.book import notebooks
from collapse_lib.experiment.execute import execute
from collapse_lib.experiment.progress import settled
from collapse_lib.experiment.warm_kernel import warm_kernel

BARS = """
import sys
import time
from tqdm import tqdm
from collapse_lib.experiment.progress import progress

for epoch in (1, 2):
    with progress(3, "token", f"epoch {epoch} of 2") as bar:
        bar.mininterval = 0
        for number in range(3):
            bar.update(1)
            time.sleep(0.15)  # a kernel gathers for a tenth of a second what it sends
            if number == 1:
                print("a warning", file=sys.stderr, flush=True)
for _ in tqdm(range(3), mininterval=0):
    time.sleep(0.15)
"""


def streams(*pieces: tuple[str, str]) -> list[tuple[str, str]]:
    """What is left of the pieces (name, text) of a cell's streams."""
    return [(output.name, output.text) for output in settled([new_output("stream", name=name, text=text) for name, text in pieces])]


def test_states_of_a_bar_in_one_stream():
    assert streams(("stdout", "before\n\ra:   0%|  | 0/2\ra:  50%|# | 1/2\ra: 100%|##| 2/2\nafter\n")) == [
        ("stdout", "before\na: 100%|##| 2/2\nafter\n")
    ]


def test_states_of_a_bar_in_many_outputs():
    pieces = [
        ("stderr", piece)
        for piece in ("\ra:   0%|  | 0/2", "\ra:  50%|# | 1/2", "\r", "a: 100%|##| 2/2", "\n", "\rb: 0 row [00:00, ? row/s]", "\rb: 9 row")
    ]
    assert streams(*pieces) == [("stderr", "a: 100%|##| 2/2\nb: 9 row")]


def test_a_warning_between_two_states_leaves_one():
    found = streams(("stdout", "\ra:   0%|  | 0/2"), ("stderr", "careful\n"), ("stdout", "\ra: 100%|##| 2/2\n"))
    assert found == [("stdout", "a: 100%|##| 2/2\n"), ("stderr", "careful\n")]


def test_lost_carriage_returns_are_no_excuse():
    line = "a b:   0%|  | 0/2 [00:00]a b:  50%|# | 1/2 [00:01]a b: 100%|##| 2/2 [00:02]\n"
    line += "c: 0.00 story [00:00, ? story/s]c: 198 story [00:00, 1.75k story/s]\n"
    assert streams(("stdout", line)) == [("stdout", "a b: 100%|##| 2/2 [00:02]\nc: 198 story [00:00, 1.75k story/s]\n")]


@pytest.mark.parametrize("text", ["plain\n", "a: 1 a: 2\n", "a: 5% of b, a: 6%\n", "windows\r\n", "x\n\n y \n", "100%|##|"])
def test_other_text_stays(text):
    assert streams(("stdout", text)) == [("stdout", text.replace("\r", ""))]


def test_a_bar_that_clears_itself_leaves_nothing_and_other_outputs_stay():
    shown = new_output("display_data", {"text/plain": "x"})
    assert settled([new_output("stream", name="stderr", text="\ra:  50%|# | 1/2\r            \r"), shown]) == [shown]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The same notebook with bars on both streams, executed by the batch and by papermill's command line."""
    folder = tmp_path_factory.mktemp("bars")
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=[new_code_cell(BARS), new_code_cell("1 + 1")], metadata={"kernelspec": kernelspec}), folder / "bars.ipynb")
    with warm_kernel() as kernel:
        execute(folder / "bars.ipynb", folder / "batch.ipynb", {}, kernel)
    command = [sys.executable, "-m", "papermill", str(folder / "bars.ipynb"), str(folder / "papermill.ipynb")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder


def texts(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [(output.name, output.text) for output in cells[0].outputs]


def test_the_batch_records_bars_as_they_ended(executed):
    (_, bars), (_, errors) = texts(nbformat.read(executed / "batch.ipynb", as_version=4))
    assert [re.sub(r"\|.*", "", line) for line in bars.splitlines()] == ["epoch 1 of 2: 100%", "epoch 2 of 2: 100%"]
    assert [re.sub(r"\|.*", "", line) for line in errors.splitlines()] == ["a warning", "a warning", "100%"]


def test_a_page_shows_them_so_when_papermill_alone_executed(executed):
    notebook = nbformat.read(executed / "papermill.ipynb", as_version=4)
    assert len(texts(notebook)) > 10, "papermill by itself keeps every state"
    page, _ = notebooks.executed_page(notebook, notebooks.NotebookPage("bars", executed / "papermill.ipynb"))
    assert [re.sub(r"\[.*", "", text) for _, text in texts(page)] == [
        re.sub(r"\[.*", "", text) for _, text in texts(nbformat.read(executed / "batch.ipynb", as_version=4))
    ]
