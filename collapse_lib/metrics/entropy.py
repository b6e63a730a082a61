"""Entropy of a corpus's tokens (section 5.3.1), and what padding makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from collapse_lib.metrics.metric import Metric, metric, ratio
from collapse_lib.metrics.row_blocks import row_blocks

if TYPE_CHECKING:
    from collapse_lib.text.corpus import TokenCorpus


def entropy(counts: np.ndarray) -> float:
    """Plug-in entropy in nats of the relative frequencies of ``counts`` (integers, any shape); 0 for no tokens (section 5.3.1)."""
    seen = counts[counts > 0].astype(np.float64)
    if not seen.size:
        return 0.0
    shares = seen / seen.sum()
    return max(0.0, float(-(shares * np.log(shares)).sum()))  # one type alone would give -0.0


def entropy_metrics(counts: np.ndarray) -> dict[str, Metric]:
    tokens, types = int(counts.sum()), int((counts > 0).sum())
    nats = entropy(counts)
    # The plug-in estimate is too low by about (types - 1) / 2N; nothing at 6e8 tokens, visible in a small run.
    corrected = nats + (types - 1) / (2 * tokens) if tokens else 0.0
    seen = {"tokens": tokens, "types": types}
    return {
        "entropy": metric(nats, "nats", "-sum p ln p over the relative frequencies p of the tokens (plug-in estimate)", counts=seen),
        "entropy_bits": metric(nats / float(np.log(2)), "bits", "the same entropy with base-2 logarithms", counts=seen),
        "entropy_miller_madow": metric(
            corrected, "nats", "plug-in entropy + (token types - 1) / (2 tokens), Miller and Madow's correction", counts=seen
        ),
        "token_types": metric(types, "types", "distinct tokens that occur"),
    }


def padded_metrics(corpus: TokenCorpus, row: int) -> dict[str, Metric]:
    """What a sampled corpus would look like if each row were filled with '<|endoftext|>' after its first one, up to ``row`` tokens.

    So the released code keeps its samples, and entropy counted over them holds the padding. Rows that were cut at their first end and rows in which
    further stories follow it give the same: what comes after an end is not looked at.
    """
    counts, rows = np.zeros(corpus.vocabulary, np.int64), 0
    for tokens, first in row_blocks(corpus):
        starts = np.flatnonzero(first)
        is_eos = tokens == corpus.eos_id
        before = np.cumsum(is_eos) - is_eos  # ends in the block before each token, and, taken from that, in its row
        is_counted = before == np.repeat(before[starts], np.diff(starts, append=len(tokens)))
        counts += np.bincount(tokens[is_counted], minlength=corpus.vocabulary)
        rows += len(starts)
    padding = rows * row - int(counts.sum())
    counts[corpus.eos_id] += padding
    seen = {"positions": rows * row, "types": int((counts > 0).sum())}
    definition = f"entropy with '<|endoftext|>' after each row's first one up to {row} tokens, this padding counted, as in the released code"
    share_definition = f"share of a row's {row} positions that lie after its first '<|endoftext|>'"
    return {
        "entropy_padded": metric(entropy(counts), "nats", definition, counts=seen),
        "padding_share": ratio(padding, rows * row, "1", share_definition, "positions"),
    }
