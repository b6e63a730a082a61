"""Figures of made-up runs: what is drawn, not how it looks."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from synthetic_runs import write_run

from collapse_lib import figures
from collapse_lib.experiment.errors import UserError
from collapse_lib.figures.paper import sized_names
from collapse_lib.studies import results


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    write_run(tmp_path, "alpha", 9)
    write_run(tmp_path, "steep", 6, growth=1.9)
    write_run(tmp_path, "barely", 1, steps=("train",))
    return tmp_path


def plotted(interactive: figures.Interactive) -> tuple[list[dict], dict]:
    """Traces and layout as the page's script gets them."""
    figure = json.loads(interactive.html.partition('json">')[2].partition("</script>")[0])
    return figure["data"], figure["layout"]


def test_figure_2_says_how_large_the_models_are(runs):
    for run, size in (("alpha", 1234), ("steep", 56789)):
        file = runs / run / "generation-01" / "metrics" / "train.json"
        record = json.loads(file.read_text(encoding="utf-8"))
        record["metrics"]["parameters"] = {"value": size, "unit": "parameters", "definition": "made up"}
        file.write_text(json.dumps(record), encoding="utf-8")
    table = results.load("alpha,steep")
    picture, labels = figures.figure_2(table, ["alpha", "steep"]), sized_names(table, ["alpha", "steep"])
    assert labels == {"alpha": "alpha (1,234 parameters, the smaller model)", "steep": "steep (56,789 parameters, the larger model)"}
    assert [axes.get_title() for axes in picture.figure.axes][:2] == list(labels.values()) and picture.title.endswith(", ".join(labels.values()))
    assert figures.figure_2(table, "alpha").figure.axes[0].get_title() == "alpha (1,234 parameters)"  # alone it is no smaller one


def test_figure_1_draws_the_numbers_of_the_table():
    table = results.load("alpha")
    (panel,) = figures.figure_1(table).figure.axes
    (line,) = panel.get_lines()
    assert line.get_xdata().tolist() == list(range(1, 10))
    assert line.get_ydata().tolist() == results.metric(table, "alpha", "perplexity")["value"].tolist()
    band = panel.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((3.0 * 0.97, line.get_ydata()[-1] * 1.03))
    assert panel.get_yscale() == "linear" and panel.get_xlabel() == "generation" and "perplexity" in panel.get_ylabel()


def test_figure_1_of_several_runs_has_a_relative_panel_and_a_logarithmic_axis():
    absolute, relative = figures.figure_1(results.load("alpha,steep")).figure.axes
    assert [line.get_ydata()[0] for line in relative.get_lines()] == [1.0, 1.0]
    assert absolute.get_yscale() == relative.get_yscale() == "log"
    assert {text.get_text() for text in absolute.texts} == {"alpha", "steep"}


def test_names_at_equal_ends_do_not_overlap(runs):
    for name in ("b", "c"):
        write_run(runs, name, 9)
    panel = figures.figure_1(results.load("alpha,b,c")).figure.axes[0]
    heights = sorted(text.get_position()[1] for text in panel.texts)
    assert all(after - before >= 0.069 for before, after in pairwise(heights))


def test_figure_2_has_entropy_left_and_both_lexicons_right():
    table = results.load("alpha")
    left, right = figures.figure_2(table, "alpha").figure.axes
    assert left.get_lines()[0].get_ydata().tolist() == results.metric(table, "alpha", "entropy")["value"].tolist()
    heights = [[bar.get_height() for bar in bars] for bars in right.containers]
    assert heights == [results.metric(table, "alpha", f"oov_{kind}_occurrences")["value"].tolist() for kind in ("lexicon", "initial")]
    assert "nats" in left.get_ylabel() and "OOV" in right.get_ylabel() and left.get_zorder() > right.get_zorder()


def test_figure_2_of_several_runs_has_a_panel_each(runs):
    write_run(runs, "third", 3)
    table = results.load("alpha,steep,third")
    axes = figures.figure_2(table, ["alpha", "steep", "third"]).figure.axes
    panels, bars = axes[:3], axes[3:]
    assert [panel.get_title() for panel in panels] == ["alpha", "steep", "third"] and len(bars) == 3
    for panel, run in zip(panels, ("alpha", "steep", "third"), strict=True):
        assert panel.get_lines()[0].get_ydata().tolist() == results.metric(table, run, "entropy")["value"].tolist()


def test_a_run_of_one_generation(runs):
    write_run(runs, "one", 1)
    table = results.load("one")
    assert len(figures.figure_1(table).svg) > 1000 and len(figures.figure_2(table, "one").svg) > 1000


def test_loss_curve_shows_the_holdout_where_there_is_one():
    first, second = (figures.loss_curve(results.measured("alpha", generation, "train")).figure for generation in (1, 2))
    assert len(first.axes) == 2 and len(second.axes) == 1
    assert first.axes[0].get_lines()[0].get_xydata().tolist() == [[1, 7.0], [10, 3.0], [20, 2.5]]
    assert first.axes[1].get_lines()[0].get_xdata().tolist() == [1, 2, 3]


def test_svg_is_the_same_each_time_and_bears_no_date():
    table = results.load("alpha,steep")
    picture = figures.figure_1(table)
    assert picture.svg == picture.svg == figures.figure_1(table).svg
    assert "dc:date" not in picture.svg and "Perplexity by generation" in picture.svg
    ElementTree.fromstring(picture.svg)


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_pictures_can_be_saved(tmp_path, suffix):
    path = tmp_path / f"figure.{suffix}"
    figures.figure_1(results.load("alpha")).save(path)
    assert path.read_bytes()[:5] in (b"<?xml", b"\x89PNG\r")


def test_pictures_and_interactive_figures_show_themselves_in_a_notebook():
    table = results.load("alpha")
    data, metadata = figures.figure_1(table)._repr_mimebundle_()
    assert set(data) == {"image/svg+xml", "text/plain"} and metadata["image/svg+xml"]["narrow"].startswith("<?xml")
    shown = figures.figure_1_interactive(table)._repr_mimebundle_()
    assert set(shown) == {"application/vnd.plotly.v1+json", "text/html", "text/plain"}
    json.dumps(shown["application/vnd.plotly.v1+json"])


def test_interactive_figure_1_holds_both_views():
    traces, layout = plotted(figures.figure_1_interactive(results.load("alpha,steep")))
    assert [trace["name"] for trace in traces] == ["alpha", "steep"]
    assert traces[0]["y"] == pytest.approx([3.0 * 1.12**power for power in range(9)])
    absolute, ratio = (button["args"] for button in layout["updatemenus"][0]["buttons"])
    assert absolute[0]["y"][0] == traces[0]["y"] and [values[0] for values in ratio[0]["y"]] == [1.0, 1.0]
    assert ratio[0]["error_y.array"][0] == pytest.approx([0.03 * value for value in ratio[0]["y"][0]])
    assert layout["yaxis"]["type"] == "log"


def test_interactive_figure_2_holds_the_numbers_and_asks_no_other_host():
    table = results.load("alpha")
    interactive = figures.figure_2_interactive(table, "alpha")
    traces, layout = plotted(interactive)
    assert [trace["y"] for trace in traces] == [
        results.metric(table, "alpha", name)["value"].tolist() for name in ("oov_lexicon_occurrences", "oov_initial_occurrences", "entropy")
    ]
    assert layout["yaxis2"]["side"] == "right" and layout["yaxis"]["tickmode"] == "auto"
    assert interactive.html == figures.figure_2_interactive(table, "alpha").html
    assert 'id="figure-2-alpha"' in interactive.html and "http" not in interactive.html and "src=" not in interactive.html


@pytest.mark.parametrize(("generations", "dtick"), [(1, 1), (2, 1), (11, 1), (12, None), (40, None)])
def test_few_generations_get_a_tick_each(runs, generations, dtick):
    """Beyond, Plotly chooses the ticks, at most ten to an axis: whole numbers by then."""
    write_run(runs, "long", generations)
    table = results.load("long")
    for interactive in (figures.figure_1_interactive(table), figures.figure_2_interactive(table, "long")):
        axis = plotted(interactive)[1]["xaxis"]
        assert axis.get("dtick") == dtick and "tickformat" not in axis  # a format would print 1.5 as 1 or 2


def test_what_has_not_been_measured_is_said():
    table = results.load("barely")
    for draw in (figures.figure_1, figures.figure_1_interactive):
        with pytest.raises(UserError, match=r"^No perplexity has been measured yet in barely\.$"):
            draw(table)
    for draw in (figures.figure_2, figures.figure_2_interactive):
        with pytest.raises(UserError, match="'barely'"):
            draw(table, "barely")


def test_an_interactive_figure_without_points_can_be_laid_out():
    import plotly.graph_objects as go

    from collapse_lib.figures.style import plotly_layout

    figure = go.Figure()
    plotly_layout(figure, "loss")
    assert figure.layout.yaxis.title.text == "loss"
