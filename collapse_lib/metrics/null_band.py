"""Where a measure stays as long as nothing happens: from chains that learn fresh real text each generation, or, without any, from one run alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapse_lib.experiment.errors import UserError

COVERAGE = 0.95  # of a band, at each generation by itself: of twenty generations without a change one is expected outside


@dataclass(frozen=True)
class Band:
    """``low`` and ``high`` [generations 1, 2, ...] of one measure; ``source`` says what they know of.

    "fresh" bands speak of chains. "within run" bands know the noise of generation 1's and this generation's text only: other chains would leave them
    more often than 5% of the time, so that a departure is a change of this run's text and no claim about the next run.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    source: Literal["fresh", "within run"]

    def sides(self, values: ArrayLike) -> NDArray[np.int64]:
        """+1 above the band, -1 below it, 0 inside, [generations]."""
        values = np.asarray(values, float)
        if values.shape != self.low.shape:
            raise UserError(f"A band of {len(self.low)} generations is asked about {len(values)}; a measure and its band have as many generations.")
        return (values > self.high).astype(np.int64) - (values < self.low)


def fresh_band(values: ArrayLike, generations: int) -> Band:
    """Student's prediction interval for one more value, from ``values`` [chains, their generations] of the regime `fresh`.

    There no generation learns from another, so that all of them are draws of the same null, and the band is the same at each of ``generations``.
    """
    null = np.asarray(values, float).ravel()
    if len(null) < 2:
        raise UserError(f"A band needs at least two generations of fresh chains; there are {len(null)}.")
    from scipy.stats import t

    half = t.ppf((1 + COVERAGE) / 2, len(null) - 1) * null.std(ddof=1) * np.sqrt(1 + 1 / len(null))
    return Band(np.full(generations, null.mean() - half), np.full(generations, null.mean() + half), "fresh")


def within_run_band(values: ArrayLike, errors: ArrayLike) -> Band:
    """Around generation 1's value, as far as its own standard error and that of each generation reach; both [generations]."""
    from scipy.stats import norm

    values, errors = np.asarray(values, float), np.asarray(errors, float)
    if not np.isfinite(errors).all():
        raise UserError("A band within a run needs the standard error of every generation; samples of one story or row have none.")
    half = norm.ppf((1 + COVERAGE) / 2) * np.hypot(errors, errors[0])
    half[0] = 0.0  # generation 1 is itself
    return Band(values[0] - half, values[0] + half, "within run")
