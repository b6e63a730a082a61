"""How surprising a text is to the truth, piece by piece, and which of its pieces are no words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from collapse_lib.metrics.words import count_words, lexicon

LETTERS = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def law_losses(given: str, pieces: Sequence[str], log_prefix_probabilities: Callable[[str], Sequence[float]]) -> list[float | None] | None:
    """-ln q of each piece, q being the true probability that a text that begins with ``given`` and the pieces before it goes on with its characters.

    The first piece that the law rules out is infinitely surprising; after it the law has nothing to say, and pieces have None. Returns None where
    the law rules out ``given`` itself. ``log_prefix_probabilities`` is that of ``StoryGrammar``.
    """
    beginnings = log_prefix_probabilities(given + "".join(pieces))
    masses = [beginnings[end] for end in accumulate(map(len, pieces), initial=len(given))]
    if masses[0] == -math.inf:
        return None
    return [None if before == -math.inf else before - now for before, now in pairwise(masses)]


def in_non_words(given: str, pieces: Sequence[str]) -> list[bool]:
    """Whether each piece has a letter of a word that is not in the English lexicon (``words.lexicon``); a word may begin in ``given``."""
    text, known = given + "".join(pieces), lexicon()
    spans = [match.span() for match in LETTERS.finditer(text) if any(word not in known for word in count_words(Counter([match[0]]))[0])]
    bounds = list(accumulate(map(len, pieces), initial=len(given)))
    return [any(start < last and first < end for start, end in spans) for first, last in pairwise(bounds)]
