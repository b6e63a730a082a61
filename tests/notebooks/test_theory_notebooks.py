"""Each chapter on the proof runs as it is: its cells are the checks, and one that fails stops it. And each is built to be learned from."""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager

from collapse_lib.experiment.execute import execute
from collapse_lib.experiment.warm_kernel import warm_kernel

CHAPTERS = sorted((Path(__file__).resolve().parents[2] / "notebooks" / "theory").glob("*.ipynb"))
COLUMN = 84  # characters of a line of code that a page of 1,400 pixels shows without scrolling, in a folded cell too
every_chapter = pytest.mark.parametrize("source", CHAPTERS, ids=lambda path: path.stem)


def cells(source: Path, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(source, as_version=4).cells if cell.cell_type == kind]


def prose(source: Path) -> str:
    return "\n".join(cell.source for cell in cells(source, "markdown"))


def is_folded(cell: nbformat.NotebookNode) -> bool:
    return bool({"hide-input", "hide-cell"} & {*cell.metadata.get("tags", [])})


@pytest.fixture(scope="module")
def kernel() -> Iterator[AsyncKernelManager]:
    with warm_kernel() as manager:
        yield manager


@every_chapter
def test_every_check_of_the_chapter_holds(source, kernel, tmp_path):
    target = tmp_path / source.name
    execute(source, target, {}, kernel)
    executed = cells(target, "code")
    outputs = [output for cell in executed for output in cell.outputs]
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) >= 2
    assert sum("text/html" in output.get("data", {}) for output in outputs) >= 1
    assert not any(output.get("name") == "stderr" for output in outputs)
    said = {name: cell for cell in executed for output in cell.outputs for name in re.findall(r"^(T\d+b?) holds: ", output.get("text", ""), re.M)}
    assert said.keys() == set(re.findall(r"\*\*Check (T\d+b?)", prose(source))), "each check says in one line that it holds"
    assert all(is_folded(cell) for cell in said.values()), "the line stays in view, its code does not"
    printed = [line for output in outputs for line in output.get("text", "").split("\n")]
    assert [line for line in printed if len(line) > COLUMN] == []


def test_every_check_has_its_cell():
    everything = "\n".join(prose(source) for source in CHAPTERS)
    missing = [name for name in (*(f"T{n}" for n in range(1, 26)), "T10b", "T12b", "T23b") if f"**Check {name}" not in everything]
    assert not missing


@every_chapter
def test_code_fits_its_column(source):
    assert [line for cell in cells(source, "code") for line in cell.source.split("\n") if len(line) > COLUMN] == []


@every_chapter
def test_questions_stand_before_answers(source):
    answers = re.findall(r"^:::\{dropdown\} Before you (?:look|turn the knob): .*\?$\n[^:]", prose(source), re.M)
    assert len(answers) >= 2


@every_chapter
def test_exercises_are_graded_and_solved(source):
    book = nbformat.read(source, as_version=4).cells
    exercises = [
        (match[1], match[2], place) for place, cell in enumerate(book) for match in re.finditer(r"^\*\*(\d)\. ([^*]+)\*\*", cell.source, re.M)
    ]
    assert [int(number) for number, _, _ in exercises] == list(range(1, len(exercises) + 1)) and 3 <= len(exercises) <= 5
    assert exercises[0][1] == "Turn the knob." and exercises[-1][1] == "Prove it."
    solutions = [book[place + 1] for _, _, place in exercises]
    assert all("hide-cell" in cell.metadata.get("tags", []) for cell in solutions), "an executed solution, folded, comes next"


@every_chapter
def test_the_toy_goes_through_every_chapter(source):
    assert any("toy." in cell.source for cell in cells(source, "code") if not is_folded(cell)), "in view, not folded away"
