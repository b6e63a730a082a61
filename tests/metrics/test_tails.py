"""Tails against laws that are known, chains that are simulated, and counts by hand."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.metrics.tails import count_bins, extinction_probability, loss_by_probability, still_told, true_losses, word_survival
from collapse_lib.text import tokenizer as tokenization
from collapse_lib.text.grammar import StoryGrammar
from collapse_lib.theory.proof import extinction, resampling_matrix

SMALL = {
    "cast": {"hero": "child"},
    "words": {"child": "Ann Bob Cynthia", "thing": "egg mouse eggshell"},
    "plots": {"one": {"body": "{Hero} saw {a} {thing}.", "happy": "{Hero} smiled.", "sad": "The end."}},
}


@pytest.fixture(scope="module")
def grammar() -> StoryGrammar:
    return StoryGrammar(source=SMALL)


def test_true_losses_are_conditional_probabilities_of_characters(grammar):
    tokenizer = tokenization.learn(grammar.stories(1, 100), 290)
    for text in set(grammar.stories(2, 30)):
        ids = tokenizer.encode(text)
        found = true_losses(np.array(ids, np.uint16), tokenizer, grammar.log_probability, grammar.log_prefix_probabilities)
        assert len(found) == len(ids) + 1 and (found > -1e-12).all()
        assert found.sum() == pytest.approx(-grammar.log_probability(text))
        assert found[-1] == pytest.approx(0, abs=1e-12)  # where a story can end it must
        beginnings = [tokenizer.decode(ids[:count]) for count in range(len(ids) + 1)]
        expected = np.diff([grammar.log_prefix_probability(beginning) for beginning in beginnings])
        assert found[:-1] == pytest.approx(-expected)


def test_a_story_outside_the_language_has_no_true_losses(grammar):
    tokenizer = tokenization.learn(iter(["Zoë saw an egg."]), 270)
    for text in ("Ann saw a egg.", "Ann saw an egg.", "Zoë saw an egg.\n\nThe end."):
        with pytest.raises(UserError, match="outside the grammar"):
            true_losses(tokenizer.encode(text), tokenizer, grammar.log_probability, grammar.log_prefix_probabilities)


def test_bins_of_true_probability_by_hand():
    true = [-np.log([0.5, 0.05, 1.0]), -np.log([0.005, 0.05])]
    losses = [true[0] + [1.0, 0.5, 0.0], true[1] + [3.0, -0.1]]
    found = loss_by_probability(losses, true, (0.0, 0.01, 0.1, 0.5, 1.0))
    assert [(row["low"], row["high"], row["loss"]["counts"]["tokens"]) for row in found] == [
        (0.0, 0.01, 1),
        (0.01, 0.1, 2),
        (0.1, 0.5, 1),
        (0.5, 1.0, 1),
    ]
    assert [row["excess"]["value"] for row in found] == pytest.approx([3.0, 0.2, 1.0, 0.0])
    assert [row["floor"]["value"] for row in found] == pytest.approx(-np.log([0.005, 0.05, 0.5, 1.0]))
    assert [row["loss"]["value"] - row["floor"]["value"] for row in found] == pytest.approx([row["excess"]["value"] for row in found])
    assert sum(row["excess_of_story"]["value"] for row in found) == pytest.approx(4.4 / 2)
    assert found[1]["excess"]["standard_error"] == pytest.approx(0.3)  # two stories with a token each: half the difference
    with pytest.raises(UserError, match="different tokens"):
        loss_by_probability(losses, true[:1])


def test_a_model_that_knows_the_law_has_no_excess_in_any_bin():
    """Tokens of a Zipf law; the model that knows it, and one that smooths it, which costs at common tokens and saves at rare ones."""
    random, q = np.random.default_rng(1), 1 / np.arange(1, 2001)
    q /= q.sum()
    p = 0.9 * q + 0.1 / len(q)
    stories = [random.choice(len(q), 100, p=q) for _ in range(300)]
    true = [-np.log(q[story]) for story in stories]
    assert all(row["excess"]["value"] == 0 for row in loss_by_probability(true, true))
    found = loss_by_probability([-np.log(p[story]) for story in stories], true)
    assert found[0]["excess"]["value"] < 0 < found[-1]["excess"]["value"]
    total, truth = sum(row["excess_of_story"]["value"] for row in found), 100 * float((q * np.log(q / p)).sum())
    assert total == pytest.approx(truth, rel=0.1)


def test_extinction_of_equal_sizes_is_the_theorys():
    for generations in (1, 2, 10):
        assert extinction_probability([1000] * (generations + 1)) == pytest.approx(extinction(generations)[generations])
    assert extinction_probability([7]) == 0.0


@pytest.mark.parametrize(("size", "generations", "count"), [(400, 3, 1), (400, 8, 4), (400, 2, 7)])
def test_extinction_is_that_of_the_wright_fisher_chain(size, generations, count):
    exact = np.linalg.matrix_power(resampling_matrix(size), generations)[count, 0]
    assert extinction_probability([size] * (generations + 1)) ** count == pytest.approx(exact, abs=0.01)


def test_extinction_in_corpora_that_shrink_and_grow():
    random, sizes, count = np.random.default_rng(2), [2000, 500, 1000, 3000], 3
    counts = np.full(20_000, count)
    for before, after in pairwise(sizes):
        counts = random.binomial(after, counts / before)
    exact = (counts == 0).mean()
    assert extinction_probability(sizes) ** count == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000) + 0.005)
    assert abs(extinction_probability([1000] * 4) ** count - exact) > 0.1  # sizes matter here


def test_counts_double_from_bin_to_bin():
    assert count_bins(np.array([1, 2, 3, 4, 5, 8, 9, 16, 17, 1024, 1025])).tolist() == [0, 1, 2, 2, 3, 3, 4, 4, 5, 10, 11]


def test_survival_of_a_drifting_chain_is_as_predicted():
    random, generations = np.random.default_rng(3), 6
    first = np.sort(random.zipf(1.6, 4000).clip(max=2000))
    size, counts = int(first.sum()), first
    for _ in range(generations):
        counts = random.multinomial(size, counts / size)
    words = [f"w{number}" for number in range(len(first))]
    initial, now = dict(zip(words, first.tolist(), strict=True)), dict(zip(words, counts.tolist(), strict=True))
    rows = word_survival(initial, {word: count for word, count in now.items() if count} | {"new": 3}, [size] * (generations + 1))
    assert [(row["first"], row["last"]) for row in rows][:4] == [(1, 1), (2, 2), (3, 4), (5, 8)]
    assert sum(row["survived"]["counts"]["types"] for row in rows) == len(first)
    for row in rows:
        error = row["survived"].get("standard_error") or 0
        assert abs(row["survived"]["value"] - row["predicted"]) < 4 * error + 0.02
    assert rows[0]["predicted"] < 0.35 and rows[-1]["predicted"] > 0.99
    with pytest.raises(UserError, match="no words"):
        word_survival({"a": 0}, {}, [1, 1])


TRUE = {"trip": 0.5, "party": 0.4, "storm": 0.1}


def test_what_is_told_by_hand():
    stories = ["trip"] * 5 + ["party"] * 4 + ["storm", "noise"]
    found = still_told(stories, lambda story: story if story != "noise" else None, TRUE, "plots")
    assert found["told"]["value"] == 3 and found["untold"]["value"] == pytest.approx(1 / 11)
    assert found["told_expected"]["value"] == pytest.approx(3 - 0.5**11 - 0.6**11 - 0.9**11)
    assert found["told_entropy"]["value"] == pytest.approx(-(0.5 * math.log(0.5) + 0.4 * math.log(0.4) + 0.1 * math.log(0.1)))
    assert found["told_entropy"]["value"] == pytest.approx(found["true_entropy"]["value"])
    kinds = Counter(stories[:-1])
    numbers = [len(kinds - Counter([story])) for story in stories]  # how many are told without one of the stories
    jackknife = math.sqrt(10 / 11 * np.square(np.array(numbers) - np.mean(numbers)).sum())
    assert found["told"]["standard_error"] == pytest.approx(jackknife)


def test_kinds_outside_the_law_are_none():
    found = still_told(["trip", "war"], lambda story: story, TRUE, "plots")
    assert found["told"]["value"] == 1 and found["untold"]["value"] == 0.5
    nothing = still_told(["noise"], lambda story: None, TRUE, "plots")
    assert nothing["told"]["value"] == nothing["told_entropy"]["value"] == 0 and nothing["untold"]["value"] == 1
    with pytest.raises(UserError, match="no story that could tell of plots"):
        still_told([], str, TRUE, "plots")


def test_true_stories_tell_as_many_kinds_as_expected():
    random, numbers = np.random.default_rng(4), []
    law = dict(enumerate(1 / np.arange(1, 101) / (1 / np.arange(1, 101)).sum()))
    for _ in range(200):
        found = still_told(random.choice(100, 60, p=list(law.values())).tolist(), int, law, "names")
        numbers.append(found["told"]["value"])
    assert np.mean(numbers) == pytest.approx(found["told_expected"]["value"], abs=4 * np.std(numbers) / math.sqrt(200))
