"""T20 and T21: products, recursions and limits against simulations, and against each other where one contains the other."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import gamma

from collapse_lib.experiment.errors import UserError
from collapse_lib.theory import accumulation as theory
from collapse_lib.theory import proof

START = np.array([0.4, 0.3, 0.2, 0.1])
RARE = np.array([0.0, 0.0, 0.3, 0.7])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_t20_the_product_and_its_asymptote():
    product = np.cumprod(1 - 0.1 / np.arange(2.0, 100_002))
    np.testing.assert_allclose(theory.kept_of_union(0.1, np.arange(1, 100_001)), product, rtol=1e-9)
    assert theory.kept_of_union(0.1, 40) == pytest.approx(0.716, abs=5e-4) and theory.kept_of_union(0.1, 1e5) == pytest.approx(0.329, abs=5e-4)
    for n in (1e5, 1e12):
        assert theory.kept_of_union(0.1, n) * n**0.1 * gamma(1.9) == pytest.approx(1, abs=1e-5)
    assert theory.kept_of_union(0.0, 1e9) == 1 and theory.kept_of_union(0.1, 0) == pytest.approx(1)


@pytest.mark.parametrize("law", [None, RARE], ids=["uniform", "rare"])
def test_t20_the_mean_and_the_diversity_of_simulated_unions(rng, law):
    chains = theory.accumulate(START, 10, 0.3, 30, 3000, rng, law)
    u = np.full(4, 0.25) if law is None else law
    np.testing.assert_allclose(chains.mean(axis=1), u + theory.kept_of_union(0.3, np.arange(31))[:, None] * (START - u), rtol=0, atol=0.012)
    np.testing.assert_allclose(np.square(chains).sum(axis=2).mean(axis=1), theory.union_homozygosity(START, 10, 0.3, 30, law), rtol=0, atol=0.008)


def test_t20_contains_t14_and_the_bias_alone():
    noise = (1 - theory.union_homozygosity(START, 10, 0.0, 50)) / 0.7
    np.testing.assert_allclose(noise, [proof.kept_accumulating(10, n) for n in range(51)], rtol=1e-12)
    bias = theory.union_homozygosity(START, np.inf, 0.1, 50) - 0.25
    np.testing.assert_allclose(bias, theory.kept_of_union(0.1, np.arange(51)) ** 2 * 0.05, rtol=1e-9)


def test_t20_a_persistent_real_share_has_a_fixed_point():
    corpus, kept = 1.0, []
    for _ in range(200):
        kept.append(corpus)
        corpus = 0.1 + 0.9 * 0.9 * corpus
    np.testing.assert_allclose(theory.kept_of_mix(0.1, 0.1, np.arange(200)), kept, rtol=1e-12)
    assert 1 - theory.kept_of_mix(0.1, 0.1) == pytest.approx(0.1 * 0.9 / (1 - 0.9 * 0.9)) == pytest.approx(0.4737, abs=1e-4)


def test_t20_when_accumulating_is_overtaken():
    assert theory.overtaking(0.1, 0.1) == 904
    for error, share in ((0.1, 0.3), (0.3, 0.05), (0.1, 0.6), (0.02, 0.2)):
        n = np.arange(1, 20_000)
        below = theory.kept_of_union(error, n) < theory.kept_of_mix(error, share, n)
        assert theory.overtaking(error, share) == n[below][0] and below[below.argmax() :].all()
    assert theory.overtaking(0.01, 0.01) == np.inf


@pytest.mark.parametrize(("error", "share"), [(0, 0.1), (0.1, 0)])
def test_t20_nothing_is_overtaken_without_error_or_without_real_text(error, share):
    with pytest.raises(UserError, match="between 0 and 1"):
        theory.overtaking(error, share)


def test_t21_a_fixed_budget_simulated(rng):
    chains = theory.accumulate_subsample([4, 3, 2, 1], 0.0, 40, 3000, rng)
    kept = proof.heterozygosity(chains).mean(axis=1) / 0.7
    np.testing.assert_allclose(kept, theory.kept_subsampling(10, 40), rtol=0, atol=0.008)
    assert np.all(kept[2:] < [proof.kept_accumulating(10, n) for n in range(2, 41)])


def test_t21_the_first_two_generations_by_hand():
    """Generation 1 learns from the corpus itself; generation 2 from half of two blocks."""
    assert theory.kept_subsampling(10, 1)[1] == pytest.approx(1 - 0.1 / 4)
    assert theory.kept_subsampling(10, 2)[2] == pytest.approx((1 - 0.1 / 4) * (1 - (1 - 0.81 * 20 / 19) / 9))


@pytest.mark.parametrize("tokens", [100, 10_000])
def test_t21_what_is_kept_for_ever(tokens):
    assert (1 - theory.kept_subsampling(tokens, 100_000)[-1]) * tokens == pytest.approx(np.pi**2 / 2 - 4, rel=1 / tokens**0.5)


def test_t21_an_error_moves_the_union_as_if_nothing_were_subsampled(rng):
    chains = theory.accumulate_subsample([16, 12, 8, 4], 0.3, 30, 1500, rng)
    np.testing.assert_allclose(chains.mean(axis=1), 0.25 + theory.kept_of_union(0.3, np.arange(31))[:, None] * (START - 0.25), rtol=0, atol=0.01)
