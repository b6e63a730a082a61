"""Rows of unequal length through a model: batches of like lengths, padded on the right, where no causal model looks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def longest_first(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Numbers of the rows of each batch of at most ``batch_tokens``, padding included, or of one row.

    The longest come first, so that equals meet and a batch too large for the memory fails at once.
    """
    order, start = np.argsort(-lengths, kind="stable"), 0
    while start < len(order):
        rows = max(1, batch_tokens // int(lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of token ids as one array, [rows, longest] int64, filled up with zeros."""
    array = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for padded_row, row in zip(array, rows, strict=True):
        padded_row[: len(row)] = row
    return array
