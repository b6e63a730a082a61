"""Bands, fates and early warnings of chains that were made for it."""

from __future__ import annotations

import numpy as np
import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.metrics.early_warning import Departure, Series, early_warnings
from collapse_lib.metrics.fate import fate
from collapse_lib.metrics.null_band import Band, fresh_band, within_run_band


def band(low: float, high: float, generations: int = 6, source: str = "fresh") -> Band:
    return Band(np.full(generations, low), np.full(generations, high), source)


def test_a_fresh_band_holds_the_next_value_nineteen_times_of_twenty():
    random, inside = np.random.default_rng(1), []
    for _ in range(4000):
        null = random.normal(3.0, 0.2, (2, 4))
        inside.append(fresh_band(null, 1).sides(random.normal(3.0, 0.2, 1))[0] == 0)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_a_band_within_a_run_is_as_wide_as_both_errors():
    random, inside = np.random.default_rng(2), []
    for _ in range(4000):
        errors = np.array([0.1, 0.3])
        values = random.normal(1.0, errors)
        inside.append(within_run_band(values, errors).sides(values)[1] == 0)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)
    found = within_run_band([1.0, 5.0], [0.1, 0.1])
    assert found.sides([1.0, 5.0]).tolist() == [0, 1] and found.source == "within run"


def test_bands_that_cannot_be_made():
    with pytest.raises(UserError, match="at least two generations of fresh chains; there are 1"):
        fresh_band([[1.0]], 3)
    with pytest.raises(UserError, match="standard error of every generation"):
        within_run_band([1.0, 2.0], np.array([0.1, None], float))
    with pytest.raises(UserError, match="6 generations is asked about 3"):
        band(0, 1).sides([1, 2, 3])


@pytest.mark.parametrize(
    ("entropy", "distinct", "label", "dissolving", "fixating"),
    [
        ([0, 0, 2, 2, 3, 4], [0, 2, 2, 2, 2, 2], "dissolving", (3, 4, 5, 6), ()),
        ([0, 0, -2, -2, -3, -4], [0, -2, -2, -2, -2, -2], "fixating", (), (3, 4, 5, 6)),
        ([0, 2, 2, 0, -2, -2], [0, 2, 2, 0, -2, -2], "both", (2, 3), (5, 6)),
        ([0, 2, 2, -2, -2, -2], [0, 2, 2, -2, -2, -2], "both", (2, 3), (4, 5, 6)),
        ([0, 2, 2, 2, 2, 2], [0, -2, -2, -2, -2, -2], "neither", (), ()),  # a flatter law over fewer phrases
        ([0, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0], "neither", (), ()),
        ([0, 2, 0, 2, 0, -2], [0, 2, 0, 2, 0, -2], "neither", (), ()),  # never twice in a row
        ([0, 0, 0, 0, 2, 2], [0, 0, 0, 0, 2, 2], "dissolving", (5, 6), ()),
        ([1, 1, 1, 1, -1, -1], [1, 1, 1, 1, -1, -1], "neither", (), ()),  # on the band's edge is inside
    ],
)
def test_fates(entropy, distinct, label, dissolving, fixating):
    found = fate(entropy, distinct, band(-1, 1), band(-1, 1))
    assert (found.label, found.dissolving, found.fixating, found.source) == (label, dissolving, fixating, "fresh")


def test_a_fate_says_what_its_bands_know():
    assert fate([0] * 6, [0] * 6, *[band(-1, 1, source="within run")] * 2).source == "within run"
    with pytest.raises(UserError, match="different sources"):
        fate([0] * 6, [0] * 6, band(-1, 1), band(-1, 1, source="within run"))


def test_departures_are_in_order_of_time_and_then_of_tokens():
    still, errors = [0, 0, 0, 0, 0, 0], [0.1] * 6
    series = {
        "late": Series([0, 0, 0, 0, 2, 3], errors, 1000),
        "noisy": Series([0, 0, 2, 2, 2, 2], [0.4] * 6, 1000),
        "sharp": Series([0, 0, -2, -2, -2, -2], errors, 1000),
        "still": Series(still, errors, 1000),
    }
    found = early_warnings(series, {name: band(-1, 1) for name in series})
    assert [(each.measure, each.generation, each.side) for each in found] == [("sharp", 3, -1), ("noisy", 3, 1), ("late", 5, 1), ("still", None, 0)]
    assert found[0].tokens == pytest.approx(1000 * (1.959964 * 0.1) ** 2) and found[-1] == Departure("still", None, 0, None)
    with pytest.raises(UserError, match="'still' has no null band"):
        early_warnings({"still": series["still"]}, {})


def test_as_many_tokens_as_said_show_the_departure():
    """A mean of 0.5 with unit spread beside a band up to 0.2: with the tokens that are said, the interval reaches the band half of the time."""
    random, size = np.random.default_rng(3), 4000
    sample = random.normal(0.5, 1, size)
    departure = early_warnings({"mean": Series([sample.mean()], [1 / np.sqrt(size)], size)}, {"mean": band(-0.2, 0.2, 1)})[0]
    needed = round(departure.tokens)
    assert needed == pytest.approx((1.96 / 0.3) ** 2, rel=0.15)
    again = random.normal(0.5, 1, (4000, needed)).mean(1) - 1.96 / np.sqrt(needed)
    assert (again > 0.2).mean() == pytest.approx(0.5, abs=0.15)
