"""Figures 4 and A3 to A5 of made-up runs: what is drawn and said, not how it looks."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest
from synthetic_runs import add_classification as add
from synthetic_runs import answered, write_run

from collapse_lib import figures
from collapse_lib.book import wording
from collapse_lib.book.wording.classification import REPORTED
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import write_json, write_text
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import Run
from collapse_lib.figures.classification import finetuned
from collapse_lib.studies import results


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    small, large = (write_run(tmp_path, name, 7, steps=("train",)) for name in ("small", "large"))
    write_run(tmp_path, "without", 2, steps=("train",))
    for generation, score in ((0, 0.6), (1, 0.8), (4, 0.7), (7, 0.5)):
        add(small, generation, {"sst2": score, "cola": 0.69})
        add(large, generation, {"sst2": score + 0.1, "mrpc": 0.7, "cola": 0.69}, seed_sd=0.01)
    return tmp_path


def test_a_panel_a_task_with_generations_baseline_and_majority():
    panels = figures.figure_4(results.load("small")).figure.axes
    assert [panel.get_title() for panel in panels] == ["SST-2", "CoLA"]
    line, baseline, majority = panels[0].get_lines()
    assert line.get_xdata().tolist() == [1, 4, 7] and line.get_ydata().tolist() == pytest.approx([80, 70, 50])
    assert list(baseline.get_ydata()) == pytest.approx([60, 60]) and list(majority.get_ydata()) == pytest.approx([50, 50])
    assert (baseline.get_linestyle(), majority.get_linestyle()) == ("--", ":")
    band = panels[0].collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((48, 82))


def test_a_single_generation_has_an_interval_that_can_be_seen(runs):
    add(write_run(runs, "single", 1, steps=("train",)), 1, {"sst2": 0.8})
    panel = figures.figure_4(results.load("single")).figure.axes[0]
    bars = [segment[:, 1].tolist() for lines in panel.collections if hasattr(lines, "get_segments") for segment in lines.get_segments()]
    assert bars == [pytest.approx([78, 82])]


def test_panels_span_as_many_points_where_they_can():
    for measure in ("accuracy", "f1"):
        heights = [high - low for low, high in (panel.get_ylim() for panel in figures.figure_4(results.load("small"), measure).figure.axes)]
        assert heights[1] == pytest.approx(30) and heights[0] > 34


def test_two_sizes_share_the_panels_in_two_colours():
    figure = figures.figure_4(results.load("small,large"), "f1").figure
    assert [panel.get_title() for panel in figure.axes] == ["SST-2", "MRPC", "CoLA"]
    lines = [line for line in figure.axes[0].get_lines() if line.get_marker() in ("o", "^")]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 2
    assert [line.get_ydata()[0] for line in lines] == pytest.approx([70, 80])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["small", "large", "untrained baseline", "always the commonest answer"]


@pytest.mark.parametrize(("score", "is_learned"), [(0.53, True), (0.51, False), (0.45, False)])
def test_a_task_that_generation_1_does_not_learn_is_grey_and_has_no_verdict(runs, score, is_learned):
    """Intervals reach two points to either side, and the commonest answer is right in half of the rows; later generations do not decide."""
    folder = write_run(runs, "one", 2, steps=("train",))
    for generation, accuracy in ((0, 0.5), (1, score), (2, 0.9)):
        right = np.arange(400)[None] < 400 * np.full((3, 1), accuracy)
        add(folder, generation, {"cola": accuracy, "sst2": 0.8}, examples={task: answered(right) for task in ("cola", "sst2")})
    table = results.load("one")
    for measure in ("accuracy", "f1"):
        picture = figures.figure_4(table, measure)
        line = {panel.get_title(): panel.get_lines()[0] for panel in picture.axes}["CoLA"]
        assert (line.get_color() == "#777777") != is_learned and (line.get_markerfacecolor() == "white") != is_learned
        assert picture.axes[0].get_lines()[0].get_color() == "#0072B2"
        assert ("generation 1 not above" in picture.svg) != is_learned
        verdicts = {cells[1]: cells[7:9] for cells in rows_of(wording.generations_compared(table, measure).data)}
        assert all("even the first generation does not beat" in said for said in verdicts["CoLA"]) != is_learned
        assert not any("even the first" in said for said in verdicts["SST-2"])
        assert ("no verdict on one" in figures.figure_4_interactive(table, measure).html) != is_learned


def test_whiskers_stand_where_there_are_several_fine_tunings():
    one, several = (figures.figure_4(results.load(run)).figure.axes[0] for run in ("small", "large"))
    from matplotlib.collections import LineCollection

    whiskers = [[item for item in panel.collections if isinstance(item, LineCollection) and len(item.get_segments())] for panel in (one, several)]
    assert not whiskers[0] and whiskers[1][0].get_segments()[0][:, 1].tolist() == pytest.approx([89, 91])


@pytest.mark.parametrize("tasks", [1, 2, 4, 5, 8, 11])
def test_any_number_of_tasks_has_its_panels_and_axes_named(runs, tasks):
    from collapse_lib.text.tasks import TASKS

    folder = write_run(runs, "many", 1, steps=("train",))
    add(folder, 1, dict.fromkeys(list(TASKS)[:tasks], 0.6))
    shown = [panel for panel in figures.figure_4(results.load("many")).figure.axes if panel.get_visible()]
    assert len(shown) == tasks and shown[0].get_ylabel() == "accuracy (%)" and shown[-1].get_xlabel() == "generation"


def test_svg_is_the_same_each_time():
    table = results.load("small,large")
    assert figures.figure_4(table).svg == figures.figure_4(table).svg


def test_the_interactive_figure_shows_one_task_at_a_time():
    interactive = figures.figure_4_interactive(results.load("small,large"))
    figure = json.loads(interactive.figure.to_json())
    traces, (menu,) = figure["data"], figure["layout"]["updatemenus"]
    assert [button["label"] for button in menu["buttons"]] == ["SST-2", "MRPC", "CoLA"]
    assert [trace["name"] for trace in traces] == [
        *("small", "small, untrained", "always the commonest answer"),
        *("large", "large, untrained", "always the commonest answer"),
    ]
    tasks = {button["label"]: button["args"][0] for button in menu["buttons"]}
    for attribute in ("x", "y", "customdata"):
        assert [trace[attribute] for trace in traces] == tasks["SST-2"][attribute]
    assert traces[0]["y"] == pytest.approx([80, 70, 50]) and traces[0]["customdata"][0] == "80.00% (78.00% to 82.00%)"
    assert traces[0]["error_y"]["array"] == pytest.approx([2] * 3) and traces[0]["error_y"]["arrayminus"] == pytest.approx([2] * 3)
    assert traces[1]["y"] == pytest.approx([60, 60]) and traces[1]["x"] == [0, 7] and traces[2]["y"] == pytest.approx([50, 50])
    assert tasks["MRPC"]["y"][:3] == [[], [], []] and tasks["MRPC"]["y"][3] == pytest.approx([70] * 3)  # the small run did not take it
    titles = [button["args"][1]["title.text"] for button in menu["buttons"]]
    assert figure["layout"]["title"]["text"] == titles[0] and len(set(titles)) == 3
    named = [trace["name"] for trace in traces if trace["showlegend"]]
    assert len(named) == len(set(named)) == 5
    assert tasks["SST-2"]["showlegend"] == [True] * 5 + [False] and tasks["MRPC"]["showlegend"] == [False] * 3 + [True] * 3
    assert "http" not in interactive.html and interactive.name == "classification-accuracy"


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.split("|")] for row in text.splitlines()[2:]]


def test_one_fine_tuning_gives_no_verdict_however_far_apart_the_intervals():
    text = wording.generations_compared(results.load("small,large")).data
    rows = {(cells[1], cells[3]): cells for cells in rows_of(text)}
    assert set(rows) == {("SST-2", "small"), ("SST-2", "large"), ("CoLA", "small"), ("CoLA", "large"), ("MRPC", "large")}
    assert rows["SST-2", "small"][4:7] == ["80.0 (78.0 to 82.0), generation 1", "50.0 (48.0 to 52.0), generation 7", "60.0 (58.0 to 62.0)"]
    assert all(cells[7:9] == ["one fine-tuning: no verdict"] * 2 for cells in rows.values())
    assert "no better than the baseline" in rows["CoLA", "large"][2]


@pytest.mark.parametrize(("tunings", "recorded"), [(2, True), (3, False), (3, True)])
def test_words_come_with_three_fine_tunings_whose_answers_are_known(runs, tunings, recorded):
    """A last model that answers 60% of the rows, a first one 90%, an untrained one 60% of other rows."""
    folder, random = write_run(runs, "several", 2, steps=("train",)), np.random.default_rng(1)
    for generation, share in ((0, 0.6), (1, 0.9), (2, 0.6)):
        right = random.random((tunings, 300)) < share
        add(folder, generation, {"sst2": share}, examples={"sst2": answered(right, recorded)})
    for measure in ("accuracy", "f1"):
        ((*_, first, untrained, _),) = rows_of(wording.generations_compared(results.load("several"), measure).data)
        if tunings == 3 and recorded:
            assert re.fullmatch(r"worse: −\d\d\.\d \(−\d\d\.\d to −\d\d\.\d\)", first), first
            assert re.fullmatch(r"not told apart: [+−]\d\.\d \(−\d+\.\d to \+\d+\.\d\)", untrained), untrained
        else:
            assert first == untrained and first.endswith("no verdict") and first.startswith("2 fine-tunings" if tunings == 2 else "not asked")


def test_lucky_fine_tunings_are_not_called_a_better_model(runs):
    """Intervals over rows alone part these two by far; the fine-tunings of either reach from 50% to 90%."""
    folder = write_run(runs, "lucky", 1, steps=("train",))
    for generation, shares in ((0, (0.5, 0.52, 0.9)), (1, (0.52, 0.92, 0.91))):
        right = np.arange(1000) < 1000 * np.array(shares)[:, None]
        add(folder, generation, {"sst2": float(np.mean(shares))}, examples={"sst2": answered(right)})
    assert rows_of(wording.generations_compared(results.load("lucky")).data)[0][8].startswith("not told apart: +14.3 (−")


def test_the_evidence_of_each_run_is_said(runs):
    one = Run.open("small")
    changes = {
        "classification.tasks": "[yelp, grammar_fits]",
        "classification.seeds": "1",
        "classification.data": "here",
        "classification.notes": "of *mine*",
    }
    write_text(one.folder / "protocol.yaml", one.protocol.with_changes(changes).to_yaml())
    small, large = wording.fine_tunings(results.load("small,large,without")).data.splitlines()
    assert "**small**: one fine-tuning of each model" in small and "nothing here is called better or worse" in small
    assert "Yelp: local files, which were not checked" in html.unescape(small) and "of *mine*" in html.unescape(small) and "*mine*" not in small
    assert "**large**: 3 fine-tunings" in large and "other test rows and other fine-tunings together." in large


def test_titles_say_how_large_the_models_are_and_which_are_smaller(runs):
    sizes = {"small": 1234, "large": 56789}
    for run, size in sizes.items():
        _resize(runs / run, size)
    said = figures.figure_4(results.load("small,large"))
    labels = ["small (1,234 parameters, the smaller model)", "large (56,789 parameters, the larger model)"]
    assert [text.get_text() for text in said.figure.legends[0].get_texts()][:2] == labels and all(label in said.title for label in labels)
    legend, page = said.figure.legends[0].get_window_extent(), said.figure.bbox
    assert page.x0 <= legend.x0 and legend.x1 <= page.x1
    alone = figures.figure_4(results.load("small"))
    assert "small (1,234 parameters)" in alone.title and "smaller" not in alone.svg
    _resize(runs / "large", 1234)
    assert "smaller" not in figures.figure_4(results.load("small,large")).svg


@pytest.mark.parametrize(("figure", "measure"), [("A2", "entropy"), ("A3", "accuracy"), ("A5", "f1")])
def test_pages_that_draw_any_run_do_not_call_it_the_smaller(runs, figure, measure):
    page = wording.paper_figure(figure, among=["2", "A2", "4", "A3", "A4", "A5"])
    _resize(runs / "small", 1234)
    said = wording.page_opening(page, results.load("small")).data
    assert page.measure == measure and said.endswith("Shown here: **small** (1,234 parameters).") and "smaller" not in said
    assert f"**Figure {figure}**" in said and "runs of one size alone do not answer the question" in said.lower()


def test_a_figure_that_a_notebook_does_not_draw_is_refused():
    with pytest.raises(UserError, match=r"^This notebook does not draw a figure 'A9'; choose 2 or A2\.$"):
        wording.paper_figure("A9", among=["2", "A2"])


def _resize(folder, parameters: int) -> None:
    for file in folder.glob("generation-*/metrics/train.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        record["metrics"]["parameters"] = {"value": parameters, "unit": "parameters", "definition": "made up"}
        write_json(file, record)


def test_what_was_not_measured_is_said(runs):
    table = results.load("without")
    for show in (figures.figure_4, figures.figure_4_interactive):
        with pytest.raises(UserError, match=r"^No classification task has been measured yet in without\.$"):
            show(table)
    rows = wording.generations_compared(table).data.splitlines()[2:]
    assert len(rows) == len(REPORTED) and all(row.endswith("| – | – | – | – | – | *not measured* |") for row in rows)
    (runs / "small" / "generation-00" / "manifests" / "classification.json").unlink()
    assert "*not measured*" in wording.generations_compared(results.load("small")).data


def test_runs_without_classification_are_named_with_what_to_do():
    table = results.load("small,without")
    assert finetuned(table) == ["small"]
    said = wording.unclassified(table).data
    assert "**without**" in said and "**small**" not in said
    command = re.search(r"`collapse run without --set '(.*)=(.*)'`", said)
    assert load_preset("smoke").with_changes({"classification.tasks": "[]"}).with_changes({command[1]: command[2]}).classification.tasks
    assert wording.unclassified(results.load("small,large")).data == "Every run shown here has been fine-tuned."
    assert len(figures.figure_4(table).figure.axes) == 2
    run = Run.open("without")
    write_text(run.folder / "protocol.yaml", run.protocol.with_changes({"classification.tasks": "[grammar_fits]"}).to_yaml())
    assert "`collapse run without` does it" in wording.unclassified(table).data


def test_the_table_of_a_step():
    text = wording.task_scores(results.measured("large", 1, "classification")).data
    assert re.search(
        r"\| SST-2 \| is this phrase of a film review positive\? \| 408 \| 90\.0 \(88\.0 to 92\.0\) \| 80\.0 \(78\.0 to 82\.0\) \| 50\.0 \|", text
    )
