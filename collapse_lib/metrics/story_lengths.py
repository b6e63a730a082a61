"""How long a generation's stories are, and how often it ends one: where a pipeline can change text without the model forgetting anything.

**Length.** A story's length is the number of its tokens, its '<|endoftext|>' included. Sampled rows are cut off, so the last story of most rows is
only known to be longer than what is there, and the stories that do end within a row are the shorter ones: their mean would be too low. Here every
story counts for as long as it was seen (Kaplan and Meier's estimate of the share of stories longer than t), and the mean is taken of the shorter of
length and row, which that estimate determines without a guess about what lies beyond the row's end. Stories that follow each other in
a row are taken as independent of each other.

**Ends.** The share of '<|endoftext|>' among the tokens that the model sampled. Padding after a story was not sampled and is not stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from collapse_lib.metrics.metric import Metric, metric
from collapse_lib.metrics.row_blocks import row_blocks
from collapse_lib.metrics.uncertainty import ratio_error, share_error

if TYPE_CHECKING:
    from collapse_lib.text.corpus import TokenCorpus


class Spells(NamedTuple):
    """How many stories of each length a corpus has: int64[1 + longest row], index = tokens."""

    ended: np.ndarray  # by length, '<|endoftext|>' included
    cut: np.ndarray  # stories that a row's end cut off, by the tokens that are there


def story_lengths(corpus: TokenCorpus, initial: TokenCorpus, row: int, continues: bool = True) -> dict[str, Metric]:
    """Metrics of a sampled corpus with rows of at most ``row`` tokens, and of the initial stories (complete rows) under the same cut.

    ``continues`` says whether the next story is sampled after an end, up to the end of the row. Standard errors take the rows as the sampling
    units; that of the mean length is Greenwood's.
    """
    ends, tokens = row_counts(corpus)
    first_ended = float((ends > 0).mean())
    rate = float(ends.sum() / tokens.sum())
    rate_error = ratio_error(ends - rate * tokens, float(tokens.sum()), corrected=False)
    mean, mean_error = restricted_mean(spells(corpus, row), row)
    lengths = initial.row_lengths()  # a complete row is a start token and a story: as long as the story with its end
    counts = {"ends": int(ends.sum()), "tokens": int(tokens.sum())}
    return {
        "eos_share": metric(rate, "1", "share of '<|endoftext|>' among the sampled tokens", counts, rate_error),
        "initial_eos_share": metric(
            expected_share(lengths, row, continues),
            "1",
            "the same share in rows of randomly drawn initial stories, cut in the same way",
        ),
        "stories_ended": metric(
            first_ended,
            "1",
            f"share of rows whose first story ends within its {row} tokens",
            {"rows": len(ends)},
            share_error(first_ended, len(ends)),
        ),
        "initial_stories_ended": metric(float((lengths <= row).mean()), "1", f"share of the initial stories that end within {row} tokens"),
        "story_length": metric(
            mean,
            "tokens",
            f"mean story length, a longer story counting as {row} tokens (Kaplan and Meier's estimate, in which cut-off stories count)",
            standard_error=mean_error,
        ),
        "initial_story_length": metric(
            float(np.minimum(lengths, row).mean()), "tokens", f"mean length of the initial stories, a longer one counting as {row} tokens"
        ),
    }


def expected_share(lengths: np.ndarray, row: int, continues: bool = True) -> float:
    """Share of ends in rows of ``row`` tokens that are filled with stories of such ``lengths``, or with one story each.

    Every row begins with a story, so that short rows have fewer ends than the stories end to end.
    """
    share = np.bincount(np.minimum(lengths, row + 1), minlength=row + 2)[: row + 1] / len(lengths)  # of the stories, by length
    if not continues:
        return float(share.sum() / np.minimum(lengths, row).mean())
    ends = np.zeros(row + 1)  # how probable an end is at each token; at "token 0" the row begins as after an end
    ends[0] = 1
    for token in range(1, row + 1):
        ends[token] = share[1 : token + 1] @ ends[:token][::-1]
    return float(ends[1:].sum() / row)


def row_counts(corpus: TokenCorpus) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the number of '<|endoftext|>' and of all sampled tokens: two int64[rows]."""
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for is_eos, starts in _ends(corpus):
        parts.append((np.add.reduceat(is_eos, starts, dtype=np.int64), np.diff(starts, append=len(is_eos))))
    ends, tokens = map(np.concatenate, zip(*parts, strict=True))
    return ends, tokens


def spells(corpus: TokenCorpus, row: int) -> Spells:
    """The stories of a sampled corpus, whose rows have at most ``row`` tokens, by length; the first story of a row begins with it."""
    ended, cut = np.zeros((2, row + 1), np.int64)
    for is_eos, starts in _ends(corpus):
        begins = np.zeros(len(is_eos), bool)
        begins[starts] = True
        begins[1:] |= is_eos[:-1]
        starts_of_stories = np.flatnonzero(begins)
        lengths = np.diff(starts_of_stories, append=len(is_eos))
        complete = is_eos[starts_of_stories + lengths - 1]
        ended += np.bincount(lengths[complete], minlength=row + 1)
        cut += np.bincount(lengths[~complete], minlength=row + 1)
    return Spells(ended, cut)


def survival(stories: Spells) -> np.ndarray:
    """float64[row + 1]: Kaplan and Meier's estimate of the share of stories longer than 0, 1, 2, ... tokens."""
    ended, at_risk = _at_risk(stories)
    return np.cumprod(1 - ended / np.maximum(at_risk, 1))


def restricted_mean(stories: Spells, row: int) -> tuple[float, float]:
    """Mean of the shorter of length and ``row`` tokens, the area under ``survival``, and its standard error (Greenwood)."""
    longer = survival(stories)[:row]  # of at least 1, 2, ..., row tokens
    ended, at_risk = (counts[1:] for counts in _at_risk(stories))
    remaining = longer[::-1].cumsum()[::-1] - longer  # area beyond t = 1, 2, ..., row
    left = at_risk - ended
    terms = np.square(remaining) * np.divide(ended, at_risk * left, out=np.zeros(row), where=left > 0)
    return float(longer.sum()), math.sqrt(float(terms.sum()))


def _at_risk(stories: Spells) -> tuple[np.ndarray, np.ndarray]:
    """By length t, float64: stories that end there, and stories of which t tokens at least are there."""
    seen = stories.ended + stories.cut
    return stories.ended.astype(np.float64), seen[::-1].cumsum()[::-1].astype(np.float64)


def _ends(corpus: TokenCorpus) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Whole rows end to end: which tokens are '<|endoftext|>' [n] bool, and where rows start [rows]."""
    for tokens, first in row_blocks(corpus):
        yield tokens == corpus.eos_id, np.flatnonzero(first)
