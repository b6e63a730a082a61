"""Scores of a model that was fine-tuned several times and asked the same test rows each time: two samples at once, rows and fine-tunings.

Of S fine-tunings and R test rows, let x[s, r] be how well fine-tuning s did on row r, and

    x[s, r] = m + a[s] + b[r] + e[s, r]

with independent parts of variances A (a fine-tuning is lucky), B (a row is easy) and E (the rest). All fine-tunings share the rows, so that the
mean over both has the variance

    V = A / S + B / R + E / (S R) = (MS_a + MS_b - MS_e) / (S R)

in the expected mean squares of a two-way analysis of variance without replication, MS_a = R A + E, MS_b = S B + E and MS_e = E. Those that were
found stand for the expected ones; V is not let fall below what fine-tunings or rows say alone, max(MS_a, MS_b) / (S R). Its degrees of freedom
are Satterthwaite's, V^2 over the sum of each mean square's (MS / (S R))^2 / its own degrees, and intervals are Student's. With one fine-tuning
only B + E can be seen: V is what other rows would change, and silent about other fine-tunings.

Two models are compared row by row and fine-tuning by fine-tuning: fine-tunings of the same number learn from the same rows in the same order
under the same first weights of the new layer, so that x is the difference of the two scores, and what is common to both is no noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Measure = Literal["accuracy", "f1"]

COVERAGE = 0.95  # of intervals
ENOUGH = 3  # fine-tunings from which on their differences are known well enough to call one model better than another


@dataclass(frozen=True)
class Estimate:
    """A mean over rows and fine-tunings; ``reach`` is half the width of its 95% interval, ``quantile`` the standard errors in it."""

    value: float
    standard_error: float
    quantile: float

    @property
    def reach(self) -> float:
        return self.quantile * self.standard_error


def mean(scores: np.ndarray, discordant: int = 0) -> Estimate:
    """The mean of ``scores`` [fine-tunings, rows] with the error that the module's text derives.

    ``discordant`` rows are imagined besides, half of them a full point above zero and half below: the variance of a few differences among
    hundreds of ties would otherwise be taken for known.
    """
    tunings, rows = scores.shape
    value, by_tuning, by_row = scores.mean(), scores.mean(1, keepdims=True), scores.mean(0, keepdims=True)
    free = np.array([tunings - 1, rows - 1, (tunings - 1) * (rows - 1)])
    squares = np.array(
        [rows * ((by_tuning - value) ** 2).sum(), tunings * ((by_row - value) ** 2).sum(), ((scores - by_tuning - by_row + value) ** 2).sum()]
    )
    squares[1] += tunings * discordant  # a row's mean is the same point in every fine-tuning
    parts = squares / np.maximum(free, 1) / scores.size
    variance = max(parts[0] + parts[1] - parts[2], *parts[:2])
    spread = (parts**2 / np.maximum(free, 1)).sum()
    return Estimate(float(value), math.sqrt(variance), _student(variance**2 / spread if spread else math.inf))


def difference(mine: np.ndarray, theirs: np.ndarray) -> Estimate:
    """How far one model's scores [fine-tunings, rows] lie above another's on the same rows after fine-tunings that are alike."""
    return mean(mine - theirs, discordant=2)


def row_scores(true: np.ndarray, predicted: np.ndarray, classes: int, measure: Measure) -> np.ndarray:
    """What each test row adds to a measure, [fine-tunings, rows]: the mean over rows is exactly the measure of each fine-tuning.

    ``true`` [rows] and ``predicted`` [fine-tunings, rows] are classes. A row's accuracy is 1 or 0. Weighted F1 is no mean over rows, but
    for shares r of a class among the rows, c among the answers and t among both, it is F = sum of r f with f = 2 t / (r + c): homogeneous in the
    shares of the confusion matrix, so that by Euler's theorem it is the mean over rows of its own derivative at their cells,

        dF / dp[i, j] = f[i] (1 - w[i]) - f[j] w[j] + 2 w[i] [i = j]     with w = r / (r + c),

    whose variance over rows is F's to first order.
    """
    if measure == "accuracy":
        return (predicted == true).astype(float)
    return np.stack([_f1_scores(true, answers, classes) for answers in predicted])


def _f1_scores(true: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    cells = confusion(true, answers, classes) / len(true)
    present, answered, right = cells.sum(1), cells.sum(0), np.diagonal(cells)
    together = np.where(present + answered > 0, present + answered, 1.0)  # a class neither present nor answered counts nothing
    f1, weight = 2 * right / together, present / together
    return f1[true] * (1 - weight[true]) - f1[answers] * weight[answers] + 2 * weight[true] * (true == answers)


def confusion(true: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Rows of each true class (first axis) by answer, [classes, classes] int64."""
    return np.bincount(true * classes + answers, minlength=classes**2).reshape(classes, classes)


def interval(estimate: Estimate, rows: int) -> tuple[float, float]:
    """The 95% interval of a share: Wilson's, which never leaves 0..1, of as many independent rows as would give the estimate's error.

    With one fine-tuning these are the ``rows`` themselves.
    """
    share, error, z2 = estimate.value, estimate.standard_error, estimate.quantile**2
    rows = share * (1 - share) / error**2 + 1 if error else rows
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = math.sqrt(z2) * math.sqrt(max(0.0, share * (1 - share) / rows + z2 / (4 * rows**2))) / (1 + z2 / rows)
    return max(0.0, middle - half), min(1.0, middle + half)


def packed(values: np.ndarray, classes: int) -> str:
    """Classes [rows] as hexadecimal text, as many bits a row as the largest one needs."""
    bits = values[:, None] >> np.arange(_width(classes)) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes().hex()


def unpacked(texts: str | Sequence[str], rows: int, classes: int) -> np.ndarray:
    """What ``packed`` packed: [rows] int64, or of several texts [texts, rows]."""
    if not isinstance(texts, str):
        return np.stack([unpacked(text, rows, classes) for text in texts])
    width = _width(classes)
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(texts), np.uint8), count=rows * width).reshape(rows, width)
    return bits.astype(np.int64) @ (1 << np.arange(width))


def _width(classes: int) -> int:
    return max(1, (classes - 1).bit_length())


def _student(degrees: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + COVERAGE) / 2, degrees))
