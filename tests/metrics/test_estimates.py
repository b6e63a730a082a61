"""Standard errors against the jackknife and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from collapse_lib.metrics.estimates import mean, measured, quantile, ratio_of_sums, share


def test_error_of_a_mean_is_the_usual_one():
    values = np.random.default_rng(1).gamma(2.0, size=40)
    assert mean(values) == pytest.approx((values.mean(), values.std(ddof=1) / math.sqrt(40)))
    assert share([True, False, True, True]) == pytest.approx((0.75, math.sqrt(0.75 * 0.25 / 3)))


def test_error_of_a_ratio_is_the_jackknifes():
    random = np.random.default_rng(2)
    wholes = random.integers(5, 60, 80)
    parts = random.normal(2.0, 1.0, 80) * wholes
    left_out = (parts.sum() - parts) / (wholes.sum() - wholes)
    value, error = ratio_of_sums(parts, wholes)
    assert value == pytest.approx(parts.sum() / wholes.sum())
    assert error == pytest.approx(math.sqrt(79 / 80 * np.square(left_out - left_out.mean()).sum()), rel=0.03)


def test_error_of_a_median_is_its_spread_over_samples():
    draws = np.random.default_rng(3).exponential(size=(400, 100))
    found = np.array([quantile(row, 0.5) for row in draws])
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.15)
    assert found[:, 0].mean() == pytest.approx(math.log(2), abs=0.02)


def test_nothing_is_known_of_the_spread_of_one_and_there_is_none_among_equals():
    assert mean([3.0]) == (3.0, None) and quantile([3.0], 0.9) == (3.0, None)
    assert quantile([1.0] * 7, 0.5) == pytest.approx((1.0, 0.0), abs=1e-6)


def test_a_metric_has_an_error_and_counts_only_where_there_are_any():
    assert measured((1.0, None), "1", "a share") == {"value": 1.0, "unit": "1", "definition": "a share"}
    assert measured((1.0, 0.5), "1", "a share", rows=2) == {
        "value": 1.0,
        "unit": "1",
        "definition": "a share",
        "counts": {"rows": 2},
        "standard_error": 0.5,
    }
