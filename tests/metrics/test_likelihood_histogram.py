from __future__ import annotations

import numpy as np
import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.metrics.likelihood_histogram import EDGES, likelihood_histogram


def samples(mean: float, count: int, seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).gamma(4.0, mean / 4, (count, 50)))


def test_samples_are_counted_by_their_mean_loss():
    found = likelihood_histogram([np.array([1.0, 2.02]), np.array([0.0]), np.array([50.0]), np.array([])], samples(1.0, 50, 1))
    counts = np.array(found["counts"])
    assert counts.sum() == 3 and len(counts) == len(EDGES) - 1
    assert np.flatnonzero(counts).tolist() == [0, 15, len(counts) - 1]


def test_nothing_changes_between_samples_of_one_law():
    found = likelihood_histogram(samples(2.0, 2000, 1), samples(2.0, 2000, 2))
    for name, level in (("above_reference", 0.01), ("below_reference", 0.5)):
        assert abs(found[name]["value"] - level) < 4 * np.sqrt(2) * found[name]["standard_error"]
    middle = found["quantiles"]["0.5"]
    assert abs(middle["value"] - 1.99) < 4 * middle["standard_error"] + 0.01 and middle["standard_error"] < 0.01


def test_a_bulk_that_sharpens_beside_a_tail_that_grows():
    mixed = samples(1.5, 900, 3) + samples(5.0, 100, 4)
    found = likelihood_histogram(mixed, samples(2.0, 1000, 2))
    assert found["below_reference"]["value"] > 0.85 and found["above_reference"]["value"] == pytest.approx(0.1, abs=0.01)
    levels = [quantile["value"] for quantile in found["quantiles"].values()]
    assert levels == sorted(levels) and levels[0] < 1.5 and levels[-1] > 4.5


def test_no_sample_is_refused():
    with pytest.raises(UserError, match="samples with a token"):
        likelihood_histogram([np.array([])], samples(1.0, 5, 1))
