"""T22: an n-gram model of its own stories, whose contexts come and go."""

from __future__ import annotations

import numpy as np
import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.theory import contexts as theory
from collapse_lib.theory import proof

STORIES = [text.split() for text in ("a b c", "a b b b c", "a d", "e b c b d", "e d", "a b c b c", "f", "a d")]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_the_flow_of_two_stories_by_hand():
    flow, names = theory.story_flow([["a", "b"], ["b", "b"]], order=1)
    assert names == [(), ("a",), ("b",)] and flow.tolist() == [[0, 1, 1], [0, 0, 1], [2, 0, 1]]
    _, pairs = theory.story_flow([["a", "b", "c"]], order=2)
    assert pairs == [(), ("a",), ("a", "b"), ("b", "c")]


def test_a_flow_of_no_whole_stories_is_refused(rng):
    with pytest.raises(UserError, match="enters every context"):
        theory.rewrite(np.array([[0, 1], [0, 0]]), rng)


def test_rewriting_copies_only_what_was_there(rng):
    flow, _ = theory.story_flow(STORIES, order=1)
    history = theory.rewrite_often(flow, 10, 20, rng)
    np.testing.assert_array_equal(history.sum(axis=3), history.sum(axis=2))
    assert np.all(history[:, :, 0].sum(axis=2) == len(STORIES))
    assert np.all((history[1:] > 0) <= (history[:-1] > 0)), "what is lost stays lost"


@pytest.mark.parametrize("order", [1, 2])
def test_t22_every_count_is_a_martingale(rng, order):
    flow, _ = theory.story_flow(STORIES, order)
    everywhere, _ = theory.visits(flow)
    np.testing.assert_allclose(everywhere * len(STORIES), flow.sum(axis=1), rtol=0, atol=1e-9)
    later = theory.rewrite_often(flow, 3, 4000, rng)[[1, 3]]
    error = later.std(axis=1) / np.sqrt(4000)
    assert np.all(np.abs(later.mean(axis=1) - flow) <= 5 * error + 1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_t22_when_a_context_vanishes(rng, order):
    flow, _ = theory.story_flow(STORIES, order)
    _, repeated = theory.visits(flow)
    chance, simple = theory.vanishing(flow), np.maximum(1 - flow.sum(axis=1) / len(STORIES), 0) ** len(STORIES)
    gone = (theory.rewrite_often(flow, 1, 5000, rng)[1].sum(axis=2) == 0).mean(axis=0)
    np.testing.assert_allclose(gone, chance, rtol=0, atol=5 * 0.5 / np.sqrt(5000))
    assert repeated.max() > 1.2 and np.all(chance >= simple - 1e-12)


def test_t22_contexts_that_do_not_recur_drift_in_a_population_of_stories(rng):
    flow, names = theory.story_flow([*[["a", "x"]] * 3, *[["a", "y"]] * 2, *[["b", "x"]] * 7], order=2)
    a, stories = names.index(("a",)), 12
    history = theory.rewrite_often(flow, 8, 4000, rng)
    counts = history[:, :, a].sum(axis=2)
    kept = 1 - (1 - 1 / stories) ** np.arange(9)
    np.testing.assert_allclose(counts.var(axis=1) / stories**2, 5 / 12 * 7 / 12 * kept, rtol=0, atol=0.01)
    weighted = (counts**2 * theory.successors_heterozygosity(history[:, :, a])).mean(axis=1)
    np.testing.assert_allclose(weighted, 12 * (1 - 1 / stories) ** np.arange(9), rtol=0, atol=0.6)


def test_t22_many_stories_make_the_extinction_law(rng):
    counts = rng.binomial(5000, np.full(4000, 3 / 5000))
    for _ in range(5):
        counts = rng.binomial(5000, counts / 5000)
    assert (counts == 0).mean() == pytest.approx(proof.extinction(6)[6] ** 3, abs=0.035)


def test_t22_in_the_end_one_story_is_told(rng):
    flow, _ = theory.story_flow(STORIES, order=1)
    end = theory.rewrite_often(flow, 150, 150, rng)[-1]
    assert np.isin(end, (0, len(STORIES))).all(axis=(1, 2)).mean() > 0.95
    assert ((end > 0).sum(axis=2).max(axis=1) == 1).mean() > 0.95, "each context has one way on"
    bound = np.minimum(flow / len(STORIES), 1)
    assert np.all((end > 0).mean(axis=0) <= bound + 5 * np.sqrt(bound * (1 - bound) / 150))
