"""Which measure says first that something happens, and how much text it needs to say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from collapse_lib.experiment.errors import UserError
from collapse_lib.metrics.null_band import COVERAGE, Band


@dataclass(frozen=True)
class Series:
    """A measure of generations 1, 2, ...: ``values`` and their standard ``errors``, both [generations], from samples of so many ``tokens`` each."""

    values: ArrayLike
    errors: ArrayLike
    tokens: int


@dataclass(frozen=True)
class Departure:
    """When a ``measure`` first leaves its null band, if ever: ``generation``, ``side`` (+1 above, -1 below), and the ``tokens`` needed to see it."""

    measure: str
    generation: int | None
    side: int
    tokens: float | None


def early_warnings(series: Mapping[str, Series], bands: Mapping[str, Band]) -> list[Departure]:
    """One departure a measure, the earliest first, of equal ones first what needs the fewest tokens; measures that never leave come last.

    ``tokens`` is the size of the sample at which the 95% interval of the generation's value would no longer reach the band. The standard error
    is taken to fall with the root of the sample's size; the band stays as it is. More tokens than the sample has mean that leaving may be chance.
    """
    if missing := sorted(series.keys() - bands.keys()):
        raise UserError(f"The measure '{missing[0]}' has no null band; every measure needs one.")
    return sorted((_departure(name, each, bands[name]) for name, each in series.items()), key=_order)


def _departure(name: str, series: Series, band: Band) -> Departure:
    from scipy.stats import norm

    values, errors, sides = np.asarray(series.values, float), np.asarray(series.errors, float), band.sides(series.values)
    outside = np.flatnonzero(sides)
    if not len(outside):
        return Departure(name, None, 0, None)
    first = int(outside[0])
    side = int(sides[first])
    beyond = values[first] - band.high[first] if side > 0 else band.low[first] - values[first]
    needed = series.tokens * (norm.ppf((1 + COVERAGE) / 2) * errors[first] / beyond) ** 2
    return Departure(name, first + 1, side, float(needed))


def _order(departure: Departure) -> tuple[float, float, str]:
    if departure.generation is None or departure.tokens is None:
        return np.inf, np.inf, departure.measure
    return departure.generation, departure.tokens, departure.measure
