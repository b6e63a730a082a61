"""Means, ratios and quantiles with their standard errors, the story (or the row of a sampled corpus) being the unit that was drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from collapse_lib.metrics.metric import Metric, metric
from collapse_lib.metrics.uncertainty import ratio_error


def mean(values: ArrayLike) -> tuple[float, float | None]:
    """Mean of one value a story [stories], and its standard error: None for a single story, of whose spread nothing is known."""
    values = np.asarray(values, float)
    return ratio_of_sums(values, np.ones(len(values)))


def ratio_of_sums(parts: ArrayLike, wholes: ArrayLike) -> tuple[float, float | None]:
    """``sum(parts) / sum(wholes)``, both [stories], and its standard error by linearisation: tokens of one story are not independent."""
    parts, wholes = np.asarray(parts, float), np.asarray(wholes, float)
    value = float(parts.sum() / wholes.sum())
    return value, ratio_error(parts - value * wholes, abs(float(wholes.sum())))


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
    return metric(value, unit, definition, counts or None, error)
