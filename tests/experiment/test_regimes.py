"""What each regime lets a generation read."""

from __future__ import annotations

import numpy as np
import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.regimes import FRESH, Part, Regime, compose

TOKENS = 1000


def some_texts(generation: int, tokens: int = TOKENS) -> list[np.ndarray]:
    """Row lengths of D and of the texts before ``generation``, each the fewest rows with so many tokens."""
    random = np.random.default_rng(generation)
    texts = []
    for _ in range(generation):
        lengths = random.integers(1, 40, tokens)
        texts.append(lengths[: int(np.searchsorted(np.cumsum(lengths), tokens)) + 1])
    return texts


def check(parts: list[Part], texts: list[np.ndarray]) -> None:
    for part in parts:
        if part.text != FRESH:
            assert np.array_equal(part.rows, np.unique(part.rows)), "each row once, in order"
            assert part.tokens == texts[part.text][part.rows].sum() > 0


def holds(part: Part, texts: list[np.ndarray], tokens: int) -> bool:
    """Whether one row fewer, whichever was drawn last, could be too few."""
    return tokens <= part.tokens < tokens + texts[part.text][part.rows].max()


ALL = [
    Regime(),
    Regime("fresh"),
    Regime("first_only"),
    Regime("accumulate"),
    Regime("accumulate_subsample"),
    Regime("mix", 0.1),
    Regime("mix", 0.5, "fresh"),
    Regime("select", 0.5),
]


@pytest.mark.parametrize("regime", ALL, ids=lambda regime: regime.name)
def test_generation_1_reads_the_initial_corpus(regime: Regime) -> None:
    texts = some_texts(1)
    (part,) = compose(regime, 1, texts, TOKENS, seed=1)
    assert part.text == 0 and np.array_equal(part.rows, np.arange(len(texts[0]))) and part.tokens == texts[0].sum()


@pytest.mark.parametrize("name", ["replace", "first_only"])
def test_the_last_text_alone(name: str) -> None:
    texts = some_texts(4)
    (part,) = compose(Regime(name), 4, texts, TOKENS, seed=1)
    assert part.text == 3 and np.array_equal(part.rows, np.arange(len(texts[3])))


def test_accumulate_throws_nothing_away() -> None:
    texts = some_texts(4)
    parts = compose(Regime("accumulate"), 4, texts, TOKENS, seed=1)
    check(parts, texts)
    assert [part.text for part in parts] == [0, 1, 2, 3] and [len(part.rows) for part in parts] == [len(text) for text in texts]


def test_fresh_asks_for_new_text() -> None:
    (part,) = compose(Regime("fresh"), 3, some_texts(3), TOKENS, seed=1)
    assert part.text == FRESH and part.tokens == TOKENS and not len(part.rows)


def test_a_subsample_has_the_budget_and_every_row_of_the_union_has_the_same_chance() -> None:
    texts = some_texts(4)
    starts = np.cumsum([0, *map(len, texts)])
    drawn, total, draws = np.zeros(starts[-1]), 0, 2000
    for seed in range(draws):
        parts = compose(Regime("accumulate_subsample"), 4, texts, TOKENS, seed)
        check(parts, texts)
        held = sum(part.tokens for part in parts)
        assert TOKENS <= held < TOKENS + 40
        total += sum(len(part.rows) for part in parts)
        for part in parts:
            drawn[starts[part.text] + part.rows] += 1
    expected = total / starts[-1]
    assert np.abs(drawn - expected).max() < 5 * np.sqrt(draws / 4)
    texts_drawn = np.add.reduceat(drawn, starts[:-1])
    assert np.allclose(texts_drawn / np.diff(starts), expected, rtol=0.03, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_a_mixture_has_its_share_of_old_text(share: float) -> None:
    texts = some_texts(5)
    parts = compose(Regime("mix", share), 5, texts, TOKENS, seed=1)
    check(parts, texts)
    assert [part.text for part in parts] == [0] * (share > 0) + [4] * (share < 1)
    for part in parts:
        assert holds(part, texts, round((1 - share if part.text else share) * TOKENS))


def test_a_mixture_with_fresh_text() -> None:
    texts = some_texts(3)
    fresh, synthetic = compose(Regime("mix", 0.3, "fresh"), 3, texts, TOKENS, seed=1)
    assert fresh.text == FRESH and fresh.tokens == 300 and synthetic.text == 2 and holds(synthetic, texts, 700)


@pytest.mark.parametrize("regime", [Regime("mix", 0.5), Regime("accumulate_subsample")], ids=lambda regime: regime.name)
def test_draws_follow_from_the_seed_and_are_others_in_each_generation(regime: Regime) -> None:
    texts = some_texts(3)

    def rows(generation: int, seed: int) -> list[list[int]]:
        return [part.rows.tolist() for part in compose(regime, generation, [*texts, texts[2]][:generation], TOKENS, seed)]

    assert rows(3, 1) == rows(3, 1) != rows(3, 2)
    assert rows(3, 1)[0] != rows(4, 1)[0]


def test_selection_keeps_the_rows_that_the_verifier_likes_best() -> None:
    regime = Regime("select", 0.25)
    assert regime.tokens_to_sample(TOKENS) == 4000 and Regime("mix", 0.25).tokens_to_sample(TOKENS) == TOKENS
    texts = [*some_texts(1), *some_texts(1, 4000)]
    scores = np.random.default_rng(0).normal(size=len(texts[1]))
    scores[::3] = -np.inf
    (part,) = compose(regime, 2, texts, TOKENS, 1, scores)
    check([part], texts)
    assert part.text == 1 and holds(part, texts, TOKENS)
    left = np.setdiff1d(np.arange(len(scores)), part.rows)
    assert scores[part.rows].min() > scores[left].max()
    (part,) = compose(regime, 2, texts, TOKENS, 1, np.full(len(scores), -np.inf))
    assert np.array_equal(part.rows, np.arange(len(part.rows))), "of equals the first"


def test_who_writes_the_text_that_is_read() -> None:
    assert [Regime("first_only").writer(text) for text in (1, 2, 9)] == [1, 1, 1]
    assert [Regime("mix", 0.1).writer(text) for text in (1, 2, 9)] == [1, 2, 9]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("dance",), "There is no regime 'dance'; there are replace, fresh,"),
        (("mix",), "The share of regime 'mix' is None; a number from 0 to 1"),
        (("mix", 1.1), r"is 1\.1; a number from 0 to 1"),
        (("mix", float("nan")), "is nan; a number from 0 to 1"),
        (("select", 0), "leaves nothing to learn from"),
        (("replace", 0.5), "'replace' has no share; mix and select"),
        (("mix", 0.5, "stale"), "Field 'real' of a regime cannot be 'stale'; old and fresh are allowed"),
        (("replace", None, "fresh"), "'replace' has no field 'real'; mix has it"),
        (("select", 0.5, "old", "me"), "'verifier' of a regime cannot be 'me'; likelihood and grammar are"),
        (("mix", 0.5, "old", "grammar"), "'mix' has no field 'verifier'; select has it"),
    ],
)
def test_what_is_no_regime(settings: tuple, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Regime(*settings)


def test_a_source_with_an_end_has_no_fresh_text() -> None:
    for regime in ALL:
        regime.check_source("grammar", endless=True)
        if regime.name == "fresh" or regime.real == "fresh":
            with pytest.raises(UserError, match=f"Regime '{regime.name}' needs fresh real text .* 'tinystories' has an end"):
                regime.check_source("tinystories", endless=False)
        else:
            regime.check_source("tinystories", endless=False)


def test_more_tokens_than_there_are() -> None:
    with pytest.raises(UserError, match="900000 tokens are wanted of text that has"):
        compose(Regime("mix", 0.9), 2, some_texts(2), 1_000_000, 1)


def test_texts_and_scores_of_another_generation() -> None:
    with pytest.raises(ValueError, match="generation 3 follows 3 texts, not 2"):
        compose(Regime(), 3, some_texts(2), TOKENS, 1)
    with pytest.raises(ValueError, match="a score for every row"):
        compose(Regime("select", 0.5), 2, some_texts(2), TOKENS, 1, scores=[0.5])
