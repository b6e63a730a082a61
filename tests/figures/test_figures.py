"""Every public figure: its signature tells the truth, its example runs, it can be changed and saved."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest
from synthetic_runs import EVALUATED, write_run

from collapse_lib import figures
from collapse_lib.cost.bench import records
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.paths import project_root
from collapse_lib.studies import results, twins

FUNCTIONS = {name: function for name, function in vars(figures).items() if inspect.isfunction(function)}
TYPES = {name for name, kind in vars(figures).items() if inspect.isclass(kind)}


def test_the_figures_of_the_paper_are_public():
    assert {"figure_1", "figure_2", "figure_3", "figure_4", "figure_a1", "draw", "turn", "memory", "twin_distances"} <= FUNCTIONS.keys()
    assert {"Picture", "Interactive", "Curve"} == TYPES


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_signature_says_what_goes_in_and_what_comes_out(name):
    signature = inspect.signature(FUNCTIONS[name])
    assert signature.parameters and signature.return_annotation in ("Picture", "Interactive")
    for parameter in signature.parameters.values():
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.annotation is not parameter.empty
    assert FUNCTIONS[name].__doc__.count("\n    Example: ``figures.") == 1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_its_example_runs_and_gives_what_the_signature_says(name, tmp_path, monkeypatch):
    """On the committed run, in whose name the examples' ``demo`` is changed; on a made-up one what that run cannot have or does not have."""
    example = re.search(r"Example: ``(.*)``", FUNCTIONS[name].__doc__)[1]
    if FUNCTIONS[name].__module__.endswith((".exact", ".texture")):
        monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
        write_run(tmp_path / "runs", "demo", 4, steps=EVALUATED)
    else:
        monkeypatch.setenv("COLLAPSE_RUNS", str(project_root() / "papermill_runs"))
        example = example.replace('"demo"', '"tinystories-small"')
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert example.startswith(f"figures.{name}(")
    call, _, _ = example.partition(".save(")
    names = {"figures": figures, "records": records, "results": results, "twins": twins}
    made = eval(call, names)
    assert type(made).__name__ == inspect.signature(FUNCTIONS[name]).return_annotation
    assert len(made.svg if isinstance(made, figures.Picture) else made.html) > 1000
    if call != example:
        eval(example, names)
        assert len(list((tmp_path / "here").iterdir())) == 1


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    write_run(tmp_path, "alpha", 4)
    return results.load("alpha")


def test_a_change_of_a_picture_is_in_what_is_shown_and_saved(table, tmp_path):
    picture = figures.figure_1(table)
    before = picture.svg
    picture.axes[0].set_title("Ours\non three lines\nof title", fontsize=30)
    after = picture.svg
    assert "on three lines" in after and "on three lines" not in before and after == picture.svg
    frames = [re.search(r'<g id="patch_2">\s*<path d="([^"]+)"', svg)[1] for svg in (before, after)]
    assert frames[0] != frames[1]  # laid out anew: the axes make room for the title
    picture.save(tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text(encoding="utf-8") == after
    picture.figure.savefig(tmp_path / "matplotlib.pdf")
    assert (tmp_path / "matplotlib.pdf").read_bytes().startswith(b"%PDF")


def test_an_interactive_figure_is_saved_as_a_page_that_stands_alone(table, tmp_path):
    made = figures.figure_1_interactive(table)
    made.figure.update_layout(title="Ours")
    made.save(tmp_path / "figure.html")
    page = (tmp_path / "figure.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and len(page) > 1_000_000 and '"Ours"' in page and not re.search(r"<script[^>]* src=", page)


def test_panels_stand_below_each_other_for_a_phone(table):
    def frames(svg: str) -> list[list[float]]:
        """Left, right, top and bottom of each panel's ground."""
        found = [re.findall(r"-?[\d.]+", path) for path in re.findall(r'<g id="patch_\d+">\s*<path d="(M[^"]+)" style="fill: #ffffff"/?>', svg)][1:]
        corners = [([float(x) for x in one[::2]], [float(y) for y in one[1::2]]) for one in found]
        return [[min(xs), max(xs), min(ys), max(ys)] for xs, ys in corners]

    picture = figures.loss_curve(
        results.measured("alpha", 1, "train") | {"series": {"loss_curve": [[1, 2.0], [2, 1.0]], "holdout_losses": [2.0, 1.5]}}
    )
    (left, right), (upper, lower) = frames(picture.svg), frames(picture.narrow_svg)
    assert left[1] < right[0] and left[2:] == right[2:]
    assert upper[3] < lower[2] and upper[:2] == lower[:2] and picture.svg != picture.narrow_svg
    assert float(re.search(r'width="([\d.]+)pt"', picture.narrow_svg)[1]) * 4 / 3 < 600, "text at 358 px is more than half as large"
    picture.axes[1].set_axis_off()
    assert picture.narrow_svg is None, "a drawing, and no grid of panels"


@pytest.mark.parametrize(("draw", "ending"), [(figures.figure_1, ".docx"), (figures.figure_1_interactive, ".svg")])
def test_an_ending_that_cannot_be_written_is_refused(table, tmp_path, draw, ending):
    with pytest.raises(UserError, match=rf"cannot be written to 'figure{ending}'; the name must end in "):
        draw(table).save(tmp_path / f"figure{ending}")
    assert not list(tmp_path.glob("figure*"))


def test_importing_figures_is_cheap():
    heavy = "{'matplotlib', 'pandas', 'plotly', 'scipy', 'torch', 'transformers', 'spacy', 'datasets'}"
    program = f"import sys; from collapse_lib import figures; print(*{heavy} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip() == ""


def test_figures_import_nothing_of_the_book():
    program = "import sys; from collapse_lib import figures; print(*(name for name in sys.modules if name.startswith('collapse_lib.book')))"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip() == ""
    sources = [file.read_text(encoding="utf-8") for file in (project_root() / "collapse_lib" / "figures").glob("*.py")]
    assert sources and not any("collapse_lib.book" in source for source in sources)
