"""Every notebook is stripped, parameterised, short in its cells, and keeps its logic in the library."""

import ast
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT / "notebooks")))
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_there_is_a_notebook_for_every_step():
    from collapse_lib.experiment.lineage import STEPS

    assert {path.stem for path in NOTEBOOKS if path.parent.name == "steps"} == set(STEPS)


def test_it_is_valid_and_stripped(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata and "papermill" not in notebook.metadata


def test_it_opens_with_a_title_and_has_one_parameters_cell(notebook):
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    compile(tagged[0].source, "parameters", "exec")


def test_its_cells_are_short_and_define_nothing(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # Statements, of which a narrow column makes several lines. What is folded away, checks and solutions, may be longer and define something.
            is_folded = bool({"hide-cell", "hide-input"} & {*cell.metadata.get("tags", [])})
            statements = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.stmt)]
            assert len(statements) <= (25 if is_folded else 15), cell.source
            defines = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in statements)
            assert is_folded or not defines, cell.source


def test_prose_stands_beside_the_code(notebook):
    prose = sum(len(cell.source) for cell in notebook.cells if cell.cell_type == "markdown")
    code = sum(len(cell.source) for cell in notebook.cells if cell.cell_type == "code")
    assert prose > code / 2
