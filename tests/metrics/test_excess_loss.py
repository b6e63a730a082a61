"""Excess loss of models whose distance from the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.metrics.excess_loss import excess_loss, story_losses
from collapse_lib.metrics.perplexity import perplexity
from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig
from collapse_lib.text import tokenizer as tokenization
from collapse_lib.text.corpus import TokenCorpus
from collapse_lib.text.grammar import StoryGrammar
from collapse_lib.theory.proof import relative_entropy


def test_excess_is_the_relative_entropy():
    """Stories are ten letters of a law q; the model believes in p."""
    random = np.random.default_rng(4)
    q, p = random.dirichlet(np.ones(5)), random.dirichlet(np.ones(5))
    letters = random.choice(5, (3000, 10), p=q)
    found = excess_loss(-np.log(p)[letters].sum(1), np.log(q)[letters].sum(1))
    truth = 10 * float(relative_entropy(q, p))
    excess = found["excess_loss"]
    assert abs(excess["value"] - truth) < 4 * excess["standard_error"] and excess["standard_error"] < 0.1 * truth
    assert found["excess_share"]["value"] == pytest.approx(excess["value"] / found["story_floor"]["value"])
    assert found["story_loss"]["value"] - found["story_floor"]["value"] == pytest.approx(excess["value"])
    assert found["log_excess_loss"]["value"] == pytest.approx(math.log(excess["value"]))
    assert found["log_excess_loss"]["standard_error"] == pytest.approx(excess["standard_error"] / excess["value"])


def test_what_both_losses_share_is_no_noise():
    """A model that is 0.3 nats too high on every story: stories differ by 30 nats, the excess does not."""
    floors = np.random.default_rng(0).normal(200, 30, 50)
    found = excess_loss(floors + 0.3, -floors)
    assert found["excess_loss"]["value"] == pytest.approx(0.3) and found["excess_loss"]["standard_error"] < 1e-12
    assert found["story_loss"]["standard_error"] > 3


def test_no_logarithm_of_what_is_not_positive():
    assert excess_loss([1.0, 2.0], [-1.0, -2.0])["log_excess_loss"]["value"] is None


def test_a_story_outside_the_language_is_refused():
    with pytest.raises(UserError, match="story 1 is outside the grammar"):
        excess_loss([1.0, 2.0], [-1.0, -np.inf])
    with pytest.raises(UserError, match="2 losses and 1 true"):
        excess_loss([1.0, 2.0], [-1.0])


@pytest.fixture(scope="module")
def grammar() -> StoryGrammar:
    return StoryGrammar()


def test_a_uniform_model_of_the_grammar(grammar):
    """A model without weights gives each token 1 / V: a story of T tokens costs (T + 1) ln V, its end included."""
    texts = list(grammar.stories(1, 6))
    tokenizer = tokenization.learn(grammar.stories(2, 50), 400)
    rows = [np.array([tokenizer.eos_id, *ids], np.uint16) for ids in tokenizer.encode_batch(texts)]
    stories = TokenCorpus.in_memory(rows, tokenizer.eos_id, tokenizer.vocabulary, rows_are_complete=True)
    config = GPTNeoConfig(tokenizer.vocabulary, 1, 8, 2, max_position_embeddings=32, initializer_range=0.0, eos_token_id=tokenizer.eos_id)
    losses = story_losses(GPTNeo(config, seed=1), stories, max_context=32)
    assert losses == pytest.approx([len(row) * math.log(tokenizer.vocabulary) for row in rows], rel=1e-5)
    found = excess_loss(losses, [grammar.log_probability(text) for text in texts])
    assert found["story_floor"]["value"] == pytest.approx(np.mean([-grammar.log_probability(text) for text in texts]))
    assert found["excess_loss"]["value"] > 0


def test_story_losses_are_those_of_perplexity_and_the_ends():
    config = GPTNeoConfig(50, 1, 16, 4, max_position_embeddings=64, initializer_range=0.4, eos_token_id=0)
    model, random = GPTNeo(config, seed=2), np.random.default_rng(1)
    rows = [np.append(0, random.integers(1, 50, length)).astype(np.uint16) for length in (3, 17, 40)]
    stories = TokenCorpus.in_memory(rows, 0, 50, rows_are_complete=True)
    ended = TokenCorpus.in_memory([np.append(row, 0).astype(np.uint16) for row in rows], 0, 50, rows_are_complete=True)
    known = perplexity(model, ended, 20)
    assert story_losses(model, stories, 20).sum() == pytest.approx(known["loss_nats"] * known["tokens"], rel=1e-6)
