"""Figures of several chains and of two sizes of models: what is one experiment, what is averaged, and what stays a single line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import t
from synthetic_runs import add_classification, write_run

from collapse_lib import figures
from collapse_lib.experiment.files import write_json, write_text
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.studies import results
from collapse_lib.studies.chains import experiments, sizes

SIZES = {"small": 200, "large": 400}


def write_chain(root, name: str, seed: int, parameters: int, growth: float, generations: int = 4, **changes: str) -> str:
    """A run whose protocol has this seed and a model of this size."""
    folder = write_run(root, name, generations, growth)
    protocol = Protocol.from_yaml((folder / "protocol.yaml").read_text(encoding="utf-8"), name)
    changes = {"seed": str(seed), "model.num_layers": str(parameters // 100)} | {field.replace("__", "."): value for field, value in changes.items()}
    write_text(folder / "protocol.yaml", protocol.with_changes(changes).to_yaml())
    for file in folder.glob("generation-*/metrics/train.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        record["metrics"]["parameters"] = {"value": parameters, "unit": "parameters", "definition": "made up"}
        write_json(file, record)
    return name


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    return tmp_path


@pytest.fixture
def runs(root) -> list[str]:
    """Three chains of a small model, of which the first goes on to generation 9, and two of a larger one."""
    small = [write_chain(root, f"small-{seed}", seed, 200, 1.2 + 0.05 * seed, 9 if seed == 1 else 4) for seed in (1, 2, 3)]
    return small + [write_chain(root, f"large-{seed}", seed, 400, 1.05 + 0.01 * seed) for seed in (1, 2)]


def test_runs_that_differ_in_their_seeds_are_chains_of_one_experiment(root, runs):
    assert experiments(runs) == {"small-1": ["small-1", "small-2", "small-3"], "large-1": ["large-1", "large-2"]}
    assert list(experiments(["small-3", "small-1"])) == ["small-1"], "it bears the name of its longest"
    write_chain(root, "again", 2, 200, 1.2)
    write_chain(root, "warm", 4, 200, 1.2, sampling__temperature="1.5")
    write_chain(root, "judged", 5, 200, 1.2, gpt_eval__judge="someone")
    found = experiments([*runs, "again", "warm", "judged", "gone"])
    assert found["again"] == ["again"], "a second run of one seed is no second chain"
    assert found["warm"] == ["warm"], "another temperature is another experiment"
    assert found["small-1"] == ["small-1", "small-2", "small-3", "judged"], "how a chain is measured decides nothing about it"
    assert found["gone"] == ["gone"]


def test_sizes_are_compared_on_one_text(root, runs):
    parameters = {"small-1": 200, "large-1": 400, "other": 800, "short": 800}
    write_chain(root, "other", 1, 800, 1.2, corpus__stories="11")
    assert sizes([*runs, "other"], parameters) == ["small-1", "large-1"]
    assert sizes(["small-1", "other"], parameters) == sizes(["small-1"], parameters) == sizes([], {}) == []
    write_chain(root, "short", 1, 800, 1.2)
    assert sizes([*runs, "short"], parameters) == ["small-1", "large-1", "short"]


def test_figure_1_has_a_mean_with_its_interval_where_three_chains_have_come(runs):
    table = results.load(runs)
    absolute, relative = figures.figure_1(table).axes
    labels = [line.get_label() for line in absolute.get_lines()]
    assert labels == ["small-1, 3 chains"] * 4 + ["large-1, 2 chains"] * 2, "two chains have no mean"
    mean, *thin = absolute.get_lines()[:4]
    assert mean.get_xdata().tolist() == [1, 2, 3, 4] and thin[0].get_xdata().tolist() == list(range(1, 10))
    assert mean.get_linewidth() > 2 * thin[0].get_linewidth() and len({line.get_color() for line in (mean, *thin)}) == 1
    last = [line.get_ydata()[3] for line in thin]
    assert mean.get_ydata()[3] == pytest.approx(np.mean(last))
    edges = absolute.collections[0].get_paths()[0].vertices
    reach = t.ppf(0.975, 2) * np.std(last, ddof=1) / np.sqrt(3)
    assert np.ptp(edges[edges[:, 0] == 4][:, 1]) == pytest.approx(2 * reach)
    assert [text.get_text() for text in absolute.texts] == ["large-1, 2 chains", "small-1, 3 chains"], "each experiment is named once"
    assert all(line.get_ydata()[0] == 1 for line in relative.get_lines())
    figure = figures.figure_1_interactive(table).figure
    assert [trace.name for trace in figure.data if trace.showlegend] == ["small-1, 3 chains", "large-1, 2 chains"]
    assert figures.figure_1(table).svg == figures.figure_1(table).svg


def test_a_single_chain_keeps_its_own_standard_errors(runs):
    (panel,) = figures.figure_1(results.load("small-1")).axes
    (line,) = panel.get_lines()
    band = panel.collections[0].get_paths()[0].get_extents()
    assert line.get_marker() == "o" and band.y0 == pytest.approx(3.0 * 0.97)


def test_figure_2_has_a_panel_an_experiment(runs):
    table = results.load(runs)
    small, large, bars, _ = figures.figure_2(table, runs).axes
    assert small.get_title() == "small-1 (200 parameters, the smaller model), 3 chains"
    assert large.get_title() == "large-1 (400 parameters, the larger model), 2 chains"
    entropies = [line for line in small.get_lines() if line.get_label() == "entropy"]
    assert [len(line.get_xdata()) for line in entropies] == [4, 9, 4, 4]
    assert [bar.get_height() for bar in bars.containers[0]] == results.metric(table, "small-1", "oov_lexicon_occurrences")["value"].tolist()


@pytest.mark.parametrize("learned", [True, False])
def test_figure_4_averages_three_chains_and_not_two(root, runs, learned):
    for run in runs:
        for generation, score in ((0, 0.5), (1, 0.7), (4, 0.6)):
            chance = 0.0 if learned or run != "small-2" else 0.2  # one chain of three does not learn the task
            add_classification(root / run, generation, {"sst2": score + 0.01 * int(run[-1]) - chance * (generation == 1)})
    picture = figures.figure_4(results.load(runs))
    (panel,) = picture.axes
    courses = [line for line in panel.get_lines() if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    widths = [line.get_linewidth() for line in courses]
    assert len(courses) == 6 and widths[0] > 2 * widths[1] and len(set(widths[1:])) == 1
    assert courses[0].get_ydata()[1] == pytest.approx(62) and (courses[0].get_color() == "#777777") != learned
    baselines = [line.get_ydata()[0] for line in panel.get_lines() if line.get_linestyle() == "--"]
    assert baselines == pytest.approx([52, 51.5])
    names = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert names[:2] == ["small-1 (200 parameters, the smaller model), 3 chains", "large-1 (400 parameters, the larger model), 2 chains"]
