"""Several chains of one experiment as lines: each chain thin, and their mean with a 95% interval between chains where there are enough of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from collapse_lib.figures.style import Line
from collapse_lib.studies import inference

if TYPE_CHECKING:
    from pandas import DataFrame

COVERAGE = 0.95  # of the intervals between chains
THIN = 0.8  # width of a chain's own line, in points


def lines(label: str, chains: Sequence[DataFrame], colour: str, marker: str = "o") -> list[Line]:
    """The lines of an experiment, all under one label: its mean first, then its chains; of a single chain its own line, with its standard errors.

    ``chains`` has a table each, as ``results.metric`` returns it, with at least one generation.
    The mean goes as far as ``inference.FEWEST`` chains do; fewer are never averaged.
    """
    if len(chains) == 1:
        return [Line.of(label, chains[0], colour, marker)]
    single = [Line.of(label, points, colour, "")._replace(error=[None] * len(points), width=THIN) for points in chains]
    return [*mean_line(label, chains, colour, marker), *single]


def mean_line(label: str, chains: Sequence[DataFrame], colour: str, marker: str) -> list[Line]:
    """The mean over chains, its error half the width of its interval; empty where no generation has enough chains."""
    by_generation: dict[int, list[float]] = {}
    for points in chains:
        for generation, value in zip(points["generation"].tolist(), points["value"].tolist(), strict=True):
            by_generation.setdefault(generation, []).append(value)
    found = {generation: inference.interval(values, COVERAGE) for generation, values in sorted(by_generation.items())}
    enough = {generation: one for generation, one in found.items() if one.high is not None}
    if not enough:
        return []
    return [Line(label, list(enough), [one.mean for one in enough.values()], [one.high - one.mean for one in enough.values()], colour, marker)]


def counted(chains: Collection[str]) -> str:
    """How many chains a name stands for, where it is more than one."""
    return f", {len(chains)} chains" if len(chains) > 1 else ""
