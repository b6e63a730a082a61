"""Statistics over chains: the chain is the unit of inference, and each function takes one number (or one series) a chain.

What comes back are numbers; the sentences are the pages'. With fewer than ``FEWEST`` chains there are means, and no intervals and no p-values
(None): a page says how many chains there are and draws no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapse_lib.experiment.errors import UserError

FEWEST = 3  # chains of an arm from which on anything is inferred
MOST_ARRANGEMENTS = 2_000_000  # that an exact test goes through: 11 against 11 have 705,432
SIMULATIONS = 4_000  # studies that are imagined to reckon power: its standard error is below 0.008
SEED = 20_241_211  # of what is simulated or integrated at random, so that the same numbers give the same answer


@dataclass(frozen=True)
class Interval:
    """A mean over chains and its t interval; ``low`` and ``high`` are None with too few chains."""

    mean: float
    low: float | None
    high: float | None
    chains: int
    level: float


@dataclass(frozen=True)
class Permutation:
    """An exact permutation test of a difference of means; ``least`` is the smallest p-value that so many chains can give."""

    difference: float
    low: float | None
    high: float | None
    p: float | None
    least: float
    chains: tuple[int, int]
    arrangements: int


@dataclass(frozen=True)
class Comparison:
    """One arm less the control in Dunnett's family of comparisons: its p-value and interval hold for all arms of the family at once."""

    difference: float
    low: float | None
    high: float | None
    p: float | None
    chains: tuple[int, int]


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided t tests that a difference lies within ``margin`` of 0: p is the larger of the two.

    ``low`` and ``high`` are the interval of level 1 - 2 * ``level`` of the tests, which lies within the margin exactly if p <= ``level``.
    """

    kind: Literal["paired", "two-sample"]
    difference: float
    low: float | None
    high: float | None
    p: float | None
    margin: float
    chains: tuple[int, ...]


@dataclass(frozen=True)
class Trend:
    """What a series does, one number a chain, tested across chains.

    ``p`` is the t test's that the mean slope is 0, ``p_signs`` that of flipping the chains' signs (exact; at best 2 / 2^chains, never below 0.05
    with five).
    """

    taus: tuple[float, ...]
    slopes: tuple[float, ...]
    tau: Interval
    slope: Interval
    p: float | None
    p_signs: float | None


@dataclass(frozen=True)
class Power:
    """How likely a permutation test of ``chains`` is to see a difference, as the first chains of two arms have it.

    ``deviation`` is pooled over both arms, with as few degrees of freedom as there are chains beyond one an arm: an order of magnitude.
    ``detectable`` is the difference that would be seen four times in five.
    """

    difference: float
    deviation: float
    degrees: int
    chains: tuple[int, int]
    level: float
    power: float
    detectable: float


def interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """The mean over chains with its t interval."""
    found = _chains(values)
    low, high = _t_interval(float(found.mean()), *_error_of_mean(found), level) if len(found) >= FEWEST else (None, None)
    return Interval(float(found.mean()), low, high, len(found), level)


def permutation(arm: ArrayLike, against: ArrayLike, level: float = 0.95) -> Permutation:
    """Test whether two arms' means differ: of all ways to deal their chains to two arms of these sizes, how many part the means as far?

    Two-sided and exact: all C(n + m, n) arrangements are gone through, the one that was seen among them, so that p is a multiple of
    1 / C(n + m, n). It supposes only that under no difference the chains could change places. The interval is Welch's t interval.
    """
    a, b = _chains(arm), _chains(against)
    arrangements = math.comb(len(a) + len(b), len(a))
    if arrangements > MOST_ARRANGEMENTS:
        raise UserError(
            f"{len(a)} against {len(b)} chains have {arrangements:,} arrangements; an exact test goes through {MOST_ARRANGEMENTS:,} at most."
        )
    difference = float(a.mean() - b.mean())
    least = (2 if len(a) == len(b) else 1) / arrangements
    if min(len(a), len(b)) < FEWEST:
        return Permutation(difference, None, None, None, least, (len(a), len(b)), arrangements)
    differences = _dealt(len(a), len(b)) @ np.concatenate([a, b])
    p = float(np.mean(np.abs(differences) >= _as_far(np.abs(difference), np.concatenate([a, b]))))
    return Permutation(difference, *_t_interval(difference, *_welch(a, b), level), p, least, (len(a), len(b)), arrangements)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: each may be held against the level of the whole family."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def dunnett(control: ArrayLike, arms: Mapping[str, ArrayLike], level: float = 0.95) -> dict[str, Comparison]:
    """Every arm against one control (Dunnett 1955): the p-values and intervals account for all comparisons that are made.

    It supposes chains that scatter normally and alike in all arms. Arms with too few chains are compared without either and are no part of the
    family.
    """
    base, found = _chains(control), {name: _chains(values) for name, values in arms.items()}
    family = [name for name, values in found.items() if len(base) >= FEWEST and len(values) >= FEWEST]
    tested: dict[str, tuple[float, float, float]] = {}
    if family:
        from scipy import stats

        if len(family) == 1:  # Student's test, exactly; for a family of one scipy's search for the interval does not converge
            result = stats.ttest_ind(found[family[0]], base)
        else:
            result = stats.dunnett(*(found[name] for name in family), control=base, rng=np.random.default_rng(SEED))
        bounds = result.confidence_interval(level)
        numbers = np.array([bounds.low, bounds.high, result.pvalue]).reshape(3, -1).T.tolist()
        tested = dict(zip(family, map(tuple, numbers), strict=True))
    return {
        name: Comparison(float(values.mean() - base.mean()), *tested.get(name, (None, None, None)), (len(values), len(base)))
        for name, values in found.items()
    }


def equivalence(values: ArrayLike, margin: float, against: ArrayLike | None = None, level: float = 0.05) -> Equivalence:
    """Test that a mean lies within ``margin`` of 0 (Schuirmann 1987).

    Paired without ``against``: ``values`` are differences, one a chain. With it the difference of two arms' means, their variances apart (Welch).
    """
    a = _chains(values)
    b = None if against is None else _chains(against)
    kind: Literal["paired", "two-sample"] = "paired" if b is None else "two-sample"
    difference = float(a.mean() - (0.0 if b is None else b.mean()))
    chains = (len(a),) if b is None else (len(a), len(b))
    if min(chains) < FEWEST:
        return Equivalence(kind, difference, None, None, None, margin, chains)
    error, degrees = _error_of_mean(a) if b is None else _welch(a, b)
    p = max(_t_above(difference + margin, error, degrees), _t_above(margin - difference, error, degrees))
    return Equivalence(kind, difference, *_t_interval(difference, error, degrees, 1 - 2 * level), p, margin, chains)


def trend(series: Sequence[tuple[ArrayLike, ArrayLike]], level: float = 0.95) -> Trend:
    """Whether series go up or down, from (generations, values) of each chain.

    Within a chain a random walk passes for a trend. So each chain gives one number, its least-squares slope (and Kendall's tau beside it), and
    what is asked is whether these have a mean other than 0.
    """
    from scipy.stats import kendalltau

    taus = [float(np.nan_to_num(kendalltau(generations, values).statistic)) for generations, values in series]  # 0 where all values are the same
    slopes = [_slope(np.asarray(generations, dtype=float), np.asarray(values, dtype=float)) for generations, values in series]
    p = p_signs = None
    if len(slopes) >= FEWEST:
        error, degrees = _error_of_mean(np.array(slopes))
        p = min(1.0, 2 * _t_above(abs(float(np.mean(slopes))), error, degrees))
        p_signs = _sign_flips(np.array(slopes))
    return Trend(tuple(taus), tuple(slopes), interval(taus, level), interval(slopes, level), p, p_signs)


def power(arm: ArrayLike, against: ArrayLike, chains: tuple[int, int], level: float = 0.05) -> Power:
    """Reckon from a few chains how likely a permutation test of ``chains`` at ``level`` is to see their difference.

    By simulation, with chains that scatter normally as these do. Give the level that is left to the strictest test of a family. Raises
    ``UserError`` with fewer than two chains an arm, whose scatter nobody knows.
    """
    a, b = _chains(arm), _chains(against)
    if min(len(a), len(b)) < 2:
        raise UserError(f"Power is reckoned from at least two chains of each arm, not from {len(a)} and {len(b)}.")
    degrees = len(a) + len(b) - 2
    deviation = math.sqrt((a.var(ddof=1) * (len(a) - 1) + b.var(ddof=1) * (len(b) - 1)) / degrees)
    difference = float(a.mean() - b.mean())
    dealt = _dealt(*chains)
    noise = np.random.default_rng(SEED).standard_normal((SIMULATIONS, sum(chains)))

    def seen(effect: float) -> float:
        """Share of simulated studies whose test sees an effect, in units of the deviation."""
        draws = noise + np.where(np.arange(sum(chains)) < chains[0], effect, 0.0)
        differences = np.abs(draws @ dealt.T)  # the first arrangement is the one that was dealt
        return float(np.mean(np.mean(differences >= differences[:, :1] * (1 - 1e-12), axis=1) <= level))

    low, high = 0.0, 64.0
    if seen(high) < 0.8:  # too few chains for the level: no difference would be seen
        low = high = math.inf
    while high - low > 0.01:
        low, high = (low, (low + high) / 2) if seen((low + high) / 2) >= 0.8 else ((low + high) / 2, high)
    known = seen(abs(difference) / deviation) if deviation else float(difference != 0 and 1 / len(dealt) <= level)
    return Power(difference, deviation, degrees, chains, level, known, high * deviation if deviation else 0.0)


def _chains(values: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise UserError(f"Inference over chains takes one finite number a chain, and at least one chain, not {found.tolist()}.")
    return found


def _dealt(n: int, m: int) -> NDArray[np.float64]:
    """All ways to deal n + m chains to two arms, a row each: weights whose sum with the values is the difference of means. The first is as dealt."""
    rows = np.full((math.comb(n + m, n), n + m), -1 / m)
    for row, chosen in zip(rows, combinations(range(n + m), n), strict=True):
        row[list(chosen)] = 1 / n
    return rows


def _as_far(difference: float, values: NDArray[np.float64]) -> float:
    """A difference, less what rounding may take from an equal one: sums of the same numbers in another order."""
    return difference - 1e-12 * max(1e-300, float(np.abs(values).max()))


def _slope(generations: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Least-squares slope; exactly 0 for a constant, where a general solver's rounding, the same in all chains, would pass for certainty."""
    away = generations - generations.mean()
    return float(away @ (values - values.mean()) / (away @ away))


def _sign_flips(values: NDArray[np.float64]) -> float:
    """p-value of the mean among those with the signs of any of the values turned."""
    signs = 1 - 2 * ((np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1)
    means = np.abs(signs @ values)
    return float(np.mean(means >= _as_far(float(means[0]), values)))


def _error_of_mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """Standard error of a mean and its degrees of freedom."""
    return float(values.std(ddof=1) / math.sqrt(len(values))), len(values) - 1


def _welch(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Standard error of a difference of means and its degrees of freedom, the variances not taken to be equal."""
    u, v = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    if u + v == 0:
        return 0.0, len(a) + len(b) - 2
    return math.sqrt(u + v), float((u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1)))


def _t_interval(mean: float, error: float, degrees: float, level: float) -> tuple[float, float]:
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, degrees)) * error
    return mean - half, mean + half


def _t_above(distance: float, error: float, degrees: float) -> float:
    """Probability that a t variable lies above ``distance / error``; chains that agree to the last digit leave no doubt."""
    from scipy.stats import t

    if error == 0:
        return 0.0 if distance > 0 else 1.0
    return float(t.sf(distance / error, degrees))
