"""Figures of the errors and of twins, drawn from made-up measurements: what they show and say, not how it looks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import write_run

from collapse_lib import figures
from collapse_lib.book import wording
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import write_json
from collapse_lib.figures.alpha import plain_ticks
from collapse_lib.figures.twins import DISTANCES
from collapse_lib.figures.twins import POSITIONS as TWIN_POSITIONS
from collapse_lib.studies.twins import comparisons

CONTEXTS, POSITIONS, SMOOTHING = ["", "Once upon", "<b>One</b> | day"], 4, ("0.01", "0.1")


def measurement(generation: int, truth: bool) -> dict:
    """What the step ``alpha`` would have written."""
    steps = {"": 5.0, "_0.01": 1.0, "_0.1": 0.5}
    context = np.array([1.0, 1.2, 1.4])
    series = {
        "counts": [900, 300, 80],
        "learned_counts": [800, 100, 0 if generation > 2 else 3],
        "entropy": context,
        "position_entropy": [2.0] * POSITIONS,
    }
    for suffix, size in steps.items():
        series[f"divergence{suffix}"] = size * context
        series[f"accumulated{suffix}"] = generation * size * context
        series[f"initial_divergence{suffix}"] = size * np.sqrt(generation) * context
    series |= {"initial_tv": 0.1 * generation * context, "tv": 0.1 * context, "initial_kl": context, "kl": context}
    if generation > 1:
        series |= {"drift_tv": [0.01, 0.1, 0.3], "text_tv": [0.02, 0.1, 0.3], "position_first_tv": [0.1 * generation] * POSITIONS}
        if generation > 2:
            series["drift_tv"] = [0.01, 0.1, None]
    if truth:
        series["truth_tv"] = 0.2 * context
    series = {name: np.asarray(values).tolist() for name, values in series.items()}
    metrics = {name: summary(values) for name, values in series.items()}
    metrics |= {
        "contexts": summary([3]),
        "attaining_probability": summary([1e-7]),
        "attaining_rank": summary([1800.0]),
        "attaining_unseen": summary([1.0]),
    }
    top = [{"token": " zoo|", "before": 1e-7, "now": 1e-10}]
    return {"metrics": metrics, "series": series, "examples": {"contexts": CONTEXTS, "attaining": [top, top, top]}, "seconds": 1.0}


def summary(values: list) -> dict:
    there = [value for value in values if value is not None]
    return {"value": float(np.mean(there)), "unit": "1", "definition": "made up", "standard_error": 0.02}


def add_alpha(root, run: str, generations: int, truth: bool = False) -> None:
    for generation in range(1, generations + 1):
        folder, head = root / run / f"generation-{generation:02d}", {"step": "alpha", "generation": generation}
        write_json(folder / "metrics" / "alpha.json", head | measurement(generation, truth))
        manifest = json.loads((folder / "manifests" / "train.json").read_text())
        write_json(folder / "manifests" / "alpha.json", manifest | head)


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    write_run(tmp_path, "demo", 4)
    add_alpha(tmp_path, "demo", 4, truth=True)
    write_run(tmp_path, "one", 1)
    add_alpha(tmp_path, "one", 1)
    write_run(tmp_path, "without", 2)
    return tmp_path


def test_the_sum_of_errors_is_the_median_over_contexts():
    axes = figures.accumulated_errors("demo").figure.axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == ["all tokens", "without the worst 1%", "without the worst 10%"]
    np.testing.assert_allclose(lines["all tokens"].get_ydata(), [6.0 * generation for generation in (1, 2, 3, 4)])
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((5.5, 26.0))  # the middle half of 5, 6, 7 times the generation


def test_the_weight_falls_below_the_memory():
    left, right = figures.initial_weights("demo").figure.axes
    weight, memory = (line.get_ydata() for line in left.get_lines())
    np.testing.assert_allclose(weight, np.exp([-6.0 * generation for generation in (1, 2, 3, 4)]))
    assert (weight <= memory + 1e-12).all() and left.get_yscale() == "log"
    assert {line.get_label() for line in right.get_lines()} >= {"w*", "w* without the worst 1%", "w* without the worst 10%"}


def test_drift_is_drawn_over_the_same_contexts_in_every_generation():
    left, right = figures.sampling_drift("demo").figure.axes[:2]
    assert left.get_lines()[0].get_label().startswith("drawing")
    drift, _, moved = (line.get_xydata().tolist() for line in left.get_lines())
    assert [generation for generation, _ in drift] == [2, 3, 4]
    np.testing.assert_allclose([value for _, value in drift], [0.055] * 3)  # the third came up in generation 2's text and not later
    np.testing.assert_allclose([value for _, value in moved], [0.11] * 3)
    assert left.get_xlabel() == "generation (over 2 of 3 contexts: those in every text)"
    assert len(right.collections[0].get_offsets()) == 3 + 2 + 2


def test_drift_without_a_common_context_has_empty_lines_and_says_so(runs):
    file = runs / "demo" / "generation-02" / "metrics" / "alpha.json"
    record = json.loads(file.read_text())
    record["series"]["drift_tv"] = record["series"]["text_tv"] = [None, None, 0.3]
    write_json(file, record)
    left, right = figures.sampling_drift("demo").figure.axes[:2]
    assert all(len(line.get_xdata()) == 0 for line in left.get_lines()) and len(right.collections[0].get_offsets()) == 1 + 2 + 2
    assert "0 of 3 contexts" in left.get_xlabel()


def test_means_over_nested_contexts_have_no_band_and_those_over_positions_have():
    """Also where an older version recorded a standard error for both."""
    assert not figures.sampling_drift("demo").figure.axes[0].collections
    for panel, counted in zip(figures.memory("demo").figure.axes, (2, 1), strict=True):
        labels = [line.get_label() for line in panel.get_lines()]
        assert [label.startswith("counted, 3 of 3 contexts") for label in labels] == [True] * counted + [False]
        (band,) = panel.collections
        low, high = (getattr(band.get_paths()[0].get_extents(), end) for end in ("y0", "y1"))
        positions = panel.get_lines()[-1].get_ydata()
        assert (low, high) == pytest.approx((positions.min() - 0.02, positions.max() + 0.02))


def test_a_context_without_a_value_somewhere_is_left_out_everywhere(runs):
    file = runs / "demo" / "generation-03" / "metrics" / "alpha.json"
    record = json.loads(file.read_text())
    record["series"]["truth_tv"][2] = record["series"]["accumulated"][2] = None
    write_json(file, record)
    line = next(line for line in figures.memory("demo").figure.axes[0].get_lines() if "grammar" in line.get_label())
    assert "2 of 3" in line.get_label()
    np.testing.assert_allclose(line.get_ydata(), [0.22] * 4)
    axes = figures.accumulated_errors("demo").figure.axes[0]
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), [5.5 * generation for generation in (1, 2, 3, 4)])
    assert axes.get_legend().get_title().get_text() == "2 of 3 contexts"


def test_memory_shows_the_law_of_the_grammar_where_there_is_one():
    labels = {run: [line.get_label() for line in figures.memory(run).figure.axes[0].get_lines()] for run in ("demo", "one")}
    assert any("grammar" in label for label in labels["demo"]) and not any("grammar" in label for label in labels["one"])


def test_every_figure_can_be_drawn_of_a_single_generation():
    for draw in (figures.accumulated_errors, figures.initial_weights, figures.sampling_drift, figures.memory):
        picture = draw("one")
        assert len(picture.svg) > 1000 and picture.svg == draw("one").svg and "one" in picture.title


def test_the_interactive_figure_has_a_line_a_context_and_takes_no_markup_from_them():
    interactive = figures.accumulated_errors_interactive("demo")
    traces = interactive.figure.data
    assert len(traces) == len(CONTEXTS) + 1 and traces[-1].name == "median"
    assert list(traces[0].y) == [5.0, 10.0, 15.0, 20.0] and "&#60;b&#62;" in traces[2].name and "<" not in traces[2].name
    (menu,) = interactive.figure.layout.updatemenus
    assert [button.label for button in menu.buttons] == ["all tokens", "without the worst 1%", "without the worst 10%"]
    assert "http" not in interactive.html


def test_tables_show_tokens_as_text():
    table = wording.attaining_tokens(measurement(2, False)).data
    assert "<b>" not in table and all(row.count("|") == 7 for row in table.splitlines())
    assert "1,000" in table and "1e-07" in table and "story's beginning" in table
    rows = wording.attaining_by_generation("demo").data.splitlines()[2:]
    assert len(rows) == 4 and all(row.count("|") == 6 and "1,800" in row and "100%" in row for row in rows)


def test_the_words_are_those_of_the_numbers():
    text = wording.errors_in_words("demo").data
    assert "add up to 24.0 nats" in text and "10<sup>-10.4</sup>" in text
    assert "moved 0.110 over the 2 of 3 contexts that came up in the text before it, more than the 0.055 by which" in text and "±" not in text
    assert "generation 1" in wording.errors_in_words("one").data and "came up" not in wording.errors_in_words("one").data


def test_a_run_without_the_step_is_said():
    for draw in (figures.accumulated_errors, wording.errors_in_words, figures.accumulated_errors_interactive):
        with pytest.raises(UserError, match="'without' has no finished step 'alpha' yet"):
            draw("without")


def comparison(excess: float, error: float | None = 0.01) -> dict:
    """What ``twins.compare`` would have written: twins that are ``excess`` farther apart than seeds in the last generation."""

    def part(apart: float) -> dict:
        pairs = {"twin": 0.2 + apart, "both": 0.21 + apart, "reseeded": 0.2, "excess": apart, "excess_both": 0.01 + apart}
        kinds = {pair: {kind: {"value": value, "standard_error": error} for kind in ("tv", "js")} for pair, value in pairs.items()}
        return {"contexts": 40, "stories": 20} | kinds

    texts = {"twin": 0.3, "both": 0.3, "reseeded": 0.1}
    generations = [{"generation": 0, "unigram_tv": texts}]
    generations += [{"generation": n, "unigram_tv": texts, "positions": {"chain": part(apart)}} for n, apart in ((1, 0.4), (2, 0.3), (3, excess))]
    names = {"chain": "demo", "twin": "demo-twin", "reseeded": "demo-reseeded"}
    fields = {"chain": {"corpus.seed": None, "seed": 1}, "twin": {"corpus.grammar": "twin"}, "reseeded": {"seed": 2}}
    fields["chain"]["corpus.grammar"] = "standard"
    return {"runs": names, "fields": fields, "generations": generations} | {name: dict.fromkeys(names, 1500) for name in ("train_stories", "epochs")}


@pytest.mark.parametrize(("excess", "error", "added"), [(0.2, 0.01, "0.210 ± 0.010"), (-0.2, 0.01, "-0.190 ± 0.010"), (0.2, None, "0.210")])
def test_one_chain_of_each_kind_is_no_verdict(excess, error, added):
    """What counts are two pairs that both differ in their seeds, not the twin that shares them."""
    text = wording.twins_in_words([comparison(excess, error)]).data
    assert f"adds between these chains, is {added} (" in text and "One chain of each kind: no verdict." in text
    for verdict in ("depends", "forgotten", "no trace", "told from chance", "nearer than", "farther than", "remembers"):
        assert verdict not in text


def test_the_committed_comparison_is_read_by_its_right_contrast(monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(Path(__file__).parents[2] / "papermill_runs"))
    records = comparisons("tinystories-small")
    text = wording.twins_in_words(records).data
    assert "is 0.0105 ± 0.0068 (0.0634 ± 0.0076)" in text and "0.026" not in text
    figures.twin_distances(records[0]), figures.twin_distances_interactive(records[0])


@pytest.mark.parametrize("parts", [["chain"], ["chain", "twin"]])
def test_twins_are_drawn_pair_by_pair_with_what_the_corpus_adds_and_their_texts(parts):
    record = comparison(0.2)
    for found in record["generations"][1:]:
        found["positions"] = dict.fromkeys(parts, found["positions"]["chain"])
    *several, adds, texts = figures.twin_distances(record).figure.axes
    assert len(several) == len(parts)
    for models in several:
        np.testing.assert_allclose(models.get_lines()[0].get_ydata(), [0.6, 0.5, 0.4])
    *added, zero = adds.get_lines()
    assert len(added) == len(adds.collections) == len(parts) and set(zero.get_ydata()) == {0}
    for line, band in zip(added, adds.collections, strict=True):
        np.testing.assert_allclose(line.get_ydata(), [0.41, 0.31, 0.21])  # excess_both, and not the 0.40 of excess
        assert band.get_paths()[0].get_extents().y1 == pytest.approx(0.42)
    assert [line.get_xdata().tolist() if hasattr(line.get_xdata(), "tolist") else list(line.get_xdata()) for line in texts.get_lines()] == [
        [0, 1, 2, 3]
    ] * 3
    table = wording.twins_setup(comparison(0.2)).data
    assert "| corpus.grammar | standard | twin | standard |" in table and "| seed | 1 | 1 | 2 |" in table and "1,500" in table
    assert re.search(r"\| corpus.seed \| – \| – \| – \|", table)


@pytest.mark.parametrize("parts", [["chain"], ["chain", "twin"]])
def test_the_interactive_twins_hold_what_was_recorded(parts):
    record = comparison(0.2)
    for found in record["generations"][1:]:
        found["positions"] = dict.fromkeys(parts, found["positions"]["chain"])
    record["generations"][2]["positions"][parts[-1]] = json.loads(json.dumps(record["generations"][1]["positions"]["chain"]))
    record["generations"][2]["positions"][parts[-1]]["both"]["js"] = {"value": 0.125, "standard_error": None}
    figure = figures.twin_distances_interactive(record).figure
    menu = {button.label: button.args for button in figure.layout.updatemenus[0].buttons}
    assert len(menu) == 2 * len(parts) + 1
    for part, kind in ((part, kind) for part in parts for kind in ("tv", "js")):
        data, axis = menu[f"{DISTANCES[kind][0]}, {TWIN_POSITIONS[part]}"]
        for place, pair in enumerate(["twin", "both", "reseeded", "excess_both"]):
            kept = [found["positions"][part][pair][kind] for found in record["generations"][1:]]
            assert data["x"][place] == [1, 2, 3] and data["y"][place] == [one["value"] for one in kept]
            assert data["error_y.array"][place] == [one["standard_error"] for one in kept]
        assert axis["yaxis.title.text"] == DISTANCES[kind][1]
    assert data["y"][1][1] == 0.125 and data["customdata"][1][1] == "0.125"  # the one that has no error
    first = menu[next(iter(menu))][0]
    assert [list(trace.y) for trace in figure.data] == first["y"] and [list(trace.customdata) for trace in figure.data] == first["customdata"]
    assert first["customdata"][0][0] == "0.600 ± 0.010"
    texts, _ = menu["frequencies of tokens in their texts"]
    assert texts["x"] == [[0, 1, 2, 3]] * 4 and [values[0] for values in texts["y"]] == pytest.approx([0.3, 0.3, 0.1, 0.2])
    assert figure.data[3].name == "what another initial corpus adds: ▲ less ■"
    assert [trace.marker.symbol for trace in figure.data] == ["circle", "triangle-up", "square", "diamond"]


def test_runs_without_twins_are_named():
    assert "Not compared with twins: **without**. `collapse twins without`" in wording.uncompared("demo,without", [comparison(0.2)]).data
    assert wording.uncompared("demo", [comparison(0.2)]).data == "Every run shown here has been compared with its twins."


@pytest.mark.parametrize(
    ("ends", "labels"), [((0.002, 0.03), ["0.002", "0.005", "0.01", "0.02"]), ((1e-4, 1.0), ["0.0001", "0.001", "0.01", "0.1", "1"])]
)
def test_logarithmic_axes_have_plain_labels_that_fit(ends, labels):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set(yscale="log", ylim=ends)
    plain_ticks(axes.yaxis)
    axes.figure.draw_without_rendering()
    inside = [tick.label1.get_text() for tick in axes.yaxis.get_major_ticks() if ends[0] <= tick.get_loc() <= ends[1]]
    assert inside == labels and not any(tick.label1.get_text() for tick in axes.yaxis.get_minor_ticks())


def test_twins_of_two_generations_can_be_drawn_and_told():
    record = comparison(0.2)
    del record["generations"][3:]
    assert len(figures.twin_distances(record).svg) > 1000
    interactive = figures.twin_distances_interactive(record)
    assert interactive.figure.layout.xaxis.dtick == 1 and interactive.name == "twins-demo" and "http" not in interactive.html
    assert "in generation 2 (generation 1: " in wording.twins_in_words([record]).data
