"""Context information of chains whose entropies are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.metrics.context_information import context_information
from collapse_lib.theory.proof import entropy


def markov(rows: int, length: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray], float, float]:
    """Rows of a Markov chain over six tokens from its stationary law, the entropies of the laws, and both entropies of the chain."""
    random = np.random.default_rng(seed)
    transition = np.random.default_rng(99).dirichlet(np.full(6, 0.4), size=6)
    values, vectors = np.linalg.eig(transition.T)
    stationary = np.abs(np.real(vectors[:, np.argmax(values.real)]))
    stationary /= stationary.sum()
    state, tokens, laws, entropies = random.choice(6, rows, p=stationary), [], [], entropy(transition)
    for _ in range(length):
        laws.append(entropies[state])
        state = (transition[state].cumsum(1) > random.random((rows, 1))).argmax(1)
        tokens.append(state)
    return list(np.array(tokens).T), list(np.array(laws).T), float(entropy(stationary)), float(stationary @ entropies)


def test_a_markov_chain_has_the_entropies_of_its_law():
    tokens, laws, unigram, conditional = markov(400, 30, seed=1)
    found = context_information(tokens, laws)
    for name, truth in (
        ("unigram_entropy", unigram),
        ("conditional_entropy", conditional),
        ("context_information", unigram - conditional),
        ("context_share", 1 - conditional / unigram),
    ):
        assert abs(found[name]["value"] - truth) < 4 * found[name]["standard_error"], name
        assert found[name]["standard_error"] < 0.03
    assert found["unigram_entropy"]["counts"] == {"tokens": 12_000, "types": 6}


def test_errors_are_the_spread_over_samples():
    samples = [context_information(*markov(60, 20, seed)[:2]) for seed in range(150)]
    for name in samples[0]:
        spread = np.std([sample[name]["value"] for sample in samples])
        assert np.mean([sample[name]["standard_error"] for sample in samples]) == pytest.approx(spread, rel=0.2), name


def test_miller_and_madow_remove_most_of_the_bias_of_small_samples():
    random, law = np.random.default_rng(5), np.full(50, 1 / 50)
    found = [context_information([row], [np.zeros(250)])["unigram_entropy"]["value"] for row in random.choice(50, (400, 250), p=law)]
    assert np.mean(found) == pytest.approx(math.log(50), abs=0.02)  # the plug-in alone is 0.1 too low


def test_text_without_context_and_text_without_choice():
    random = np.random.default_rng(6)
    tokens = list(random.choice(8, (50, 40)))
    free = context_information(tokens, [np.full(40, math.log(8))] * 50)
    assert free["context_information"]["value"] == pytest.approx(0, abs=0.01)
    fixed = context_information(tokens, [np.zeros(40)] * 50)
    assert fixed["context_share"]["value"] == 1 and fixed["conditional_entropy"]["value"] == 0
    one = context_information([np.zeros(5, int)] * 2, [np.zeros(5)] * 2)
    assert one["unigram_entropy"]["value"] == one["context_share"]["value"] == 0


def test_rows_of_different_lengths_and_single_rows():
    found = context_information([np.array([0, 1]), np.array([], int)], [np.array([0.5, 0.1]), np.array([])])
    assert found["conditional_entropy"]["value"] == pytest.approx(0.3)
    assert "standard_error" not in context_information([np.array([0, 1])], [np.zeros(2)])["unigram_entropy"]
    for tokens, entropies in (([], []), ([np.array([1])], [np.array([])])):
        with pytest.raises(UserError, match="at least one"):
            context_information(tokens, entropies)
