"""Chains of n-gram models against exact drift, against a chain of naive models, and regime by regime."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.regimes import Regime
from collapse_lib.metrics.entropy import entropy
from collapse_lib.model.ngram import NGram, row_tokens
from collapse_lib.studies import ngram_chains
from collapse_lib.studies.ngram_chains import Corpora, GrammarWords, chain, chains, measures, survival
from collapse_lib.text.corpus import TokenCorpus
from collapse_lib.text.grammar import ILLEGAL
from collapse_lib.text.words import UNKNOWN
from collapse_lib.theory import proof

EOS = 0


def counts_of(model: NGram, text: TokenCorpus, initial: TokenCorpus, held_out: TokenCorpus | None) -> dict[str, float]:
    return {f"token_{token}": count for token, count in enumerate(text.token_counts())}


def shannon_of(model: NGram, text: TokenCorpus, initial: TokenCorpus, held_out: TokenCorpus | None) -> dict[str, float]:
    counts = text.token_counts()
    return {"types": int((counts > 0).sum()), "entropy": entropy(counts), "rows": text.rows}


def stories_of(rows: list[list[int]]) -> TokenCorpus:
    return TokenCorpus.in_memory([np.array([EOS, *row], np.uint16) for row in rows], EOS, 12, rows_are_complete=True)


@pytest.fixture(scope="module")
def words() -> GrammarWords:
    return GrammarWords(tokens=3000, held_out_stories=20)


def test_without_context_tokens_drift_as_the_theory_says() -> None:
    """k = 0 on N = 40 tokens is a Wright-Fisher chain: each count's extinction is exact, and so is the mean of sum p^2 (T10, T12)."""
    initial = np.repeat([1, 2, 3, 4, 5], [1, 2, 4, 8, 25])
    corpus = TokenCorpus.in_memory(np.insert(initial.reshape(4, 10), 0, EOS, axis=1), EOS, 6, rows_are_complete=False)
    repeats, generations = 250, 8
    table = chains(Corpora(corpus, corpus), 0, generations, [Regime()], range(repeats), workers=1, length=10, measure=counts_of)
    counts = table.filter(like="token_").to_numpy().reshape(repeats, generations + 1, 6)[:, :, 1:]
    assert (counts.sum(axis=2) == 40).all()
    step, exact = proof.resampling_matrix(40), np.eye(41)
    for generation in range(1, generations + 1):
        exact = exact @ step
        expected = exact[[1, 2, 4, 8, 25], 0]
        lost = (counts[:, generation] == 0).mean(axis=0)
        assert (np.abs(lost - expected) <= 4 * np.sqrt(expected * (1 - expected) / repeats) + 1e-9).all(), generation
    diversity = proof.heterozygosity(counts / 40)
    kept = proof.heterozygosity(counts[0, 0] / 40) * proof.kept_heterozygosity(40, np.arange(generations + 1))
    assert (np.abs(diversity.mean(axis=0) - kept) <= 4 * diversity.std(axis=0) / np.sqrt(repeats) + 1e-12).all()


@pytest.mark.parametrize("k", [1, 2])
def test_with_context_it_drifts_as_a_naive_chain_does(k: int) -> None:
    """Means over chains of types, entropy and number of stories after some generations, against dictionaries and ``random.choices``."""
    random.seed(5)
    first = [[random.choice([1, 1, 1, 2, 2, 3, 4, 5, 6, 7]) for _ in range(random.randint(1, 8))] for _ in range(30)]
    corpus, repeats, generations = stories_of(first), 150, 5
    table = chains(Corpora(corpus, corpus), k, generations, [Regime()], range(repeats), workers=1, measure=shannon_of)
    ours = table[table.generation == generations][["types", "entropy", "rows"]].to_numpy()
    theirs = []
    for _ in range(repeats):
        rows = first
        for _ in range(generations):
            rows = _naively_sampled(rows, k, corpus.tokens)
        counts = Counter(token for row in rows for token in [EOS, *row])
        theirs.append([len(counts), entropy(np.array(list(counts.values()))), len(rows)])
    theirs = np.array(theirs)
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / repeats)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4 * error).all(), (ours.mean(axis=0), theirs.mean(axis=0), error)
    assert (ours.mean(axis=0)[:2] < shannon(corpus) - 3 * error[:2]).all(), "and both have drifted"


def shannon(corpus: TokenCorpus) -> np.ndarray:
    return np.array([(corpus.token_counts() > 0).sum(), entropy(corpus.token_counts())])


def _naively_sampled(rows: list[list[int]], k: int, tokens: int) -> list[list[int]]:
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for row in rows:
        padded = [EOS] * k + row + [EOS]
        for place in range(k, len(padded)):
            counts[tuple(padded[place - k : place])][padded[place]] += 1
    sampled: list[list[int]] = []
    while tokens > 0:
        context, row = (EOS,) * k, []
        while token := random.choices(list(counts[context]), list(counts[context].values()))[0]:
            row.append(token)
            context = (*context, token)[1:]
        sampled.append(row)
        tokens -= len(row) + 1
    return sampled


def test_measures_by_hand() -> None:
    """Two stories of a model with one token of context."""
    text = stories_of([[1, 2, 2], [1, 3]])
    model = NGram.fit(text, 1)
    found = measures(model, text, stories_of([[1, 4, 4], [2]]), text)
    assert found["tokens"] == 7 and found["types"] == 4 and found["contexts"] == 4
    assert found["entropy"] == pytest.approx(-(3 * 2 / 7 * np.log(2 / 7) + 1 / 7 * np.log(1 / 7)))
    assert found["conditional_entropy"] == pytest.approx((2 * np.log(2) + 2 * np.log(2)) / 7), "behind 1, 2 or 3; behind 2, 2 or the end"
    assert found["context_information"] == pytest.approx(found["entropy"] - found["conditional_entropy"])
    assert found["distinct_pairs"] == 4 / 5 and found["repeated"] == 1 / 5, "pairs 01 12 22, 01 13"
    assert found["loss"] == pytest.approx(model.next_token_losses(text).mean())
    assert found["row_loss"] == pytest.approx(model.next_token_losses(text).sum() / 2)
    # at first: 2 ends, 1 once, 2 once, 4 twice
    assert found["survived_1"] == 1 and found["survived_2"] == 0.5
    assert np.isnan(measures(model, text, text, None)["loss"])


def test_survival_by_octaves() -> None:
    found = survival(np.array([0, 1, 1, 2, 3, 4, 7, 16]), np.array([5, 0, 2, 1, 0, 0, 0, 1]) > 0)
    assert found == {"survived_1": 0.5, "survived_2": 0.5, "survived_4": 0, "survived_16": 1}
    assert survival(np.array([2, 3, 0]), np.array([0.5, 0.25, 0])) == {"survived_2": 0.375}, "or what is expected of them"


def test_stories_as_words(words: GrammarWords) -> None:
    assert words.initial.tokens >= 3000 and words.held_out.rows == 20 and words.initial.rows_are_complete
    first = words.tokenizer.decode(words.held_out.row(0)[1:])
    assert first == words._stories.story(1, 0) and words.tokenizer.decode(words.initial.row(0)[1:]) == words._stories.story(1, 20)
    exact = [words._stories.log_probability(words._stories.story(1, index)) for index in range(20)]
    assert np.allclose(words.scores(words.held_out) * row_tokens(words.held_out), exact, rtol=1e-12, atol=0)
    texts = [words.fresh(0, 500), words.fresh(1, 500), words.initial, words.held_out]
    seen = [{row.tobytes() for row in text.iter_rows()} for text in texts]
    assert not any(a & b for number, a in enumerate(seen) for b in seen[:number])
    known = words.fresh(5, 15_000)
    assert known.token_counts()[words.tokenizer.encode(UNKNOWN)].sum() == 0 and words.scores(known)[:9].min() > -ILLEGAL / 1000
    broken = words.initial.row(0).copy()[::-1]
    broken[0] = words.tokenizer.eos_id
    assert words.scores(TokenCorpus.in_memory([broken], words.tokenizer.eos_id, words.tokenizer.vocabulary, True)) < -ILLEGAL / 1000


REGIMES = [
    Regime(),
    Regime("fresh"),
    Regime("first_only"),
    Regime("accumulate"),
    Regime("accumulate_subsample"),
    Regime("mix", 0.1),
    Regime("mix", 0.5, "fresh"),
    Regime("select", 0.5),
    Regime("select", 0.5, verifier="grammar"),
]


def test_the_corpora_of_each_regime(words: GrammarWords, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is learned from, seen where it is learned, and what was written, where it is measured."""
    learned: list[TokenCorpus] = []
    fit = NGram.fit
    monkeypatch.setattr(NGram, "fit", lambda corpus, k: learned.append(corpus) or fit(corpus, k))

    def seen(regime: Regime) -> tuple[list[TokenCorpus], list[TokenCorpus]]:
        learned.clear()
        written: list[TokenCorpus] = []
        chain(words, 2, 4, regime, seed=3, measure=lambda model, text, initial, held_out: written.append(text) or {})
        return list(learned), written

    def rows(*corpora: TokenCorpus) -> Counter[bytes]:
        return Counter(row.tobytes() for corpus in corpora for row in corpus.iter_rows())

    tokens = words.initial.tokens
    for regime in REGIMES:
        corpora, texts = seen(regime)
        assert corpora[0] is texts[0] is words.initial and len(corpora) == 4 and len(texts) == 5
        assert all(tokens <= text.tokens < tokens + 400 for text in texts), "samples of equal size"
        if regime.name == "replace":
            assert all(map(np.array_equal, corpora[3].iter_rows(), texts[3].iter_rows()))
        elif regime.name == "accumulate":
            assert rows(corpora[3]) == rows(*texts[:4])
        else:
            assert all(tokens <= corpus.tokens < tokens + 800 for corpus in corpora)
        if regime.name == "accumulate_subsample":
            assert rows(corpora[3]) <= rows(*texts[:4])
        if regime == Regime("mix", 0.1):
            real = rows(corpora[3]) & rows(words.initial)
            assert rows(corpora[3]) - real <= rows(texts[3]) and real.total() >= 0.05 * words.initial.rows
        if regime.name == "fresh":
            assert words.scores(corpora[3]).min() > -ILLEGAL / 1000 and not rows(corpora[3]) & rows(corpora[2])
        if regime.name == "first_only":
            assert not rows(corpora[3]) & rows(texts[3]) > rows(corpora[3]) & rows(words.initial)
            assert np.isfinite(fit(words.initial, 2).row_losses(corpora[3])).all()
        if regime.name == "select":
            first = fit(words.initial, 2)
            own = first.sample_corpus(2 * tokens, ngram_chains._seed(3, 1, "own"))
            scores = words.scores(own) if regime.verifier == "grammar" else -first.row_losses(own) / row_tokens(own)
            kept = rows(corpora[1])
            assert kept <= rows(own) and len(kept) > 5
            worst = min(score for row, score in zip(own.iter_rows(), scores, strict=True) if row.tobytes() in kept)
            assert all(row.tobytes() in kept for row, score in zip(own.iter_rows(), scores, strict=True) if score > worst)


def test_a_chain_depends_on_its_seed_and_not_on_its_neighbours(words: GrammarWords) -> None:
    apart = chains(words, 2, 3, [Regime(), Regime("mix", 0.1)], [1, 2], workers=1)
    together = chains(words, 2, 3, [Regime(), Regime("mix", 0.1)], [1, 2], workers=2)
    assert apart.equals(together)
    alone = chain(words, 2, 3, Regime("mix", 0.1), seed=2)
    assert alone.equals(together[-4:][alone.columns].reset_index(drop=True))
    assert together[["regime_name", "seed", "generation"]].drop_duplicates().shape[0] == 16
    assert together[together.generation == 3].groupby("regime_name").entropy.nunique().eq(2).all()


def test_the_null_stays_and_the_loop_forgets(words: GrammarWords) -> None:
    fresh, replace = (chain(words, 2, 8, Regime(name)) for name in ("fresh", "replace"))
    assert abs(fresh.loss[8] - fresh.loss[1]) < 0.3 < 1 < replace.loss[8] - replace.loss[1]
    assert replace.contexts[8] < 0.6 * replace.contexts[0] and fresh.contexts[8] > 0.6 * fresh.contexts[0]
    assert replace.survived_1[8] < replace.survived_4[8] < replace.survived_16[8]


def test_what_cannot_be(words: GrammarWords) -> None:
    finite = Corpora(words.initial, words.held_out, "tinystories")
    with pytest.raises(UserError, match=r"'fresh' needs fresh real text .* 'tinystories' has an end"):
        chain(finite, 1, 2, Regime("fresh"))
    with pytest.raises(UserError, match="The law of 'tinystories' is not known"):
        chain(finite, 1, 2, Regime("select", 0.5, verifier="grammar"))
    with pytest.raises(UserError, match="no story grammar 'none'"):
        GrammarWords("none")
    with pytest.raises(UserError, match="0 tokens and 5 held-out stories"):
        GrammarWords(tokens=0, held_out_stories=5)
    with pytest.raises(UserError, match="none if they are whole stories"):
        chain(words, 1, 2, length=10)
    with pytest.raises(UserError, match="0 generations"):
        chain(words, 1, 0)
    with pytest.raises(UserError, match="with -5 tokens each"):
        chain(words, 1, 1, tokens=-5)
    assert ngram_chains._seed(1, 2, "own") != ngram_chains._seed(1, 2, "first")
