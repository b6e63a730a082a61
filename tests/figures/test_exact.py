"""Figures of made-up runs against a made-up law: what is drawn, and that the floor is the law's own perplexity."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from synthetic_runs import EVALUATED, write_run

from collapse_lib import figures
from collapse_lib.experiment.errors import UserError
from collapse_lib.figures.exact import floor_perplexity
from collapse_lib.figures.paper import ABSOLUTE, RELATIVE
from collapse_lib.metrics.legality import CAUSES
from collapse_lib.studies import results


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    write_run(tmp_path, "law", 6, steps=EVALUATED)
    write_run(tmp_path, "bare", 3)
    return tmp_path


def test_the_floor_is_the_perplexity_of_the_law_without_the_ends_of_stories(runs):
    """Of stories of which each true loss is known: e to their mean, by hand."""
    true_losses = [[2.0, 1.0, 0.5, 0.25], [0.5, 3.0, 0.125]]  # the last of each is its end
    for step, change in (
        ("exact", lambda record: record["series"].update(true_losses=true_losses)),
        ("exact", lambda record: record["metrics"]["story_floor"].update(value=sum(map(sum, true_losses)) / 2)),
        ("perplexity", lambda record: record["metrics"]["perplexity"]["counts"].update(tokens=5, stories=2)),
    ):
        file = runs / "law" / "generation-01" / "metrics" / f"{step}.json"
        record = json.loads(file.read_text(encoding="utf-8"))
        change(record)
        file.write_text(json.dumps(record), encoding="utf-8")
    assert floor_perplexity(results.load("law"), "law") == pytest.approx(math.exp(np.mean([2.0, 1.0, 0.5, 0.5, 3.0])))
    assert floor_perplexity(results.load("bare"), "bare") is None


def test_figure_1_has_the_floor_of_a_run_that_has_one_and_is_the_same_for_others():
    table = results.load("law")
    (panel,) = figures.figure_1(table).axes
    line, floor = panel.get_lines()
    assert set(floor.get_ydata()) == {floor_perplexity(table, "law")} and floor.get_linestyle() == "--" and len(line.get_xdata()) == 6
    assert {text.get_text() for text in panel.texts} == {"law", "exact floor"}
    (alone,) = figures.figure_1(results.load("bare")).axes
    assert len(alone.get_lines()) == 1 and not alone.texts


def test_both_views_of_interactive_figure_1_have_as_many_lines():
    figure = figures.figure_1_interactive(results.load("law,bare")).figure
    absolute, relative = (button.args[0] for button in figure.layout.updatemenus[0].buttons)
    assert [button.label for button in figure.layout.updatemenus[0].buttons] == [ABSOLUTE, RELATIVE]
    assert [trace.name for trace in figure.data] == ["law", "bare", "exact floor, law"]
    assert len(absolute["y"]) == len(relative["y"]) == 3 and relative["y"][2] == []


def test_excess_loss_is_drawn_on_logarithmic_axes_with_its_errors():
    nats, share = figures.excess_loss(results.load("law,bare")).axes
    for panel, name in ((nats, "excess_loss"), (share, "excess_share")):
        points = results.metric(results.load("law"), "law", name)
        (line,) = panel.get_lines()
        assert line.get_ydata().tolist() == points["value"].tolist() and panel.get_yscale() == "log"
        band = panel.collections[0].get_paths()[0].get_extents()
        assert band.y1 == pytest.approx(points["value"].iloc[-1] + points["standard_error"].iloc[-1])


def test_an_excess_that_is_not_positive_everywhere_gets_a_linear_axis():
    table = results.load("law")
    table.loc[(table["metric"] == "excess_loss") & (table["generation"] == 1), "value"] = -0.5
    assert figures.excess_loss(table).axes[0].get_yscale() == "linear"


def test_the_causes_stand_on_each_other_and_fill_the_whole():
    table = results.load("law")
    shares, causes = figures.legality(table, "law").axes
    assert shares.get_lines()[0].get_label() == "real stories" and len(shares.get_lines()) == 4
    tops = [bars[-1].get_y() + bars[-1].get_height() for bars in causes.containers]
    assert tops == sorted(tops) and tops[-1] == pytest.approx(1.0) and len(tops) == 1 + len(CAUSES)


def test_interactive_legality_names_every_line_in_both_views():
    figure = figures.legality_interactive(results.load("law"), "law").figure
    legal, broken = (button.args[0] for button in figure.layout.updatemenus[0].buttons)
    assert len(figure.data) == len(legal["y"]) == len(broken["y"]) == 3 + len(CAUSES)
    assert [bool(values) for values in legal["y"]] == [not values for values in broken["y"]]
    drawn = {trace.name: values for trace, values in zip(figure.data, broken["y"], strict=True)}
    assert drawn["non word"] == results.metric(results.load("law"), "law", "broken_non_word")["value"].tolist()


def test_words_are_drawn_against_the_extinction_law():
    (panel,) = figures.word_survival(results.load("law"), "law").axes
    rows = results.measured("law", 6, "exact")["series"]["word_survival"]
    lines = {line.get_label(): line for line in panel.get_lines()}
    dashed = [line.get_ydata().tolist() for line in panel.get_lines() if line.get_linestyle() == "--"]
    assert [row["predicted"] for row in rows] in dashed and "extinction law" in lines
    assert panel.containers[-1].get_label() == "generation 6"
    assert panel.containers[-1].lines[0].get_ydata().tolist() == [row["survived"]["value"] for row in rows]


def test_what_is_told_stands_against_what_true_stories_would_tell():
    axes = figures.still_told(results.load("law"), "law").axes
    assert [panel.get_ylabel() for panel in axes] == ["different plots", "different endings", "different heroes"]
    told, expected = axes[1].get_lines()
    assert told.get_ydata()[0] > told.get_ydata()[-1] and set(expected.get_ydata()) == {58.4}


def test_rare_tokens_come_first():
    excess, parts = figures.loss_by_probability(results.load("law"), "law").axes
    labels = [line.get_label() for line in excess.get_lines() if not line.get_label().startswith("_")]
    assert labels == ["0 to 0.001", "0.001 to 0.1", "0.1 to 1"] and len(parts.get_lines()) == len(excess.get_lines())


@pytest.mark.parametrize(
    "draw", [figures.legality, figures.legality_interactive, figures.loss_by_probability, figures.word_survival, figures.still_told]
)
def test_a_run_without_a_law_is_refused(draw):
    with pytest.raises(UserError, match="'bare'"):
        draw(results.load("bare"), "bare")


def test_a_table_without_a_law_is_refused():
    with pytest.raises(UserError, match=r"^Nothing has been held against an exact law yet in bare\.$"):
        figures.excess_loss(results.load("bare"))
