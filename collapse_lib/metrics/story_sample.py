"""Complete stories of a generation, for measures that look at whole texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collapse_lib.text.corpus import TokenCorpus


def complete_stories(corpus: TokenCorpus, count: int, seed: int) -> list[np.ndarray]:
    """At most ``count`` complete stories, drawn without replacement and in the corpus' order: token arrays without '<|endoftext|>'.

    Of a sampled row the first story is taken and no other, so that stories are independent draws; it is complete if it ends within its row. Stories
    longer than a row are never among them: measures of sampled stories are held against real ones that are no longer than a row either.
    """
    rows = np.random.default_rng(seed).permutation(corpus.rows)
    stories: dict[int, np.ndarray] = {}
    for row in rows:
        tokens = corpus.row(int(row))[int(corpus.has_start) :]
        ends = np.flatnonzero(tokens == corpus.eos_id)
        if corpus.rows_are_complete or len(ends):
            stories[int(row)] = tokens[: ends[0]] if len(ends) else tokens
            if len(stories) == count:
                break
    return [stories[row] for row in sorted(stories)]
