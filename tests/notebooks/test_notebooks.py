"""Every notebook is stripped, parameterised, short in its cells, and keeps its logic in the library."""

import ast
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NO_FIGURE = ("claims", "execution_statistics", "speed")  # pages of tables, of all that was recorded
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


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.parent.name == "figures" and path.stem not in NO_FIGURE], ids=lambda path: path.stem
)
def test_a_figure_opens_with_three_lines_to_change_and_says_what_else_can_be(path):
    """A parameter of them all is used: a wish that is read and not done would be worse than none."""
    cells = nbformat.read(path, as_version=4).cells
    at = next(place for place, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    names = [line.partition(" = ")[0] for line in cells[at].source.split("\n")]
    assert at == 1 and len(names) == 3 and names[0] == "runs"
    assert cells[at + 1].source.startswith("Three lines to change") and "What else can be changed: " in cells[at + 1].source
    code = "\n".join(cell.source for cell in cells[at + 1 :] if cell.cell_type == "code")
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    assert {*names} <= used
