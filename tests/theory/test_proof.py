"""Section 2's mathematics: every check of the chapters with its expected values, and its statements on generated distributions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from collapse_lib.experiment.errors import UserError
from collapse_lib.figures.theory import Curve, draw, turn
from collapse_lib.theory import proof as theory

ANY = settings(max_examples=150, deadline=None)
START = np.array([0.4, 0.3, 0.2, 0.1])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@st.composite
def distributions(draw_from, rows: int | None = None, least: float = 1e-6):
    """Positive distributions over 2 to 12 tokens, [K] or [rows, K], with ratios up to a million."""
    tokens = draw_from(st.integers(2, 12))
    shape = (tokens,) if rows is None else (rows, tokens)
    weights = draw_from(arrays(float, shape, elements=st.floats(np.log(least), 0))).astype(float)
    p = np.exp(weights)
    return p / p.sum(axis=-1, keepdims=True)


@st.composite
def chains(draw_from):
    return draw_from(distributions(rows=draw_from(st.integers(2, 12))))


@st.composite
def contexts(draw_from):
    """Counts with at least one token in them, and a positive model."""
    model = draw_from(distributions())
    counts = draw_from(arrays(np.int64, model.shape, elements=st.integers(0, 1000)))
    counts[draw_from(st.integers(0, model.size - 1))] += 1
    return counts, model


# Chapter 1


@given(contexts())
@ANY
def test_t1_proposition_1_holds_and_its_minimum_is_a_divergence(context):
    counts, model = context
    alpha, phantoms = theory.minimal_error(counts, model)
    total = counts.sum() + alpha
    assert phantoms.min() >= -1e-12 * total and np.isclose(phantoms.sum(), alpha, rtol=1e-9, atol=1e-9 * total)
    np.testing.assert_allclose((counts + phantoms) / total, model, rtol=1e-12)
    np.testing.assert_allclose(np.log(total / counts.sum()), theory.divergence(counts / counts.sum(), model), rtol=0, atol=1e-12)
    smaller = alpha - 1e-6 * total
    assert (model * (counts.sum() + smaller) - counts).min() < 0, "no smaller alpha would do"


def test_t1_generically_one_token_has_no_phantoms(rng):
    for _ in range(200):
        _, phantoms = theory.minimal_error(rng.multinomial(500, rng.dirichlet(np.ones(20))), rng.dirichlet(np.ones(20)))
        assert (np.abs(phantoms) < 1e-9 * phantoms.sum()).sum() == 1


def test_t1_a_perfect_copy_has_no_error():
    alpha, phantoms = theory.minimal_error([5, 3, 2, 0], [0.5, 0.3, 0.2, 0.0])
    assert abs(alpha) < 1e-12 and np.abs(phantoms).max() < 1e-12


def test_the_cat_of_the_first_chapter():
    alpha, phantoms = theory.minimal_error([5, 3, 2, 0], START)
    assert alpha == pytest.approx(2.5) and phantoms == pytest.approx([0, 0.75, 0.5, 1.25])


def test_a_model_that_rules_out_a_counted_token_has_no_finite_error():
    assert theory.divergence([0.5, 0.5], [1.0, 0.0]) == np.inf
    assert theory.divergence([1.0, 0.0], [0.5, 0.5]) == pytest.approx(np.log(2))
    with pytest.raises(UserError, match="above zero"):
        theory.minimal_error([1, 1], [1.0, 0.0])


@given(distributions(), st.integers(0, 11))
@ANY
def test_t9_at_a_context_seen_once_the_error_is_the_loss(model, token):
    token %= model.size
    assert theory.log_surplus(np.eye(model.size)[token], model) == pytest.approx(-np.log(model[token]), abs=1e-9)


# Chapter 2


@given(chains(), st.floats(1, 1e9))
@ANY
def test_t2_the_share_of_the_corpus_by_errors_and_by_divergences(chain, tokens):
    total, alphas = tokens, []
    for before, after in pairwise(chain):
        alphas.append(theory.minimal_error(total * before, after)[0])
        total += alphas[-1]
    np.testing.assert_allclose(np.log(tokens / (tokens + np.sum(alphas))), theory.log_weights(chain)[-1], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(theory.log_totals(chain, tokens)[-1], np.log(total), rtol=1e-10, atol=1e-10)
    errors = np.exp(theory.log_errors(chain, tokens))
    np.testing.assert_allclose(errors, alphas, rtol=1e-6, atol=1e-9 * total)


@given(chains())
@ANY
def test_equation_3_rebuilds_every_chain_from_its_errors(chain):
    assert theory.relative_errors(chain).min() >= -1e-12
    np.testing.assert_allclose(theory.solution(chain), chain, rtol=0, atol=1e-12)


def test_t2_goes_on_where_y_overflows():
    chain = theory.alternating(3000)
    assert theory.log_totals(chain, 10)[-1] == pytest.approx(np.log(10) + 1500 * np.log(3))
    np.testing.assert_allclose(theory.solution(chain), chain, rtol=0, atol=1e-12)


@given(chains())
@ANY
def test_t3_what_is_contained_bounds_what_is_far(chain):
    weight, memory = theory.log_weights(chain), theory.log_memory(chain)
    assert np.all(memory >= weight - 1e-12) and np.all(memory <= 1e-12)
    assert np.all(theory.total_variation(chain[0], chain) <= 1 - np.exp(memory) + 1e-12)
    kl = theory.relative_entropy(chain[0], chain)
    assert np.all(kl <= -memory + 1e-12) and np.all(kl >= -1e-12)
    contained = chain - np.exp(memory)[:, None] * chain[0]
    assert contained.min() >= -1e-12 and np.all(contained.min(axis=1) <= 1e-12), "w* is attained and no more"


def test_t3_a_thousand_tokens_and_ten_generations():
    rng = np.random.default_rng(1)
    start = rng.dirichlet(np.ones(1000))
    chain = theory.drift(start, 20_000, 10, 1, rng, 0.5)[:, 0]
    assert 1e-11 < np.exp(theory.log_weights(chain)[-1]) < 1e-7
    assert 0.005 < np.exp(theory.log_memory(chain)[-1]) < 0.06
    assert theory.total_variation(start, chain[-1]) == pytest.approx(0.23, abs=0.03)


# Chapter 3


def test_t4_diverges_and_returns():
    chain = theory.alternating(40)
    np.testing.assert_allclose(theory.step_divergences(chain), np.log([2, 1.5] * 20), rtol=1e-12)
    np.testing.assert_allclose(np.exp(theory.log_weights(chain)[::2]), 3.0 ** -np.arange(21), rtol=1e-10)
    assert np.all(theory.log_memory(chain)[::2] == 0)


def test_t5_diverges_and_converges_to_the_corpus():
    chain, even = theory.closing_in(1000), np.arange(2, 1001, 2)
    np.testing.assert_allclose(-theory.log_weights(chain)[2::2], np.log(2 * even), rtol=1e-10)
    np.testing.assert_allclose(theory.total_variation(chain[0], chain)[2::2], 1 / (4 * even), rtol=1e-9)
    assert np.exp(theory.log_memory(chain)[-1]) == pytest.approx(0.9995, abs=1e-12)


@given(distributions(rows=2))
@ANY
def test_t6_converges_and_forgets(starts):
    one, two = (theory.towards_uniform(start, 60) for start in starts)
    assert theory.total_variation(one[-1], two[-1]) < 1e-12
    largest = max(starts[0].max() * starts.shape[1], 1)
    assert -theory.log_weights(one)[-1] == pytest.approx(np.log(largest), abs=1e-9) == -theory.log_memory(one)[-1]


def test_t6_as_the_chapter_has_it():
    chain = theory.towards_uniform((0.7, 0.1, 0.1, 0.1), 60)
    np.testing.assert_allclose(chain[1:], (chain[:-1] + 0.25) / 2, rtol=0, atol=1e-15)
    assert -theory.log_weights(chain)[-1] == pytest.approx(1.02962, abs=1e-5)
    assert np.exp(theory.log_memory(chain)[-1]) == pytest.approx(0.35714, abs=1e-5)


def test_t7_converges_without_deviation():
    chain = np.array([[0.7, 0.3], [0.3, 0.7], *[[0.7, 0.3]] * 20])
    steps = theory.step_divergences(chain)
    assert np.all(steps[:2] > 0) and np.all(steps[2:] == 0) and theory.total_variation(chain[0], chain[-1]) == 0
    assert np.all(np.isneginf(theory.log_errors(chain, 5)[2:]))


def test_t8_converges_and_is_not_o_of_one_over_j():
    from scipy.special import zeta

    terms = theory.sparse_terms(1_000_000)
    limit = 2 * zeta(2) - zeta(4)
    assert limit == pytest.approx(2.207545, abs=1e-6) and 0 < limit - terms.sum() < 1.001e-3
    squares = np.arange(1, 1001) ** 2
    np.testing.assert_allclose(squares * terms[squares - 1], 1)
    assert (terms * np.arange(1, 1_000_001) > 0.5).sum() == squares.size, "and nowhere else"


# Chapter 4


def test_t10_diversity_decays_as_it_should(rng):
    chain = theory.drift(START, 50, 50, 4000, rng)
    kept = theory.heterozygosity(chain).mean(axis=1) / theory.heterozygosity(START)
    expected = theory.kept_heterozygosity(50, np.arange(51))
    assert expected[50] == pytest.approx(0.36417, abs=1e-5)
    np.testing.assert_allclose(kept, expected, rtol=0, atol=0.025)
    np.testing.assert_allclose(chain.mean(axis=1), np.tile(START, (51, 1)), rtol=0, atol=0.035)
    np.testing.assert_allclose(chain[:, :, 1].var(axis=1), theory.drift_variance(0.3, 50, np.arange(51)), rtol=0.1, atol=1e-3)


def test_t10_at_the_papers_size():
    assert 1 - theory.kept_heterozygosity(6e8, 40) == pytest.approx(6.7e-8, rel=0.01)


def test_t10b_who_wins_and_when(rng):
    last = theory.drift(START, 20, 300, 3000, rng)[-1]
    assert (last.max(axis=1) == 1).mean() > 0.999
    np.testing.assert_allclose(last.mean(axis=0), START, rtol=0, atol=0.045)
    exact = theory.exact_fixation_times(100)
    np.testing.assert_allclose(theory.fixation_time([0.5, 0.1], 100), [138.63, 65.02], rtol=0, atol=0.01)
    np.testing.assert_allclose(exact[[50, 10]], theory.fixation_time([0.5, 0.1], 100), rtol=0.04)
    path = theory.drift((0.5, 0.5), 100, 1200, 600, rng)[:, :, 0]
    assert ((path > 0) & (path < 1)).sum(axis=0).mean() == pytest.approx(exact[50], rel=0.15)


@pytest.mark.parametrize(
    ("mutation", "values"), [(0.0, {1: 0.71709, 5: 0.31658, 20: 0.17166, 5000: 0.14738}), (0.05, {1: 0.62273, 5: 0.15123, 20: 0.00537, 5000: 0.0})]
)
def test_t11_what_is_remembered(mutation, values):
    matrix = theory.resampling_matrix(10, mutation)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    for generation, value in values.items():
        power = np.linalg.matrix_power(matrix, generation)[1:-1]
        assert theory.mutual_information(np.full(9, 1 / 9), power) == pytest.approx(value, abs=6e-6)


@given(distributions(), distributions(rows=5), distributions(rows=12))
@ANY
def test_t11_information_never_increases(prior, first, second):
    first = np.resize(first, (prior.size, first.shape[1]))
    second = np.resize(second, (first.shape[1], second.shape[1]))
    first, second = (matrix / matrix.sum(axis=1, keepdims=True) for matrix in (first, second))
    before, after = theory.mutual_information(prior, first), theory.mutual_information(prior, first @ second)
    assert -1e-9 <= after <= before + 1e-9


def test_t12_the_rare_go_first(rng):
    q = theory.extinction(50)
    assert q[10] ** 5 == pytest.approx(0.42262, abs=1e-5) and q[50] ** 20 == pytest.approx(0.46416, abs=1e-5)
    assert [theory.median_loss(m) for m in (1, 5, 20, 100)] == [2, 13, 56, 286]
    counts = np.full(20_000, 5)
    for _ in range(10):
        counts = rng.binomial(100_000, counts / 100_000)
    assert (counts == 0).mean() == pytest.approx(q[10] ** 5, abs=0.018)


def test_t12b_distinct_survivors(rng):
    assert theory.expected_survivors(1000) == pytest.approx(632.3, abs=0.05)
    drawn = [np.unique(rng.integers(0, 1000, 1000)).size for _ in range(500)]
    assert np.mean(drawn) == pytest.approx(632.3, abs=3)


def test_t18_entropy_of_a_sample_is_too_low(rng):
    assert theory.entropy_loss(1000, 1e4) == pytest.approx(0.04995)
    loss = np.log(1000) - theory.entropy(rng.multinomial(10_000, np.full(1000, 1e-3), 200) / 10_000).mean()
    assert loss == pytest.approx(0.04995, rel=0.03)


# Chapter 5


def test_t13_a_gaussian_refitted_to_itself(rng):
    means, variances = theory.refit_gaussian(100, 50, 3000, rng)
    kept = theory.kept_heterozygosity(100, 50)
    assert kept == pytest.approx(0.60501, abs=1e-5) and 1 - kept == pytest.approx(0.39499, abs=1e-5)
    assert variances[-1].mean() == pytest.approx(kept, abs=5 * variances[-1].std() / np.sqrt(3000))
    assert means[-1].var() == pytest.approx(1 - kept, abs=0.06)


@pytest.mark.parametrize(("tokens", "value"), [(10, 0.937151), (100, 0.993567)])
def test_t14_accumulating_keeps_nearly_everything(tokens, value):
    assert theory.kept_accumulating(tokens) == pytest.approx(value, abs=1e-6)
    assert theory.kept_accumulating(tokens, 1_000_000) == pytest.approx(value, abs=1e-6)


def test_t14_simulated(rng):
    kept = theory.heterozygosity(theory.drift_accumulating(START, 10, 60, 3000, rng)).mean(axis=1) / theory.heterozygosity(START)
    np.testing.assert_allclose(kept, [theory.kept_accumulating(10, n) for n in range(61)], rtol=0, atol=0.012)


@pytest.mark.parametrize(("tokens", "share", "value"), [(50, 0.1, 0.903846), (50, 0.5, 0.973684), (500, 0.02, 0.951877)])
def test_t15_mixing_in_real_text(rng, tokens, share, value):
    assert theory.kept_mixing(tokens, share) == pytest.approx(value, abs=1e-6)
    chain = theory.drift_mixing(START, tokens, round(tokens * share), 80, 1500, rng)
    kept = theory.heterozygosity(chain).mean(axis=1) / theory.heterozygosity(START)
    np.testing.assert_allclose(kept, theory.kept_mixing(tokens, share, np.arange(81)), rtol=0, atol=0.02)


def test_t15_without_real_text_is_drift():
    np.testing.assert_allclose(theory.kept_mixing(50, 0.0, np.arange(50)), theory.kept_heterozygosity(50, np.arange(50)), rtol=1e-12)


def test_t16_smoothing_forgets(rng):
    factor = theory.smoothing_factor(50, 10, 0.5)
    assert factor == pytest.approx(0.90909, abs=1e-5) and 0.1 + 0.9 * factor**10 == pytest.approx(0.446989, abs=1e-6)
    chain = theory.drift(np.eye(10)[0], 50, 10, 4000, rng, smoothing=0.5)
    np.testing.assert_allclose(chain.mean(axis=1), 0.1 + factor ** np.arange(11)[:, None] * (np.eye(10)[0] - 0.1), rtol=0, atol=0.025)


@given(distributions(), st.floats(0.7, 1.4), st.integers(0, 10))
@ANY
def test_t17_temperature_one_generation_after_the_other(p, temperature, generations):
    step = p
    for _ in range(generations):
        step = theory.sharpen(step, temperature)
    np.testing.assert_allclose(step, theory.sharpen(p, temperature, generations), rtol=1e-6, atol=1e-9)


def test_t17_as_the_chapter_has_it():
    assert theory.sharpen(START, 0.9, 20).max() == pytest.approx(0.9114, abs=1e-4)
    assert theory.entropy(theory.sharpen(START, 1.1, 20)) == pytest.approx(1.38338, abs=1e-5)
    np.testing.assert_allclose(theory.sharpen([0.75, 0.25, 0.0], 0.5, 1), [0.9, 0.1, 0.0])


# What the chapters draw with


def test_a_still_picture_is_the_same_bytes_for_the_same_numbers():
    curves = [Curve("closed form", [1, 2, 3], [1.0, 0.1, 0.01]), Curve("simulated", [1, 2], [1.0, 0.1], "dots", 0)]
    svg = draw(curves, "generation", "share", log="y", title="A check").svg
    assert svg == draw(curves, "generation", "share", log="y", title="A check").svg
    assert all(words in svg for words in ("closed form", "generation", "A check"))


def test_a_knob_redraws_the_same_curves_within_one_range():
    states = {n: [Curve(f"at {n}", [0, 1], [0.1**n, np.inf], "both"), Curve("still", [0, 1], [1, 1], "dashes")] for n in (1, 2, 3)}
    figure = turn("knob", "n", states, "x", "y", log="y", start=1).figure
    [slider] = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["1", "2", "3"] and slider.active == 1
    assert figure.data[0].name == "at 2" and slider.steps[2].args[0]["y"][0] == [0.001, None]
    low, high = figure.layout.yaxis.range
    assert low < -3 and high > 0


def test_stacked_bars_fit_in_their_range():
    states = {0: [Curve("a", ["x", "y"], [1, 2], "bars"), Curve("b", ["x", "y"], [3, 4], "bars")]}
    figure = turn("bars", "n", states, "x", "y", stacked=True).figure
    assert figure.layout.yaxis.range[1] > 6 and figure.layout.barmode == "stack"
