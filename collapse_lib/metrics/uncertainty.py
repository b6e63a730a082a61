"""Standard errors of means whose values come in clusters: the tokens of a story, the grades of a prompt's completions, the tokens of a row.

Values of one cluster depend on each other, so the clusters are the sample, and a mean over all values is a ratio of two sums over clusters. With
d_g the sum of cluster g's values less its size times the mean, G clusters and n values, the error of the mean is

    sqrt(G / (G - 1) * sum of d_g^2) / n,

and unknown (None) for a single cluster. Runs record these numbers, so that each function keeps the order in which it rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def ratio_error(deviations: np.ndarray, size: float, corrected: bool = True) -> float | None:
    """The error of a mean over ``size`` values, from d_g [clusters]; not ``corrected``, it leaves out G / (G - 1)."""
    clusters, squares = len(deviations), float(np.square(deviations).sum())
    if not corrected:
        return math.sqrt(squares) / size
    return math.sqrt(squares * clusters / (clusters - 1)) / size if clusters > 1 else None


def grouped_mean(values: ArrayLike, groups: ArrayLike) -> tuple[float, float | None]:
    """Mean and error of ``values`` [n], of which those with the same label in ``groups`` [n] are a cluster."""
    values = np.asarray(values, float)
    mean = float(values.mean())
    return mean, ratio_error(np.bincount(np.unique(groups, return_inverse=True)[1], values - mean), len(values))


def clustered_mean(clusters: Sequence[Sequence[int]]) -> tuple[float, float | None]:
    """Mean and error of whole numbers that come as clusters, none of them empty."""
    size = sum(map(len, clusters))
    mean = sum(map(sum, clusters)) / size
    if len(clusters) < 2:
        return mean, None
    squares = sum((sum(cluster) - len(cluster) * mean) ** 2 for cluster in clusters)
    return mean, math.sqrt(len(clusters) / (len(clusters) - 1) * squares) / size


def independent_mean(values: np.ndarray) -> tuple[float, float | None]:
    """Mean and error of values [n] that are clusters of their own."""
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def share_error(share: float, draws: int) -> float:
    """The error of a share among independent draws."""
    return math.sqrt(share * (1 - share) / draws)
