"""A study's questions, answered by rule, on made-up chains whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pandas import DataFrame
from scipy import stats

from collapse_lib.experiment.errors import UserError
from collapse_lib.studies import inference, results
from collapse_lib.studies.analysis import analyse, measured
from collapse_lib.studies.design import study_from_yaml

FILE = """
name: made-up
base: smoke
generations: 4
seeds: 3
arms:
  replace: {seeds: 5}
  fresh: {sampling.top_k: 500, seeds: 5}
  hot: {sampling.temperature: 1.5}
  cold: {sampling.temperature: 0.5}
  quarter: {corpus.stories: 50, changes_data: true}
measures:
  loss: {metric: perplexity.perplexity, log: true}
  entropy: free_text.entropy
contrasts: [{arm: replace, against: fresh, measure: loss, expected: greater}]
equivalences:
  - {arm: fresh, measure: loss, margin: 0.05}
  - {arm: hot, against: cold, measure: loss, margin: 0.05}
"""
GROWTHS = {
    "replace": [1.30, 1.31, 1.33, 1.29, 1.32],
    "fresh": [1.0, 1.001, 0.999, 1.002, 0.998],
    "hot": [1.5, 1.52, 1.48],
    "cold": [1.30, 1.32, 1.31],
    "quarter": [1.6, 1.7, 1.65],
}


def table(study, growths, generations=None):
    """The tidy table of chains whose perplexity grows by a factor a generation."""
    rows = [
        [f"{study.name}-{arm}-{seed}", arm, seed, generation, step, metric, value, "1", math.nan]
        for arm, of_arm in growths.items()
        for seed, growth in zip(study.seeds_of(arm), of_arm, strict=False)
        for generation in range(1, (generations or study.generations) + 1)
        for step, metric, value in (("perplexity", "perplexity", 3 * growth ** (generation - 1)), ("free_text", "entropy", 5 + generation / 10))
    ]
    return DataFrame(rows, columns=["run", "arm", "seed", *results.COLUMNS[1:]])


def answers(file=FILE, growths=GROWTHS, generations=None):
    study = study_from_yaml(file)
    return analyse(study, table(study, growths, generations))


def logs(arm, generations=3):
    """Rise of the loss over so many generations, by chain."""
    return [generations * math.log(growth) for growth in GROWTHS[arm]]


def test_the_measure_is_a_row_a_chain_and_a_column_a_generation():
    study = study_from_yaml(FILE)
    wide = measured(study, table(study, GROWTHS), "loss")
    assert wide.shape == (5 + 5 + 3 + 3 + 3, 4) and list(wide.columns) == [1, 2, 3, 4]
    assert wide.loc[("hot", 2)].tolist() == pytest.approx([math.log(3 * 1.52**n) for n in range(4)])
    assert measured(study, table(study, GROWTHS), "entropy").loc[("hot", 2)].tolist() == pytest.approx([5.1, 5.2, 5.3, 5.4])


def test_a_contrast_is_reproduced():
    (answer,) = answers().contrasts
    assert answer.verdict == "reproduced" and answer.generation == 4 and answer.planned == answer.test.chains == (5, 5)
    assert answer.test.p == answer.p_holm == pytest.approx(2 / 252)
    assert answer.test.difference == pytest.approx(np.mean(logs("replace")) - np.mean(logs("fresh")))
    by_hand = inference.power(logs("replace")[:2], logs("fresh")[:2], (5, 5), 0.05)
    assert (answer.power.deviation, answer.power.power) == pytest.approx((by_hand.deviation, by_hand.power)) and answer.power.chains == (5, 5)


@pytest.mark.parametrize(
    ("expected", "verdict"), [("expected: less", "contradicted"), ("smallest: 0.1", "different"), ("expected: greater, smallest: 0.1", "reproduced")]
)
def test_what_is_seen_is_held_against_what_was_expected(expected, verdict):
    assert answers(FILE.replace("expected: greater", expected)).contrasts[0].verdict == verdict


def test_what_is_not_seen_is_underpowered_unless_it_is_ruled_out():
    alike = GROWTHS | {"replace": [1.003, 0.997, 1.0, 1.001, 0.999]}
    found = answers(growths=alike).contrasts[0]
    assert found.verdict == "underpowered" and found.test.p > 0.05 and found.test.high < 0.05
    assert answers(FILE.replace("expected: greater", "expected: greater, smallest: 0.05"), alike).contrasts[0].verdict == "contradicted"
    assert answers(FILE.replace("expected: greater", "expected: less, smallest: 0.05"), alike).contrasts[0].verdict == "contradicted"
    assert answers(FILE.replace("expected: greater", "expected: greater, smallest: 0.001"), alike).contrasts[0].verdict == "underpowered"


def test_a_look_before_the_end_decides_nothing():
    (answer,) = answers(growths=GROWTHS | {"fresh": GROWTHS["fresh"][:4]}).contrasts
    assert answer.verdict == "unfinished" and answer.test.chains == (5, 4)


def test_chains_that_have_not_reached_the_generation_do_not_count():
    found = answers(generations=3)
    assert found.contrasts[0].test is None and found.contrasts[0].power is None and found.contrasts[0].p_holm is None
    assert {answer.verdict for answer in (*found.contrasts, *found.equivalences)} == {"unfinished"}
    assert found.comparisons == {} and found.trends == {}


def test_fewer_than_three_chains_have_no_verdict():
    found = answers(FILE.replace("seeds: 5", "seeds: 2"))
    assert found.contrasts[0].verdict == "too few chains" == found.equivalences[0].verdict
    assert found.contrasts[0].test.p is None and found.contrasts[0].power is None


def test_holm_counts_contrasts_without_an_answer():
    file = FILE.replace("equivalences:", "  - {arm: hot, against: cold, measure: loss}\nequivalences:").replace(
        "contrasts: [{arm: replace, against: fresh, measure: loss, expected: greater}]",
        "contrasts:\n  - {arm: replace, against: fresh, measure: loss, expected: greater}",
    )
    found = answers(file, {arm: growths for arm, growths in GROWTHS.items() if arm != "cold"})
    assert found.contrasts[1].test is None and found.contrasts[1].p_holm is None
    assert found.contrasts[0].p_holm == pytest.approx(2 * 2 / 252)


def test_equivalence_paired_and_of_two_samples():
    flat, alike = answers().equivalences
    assert flat.verdict == "reproduced" and flat.test.kind == "paired"
    by_hand = inference.equivalence(logs("fresh"), 0.05)
    assert (flat.test.difference, flat.test.p, flat.test.low) == pytest.approx((by_hand.difference, by_hand.p, by_hand.low))
    assert alike.verdict == "contradicted" and alike.test.kind == "two-sample"
    assert alike.test.difference == pytest.approx(np.mean(logs("hot")) - np.mean(logs("cold")))


def test_other_arms_are_compared_with_the_control_and_those_with_other_data_are_not():
    found = answers().comparisons
    assert list(found) == ["hot", "cold"]
    theirs = stats.dunnett(logs("hot"), logs("cold"), control=logs("replace"), rng=np.random.default_rng(0))
    assert [found["hot"].p, found["cold"].p] == pytest.approx(theirs.pvalue, abs=2e-3)
    across = FILE.replace("log: true}", "log: true, across_data: true}")
    assert list(answers(across).comparisons) == ["hot", "cold", "quarter"]


def test_a_trend_is_a_number_a_chain():
    analysis = answers()
    found = analysis.trends
    assert list(analysis.trend_p_holm.values()) == inference.holm([trend.p for trend in found.values()])
    assert list(found) == list(GROWTHS)
    assert found["replace"].slopes == pytest.approx([math.log(growth) for growth in GROWTHS["replace"]]) and set(found["replace"].taus) == {1.0}
    assert found["replace"].p < 1e-4 and found["fresh"].p > 0.5


def test_what_cannot_be_measured_is_said():
    with pytest.raises(UserError, match="Measure 'loss' of study 'made-up' has no numbers yet, or step 'perplexity' has no metric 'perplexities'"):
        answers(FILE.replace("perplexity.perplexity", "perplexity.perplexities"))
    with pytest.raises(UserError, match="Measure 'loss' of study 'made-up' is a logarithm"):
        answers(growths=GROWTHS | {"hot": [-1.0, 1.0, 1.0]})
