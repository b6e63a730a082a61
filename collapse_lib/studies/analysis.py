"""A study's declared questions, answered from what its chains have measured: numbers and verdicts, the sentences are the pages'.

A verdict is computed by rule:

    too few chains    an arm has fewer than three, by plan or so far
    unfinished        not all planned chains have reached the generation that was asked for: a look before the end decides nothing
    reproduced        the test sees what was expected
    contradicted      the test sees the opposite, or rules out any expected difference worth speaking of
    different         the test sees a difference, and nothing was expected
    underpowered      the test sees nothing, and does not rule the expected out either
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from collapse_lib.experiment.errors import UserError
from collapse_lib.studies import inference
from collapse_lib.studies.design import Contrast, Equivalence, Study

if TYPE_CHECKING:
    from pandas import DataFrame

Verdict = Literal["too few chains", "unfinished", "reproduced", "contradicted", "different", "underpowered"]


@dataclass(frozen=True)
class ContrastAnswer:
    """A primary contrast; ``test`` is None as long as an arm has no chain there, ``power`` as long as an arm has fewer than two."""

    question: Contrast
    generation: int
    planned: tuple[int, int]
    test: inference.Permutation | None
    p_holm: float | None  # over all contrasts that were declared, those without an answer yet included
    power: inference.Power | None
    level: float

    @property
    def verdict(self) -> Verdict:
        chains = self.test.chains if self.test else (0, 0)
        if early := _too_early(self.planned, chains):
            return early
        assert self.test and self.p_holm is not None
        expected, sign = self.question.expected, 1 if self.question.expected == "greater" else -1
        if self.p_holm <= self.level:
            return "different" if expected is None else "reproduced" if sign * self.test.difference > 0 else "contradicted"
        farthest = max(sign * self.test.low, sign * self.test.high)  # as far in the expected direction as the interval goes
        is_ruled_out = expected is not None and self.question.smallest is not None and farthest < self.question.smallest
        return "contradicted" if is_ruled_out else "underpowered"


@dataclass(frozen=True)
class EquivalenceAnswer:
    """A claim of equivalence; ``test`` is None as long as there is no chain to look at."""

    question: Equivalence
    generation: int
    planned: tuple[int, ...]
    test: inference.Equivalence | None
    level: float

    @property
    def verdict(self) -> Verdict:
        if early := _too_early(self.planned, self.test.chains if self.test else (0,) * len(self.planned)):
            return early
        assert self.test and self.test.p is not None
        if self.test.p <= self.level:
            return "reproduced"
        is_outside = self.test.low > self.test.margin or self.test.high < -self.test.margin
        return "contradicted" if is_outside else "underpowered"


@dataclass(frozen=True)
class Analysis:
    """All answers of a study. ``comparisons`` (Dunnett's, with the control) and ``trends`` are by arm, on the primary measure."""

    study: Study
    contrasts: tuple[ContrastAnswer, ...]
    equivalences: tuple[EquivalenceAnswer, ...]
    comparisons: dict[str, inference.Comparison]
    trends: dict[str, inference.Trend]

    @property
    def trend_p_holm(self) -> dict[str, float]:
        """The trends' p-values (t test), adjusted for as many arms as have one."""
        p_values = {arm: found.p for arm, found in self.trends.items() if found.p is not None}
        return dict(zip(p_values, inference.holm(list(p_values.values())), strict=True))


def measured(study: Study, table: DataFrame, measure: str) -> DataFrame:
    """One measure of a study (``study.table``): a row a chain (index ``arm``, ``seed``), a column a generation; missing where not measured yet."""
    declared = study.measures[measure]
    rows = table[(table["step"] == declared.step) & (table["metric"] == declared.name)]
    if rows.empty:
        raise UserError(f"Measure '{measure}' of study '{study.name}' has no numbers yet, or step '{declared.step}' has no metric '{declared.name}'.")
    wide = rows.pivot(index=["arm", "seed"], columns="generation", values="value")
    if not declared.log:
        return wide
    if (wide <= 0).any(axis=None):
        raise UserError(f"Measure '{measure}' of study '{study.name}' is a logarithm, and {declared.metric} is not above 0 everywhere.")
    return np.log(wide)


def analyse(study: Study, table: DataFrame) -> Analysis:
    """Answer what a study asks, from the tidy table of its chains (``study.table``)."""
    contrasts = [_tested(study, table, contrast) for contrast in study.contrasts]
    adjusted = inference.holm([1.0 if test is None or test.p is None else test.p for test in contrasts])
    answers = tuple(
        ContrastAnswer(
            contrast,
            _last(study, contrast),
            (len(study.seeds_of(contrast.arm)), len(study.seeds_of(contrast.against))),
            test,
            None if test is None or test.p is None else p,
            _power(study, table, contrast),
            study.level,
        )
        for contrast, test, p in zip(study.contrasts, contrasts, adjusted, strict=True)
    )
    equivalences = tuple(_claimed(study, table, claim) for claim in study.equivalences)
    return Analysis(study, answers, equivalences, _compared(study, table), _trends(study, table))


def _too_early(planned: tuple[int, ...], chains: tuple[int, ...]) -> Verdict | None:
    if min(planned) < inference.FEWEST:
        return "too few chains"
    return "unfinished" if any(have < wanted for have, wanted in zip(chains, planned, strict=True)) else None


def _last(study: Study, question: Contrast | Equivalence) -> int:
    return study.generations if question.generation is None else question.generation


def _at(study: Study, table: DataFrame, measure: str, arm: str, *generations: int) -> list[list[float]]:
    """An arm's values at some generations, a list each, of the chains that have all of them, in the order of the study's seeds."""
    wide = measured(study, table, measure)
    columns = wide.reindex(columns=list(generations)).dropna()
    there = [(arm, seed) for seed in study.seeds_of(arm) if (arm, seed) in columns.index]
    return [columns.loc[there, generation].tolist() for generation in generations]


def _tested(study: Study, table: DataFrame, contrast: Contrast) -> inference.Permutation | None:
    (a,), (b,) = (_at(study, table, contrast.measure, arm, _last(study, contrast)) for arm in (contrast.arm, contrast.against))
    return inference.permutation(a, b, 1 - study.level) if a and b else None


def _power(study: Study, table: DataFrame, contrast: Contrast) -> inference.Power | None:
    """From the first two chains of both arms, at the level that the strictest of all contrasts is tested at."""
    (a,), (b,) = (_at(study, table, contrast.measure, arm, _last(study, contrast)) for arm in (contrast.arm, contrast.against))
    planned = (len(study.seeds_of(contrast.arm)), len(study.seeds_of(contrast.against)))
    if min(len(a), len(b)) < 2 or min(planned) < inference.FEWEST:
        return None
    return inference.power(a[:2], b[:2], planned, study.level / len(study.contrasts))


def _claimed(study: Study, table: DataFrame, claim: Equivalence) -> EquivalenceAnswer:
    last = _last(study, claim)
    if claim.against is None:
        first, final = _at(study, table, claim.measure, claim.arm, claim.since, last)
        values, other, planned = np.subtract(final, first).tolist(), None, (len(study.seeds_of(claim.arm)),)
    else:
        (values,), (other,) = (_at(study, table, claim.measure, arm, last) for arm in (claim.arm, claim.against))
        planned = (len(study.seeds_of(claim.arm)), len(study.seeds_of(claim.against)))
    test = inference.equivalence(values, claim.margin, other, study.level) if values and (other is None or other) else None
    return EquivalenceAnswer(claim, last, planned, test, study.level)


def _compared(study: Study, table: DataFrame) -> dict[str, inference.Comparison]:
    """Dunnett's comparisons with the control, for the arms of no primary contrast that can be compared on the primary measure."""
    control, measure = study.control_arm, study.primary_measure
    asked = {control} | {arm for contrast in study.contrasts for arm in (contrast.arm, contrast.against)}
    others = [arm for arm in study.arms if arm not in asked and study.comparable(measure, control, arm)]
    values = {arm: _at(study, table, measure, arm, study.generations)[0] for arm in (control, *others)}
    base = values.pop(control)
    found = {arm: of_arm for arm, of_arm in values.items() if of_arm}
    return inference.dunnett(base, found, 1 - study.level) if base and found else {}


def _trends(study: Study, table: DataFrame) -> dict[str, inference.Trend]:
    """The primary measure from generation 1 on, of the chains that have come to the last one."""
    wide = measured(study, table, study.primary_measure).drop(columns=0, errors="ignore").reindex(columns=range(1, study.generations + 1)).dropna()
    series = {
        arm: [(list(wide.columns), wide.loc[(arm, seed)].tolist()) for seed in study.seeds_of(arm) if (arm, seed) in wide.index] for arm in study.arms
    }
    return {arm: inference.trend(found, 1 - study.level) for arm, found in series.items() if found and study.generations > 1}
