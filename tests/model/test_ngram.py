"""The n-gram learner against one of dictionaries and loops."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.model import ngram
from collapse_lib.model.ngram import NGram, row_tokens, windows
from collapse_lib.text.corpus import TokenCorpus

EOS, VOCABULARY = 3, 9


class Naive:
    """Counters by context, a tuple of tokens."""

    def __init__(self, corpus: TokenCorpus, k: int):
        self.k = k
        self.counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for row in pairs(corpus, k):
            for context, token in row:
                for length in range(k + 1):
                    self.counts[context[k - length :]][token] += 1

    def seen(self, context: tuple[int, ...]) -> tuple[int, ...]:
        while context not in self.counts:
            context = context[1:]
        return context

    def law(self, context: tuple[int, ...]) -> np.ndarray:
        """Witten and Bell's."""
        lower = self.law(context[1:]) if context else np.full(VOCABULARY, 1 / VOCABULARY)
        if context not in self.counts:
            return lower
        types, total = len(self.counts[context]), self.counts[context].total()
        return np.array([(self.counts[context][token] + types * lower[token]) / (total + types) for token in range(VOCABULARY)])

    def walk(self, uniforms: np.ndarray, length: int | None) -> list[int]:
        """A row, by inverting the cumulative counts at each step."""
        context, row = (EOS,) * self.k, [EOS]
        for uniform in uniforms:
            counts = self.counts[self.seen(context)]
            until, token = 0, -1
            while until <= int(uniform * counts.total()):
                token = next(later for later in range(token + 1, VOCABULARY) if counts[later])
                until += counts[token]
            if token == EOS and length is None:
                return row
            row.append(token)
            context = following(context, token)
            if length and len(row) == 1 + length:
                return row
        raise AssertionError("more numbers were needed")


def following(context: tuple[int, ...], token: int) -> tuple[int, ...]:
    return (EOS,) * len(context) if token == EOS else (*context, token)[1:] if context else ()


def pairs(corpus: TokenCorpus, k: int) -> list[list[tuple[tuple[int, ...], int]]]:
    """Contexts and the tokens that follow them, row by row."""
    rows = []
    for row in corpus.iter_rows():
        tokens = row.tolist()[1:] if corpus.has_start else row.tolist()
        context, found = (EOS,) * k, []
        for token in [*tokens, EOS] if corpus.rows_are_complete else tokens:
            found.append((context, token))
            context = following(context, token)
        rows.append(found)
    return rows


def a_corpus(kind: str, rows: int = 40, seed: int = 0) -> TokenCorpus:
    """Rows in which some contexts are frequent and many are not; cut-off ones hold ends of stories."""
    random = np.random.default_rng(seed)
    words = np.array([token for token in range(VOCABULARY) if token != EOS or kind != "complete"])
    weights = 0.5 ** np.arange(len(words))
    drawn = [random.choice(words, random.integers(1, 12), p=weights / weights.sum()) for _ in range(rows)]
    start = [] if kind == "without start" else [EOS]
    return TokenCorpus.in_memory(
        [np.array([*start, *row], np.uint16) for row in drawn], EOS, VOCABULARY, kind == "complete", has_start=kind != "without start"
    )


KINDS = ("complete", "cut off", "without start")
both = pytest.mark.parametrize("kind", KINDS)
any_k = pytest.mark.parametrize("k", range(5))


@both
@any_k
def test_windows_end_at_the_beginning_of_a_story(kind: str, k: int) -> None:
    corpus = a_corpus(kind)
    past, tokens = windows(corpus, k)
    found = [pair for row in pairs(corpus, k) for pair in row]
    assert [tuple(context) for context in past.T[:, ::-1].tolist()] == [context for context, _ in found]
    assert tokens.tolist() == [token for _, token in found]
    assert row_tokens(corpus).tolist() == [len(row) for row in pairs(corpus, k)]


@both
@any_k
def test_it_counts_as_the_naive_one(kind: str, k: int) -> None:
    corpus = a_corpus(kind)
    model, naive = NGram.fit(corpus, k), Naive(corpus, k)
    longest = [context for context in naive.counts if len(context) == k]
    assert model.contexts == len(longest)
    assert model.num_parameters() == sum(len(naive.counts[context]) for context in longest)
    for length in range(k + 1):
        contexts = [context for context in naive.counts if len(context) == length]
        counts = np.array([[naive.counts[context][token] for token in range(VOCABULARY)] for context in contexts])
        laws = model.law(np.reshape(contexts, (len(contexts), length)), smoothed=False)
        assert np.array_equal(laws, counts / counts.sum(axis=1, keepdims=True))


@both
@any_k
def test_its_law_is_witten_and_bells(kind: str, k: int) -> None:
    corpus = a_corpus(kind)
    model, naive = NGram.fit(corpus, k), Naive(corpus, k)
    contexts = np.random.default_rng(1).integers(0, VOCABULARY, (300, 5))
    expected = []
    for context in contexts.tolist():
        seen = (EOS,) * k
        for token in context:
            seen = following(seen, token)
        expected.append(naive.law(seen))
    assert sum(len(naive.seen(tuple(context[5 - k :]))) < k for context in contexts.tolist()) > 50 or k < 3, "contexts that were not seen"
    assert np.allclose(model.law(contexts), expected, rtol=1e-12, atol=0)
    assert np.allclose(model.law(contexts).sum(axis=1), 1, rtol=0, atol=1e-12)


def test_it_computes_witten_and_bells_by_hand() -> None:
    """'a b' and 'a': N = 5 tokens of T = 3 types; behind a: N = 2, T = 2."""
    corpus = TokenCorpus.in_memory([np.array([0, 1, 2], np.uint16), np.array([0, 1], np.uint16)], 0, 4, True)
    unigram = (1 + 3 / 4) / 8
    assert NGram.fit(corpus, 1).law([[1]])[0, 2] == pytest.approx((1 + 2 * unigram) / 4, rel=1e-15)


@both
@any_k
def test_its_losses_are_those_of_its_law(kind: str, k: int) -> None:
    model, naive, other = NGram.fit(a_corpus(kind), k), Naive(a_corpus(kind), k), a_corpus(kind, seed=1)
    expected = [[-np.log(naive.law(context)[token]) for context, token in row] for row in pairs(other, k)]
    assert np.allclose(model.next_token_losses(other), np.concatenate(expected), rtol=1e-12, atol=0)
    assert np.allclose(model.row_losses(other), [sum(row) for row in expected], rtol=1e-10, atol=0)


@both
@any_k
def test_visits_and_entropies(kind: str, k: int) -> None:
    model, naive, other = NGram.fit(a_corpus(kind), k), Naive(a_corpus(kind), k), a_corpus(kind, seed=1)
    visited = Counter(naive.seen(context) for row in pairs(other, k) for context, _ in row)
    visits = model.visits(other)
    assert sorted(visits[visits > 0]) == sorted(visited.values())
    shares = {context: np.array(list(naive.counts[context].values())) / naive.counts[context].total() for context in visited}
    entropy = sum(number * -(shares[context] @ np.log(shares[context])) for context, number in visited.items())
    assert visits @ model.entropies == pytest.approx(entropy, rel=1e-12)


@pytest.mark.parametrize(("kind", "length"), [("complete", None), ("complete", 30), ("cut off", 30), ("without start", 30)])
@any_k
def test_it_samples_what_inverting_the_counts_gives(kind: str, length: int | None, k: int) -> None:
    corpus = a_corpus(kind)
    sampled, naive = NGram.fit(corpus, k).sample_rows(range(5, 105), 7, length), Naive(corpus, k)
    for row, tokens in zip(range(5, 105), sampled, strict=True):
        uniforms = np.random.Generator(np.random.Philox(key=[7, row])).random(5000)
        assert tokens.dtype == np.uint16 and tokens.tolist() == naive.walk(uniforms, length)


@pytest.mark.parametrize(("length", "seed"), [(None, 0), (150, 2**64 - 1)])
def test_a_row_depends_on_nothing_but_its_number(length: int | None, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = NGram.fit(a_corpus("complete"), 1)
    together = model.sample_rows(range(200), seed, length)
    monkeypatch.setattr(ngram, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(ngram, "STEPS_AT_ONCE", 4)
    apart = model.sample_rows(range(90), seed, length) + model.sample_rows(range(90, 200), seed, length)
    assert all(map(np.array_equal, together, apart))
    other = model.sample_rows(range(200), 1, length)
    assert not all(map(np.array_equal, together, other))


@pytest.mark.parametrize("k", [0, 2])
def test_samples_are_distributed_as_the_counts(k: int) -> None:
    """Pearson's chi-square at each of the most frequent contexts; the seed is fixed, and the level 0.001 over all of them."""
    from scipy.stats import chi2

    corpus = a_corpus("complete", rows=200)
    model, naive = NGram.fit(corpus, k), Naive(corpus, k)
    sampled = Naive(model.sample_corpus(60_000, seed=3), k)
    contexts = [context for context, _ in Counter({c: n.total() for c, n in sampled.counts.items() if len(c) == k}).most_common(20)]
    statistic = degrees = 0
    for context in contexts:
        tokens = list(naive.counts[context])
        observed = np.array([sampled.counts[context][token] for token in tokens])
        expected = observed.sum() * np.array([naive.counts[context][token] for token in tokens]) / naive.counts[context].total()
        assert observed.sum() == sampled.counts[context].total(), "no token that was never seen there"
        statistic, degrees = statistic + ((observed - expected) ** 2 / expected).sum(), degrees + len(tokens) - 1
    assert degrees >= 8 and statistic < chi2.isf(0.001, degrees)


@pytest.mark.parametrize(("kind", "length"), [("complete", None), ("cut off", 25)])
def test_a_sampled_corpus_has_the_fewest_rows_with_so_many_tokens(kind: str, length: int | None) -> None:
    model = NGram.fit(a_corpus(kind), 2)
    sampled = model.sample_corpus(1000, 4, length)
    assert sampled.real_tokens >= 1000 > sampled.real_tokens - row_tokens(sampled)[-1]
    assert all(map(np.array_equal, sampled.iter_rows(), model.sample_rows(range(sampled.rows), 4, length)))
    assert sampled.rows_are_complete == (length is None)


@both
def test_it_is_saved_and_loaded(kind: str, tmp_path) -> None:
    model = NGram.fit(a_corpus(kind), 2)
    model.save(tmp_path / "model.safetensors")
    loaded = NGram.load(tmp_path / "model.safetensors")
    other = a_corpus(kind, seed=1)
    assert np.array_equal(loaded.next_token_losses(other), model.next_token_losses(other))
    assert all(map(np.array_equal, loaded.sample_rows(range(9), 1, 20), model.sample_rows(range(9), 1, 20)))
    assert (loaded.k, loaded.eos_id, loaded.ends) == (2, EOS, kind == "complete")


def test_what_is_no_model(tmp_path) -> None:
    from safetensors.numpy import save_file

    with pytest.raises(UserError, match="There is no n-gram model"):
        NGram.load(tmp_path / "none")
    (tmp_path / "text").write_text("no model")
    save_file({"nodes": np.zeros(1)}, tmp_path / "other")
    for name in ("text", "other"):
        with pytest.raises(UserError, match="is no n-gram model"):
            NGram.load(tmp_path / name)


def test_what_cannot_be() -> None:
    with pytest.raises(UserError, match="context of -1 tokens"):
        NGram.fit(a_corpus("complete"), -1)
    with pytest.raises(UserError, match="start token and nothing else"):
        NGram.fit(TokenCorpus.in_memory(np.full((3, 1), EOS), EOS, VOCABULARY, False), 1)
    with pytest.raises(UserError, match="give the length of a row"):
        NGram.fit(a_corpus("cut off"), 1).sample_corpus(10, 0)
    with pytest.raises(UserError, match="cannot have 0 tokens"):
        NGram.fit(a_corpus("cut off"), 1).sample_corpus(10, 0, length=0)
