"""Repetition (Finding 2): tokens that follow themselves, and how many n-grams are different."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from collapse_lib.metrics.metric import Metric, ratio
from collapse_lib.metrics.row_blocks import row_blocks

if TYPE_CHECKING:
    from collapse_lib.text.corpus import TokenCorpus

NGRAM_TOKENS = 1_000_000  # the share of distinct n-grams falls with the amount of text, so every generation gives the same amount


class Repeats:
    """Immediate repetition, added up over blocks of whole rows."""

    followers = 0  # tokens that have one before them in their row
    longest = 0  # tokens in the longest run of one token
    token = -1  # which token that was

    def __init__(self) -> None:
        self.counts = np.zeros(1 << 16, np.int64)  # by token id: tokens equal to the one before them in their row

    @property
    def repeated(self) -> int:
        return int(self.counts.sum())

    def add(self, tokens: np.ndarray, first: np.ndarray) -> None:
        """Take in a block: ``tokens`` [n], and ``first`` [n] marking where rows begin."""
        follows = ~first[1:]
        same = (tokens[1:] == tokens[:-1]) & follows
        self.followers += int(follows.sum())
        self.counts += np.bincount(tokens[1:][same], minlength=len(self.counts))
        changes = np.flatnonzero(np.concatenate(([True], ~same, [True])))  # where runs begin, and the end
        lengths = np.diff(changes)
        index = int(lengths.argmax())
        if lengths[index] > self.longest:
            self.longest, self.token = int(lengths[index]), int(tokens[changes[index]])


def frequent_tokens(counts: np.ndarray) -> np.ndarray:
    """Ids of the fewest tokens that make at least half of a text in which each occurs ``counts`` times; of a text without tokens none."""
    order = np.argsort(-counts, kind="stable")
    return order[: int(np.searchsorted(np.cumsum(counts[order]), counts.sum() / 2)) + 1] if counts.any() else order[:0]


def _packed(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """uint64: the ``length`` <= 4 tokens from each start on, 16 bits each and the first lowest. They fit exactly: nothing collides."""
    keys = np.zeros(len(starts), dtype=np.uint64)
    for offset in range(length):
        keys |= tokens[starts + offset].astype(np.uint64) << np.uint64(16 * offset)
    return keys


def distinct_ngrams(tokens: np.ndarray, first: np.ndarray, n: int) -> tuple[int, int]:
    """Numbers of different and of all n-grams (n <= 4) inside the rows of a block of ``row_blocks``."""
    starts = np.arange(max(len(tokens) - n + 1, 0))
    for offset in range(1, n):
        starts = starts[~first[starts + offset]]
    keys = np.sort(_packed(tokens, starts, n))  # np.unique without counts may hash, which is slower
    return int((keys[1:] != keys[:-1]).sum()) + bool(len(keys)), len(keys)


def distinct_metrics(corpus: TokenCorpus) -> dict[str, Metric]:
    tokens, first = next(row_blocks(corpus, NGRAM_TOKENS), (np.empty(0, np.uint16), np.empty(0, bool)))
    sample = f"the first {NGRAM_TOKENS:,} tokens in whole rows" if len(tokens) < corpus.real_tokens else "all rows"
    metrics = {}
    for n in range(1, 5):
        different, total = distinct_ngrams(tokens, first, n)
        metrics[f"distinct_{n}"] = ratio(different, total, "1", f"distinct {n}-grams as a share of all {n}-grams within rows ({sample})", "ngrams")
    return metrics
