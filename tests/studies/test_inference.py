"""Statistics over chains, against brute force, scipy, and simulations whose truth is known."""

from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from collapse_lib.experiment.errors import UserError
from collapse_lib.studies import inference

numbers = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=3, max_size=4)


def test_five_against_five_can_reach_two_in_252():
    found = inference.permutation([11, 12, 13, 14, 15], [1, 2, 3, 4, 5])
    assert found.p == found.least == pytest.approx(2 / 252) and found.arrangements == 252 and found.difference == 10
    assert inference.permutation([11, 12, 13], [1, 2, 3]).p == pytest.approx(0.1)
    uneven = inference.permutation([11, 12, 13, 14, 15], [1, 2, 3])
    assert uneven.p == uneven.least == pytest.approx(1 / 56)


@settings(max_examples=25)
@given(numbers, numbers)
def test_permutation_is_that_of_every_order_of_the_chains(a, b):
    seen, both = abs(np.mean(a) - np.mean(b)), [*a, *b]
    as_far = [abs(sum(order[: len(a)]) / len(a) - sum(order[len(a) :]) / len(b)) >= seen - 1e-9 for order in permutations(both)]
    assert inference.permutation(a, b).p == pytest.approx(np.mean(as_far))


def test_permutation_is_that_of_scipy():
    rng = np.random.default_rng(3)
    for n, m in ((3, 5), (5, 5), (6, 4)):
        a, b = rng.normal(1, 1, n), rng.normal(0, 2, m)
        theirs = stats.permutation_test((a, b), lambda x, y: abs(np.mean(x) - np.mean(y)), alternative="greater", n_resamples=np.inf)
        found = inference.permutation(a, b)
        assert found.p == pytest.approx(theirs.pvalue)
        welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((welch.low, welch.high))


def test_permutation_rejects_no_more_often_than_its_level():
    """Under no difference, and with chains that scatter as they like, p <= level in at most that share of studies."""
    rng, dealt = np.random.default_rng(11), inference._dealt(5, 5)
    draws = rng.standard_t(2, (4000, 10))
    differences = np.abs(draws @ dealt.T)
    p = np.mean(differences >= differences[:, :1] - 1e-9, axis=1)
    assert [inference.permutation(row[:5], row[5:]).p for row in draws[:50]] == pytest.approx(p[:50])
    for level in (0.01, 0.05, 0.1):
        attainable = math.floor(level * 126) / 126  # p comes in steps of 2 / 252
        assert abs(np.mean(p <= level) - attainable) < 4 * math.sqrt(attainable * (1 - attainable) / 4000)


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(5)
    for chains, level in ((3, 0.95), (5, 0.9)):
        found = [inference.interval(rng.normal(2, 3, chains), level) for _ in range(3000)]
        covered = np.mean([one.low <= 2 <= one.high for one in found])
        assert abs(covered - level) < 4 * math.sqrt(level * (1 - level) / 3000)


def test_interval_is_students():
    values = [1.0, 2.0, 4.0, 3.0]
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = inference.interval(values)
    assert (found.mean, found.low, found.high, found.chains) == pytest.approx((2.5, theirs.low, theirs.high, 4))


def test_holm_by_hand_and_in_any_order():
    assert inference.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert inference.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert inference.holm([0.5, 0.9]) == [1.0, 1.0] and inference.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_procedure_rejects(p_values, level):
    rejected, order = set(), sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(order):
        if p_values[index] * (len(p_values) - rank) > level:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(inference.holm(p_values)) if p <= level} == rejected


def test_dunnett_is_scipys_and_repeats_to_the_bit():
    rng = np.random.default_rng(2)
    control, arms = rng.normal(0, 1, 5), {"one": rng.normal(0, 1, 3), "two": rng.normal(4, 1, 3), "few": np.array([1.0, 2.0])}
    found = inference.dunnett(control, arms)
    theirs = stats.dunnett(arms["one"], arms["two"], control=control, rng=np.random.default_rng(1))
    assert [found["one"].p, found["two"].p] == pytest.approx(theirs.pvalue, abs=2e-3)
    assert [found["one"].low, found["two"].low] == pytest.approx(theirs.confidence_interval(0.95).low, abs=0.05)
    assert found["two"].low > 0 and found["one"].low < 0 < found["one"].high
    assert found["few"].p is None and found["few"].low is None and found["few"].difference == pytest.approx(1.5 - control.mean())
    assert inference.dunnett(control, arms) == found


def test_dunnett_with_one_arm_is_students_test():
    control, arm = [1.0, 2.0, 3.0, 2.5], [3.0, 4.0, 5.5]
    found = inference.dunnett(control, {"arm": arm})["arm"]
    assert found.p == pytest.approx(stats.ttest_ind(arm, control).pvalue)
    assert found.low == pytest.approx(stats.ttest_ind(arm, control).confidence_interval(0.95).low)


def test_equivalence_is_two_one_sided_tests():
    paired, a, b = [0.01, -0.02, 0.015, 0.0], [1.0, 1.1, 0.9, 1.05], [1.02, 1.0, 0.97]
    found = inference.equivalence(paired, 0.05)
    below, above = (stats.ttest_1samp(paired, at, alternative=way).pvalue for at, way in ((-0.05, "greater"), (0.05, "less")))
    assert found.kind == "paired" and found.p == pytest.approx(max(below, above)) and found.chains == (4,)
    found = inference.equivalence(a, 0.2, b)
    below = stats.ttest_ind(np.add(a, 0.2), b, equal_var=False, alternative="greater").pvalue
    above = stats.ttest_ind(np.subtract(a, 0.2), b, equal_var=False, alternative="less").pvalue
    assert found.kind == "two-sample" and found.p == pytest.approx(max(below, above)) and found.chains == (4, 3)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=6), st.floats(0.01, 1))
def test_equivalence_holds_exactly_where_its_interval_lies_within_the_margin(values, margin):
    found = inference.equivalence(values, margin)
    if abs(found.p - 0.05) > 1e-6:
        assert (found.p <= 0.05) == (-margin < found.low and found.high < margin)


def test_equivalence_is_claimed_falsely_no_more_often_than_its_level():
    rng = np.random.default_rng(8)
    claimed = np.mean([inference.equivalence(rng.normal(0.5, 0.1, 5), 0.5).p <= 0.05 for _ in range(3000)])
    assert abs(claimed - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 3000)


def test_a_random_walk_is_a_trend_within_a_chain_and_none_across_chains():
    rng, generations = np.random.default_rng(4), np.arange(1, 11)
    walks = rng.normal(0, 1, (1500, 4, 10)).cumsum(axis=2)
    within = np.mean([stats.kendalltau(generations, chain).pvalue <= 0.05 for chain in walks[:500, 0]])
    across = np.mean([inference.trend([(generations, chain) for chain in study]).p <= 0.05 for study in walks])
    assert within > 0.3 and abs(across - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 1500)


def test_trend_by_hand():
    found = inference.trend([([1, 2, 3], [0, 1, 2]), ([1, 2, 3], [0, 2, 4]), ([1, 2, 4], [5, 4, 6])])
    assert found.taus == pytest.approx((1, 1, 1 / 3)) and found.slopes == pytest.approx((1, 2, stats.linregress([1, 2, 4], [5, 4, 6]).slope))
    assert found.p == pytest.approx(stats.ttest_1samp(found.slopes, 0).pvalue)
    assert found.p_signs == pytest.approx(2 / 8)


@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 2)), min_size=3, max_size=5))
def test_sign_flips_are_all_gone_through(slopes):
    as_far = [abs(np.dot(signs, slopes)) >= abs(sum(slopes)) - 1e-9 for signs in product((1, -1), repeat=len(slopes))]
    assert inference._sign_flips(np.array(slopes)) == pytest.approx(np.mean(as_far))


def test_power_is_the_share_of_studies_that_see_the_difference():
    pilot = inference.power([2.0, 3.0], [0.0, 1.0], (5, 5))  # a difference of 2, a deviation of 0.707
    assert (pilot.difference, pilot.deviation, pilot.degrees) == pytest.approx((2, math.sqrt(0.5), 2))
    rng = np.random.default_rng(9)
    seen = np.mean([inference.permutation(rng.normal(2, pilot.deviation, 5), rng.normal(0, pilot.deviation, 5)).p <= 0.05 for _ in range(600)])
    assert pilot.power == pytest.approx(seen, abs=0.05)
    again = inference.power(np.array([0.0, 1.0]) + pilot.detectable, [0.0, 1.0], (5, 5))
    assert again.power == pytest.approx(0.8, abs=0.02)


def test_power_at_its_limits():
    assert inference.power([1.0, 2.0], [1.0, 2.0], (5, 5)).power <= 0.05 + 0.015  # no difference: the level, or less
    hopeless = inference.power([100.0, 101.0], [0.0, 1.0], (3, 3))  # three against three never get below 0.1
    assert hopeless.power == 0 and hopeless.detectable == math.inf
    with pytest.raises(UserError, match="at least two chains"):
        inference.power([1.0], [1.0, 2.0], (5, 5))


@pytest.mark.parametrize("few", [[1.0], [1.0, 2.0]])
def test_with_too_few_chains_nothing_is_inferred(few):
    enough = [1.0, 2.0, 3.5]
    assert inference.interval(few).low is None
    for found in (inference.permutation(few, enough), inference.permutation(enough, few), inference.equivalence(few, 1.0)):
        assert found.p is None and found.low is None and found.high is None
    assert inference.equivalence(enough, 1.0, few).p is None
    assert inference.trend([([1, 2, 3], [1, 2, 3])] * len(few)).p is None
    assert inference.dunnett(few, {"arm": enough})["arm"].p is None


@pytest.mark.parametrize("bad", [[], [1.0, math.nan, 2.0], [[1.0, 2.0]]])
def test_what_is_no_number_a_chain_is_refused(bad):
    with pytest.raises(UserError, match="one finite number a chain"):
        inference.interval(bad)
    with pytest.raises(UserError, match="arrangements"):
        inference.permutation(range(14), range(14))


def test_chains_that_agree_to_the_last_digit():
    assert inference.permutation([1.0] * 3, [1.0] * 3).p == 1.0
    assert inference.equivalence([0.0] * 3, 0.1).p == 0.0 and inference.equivalence([0.2] * 3, 0.1).p == 1.0
    assert inference.trend([([1, 2, 3], [1.0, 1.0, 1.0])] * 3).p == 1.0
