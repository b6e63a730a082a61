"""Standard errors against the textbook and against simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from collapse_lib.metrics.uncertainty import clustered_mean, grouped_mean, independent_mean, ratio_error, share_error


def test_values_of_one_story_count_as_one_draw():
    values, stories = np.array([1.0, 3.0, 2.0, 4.0]), np.array([5, 5, 9, 9])
    assert grouped_mean(values, [1, 2, 3, 4])[1] == pytest.approx(values.std(ddof=1) / 2)
    assert grouped_mean(values, stories)[1] == pytest.approx(np.std([2.0, 3.0], ddof=1) / np.sqrt(2))
    assert grouped_mean([1.0, 2.0], [7, 7]) == (1.5, None)


def test_values_of_one_cluster_count_as_one_draw():
    independent = [[value] for value in (1.0, 3.0, 4.0, 8.0)]
    mean, error = clustered_mean(independent)
    assert mean == 4.0 and error == pytest.approx(np.std([1, 3, 4, 8], ddof=1) / 2)
    same_tenfold = [cluster * 10 for cluster in independent]  # ten copies of a value are no new evidence
    assert clustered_mean(same_tenfold) == pytest.approx((4.0, error))
    assert clustered_mean([[1.0, 2.0]]) == (1.5, None)


def test_the_two_clustered_means_are_one_formula():
    random = np.random.default_rng(0)
    clusters = [random.integers(0, 10, size).tolist() for size in random.integers(1, 12, 40)]
    groups = np.repeat(np.arange(40), [len(cluster) for cluster in clusters])
    assert grouped_mean(np.concatenate(clusters), groups) == pytest.approx(clustered_mean(clusters), rel=1e-12)


def test_the_error_of_a_ratio_is_its_spread_over_samples():
    """Clusters of unequal size whose values depend on each other: the estimate is right on average, the naive one far too small."""
    random = np.random.default_rng(1)
    ratios, errors, naive = [], [], []
    for _ in range(2000):
        sizes = random.integers(1, 40, 60)
        sums = sizes * random.normal(2, 1, 60)
        ratio = sums.sum() / sizes.sum()
        ratios.append(ratio)
        errors.append(ratio_error(sums - ratio * sizes, sizes.sum()))
        naive.append(1 / math.sqrt(sizes.sum()))
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.05)
    assert np.mean(naive) < 0.3 * np.std(ratios)


def test_without_the_correction_an_error_is_smaller_and_known_for_one_cluster():
    deviations = np.array([1.0, -2.0, 1.0])
    assert ratio_error(deviations, 10.0, corrected=False) == pytest.approx(ratio_error(deviations, 10.0) * math.sqrt(2 / 3))
    assert ratio_error(deviations[:1], 10.0) is None and ratio_error(deviations[:1], 10.0, corrected=False) == pytest.approx(0.1)


def test_independent_values_and_shares():
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    mean, error = independent_mean(values)
    assert (mean, error) == (pytest.approx(0.6), pytest.approx(values.std(ddof=1) / math.sqrt(5)))
    assert share_error(mean, 5) == pytest.approx(error * math.sqrt(4 / 5))
    assert independent_mean(values[1:2]) == (1.0, None)
