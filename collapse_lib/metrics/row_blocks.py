"""A corpus of any length, read as blocks of whole rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collapse_lib.text.corpus import TokenCorpus

BLOCK_TOKENS = 1 << 20  # tokens looked at together: large enough for numpy, small enough for any memory


def row_blocks(corpus: TokenCorpus, size: int = BLOCK_TOKENS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Whole rows end to end, about ``size`` tokens at a time: tokens [n] uint16, and whether each is the first of its row [n] bool.

    The start token that a sampled row was given is left out.
    """
    given = int(corpus.has_start and not corpus.rows_are_complete)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    held = 0
    for offsets, values in corpus.shards():
        before = offsets - given * np.arange(len(offsets))  # tokens before each row, start tokens left out
        row, rows = 0, len(offsets) - 1
        while row < rows:
            stop = min(rows, int(np.searchsorted(before, before[row] + size - held)))  # after the row that fills the block
            parts.append(_rows(values[offsets[row] : offsets[stop]], offsets[row:stop] - offsets[row], given))
            held += int(before[stop] - before[row])
            row = stop
            if held >= size:
                yield _joined(parts)
                parts, held = [], 0
    if held:
        yield _joined(parts)


def _rows(tokens: np.ndarray, starts: np.ndarray, given: int) -> tuple[np.ndarray, np.ndarray]:
    """A block of rows that begin at ``starts``, each without its ``given`` first token (0 or 1)."""
    first = np.zeros(len(tokens) + given, dtype=bool)
    first[starts + given] = True
    if not given:
        return tokens, first
    sampled = np.ones(len(tokens), dtype=bool)
    sampled[starts] = False
    return tokens[sampled], first[:-1][sampled]


def _joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return parts[0] if len(parts) == 1 else tuple(map(np.concatenate, zip(*parts, strict=True)))
