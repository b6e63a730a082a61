"""What generation n learns from: the paper's loop, and the other ways of arranging real and synthetic text.

Texts are numbered: text 0 is the initial corpus D and text n is S_n, sampled when generation n had been trained. Generation 1 always learns from
D. Of later ones ``compose`` says which rows of which texts they read; it knows nothing about models and depends on its arguments alone. Every
corpus has N tokens in complete rows, but for ``accumulate``:

========================  ==============================================================================================================
``replace``               S_{n-1}: the paper, section 5.1
``fresh``                 a new real text in each generation, from a source without an end: the null, in which nothing is recursive
``first_only``            S_{n-1}, but written by generation 1 whatever n is: synthetic, and still not recursive
``accumulate``            D, S_1, ..., S_{n-1}, all of them: n N tokens (Gerstgrasser et al. 2024, "Is Model Collapse Inevitable?"). A
                          learner that takes steps takes as many as under ``replace``, or as many epochs
``accumulate_subsample``  N tokens of that union, drawn anew in each generation (Kazdan et al. 2024, "Collapse or Thrive?")
``mix``                   a share r of real text and 1 - r of S_{n-1} (the paper, section 4; r = 0.1 in Shumailov et al. 2024). The
                          real rows are old ones, drawn anew from D, or with ``real: fresh`` rows that nobody has read
``select``                S_{n-1} has N / share tokens, and a verifier keeps those N that it likes best (the paper, section 4; Feng et
                          al. 2024, "Beyond Model Collapse")
========================  ==============================================================================================================

Rows are drawn without replacement. A part of a corpus has the fewest rows, in the order in which they are drawn, that hold the tokens wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapse_lib.experiment.errors import UserError

REGIMES = ("replace", "fresh", "first_only", "accumulate", "accumulate_subsample", "mix", "select")
REAL = ("old", "fresh")
VERIFIERS = ("likelihood", "grammar")
FRESH = -1  # in the place of a text's number: real text that is in none of them


class Part(NamedTuple):
    """A part of the corpus of one generation."""

    text: int  # 0 for D, n for S_n, FRESH for real text that nobody has read yet
    rows: NDArray[np.int64]  # rows of that text, ascending; of FRESH none, as they have no numbers yet
    tokens: int  # in those rows; of FRESH, the number wanted


@dataclass(frozen=True)
class Regime:
    """One of ``REGIMES`` with its settings.

    ``share`` is r of ``mix``, or the share that ``select`` keeps; ``real`` the real text that ``mix`` takes; ``verifier`` whose log-likelihood
    ``select`` goes by, that of generation 1's model or the exact one of the grammar. Raises ``UserError`` for a name that there is not, and
    for a setting that is missing, out of range, or given to a regime without it.
    """

    name: str = "replace"
    share: float | None = None
    real: str = "old"
    verifier: str = "likelihood"

    def __post_init__(self) -> None:
        if self.name not in REGIMES:
            raise UserError(f"There is no regime '{self.name}'; there are {', '.join(REGIMES)}.")
        if self.name not in ("mix", "select"):
            if self.share is not None:
                raise UserError(f"Regime '{self.name}' has no share; mix and select have one.")
        elif self.share is None or not 0 <= self.share <= 1:
            raise UserError(f"The share of regime '{self.name}' is {self.share}; a number from 0 to 1 is allowed.")
        elif self.name == "select" and self.share == 0:
            raise UserError("The share that regime 'select' keeps is 0, which leaves nothing to learn from; a number above 0 and up to 1 is allowed.")
        for field, allowed, owner in (("real", REAL, "mix"), ("verifier", VERIFIERS, "select")):
            value = getattr(self, field)
            if value not in allowed:
                raise UserError(f"Field '{field}' of a regime cannot be '{value}'; {' and '.join(allowed)} are allowed.")
            if value != allowed[0] and self.name != owner:
                raise UserError(f"Regime '{self.name}' has no field '{field}'; {owner} has it.")

    @property
    def needs_fresh_text(self) -> bool:
        """Whether it reads real text beyond the initial corpus, so that the source must have no end."""
        return self.name == "fresh" or self.real == "fresh"

    @property
    def needs_scores(self) -> bool:
        """Whether a verifier has to score the rows of the last text."""
        return self.name == "select"

    def check_source(self, source: str, endless: bool) -> None:
        """Raises ``UserError`` if the regime needs more real text than ``source`` can give."""
        if self.needs_fresh_text and not endless:
            raise UserError(f"Regime '{self.name}' needs fresh real text in every generation, and '{source}' has an end; the grammar has none.")

    def writer(self, text: int) -> int:
        """The generation whose model writes text ``text`` >= 1. Where it is not generation ``text``, that one's own text is only measured."""
        return 1 if self.name == "first_only" else text

    def tokens_to_sample(self, tokens: int) -> int:
        """How many tokens a text needs so that a corpus of ``tokens`` comes out of it."""
        return int(np.ceil(tokens / self.share)) if self.name == "select" else tokens


def compose(regime: Regime, generation: int, lengths: Sequence[ArrayLike], tokens: int, seed: int, scores: ArrayLike | None = None) -> list[Part]:
    """The parts of the corpus from which ``generation`` >= 1 learns.

    Args:
        lengths: tokens of each row of D, S_1, ..., S_{generation - 1}, an integer array [rows] a text.
        tokens: N.
        seed: of the draws; the generation goes into them too, so that each is another.
        scores: of the rows of the last text, [rows], for ``select``: the verifier's mean log-likelihood of a token. Of equal scores (-inf is one)
            the first are kept.

    Raises ``UserError`` where a text has not the tokens that are wanted of it, and ``ValueError`` if ``lengths`` or ``scores`` are not those of
    this generation.
    """
    if len(lengths) != generation:
        raise ValueError(f"generation {generation} follows {generation} texts, not {len(lengths)}")
    if regime.needs_scores and generation > 1 and (scores is None or len(scores) != len(lengths[-1])):
        raise ValueError("regime 'select' needs a score for every row of the last text")
    texts = [np.asarray(rows, np.int64) for rows in lengths]
    last = generation - 1
    random = np.random.default_rng((seed, generation))
    if generation == 1 or regime.name in ("replace", "first_only"):
        return [_whole(last, texts[last])]
    if regime.name == "fresh":
        return [Part(FRESH, np.empty(0, np.int64), tokens)]
    if regime.name == "accumulate":
        return [_whole(number, rows) for number, rows in enumerate(texts)]
    if regime.name == "accumulate_subsample":
        union = np.concatenate(texts)
        drawn = np.sort(_first(union, random.permutation(len(union)), tokens))
        pieces = np.split(drawn, np.searchsorted(drawn, np.cumsum([len(rows) for rows in texts])[:-1]))
        starts = np.cumsum([0, *(len(rows) for rows in texts[:-1])])
        return [_part(number, texts[number], piece - start) for number, (piece, start) in enumerate(zip(pieces, starts, strict=True)) if len(piece)]
    if regime.name == "select":
        return [_part(last, texts[last], _first(texts[last], np.argsort(-np.asarray(scores), kind="stable"), tokens))]
    wanted = round(regime.share * tokens)
    real = Part(FRESH, np.empty(0, np.int64), wanted)
    if regime.real == "old":
        real = _part(0, texts[0], _first(texts[0], random.permutation(len(texts[0])), wanted))
    synthetic = _part(last, texts[last], _first(texts[last], random.permutation(len(texts[last])), tokens - wanted))
    return [part for part in (real, synthetic) if part.tokens]


def _first(lengths: NDArray[np.int64], order: NDArray[np.int64], tokens: int) -> NDArray[np.int64]:
    """The fewest rows in this order that hold ``tokens`` tokens."""
    until = np.concatenate([[0], np.cumsum(lengths[order])])
    if until[-1] < tokens:
        raise UserError(
            f"{tokens} tokens are wanted of text that has {until[-1]}; ask for fewer tokens a generation, or take a larger initial corpus."
        )
    return order[: int(np.searchsorted(until, tokens))]


def _part(text: int, lengths: NDArray[np.int64], rows: NDArray[np.int64]) -> Part:
    return Part(text, np.sort(rows), int(lengths[rows].sum()))


def _whole(text: int, lengths: NDArray[np.int64]) -> Part:
    return _part(text, lengths, np.arange(len(lengths)))
