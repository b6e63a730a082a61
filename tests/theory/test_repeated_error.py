"""T23 and the phase diagram: closed forms against simulations and exact chains, and the estimators against chains whose error is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapse_lib.experiment.errors import UserError
from collapse_lib.theory import forgetting, phase, proof
from collapse_lib.theory import repeated_error as theory

START = np.array([0.4, 0.3, 0.2, 0.1])
RARE = np.array([0.0, 0.0, 0.3, 0.7])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_a_uniform_error_is_smoothing():
    error, vocabulary = 0.2, len(START)
    added = 20 * error / (vocabulary * (1 - error))
    one = theory.drift_with_error(START, 20, error, 1, 500, np.random.default_rng(1))
    np.testing.assert_allclose(one, proof.drift(START, 20, 1, 500, np.random.default_rng(1), added), rtol=1e-12)
    assert 1 - error == pytest.approx(proof.smoothing_factor(20, vocabulary, added))


def test_an_error_is_a_share():
    with pytest.raises(UserError, match="between 0 and 1"):
        theory.blend(START, 1.5)


@pytest.mark.parametrize("law", [None, RARE], ids=["uniform", "rare"])
def test_t23_expected_homozygosity_is_that_of_simulated_chains(rng, law):
    simulated = np.square(theory.drift_with_error(START, 20, 0.1, 30, 3000, rng, law)).sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(simulated, theory.expected_homozygosity(START, 20, 0.1, 30, law), rtol=0, atol=0.01)


def test_t23_expected_homozygosity_by_enumeration():
    """One generation of a tiny chain, every corpus counted."""
    corpora = forgetting.corpora(4, 5)
    [chances] = forgetting.transition(corpora, START[None])
    after = theory.blend(corpora / 5, 0.3, RARE)
    assert theory.expected_homozygosity(START, 5, 0.3, 1, RARE)[1] == pytest.approx(chances @ np.square(after).sum(axis=1), abs=1e-12)


@given(st.integers(2, 8), st.floats(1, 1e6), st.floats(0, 1), st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_t23_with_a_uniform_error_the_closed_form_is_the_recursion_and_monotone(vocabulary, tokens, error, seed):
    start = np.random.default_rng(seed).dirichlet(np.ones(vocabulary))
    path = theory.expected_homozygosity(start, tokens, error, 30)
    np.testing.assert_allclose(theory.uniform_homozygosity(start, tokens, error, np.arange(31)), path, rtol=0, atol=1e-12)
    assert np.all(np.diff(path) >= -1e-12) or np.all(np.diff(path) <= 1e-12)


def test_t23_without_an_error_it_is_drift():
    np.testing.assert_allclose(
        (1 - theory.uniform_homozygosity(START, 50, 0.0, np.arange(9))) / 0.7, proof.kept_heterozygosity(50, np.arange(9)), rtol=1e-12
    )
    assert theory.uniform_homozygosity(START, np.inf, 0.0, 40) == pytest.approx(0.3)


def test_t23_shannons_entropy_can_turn_where_heterozygosity_cannot():
    """Exactly, over all 153 corpora of 16 tokens of three types: from (8, 8, 0) with a uniform error of 0.06."""
    corpora = forgetting.corpora(3, 16)
    matrix, shares = forgetting.transition(corpora, theory.blend(corpora / 16, 0.06)), corpora / 16
    entropy, same, paths = proof.entropy(shares), np.square(shares).sum(axis=1), []
    for _ in range(61):
        paths.append((entropy, same))
        entropy, same = matrix @ entropy, matrix @ same
    [start] = np.flatnonzero((corpora == (8, 8, 0)).all(axis=1))
    entropy, same = np.array(paths)[:, :, start].T
    assert theory.turning_point(entropy) == 3 and theory.turning_point(-same) is None and np.all(np.diff(same) > 0)
    assert entropy[3] - entropy[0] == pytest.approx(0.03655, abs=1e-5) and entropy[3] - entropy[60] == pytest.approx(0.03783, abs=1e-5)


@given(st.integers(2, 6), st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_t23_an_error_alone_turns_entropy_as_the_criterion_says(vocabulary, seed):
    start, law = np.random.default_rng(seed).dirichlet(np.full(vocabulary, 0.7), 2)
    way = proof.entropy(theory.blend(start, np.linspace(0, 1, 4001), law))
    slopes = np.diff(way)
    assert theory.rises_then_falls(start, law) == bool(slopes[0] > 0 and slopes[-1] < 0)


def test_t23_an_error_towards_a_law_of_low_entropy():
    law = np.array([0.0, 0.0, 0.0, 1.0])
    path = proof.entropy(theory.blend(START, 1 - 0.97 ** np.arange(201), law))
    assert theory.rises_then_falls(START, law) and theory.turning_point(path) == 6
    assert not theory.rises_then_falls(START, np.eye(4)[0]) and not theory.rises_then_falls(START, np.full(4, 0.25))


@given(st.integers(2, 6), st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_t23_perplexities_add_up_at_most(vocabulary, seed):
    start, law = np.random.default_rng(seed).dirichlet(np.full(vocabulary, 0.7), 2)
    assert proof.entropy(theory.blend(start, np.linspace(0, 1, 101), law)).max() <= theory.entropy_ceiling(start, law) + 1e-12
    apart = proof.entropy(theory.blend([*start, *np.zeros(vocabulary)], np.linspace(0, 1, 2001), [*np.zeros(vocabulary), *law]))
    assert apart.max() == pytest.approx(theory.entropy_ceiling(start, law), abs=1e-5), "and do where the two have no token in common"


@pytest.mark.parametrize("error", [0.001, 0.03, 0.4])
def test_at_the_balance_nothing_moves_on_average(error):
    tokens = theory.balance_tokens(START, error)
    np.testing.assert_allclose(theory.expected_homozygosity(START, tokens, error, 40), 0.3, rtol=0, atol=1e-12)
    assert phase.place(error, tokens * 0.99, START).diversity < 1 < phase.place(error, tokens * 1.01, START).diversity


# The phase diagram


def test_a_position_is_that_of_simulated_chains(rng):
    law, error, tokens = np.append(START, np.zeros(6)), 0.02, 60
    last = theory.drift_with_error(law, tokens, error, 40, 3000, rng)[-1]
    position = phase.place(error, tokens, law)
    off, first = last - 0.1, law - 0.1
    assert proof.heterozygosity(last).mean() / 0.7 == pytest.approx(float(position.diversity), abs=0.02)
    assert 2 * (off @ first).mean() / (np.square(off).sum(axis=1).mean() + first @ first) == pytest.approx(float(position.memory), abs=0.02)


def test_the_corners_of_the_diagram():
    assert phase.place(0, np.inf)[:2] == (1, 1)
    fates = phase.place([0.0, 0.2, 0.001], [5, 1e5, 1e4]).fate
    assert list(fates) == [phase.FIXATING, phase.DISSOLVING, phase.REMEMBERING]
    assert float(phase.place(1.0, 100).memory) == 0
    assert np.all(phase.place(np.linspace(0, 1, 50)[:, None], np.geomspace(1, 1e9, 50)).memory <= 1)


@pytest.mark.parametrize(("error", "tokens"), [(-0.1, 10), (0.1, 0)])
def test_what_is_not_in_the_diagram(error, tokens):
    with pytest.raises(UserError, match="between 0 and 1"):
        phase.place(error, tokens)


# Estimates


def test_unseen_tokens_tell_the_error_of_a_count_model_exactly(rng):
    counts = rng.multinomial(40, rng.dirichlet(np.full(30, 0.1), 50))
    for law in (None, np.append(np.zeros(15), np.full(15, 1 / 15))):
        found = phase.unseen_error(theory.blend(counts / 40, 0.03, law), counts, law)
        np.testing.assert_allclose(found, 0.03, rtol=1e-9)
    assert np.isnan(phase.unseen_error([[0.5, 0.5]], [[1, 1]])[0])


def test_a_model_that_knows_the_truth_is_suspected_of_as_much_as_is_missing(rng):
    truth = rng.dirichlet(np.full(200, 0.2), 400)
    counts = rng.multinomial(80, truth)
    unseen = np.where(counts == 0, truth, 0).sum(axis=1).mean()
    assert unseen == pytest.approx(phase.missing_mass(counts).mean(), rel=0.05)
    assert np.nanmean(phase.unseen_error(truth, counts)) > unseen


def test_a_step_is_estimated_from_two_generations(rng):
    law = np.append(np.zeros(25), np.full(25, 0.04))
    before = rng.dirichlet(np.full(50, 0.2), 2000)
    for u in (None, law):
        after = theory.blend(rng.multinomial(80, before) / 80, 0.03, u)
        step = phase.estimate_step(before, after, u)
        assert step.error == pytest.approx(0.03, abs=0.005) and step.tokens == pytest.approx(80, rel=0.05)
    copy = phase.estimate_step(before, before)
    assert copy.error == pytest.approx(0, abs=1e-12) and copy.tokens > 1e12


def test_a_step_from_the_errors_own_law_tells_nothing():
    with pytest.raises(UserError, match="already"):
        phase.estimate_step(np.full((3, 4), 0.25), np.full((3, 4), 0.25))
