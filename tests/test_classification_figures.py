"""Figures 4 and A3 to A5 of made-up runs: what is drawn and said, not how it looks."""

from __future__ import annotations

import json
import re

import pytest
from synthetic_runs import write_run

from collapse_lib import classification_figures, results
from collapse_lib.errors import UserError
from collapse_lib.files import write_json, write_text
from collapse_lib.protocol import load_preset
from collapse_lib.run import Run


def add(folder, generation: int, scores: dict[str, float], seed_sd: float | None = None, fine_tunings: int | None = None) -> None:
    """The ``classification`` step of a generation: a score of accuracy and F1 a task, with an interval of two points."""
    value = {"unit": "1", "definition": "made up"}
    metrics = {"mean_accuracy": value | {"value": 0.5}, "tasks": value | {"value": len(scores)}}
    if fine_tunings:
        metrics["fine_tunings"] = value | {"value": fine_tunings}
    for task, score in scores.items():
        for measure, shift in (("accuracy", 0.0), ("f1", -0.1)):
            name = f"{task}_{measure}"
            ends = {"": 0.0, "_low": -0.02, "_high": 0.02}
            metrics |= {f"{name}{end}": value | {"value": score + shift + by, "counts": {"test_rows": 408}} for end, by in ends.items()}
            metrics[f"{name}_majority"] = value | {"value": 0.5 + shift}
            if seed_sd is not None:
                metrics[f"{name}_seed_sd"] = value | {"value": seed_sd}
    head = {"step": "classification", "generation": generation}
    place = folder / f"generation-{generation:02d}"
    write_json(place / "metrics" / "classification.json", head | {"metrics": metrics, "series": {}, "examples": {}, "seconds": 1.0})
    more = {"seconds": 1.0, "device": "a processor", "started": f"2024-01-02T{generation:02d}:00:00+00:00", "versions": {}}
    write_json(place / "manifests" / "classification.json", head | more)


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    small, large = (write_run(tmp_path, name, 7, steps=("train",)) for name in ("small", "large"))
    write_run(tmp_path, "without", 2, steps=("train",))
    for generation, score in ((0, 0.6), (1, 0.8), (4, 0.7), (7, 0.5)):
        add(small, generation, {"sst2": score, "cola": 0.69})
        add(large, generation, {"sst2": score + 0.1, "mrpc": 0.7, "cola": 0.69}, seed_sd=0.01, fine_tunings=3)
    return tmp_path


def test_a_panel_a_task_with_generations_baseline_and_majority():
    panels = classification_figures.classification(results.load("small")).figure.axes
    assert [panel.get_title() for panel in panels] == ["SST-2", "CoLA"]
    line, baseline, majority = panels[0].get_lines()
    assert line.get_xdata().tolist() == [1, 4, 7] and line.get_ydata().tolist() == pytest.approx([80, 70, 50])
    assert list(baseline.get_ydata()) == pytest.approx([60, 60]) and list(majority.get_ydata()) == pytest.approx([50, 50])
    assert (baseline.get_linestyle(), majority.get_linestyle()) == ("--", ":")
    band = panels[0].collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((48, 82))


def test_panels_span_as_many_points_where_they_can():
    for measure in ("accuracy", "f1"):
        heights = [
            high - low
            for low, high in (panel.get_ylim() for panel in classification_figures.classification(results.load("small"), measure).figure.axes)
        ]
        assert heights[1] == pytest.approx(30) and heights[0] > 34


def test_two_sizes_share_the_panels_in_two_colours():
    figure = classification_figures.classification(results.load("small,large"), "f1").figure
    assert [panel.get_title() for panel in figure.axes] == ["SST-2", "MRPC", "CoLA"]
    lines = [line for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    assert len({line.get_color() for line in lines}) == 2
    assert [line.get_ydata()[0] for line in lines] == pytest.approx([70, 80])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["small", "large", "untrained baseline", "always the commonest answer"]


def test_whiskers_stand_where_there_are_several_fine_tunings():
    one, several = (classification_figures.classification(results.load(run)).figure.axes[0] for run in ("small", "large"))
    from matplotlib.collections import LineCollection

    whiskers = [[item for item in panel.collections if isinstance(item, LineCollection) and len(item.get_segments())] for panel in (one, several)]
    assert not whiskers[0] and whiskers[1][0].get_segments()[0][:, 1].tolist() == pytest.approx([89, 91])


@pytest.mark.parametrize("tasks", [1, 2, 4, 5, 8, 11])
def test_any_number_of_tasks_has_its_panels_and_axes_named(runs, tasks):
    from collapse_lib.tasks import TASKS

    folder = write_run(runs, "many", 1, steps=("train",))
    add(folder, 1, dict.fromkeys(list(TASKS)[:tasks], 0.6))
    shown = [panel for panel in classification_figures.classification(results.load("many")).figure.axes if panel.get_visible()]
    assert len(shown) == tasks and shown[0].get_ylabel() == "accuracy (%)" and shown[-1].get_xlabel() == "generation"


def test_svg_is_the_same_each_time():
    table = results.load("small,large")
    assert classification_figures.classification(table).svg == classification_figures.classification(table).svg


def test_the_interactive_figure_shows_one_task_at_a_time():
    interactive = classification_figures.classification_interactive(results.load("small,large"))
    figure = json.loads(json.dumps(interactive.figure.to_plotly_json(), default=lambda value: value.tolist()))
    traces, (menu,) = figure["data"], figure["layout"]["updatemenus"]
    assert [button["label"] for button in menu["buttons"]] == ["SST-2", "MRPC", "CoLA"]
    assert [trace["visible"] for trace in traces] == menu["buttons"][0]["args"][0]["visible"]
    seen = [button["args"][0]["visible"] for button in menu["buttons"]]
    assert all(sum(choice[place] for choice in seen) == 1 for place in range(len(traces)))
    assert traces[0]["y"] == pytest.approx([80, 70, 50]) and traces[1]["name"] == "small, untrained" and traces[1]["y"] == pytest.approx([60, 60])
    named = [trace["name"] for trace in figure["data"] if trace["visible"] and trace.get("showlegend", True)]
    assert len(named) == len(set(named))
    assert "http" not in interactive.html and interactive.name == "classification-accuracy"


def test_beside_the_paper_says_what_can_be_told_apart():
    text = classification_figures.beside_paper(results.load("small,large")).data
    rows = {(cells[1].strip(), cells[3].strip()): [cell.strip() for cell in cells] for cells in (row.split("|") for row in text.splitlines()[2:])}
    assert set(rows) == {("SST-2", "small"), ("SST-2", "large"), ("CoLA", "small"), ("CoLA", "large"), ("MRPC", "large")}
    assert rows["SST-2", "small"][4:8] == ["80.0 (78.0 to 82.0)", "50.0 (48.0 to 52.0)", "60.0 (58.0 to 62.0)", "one fine-tuning: no verdict"]
    assert rows["SST-2", "large"][7] == "worse"
    assert rows["CoLA", "large"][7] == "not told apart" and "no better than the baseline" in rows["CoLA", "large"][2]


def test_two_fine_tunings_carry_no_verdict(runs):
    folder = write_run(runs, "two", 1, steps=("train",))
    add(folder, 0, {"sst2": 0.9}, seed_sd=0.001, fine_tunings=3)
    add(folder, 1, {"sst2": 0.5}, seed_sd=0.001, fine_tunings=2)
    assert "two fine-tunings: no verdict" in classification_figures.beside_paper(results.load("two")).data


def test_pages_say_where_rows_come_from(runs):
    folder = write_run(runs, "mine", 1, steps=("train",))
    changes = {"classification.tasks": "[sst2, grammar_fits]", "classification.data": "some/folder", "description": "Rows of *mine*."}
    write_text(folder / "protocol.yaml", load_preset("smoke").with_changes(changes).to_yaml())
    text = classification_figures.sources(["mine"]).data
    assert "SST-2: from files in a local folder, not compared with the benchmark" in text and "Ending fits: made by the embedded" in text
    assert "Rows of &#42;mine&#42;" in text
    write_text(folder / "protocol.yaml", load_preset("smoke").with_changes(changes | {"classification.data": "null"}).to_yaml())
    assert "SST-2: from the hub" in classification_figures.sources(["mine"]).data


def test_what_was_not_measured_is_said(runs):
    table = results.load("without")
    for show in (classification_figures.classification, classification_figures.classification_interactive):
        with pytest.raises(UserError, match=r"^No classification task has been measured yet in without\.$"):
            show(table)
    rows = classification_figures.beside_paper(table).data.splitlines()[2:]
    assert len(rows) == len(classification_figures.PAPER) and all(row.endswith("| – | – | – | – | *not measured* |") for row in rows)
    (runs / "small" / "generation-00" / "manifests" / "classification.json").unlink()
    assert "*not measured*" in classification_figures.beside_paper(results.load("small")).data


def test_runs_without_classification_are_named_with_what_to_do():
    table = results.load("small,without")
    assert classification_figures.finetuned(table) == ["small"]
    said = classification_figures.unclassified(table).data
    assert "**without**" in said and "**small**" not in said
    command = re.search(r"`collapse run without --set '(.*)=(.*)'`", said)
    assert load_preset("smoke").with_changes({"classification.tasks": "[]"}).with_changes({command[1]: command[2]}).classification.tasks
    assert classification_figures.unclassified(results.load("small,large")).data == "Every run shown here has been fine-tuned."
    assert len(classification_figures.classification(table).figure.axes) == 2
    run = Run.open("without")
    write_text(run.folder / "protocol.yaml", run.protocol.with_changes({"classification.tasks": "[grammar_fits]"}).to_yaml())
    assert "`collapse run without` does it" in classification_figures.unclassified(table).data


def test_the_table_of_a_step():
    text = classification_figures.scores(results.measured("large", 1, "classification")).data
    assert re.search(
        r"\| SST-2 \| is this phrase of a film review positive\? \| 408 \| 90\.0 \(88\.0 to 92\.0\) \| 80\.0 \(78\.0 to 82\.0\) \| 50\.0 \|", text
    )
