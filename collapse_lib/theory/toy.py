"""A language of thirty words in which each word is decided by the one before it: the toy on which the chapters show every theorem first.

A **law** is [31, 31]: row x holds the probabilities of what follows word x, and index 0 is the edge of a sentence, before its first word and after
its last. A **corpus** is [sentences, longest] of indices, 0 behind a sentence's end. A model counts the pairs of a corpus and divides (``learn``):
one context a word, each with its own N_x. So everything in the proof can be looked at, and its text can be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapse_lib.experiment.errors import UserError
from collapse_lib.theory.contexts import Flow
from collapse_lib.theory.proof import Array, Generator
from collapse_lib.theory.repeated_error import blend

Corpus = NDArray[np.int64]

EDGE = ""
# "the" leads to those who act and "a" to things: so that pairs of words alone make sentences that make sense.
FOLLOWERS: dict[str, dict[str, float]] = {
    EDGE: {"the": 0.7, "tim": 0.2, "lily": 0.1},
    "the": {"cat": 0.4, "dog": 0.2, "small": 0.15, "old": 0.1, "bird": 0.1, "fox": 0.05},
    "small": {"cat": 0.4, "dog": 0.3, "bird": 0.3},
    "old": {"cat": 0.5, "dog": 0.3, "fox": 0.2},
    "cat": {"sat": 0.4, "ran": 0.3, "slept": 0.2, "flew": 0.1},
    "dog": {"ran": 0.4, "found": 0.3, "slept": 0.2, "sat": 0.1},
    "bird": {"flew": 0.5, "sang": 0.4, "sat": 0.1},
    "fox": {"ran": 0.5, "lost": 0.3, "sang": 0.2},
    "tim": {"saw": 0.4, "found": 0.3, "lost": 0.2, "ran": 0.1},
    "lily": {"saw": 0.4, "found": 0.3, "sang": 0.3},
    "sat": {"on": 0.6, "under": 0.3, EDGE: 0.1},
    "ran": {EDGE: 0.5, "under": 0.3, "over": 0.2},
    "slept": {EDGE: 0.5, "under": 0.3, "on": 0.2},
    "flew": {"over": 0.7, EDGE: 0.3},
    "sang": {EDGE: 0.7, "under": 0.3},
    "saw": {"a": 1.0},
    "found": {"a": 1.0},
    "lost": {"a": 1.0},
    "on": {"a": 1.0},
    "under": {"a": 1.0},
    "over": {"a": 1.0},
    "a": {"mat": 0.25, "tree": 0.2, "red": 0.15, "house": 0.1, "big": 0.1, "ball": 0.1, "hat": 0.05, "moon": 0.05},
    "red": {"ball": 0.4, "hat": 0.3, "house": 0.2, "moon": 0.1},
    "big": {"tree": 0.4, "house": 0.3, "ball": 0.2, "moon": 0.1},
    "mat": {EDGE: 0.8, "and": 0.2},
    "tree": {EDGE: 0.8, "and": 0.2},
    "house": {EDGE: 0.8, "and": 0.2},
    "ball": {EDGE: 0.8, "and": 0.2},
    "hat": {EDGE: 0.8, "and": 0.2},
    "moon": {EDGE: 0.8, "and": 0.2},
    "and": {"sang": 0.4, "slept": 0.3, "ran": 0.3},
}
WORDS: tuple[str, ...] = tuple(FOLLOWERS)  # the edge first, then thirty words
LAW: Array = np.array([[FOLLOWERS[word].get(follower, 0.0) for follower in WORDS] for word in WORDS])


def index(word: str) -> int:
    """The row of a law that belongs to ``word``; raises ``UserError`` for a word that the language lacks."""
    if word not in WORDS:
        raise UserError(f"The toy has no word '{word}'; it has {', '.join(WORDS[1:])}.")
    return WORDS.index(word)


def write(law: ArrayLike, sentences: int, rng: Generator, longest: int = 200) -> Corpus:
    """A corpus of independent sentences, each from edge to edge; what is longer than ``longest`` words is cut off there."""
    cumulative = np.asarray(law, float).cumsum(axis=1)
    cumulative /= cumulative[:, -1:]  # so that rounding never leaves a number above the last step
    words, columns = np.zeros(sentences, np.int64), []
    for place in range(longest):
        drawn = (cumulative[words] <= rng.random((sentences, 1))).sum(axis=1)
        words = drawn if place == 0 else np.where(words == 0, 0, drawn)
        columns.append(words)
        if not words.any():
            break
    return np.stack(columns, axis=1)


def count(corpus: Corpus) -> Flow:
    """N_{x;v}, [31, 31]: how often each word follows each. Row sums are N_x, that of the edge the number of sentences."""
    padded = np.pad(corpus, ((0, 0), (1, 1)))
    before, after = padded[:, :-1].ravel(), padded[:, 1:].ravel()
    inside = np.ones(corpus.shape[0] * (corpus.shape[1] + 1), bool)
    inside[(before == 0) & (np.arange(before.size) % (corpus.shape[1] + 1) > 0)] = False  # padding, and not a sentence's beginning
    flow = np.zeros((len(WORDS), len(WORDS)), np.int64)
    np.add.at(flow, (before[inside], after[inside]), 1)
    return flow


def learn(counts: ArrayLike, error: float = 0.0) -> Array:
    """The model of a corpus with these ``counts``, [31, 31]: (1 - eps) N_{x;v} / N_x + eps u with u uniform.

    A word that the corpus lacks is followed by the edge: without an error nobody asks, and with one something has to come.
    """
    counts = np.asarray(counts, float)
    totals = counts.sum(axis=1, keepdims=True)
    ended = np.eye(len(WORDS))[0]
    return blend(np.where(totals > 0, counts / np.maximum(totals, 1), ended), error)


def recur(
    corpus: Corpus,
    generations: int,
    rng: Generator,
    error: float = 0.0,
    choose: Callable[[list[Corpus], Generator], Corpus] = lambda corpora, rng: corpora[-1],
) -> list[Corpus]:
    """The corpora of generations 0 .. n, each of the first one's size and written by a model of what ``choose`` takes from those before it."""
    corpora = [corpus]
    for _ in range(generations):
        corpora.append(write(learn(count(choose(corpora, rng)), error), len(corpus), rng))
    return corpora


def draw(corpora: Sequence[Corpus], number: int, rng: Generator) -> Corpus:
    """``number`` sentences of all these corpora, drawn without replacement; fewer if there are not so many."""
    longest = max(corpus.shape[1] for corpus in corpora)
    padded = [np.pad(corpus, ((0, 0), (0, longest - corpus.shape[1]))) for corpus in corpora]
    return rng.permutation(np.concatenate(padded))[:number]


def sentences(corpus: Corpus) -> list[str]:
    """Every sentence of a corpus as text, its full stop included."""
    return [" ".join(WORDS[word] for word in row if word) + "." for row in corpus]


def commonest(corpus: Corpus, number: int = 3) -> list[tuple[str, int]]:
    """The sentences that occur most often, each with its count; of equal counts, the earlier in the corpus comes first."""
    return Counter(sentences(corpus)).most_common(number)
