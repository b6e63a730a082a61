"""Texts that are parts of corpora, put together without a copy: what a generation learns from when that is not simply its predecessor's text.

A view offers what training and counting ask of a ``TokenCorpus``. Tokens stay in the shards of the corpora that it looks at; a ``Selection`` keeps
three integers a segment, a ``Union`` a few a part.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from collapse_lib.text.corpus import TokenCorpus


class Selection:
    """Some segments of a corpus, one after the other, each a row of this view: whole rows of it, or complete stories in it.

    ``rows_are_complete``, ``has_start``, ``eos_id`` and ``vocabulary`` are as in ``TokenCorpus``; ``starts`` and ``stops``, int64[rows], are places
    in the corpus' stream.
    """

    def __init__(self, corpus: TokenCorpus, starts: NDArray[np.int64], stops: NDArray[np.int64], rows_are_complete: bool, has_start: bool) -> None:
        self.corpus, self.starts, self.stops = corpus, starts, stops
        self.eos_id, self.vocabulary = corpus.eos_id, corpus.vocabulary
        self.rows_are_complete, self.has_start = rows_are_complete, has_start
        self._offsets = np.concatenate([[0], np.cumsum(stops - starts)])
        self.rows, self.tokens = len(starts), int(self._offsets[-1])

    @classmethod
    def of_rows(cls, corpus: TokenCorpus, rows: NDArray[np.int64]) -> Selection:
        """Whole rows of a corpus, in the order given."""
        offsets = np.concatenate([[0], np.cumsum(corpus.row_lengths())])
        return cls(corpus, offsets[rows], offsets[rows + 1], corpus.rows_are_complete, corpus.has_start)

    @classmethod
    def of_stories(cls, corpus: TokenCorpus, stories: NDArray[np.int64] | None = None) -> Selection:
        """The stories of ``complete_stories`` with the numbers ``stories``, or all of them."""
        starts, stops = complete_stories(corpus)
        if stories is not None:
            starts, stops = starts[stories], stops[stories]
        return cls(corpus, starts, stops, rows_are_complete=True, has_start=True)

    @property
    def hash(self) -> str:
        """SHA-256 over the corpus' hash and the segments."""
        digest = hashlib.sha256(self.corpus.hash.encode())
        digest.update(np.ascontiguousarray(self.starts))
        digest.update(np.ascontiguousarray(self.stops))
        return digest.hexdigest()

    @property
    def has_given_starts(self) -> bool:
        """Whether rows begin with tokens that nobody wrote."""
        return self.has_start and not self.rows_are_complete

    @property
    def real_tokens(self) -> int:
        """Tokens that a model or an author wrote."""
        return self.tokens - self.rows * self.has_given_starts

    def row(self, index: int) -> NDArray[np.uint16]:
        """uint16[tokens of the row]"""
        if not 0 <= index < self.rows:
            raise IndexError(f"row {index} of a selection of {self.rows}")
        return self.corpus.stream(int(self.starts[index]), int(self.stops[index]))

    def row_is_complete(self, index: int) -> bool:
        """Whether the row is a whole story."""
        return self.rows_are_complete

    def iter_rows(self, start: int = 0, stop: int | None = None) -> Iterator[NDArray[np.uint16]]:
        """Rows ``start`` to ``stop`` in order."""
        return map(self.row, range(start, self.rows if stop is None else min(stop, self.rows)))

    def row_lengths(self) -> NDArray[np.int64]:
        """int64[rows]: tokens of each row."""
        return self.stops - self.starts

    def stream(self, start: int, stop: int) -> NDArray[np.uint16]:
        """Tokens ``start`` to ``stop`` of all rows end to end."""
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start} to {stop} of a selection of {self.tokens}")
        pieces = [np.empty(0, np.uint16)]
        index = int(np.searchsorted(self._offsets, start, side="right")) - 1
        while start < stop:
            offset, end = int(self._offsets[index]), int(self._offsets[index + 1])
            first = int(self.starts[index]) - offset
            pieces.append(self.corpus.stream(first + start, first + min(stop, end)))
            start, index = min(stop, end), index + 1
        return np.concatenate(pieces)

    def given_starts(self, start: int, stop: int) -> NDArray[np.bool_]:
        """bool[stop - start]: True where the stream has a start token that a row was given."""
        mask = np.zeros(stop - start, bool)
        if self.has_given_starts:
            first, last = np.searchsorted(self._offsets[:-1], (start, stop))
            mask[self._offsets[first:last] - start] = True
        return mask

    def token_counts(self, chunk: int = 1 << 20) -> NDArray[np.int64]:
        """int64[vocabulary]: how often each token occurs among the real tokens."""
        counts = np.zeros(self.vocabulary, np.int64)
        for start in range(0, self.tokens, chunk):
            counts += np.bincount(self.stream(start, min(start + chunk, self.tokens)), minlength=self.vocabulary)
        counts[self.eos_id] -= self.rows * self.has_given_starts
        return counts


class Union:
    """Corpora and selections one after the other. They must have one tokeniser; their rows may be complete in one and cut off in another."""

    def __init__(self, parts: Sequence[TokenCorpus | Selection]) -> None:
        self.parts = list(parts)
        self.eos_id, self.vocabulary = self.parts[0].eos_id, self.parts[0].vocabulary
        self.rows_are_complete = all(part.rows_are_complete for part in self.parts)
        self.has_start = all(part.has_start for part in self.parts)
        self._first_row = [0, *accumulate(part.rows for part in self.parts)]
        self._first_token = [0, *accumulate(part.tokens for part in self.parts)]
        self.rows, self.tokens = self._first_row[-1], self._first_token[-1]

    @property
    def hash(self) -> str:
        """SHA-256 over the parts' hashes."""
        return hashlib.sha256("".join(part.hash for part in self.parts).encode()).hexdigest()

    @property
    def has_given_starts(self) -> bool:
        """Whether rows of some part begin with tokens that nobody wrote."""
        return any(part.has_given_starts for part in self.parts)

    @property
    def real_tokens(self) -> int:
        """Tokens that a model or an author wrote."""
        return sum(part.real_tokens for part in self.parts)

    def row(self, index: int) -> NDArray[np.uint16]:
        """uint16[tokens of the row]"""
        part, within = self._part(index)
        return part.row(within)

    def row_is_complete(self, index: int) -> bool:
        """Whether the row is a whole story."""
        return self._part(index)[0].rows_are_complete

    def iter_rows(self, start: int = 0, stop: int | None = None) -> Iterator[NDArray[np.uint16]]:
        """Rows ``start`` to ``stop`` in order."""
        return map(self.row, range(start, self.rows if stop is None else min(stop, self.rows)))

    def row_lengths(self) -> NDArray[np.int64]:
        """int64[rows]: tokens of each row."""
        return np.concatenate([part.row_lengths() for part in self.parts])

    def stream(self, start: int, stop: int) -> NDArray[np.uint16]:
        """Tokens ``start`` to ``stop`` of all rows end to end; a view where they lie in one shard of one corpus."""
        pieces = [part.stream(low, high) for part, low, high in self._pieces(start, stop)]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.uint16), *pieces])

    def given_starts(self, start: int, stop: int) -> NDArray[np.bool_]:
        """bool[stop - start]: True where the stream has a start token that a row was given and that ends no story before it."""
        masks = [np.empty(0, bool)]
        for part, low, high in self._pieces(start, stop):
            mask = part.given_starts(low, high)
            if low == 0 and len(mask) and part is not self.parts[0] and self.parts[self.parts.index(part) - 1].rows_are_complete:
                mask[0] = False
            masks.append(mask)
        return np.concatenate(masks)

    def token_counts(self, chunk: int = 1 << 20) -> NDArray[np.int64]:
        """int64[vocabulary]: how often each token occurs among the real tokens."""
        return np.sum([part.token_counts(chunk) for part in self.parts], axis=0)

    def _part(self, index: int) -> tuple[TokenCorpus | Selection, int]:
        if not 0 <= index < self.rows:
            raise IndexError(f"row {index} of a union of {self.rows}")
        number = bisect_right(self._first_row, index) - 1
        return self.parts[number], index - self._first_row[number]

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[TokenCorpus | Selection, int, int]]:
        """(part, first, last) places inside the parts that make up a slice of the stream."""
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start} to {stop} of a union of {self.tokens}")
        number = bisect_right(self._first_token, start) - 1
        while start < stop:
            origin, end = self._first_token[number], self._first_token[number + 1]
            yield self.parts[number], start - origin, min(stop, end) - origin
            start, number = min(stop, end), number + 1


def complete_stories(corpus: TokenCorpus) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the complete stories of a corpus begin and end in its stream, int64[stories] each.

    A story is an ``<|endoftext|>`` and what stands before the next one in the same row; a row that is complete is one. Stories without a token are
    left out.
    """
    starts, stops, origin = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for offsets, values in corpus.shards():
        if corpus.rows_are_complete:
            begin, end = offsets[:-1].astype(np.int64), offsets[1:].astype(np.int64)
        else:
            ends = np.flatnonzero(values == corpus.eos_id)
            row = np.searchsorted(offsets, ends, side="right")
            same = np.flatnonzero(row[1:] == row[:-1])
            begin, end = ends[same], ends[same + 1]
        told = end - begin > 1
        starts.append(origin + begin[told])
        stops.append(origin + end[told])
        origin += len(values)
    return np.concatenate(starts), np.concatenate(stops)
