"""The fate of a chain, by rule: does its text dissolve into noise, or fixate on a few stories?

A generation is **dissolving** if the conditional entropy of its model on its own text (``context_information``) lies above its null band and so
does its share of distinct n-grams (``diversity``); it is **fixating** if both lie below: few continuations, and the same ones again and again.
A single generation leaves a band by chance often enough; a state counts where it lasts ``LASTING`` generations in a row. The fate is the name of
the state that occurs, "both" if both do (at different times: entropy may rise and then fall), else "neither".

It is a label of one chain and its band, not a verdict over chains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapse_lib.experiment.errors import UserError
from collapse_lib.metrics.null_band import Band

LASTING = 2  # generations in a row

Label = Literal["dissolving", "fixating", "both", "neither"]


@dataclass(frozen=True)
class Fate:
    """The ``label``, the generations (from 1) that are in either state, and the ``source`` of the bands: "fresh" or "within run"."""

    label: Label
    dissolving: tuple[int, ...]
    fixating: tuple[int, ...]
    source: str


def fate(conditional_entropy: ArrayLike, distinct: ArrayLike, entropy_band: Band, distinct_band: Band) -> Fate:
    """The fate of a chain from two measures of generations 1, 2, ... and their null bands, all [generations]."""
    if entropy_band.source != distinct_band.source:
        raise UserError("The bands of entropy and of distinct n-grams come from different sources; take both from fresh chains or both from the run.")
    entropy, ngrams = entropy_band.sides(conditional_entropy), distinct_band.sides(distinct)
    dissolving, fixating = _lasting((entropy > 0) & (ngrams > 0)), _lasting((entropy < 0) & (ngrams < 0))
    labels: dict[tuple[bool, bool], Label] = {(True, True): "both", (True, False): "dissolving", (False, True): "fixating", (False, False): "neither"}
    return Fate(labels[bool(dissolving), bool(fixating)], dissolving, fixating, entropy_band.source)


def _lasting(state: NDArray[np.bool_]) -> tuple[int, ...]:
    """Generations, from 1, inside runs of at least ``LASTING`` True values."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], state, [False]]).astype(np.int8)))
    runs = zip(changes[::2], changes[1::2], strict=True)
    return tuple(generation + 1 for start, stop in runs if stop - start >= LASTING for generation in range(start, stop))
