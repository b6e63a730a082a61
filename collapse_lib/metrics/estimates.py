"""Means, ratios and quantiles with their standard errors, the story (or the row of a sampled corpus) being the unit that was drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Metric = dict[str, Any]


def mean(values: ArrayLike) -> tuple[float, float | None]:
    """Mean of one value a story [stories], and its standard error: None for a single story, of whose spread nothing is known."""
    values = np.asarray(values, float)
    return ratio_of_sums(values, np.ones(len(values)))


def ratio_of_sums(parts: ArrayLike, wholes: ArrayLike) -> tuple[float, float | None]:
    """``sum(parts) / sum(wholes)``, both [stories], and its standard error by linearisation: tokens of one story are not independent."""
    parts, wholes = np.asarray(parts, float), np.asarray(wholes, float)
    value, stories = parts.sum() / wholes.sum(), len(parts)
    if stories < 2:
        return float(value), None
    spread = np.square(parts - value * wholes).sum()
    return float(value), math.sqrt(spread * stories / (stories - 1)) / abs(float(wholes.sum()))


def share(counted: ArrayLike) -> tuple[float, float | None]:
    """Share of stories [stories, bool] for which something holds, and its standard error."""
    return mean(np.asarray(counted, bool))


def quantile(values: ArrayLike, level: float) -> tuple[float, float | None]:
    """A quantile of one value a story [stories] by Harrell and Davis's estimate, and Maritz and Jarrett's standard error."""
    from scipy.stats.mstats import hdquantiles, mjci

    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values[0]), None
    with np.errstate(invalid="ignore"):  # of equal values, whose variance may be rounded below zero
        error = np.nan_to_num(mjci(values, [level])[0])
    return float(hdquantiles(values, [level])[0]), float(error)


def measured(estimate: tuple[float | None, float | None], unit: str, definition: str, **counts: int) -> Metric:
    """An estimate and its standard error as a step's metrics file holds them."""
    value, error = estimate
    return (
        {"value": value, "unit": unit, "definition": definition}
        | ({"counts": counts} if counts else {})
        | ({"standard_error": error} if error is not None else {})
    )
