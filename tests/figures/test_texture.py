"""Figures of the text as a whole, of made-up runs; and real text on Figure 2."""

from __future__ import annotations

import json

import numpy as np
import pytest
from synthetic_runs import EVALUATED, write_run

from collapse_lib import figures
from collapse_lib.experiment.errors import UserError
from collapse_lib.figures.texture import MEASURES
from collapse_lib.studies import results
from collapse_lib.studies.fates import null_band


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    write_run(tmp_path, "seen", 5, steps=EVALUATED)
    write_run(tmp_path, "other", 4, steps=EVALUATED)
    write_run(tmp_path, "bare", 3)
    return tmp_path


def test_a_single_run_has_its_band_and_what_real_stories_have():
    table = results.load("seen")
    panels = dict(zip(MEASURES, figures.texture_measures(table).axes, strict=True))
    bleu = panels["self_bleu"]
    assert [line.get_label() for line in bleu.get_lines()] == ["seen", "real stories"] and set(bleu.get_lines()[1].get_ydata()) == {0.55}
    band, drawn = null_band(table, "seen", "self_bleu"), bleu.collections[0].get_paths()[0].get_extents()
    assert bleu.collections[0].get_label() == "95% band, within run" and (drawn.y0, drawn.y1) == pytest.approx((band.low.min(), band.high.max()))
    assert [line.get_label() for line in panels["conditional_entropy"].get_lines()] == ["seen"]


def test_several_runs_have_lines_and_no_band():
    bleu = figures.texture_measures(results.load("seen,other,bare")).axes[list(MEASURES).index("self_bleu")]
    assert [line.get_label() for line in bleu.get_lines()][:2] == ["seen", "other"] and len(bleu.collections) == 2


def test_a_reader_chooses_a_measure_from_a_list():
    menu = figures.texture_measures_interactive(results.load("seen"), "seen").figure.layout.updatemenus[0]
    assert [button.label for button in menu.buttons] == list(MEASURES.values())


def test_histograms_are_shares_over_the_first_ones_outline():
    axes = figures.likelihoods(results.load("seen"), "seen").axes
    assert [panel.get_title(loc="left") for panel in axes] == [f"generation {generation}" for generation in range(1, 6)]
    for panel, generation in zip(axes, range(1, 6), strict=True):
        filled, outline = (patch.get_data() for patch in panel.patches)
        counts = np.array(results.measured("seen", generation, "texture")["series"]["likelihood_counts"])
        assert filled.values == pytest.approx(counts / counts.sum())
        assert outline.values.tolist() == axes[0].patches[0].get_data().values.tolist()
    assert axes[0].get_xscale() == "log"


@pytest.mark.parametrize("draw", [figures.texture_measures_interactive, figures.likelihoods])
def test_a_run_that_was_not_looked_at_is_refused(draw):
    with pytest.raises(UserError, match="'bare'"):
        draw(results.load("bare"), "bare")
    with pytest.raises(UserError, match=r"as a whole yet in bare\.$"):
        figures.texture_measures(results.load("bare"))


def test_figure_2_shows_real_text_where_it_was_measured(runs):
    file = runs / "seen" / "generation-01" / "metrics" / "free_text.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    for name, value in (("initial_entropy", 4.5), ("initial_oov_lexicon_occurrences", 7)):
        record["metrics"][name] = {"value": value, "unit": "1", "definition": "made up"}
    file.write_text(json.dumps(record), encoding="utf-8")
    entropy, words = figures.figure_2(results.load("seen"), "seen").axes
    assert set(entropy.get_lines()[-1].get_ydata()) == {4.5} and set(words.get_lines()[-1].get_ydata()) == {7.0}
    traces = figures.figure_2_interactive(results.load("seen"), "seen").figure.data
    assert [set(trace.y) for trace in traces[3:]] == [{7.0}, {4.5}]
    assert len(figures.figure_2(results.load("other"), "other").axes[0].get_lines()) == 1
