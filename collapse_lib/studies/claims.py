"""The paper's claims, each held against what runs and studies have measured: numbers and verdicts by rule, the sentences are the pages'.

A claim has parts, each one number a chain and a test over chains. What a part comes to:

    reproduced          the test sees what the paper says
    contradicted        the test sees the opposite
    opposite so far     the same, in chains that end before the generation at which the paper sees it
    not at this scale   the test does not see it, and the chains end before the generation at which the paper does
    underpowered        the test sees nothing; or there are fewer than ``inference.FEWEST`` chains, or not all that a study planned
    not tested          nothing was measured, or no arm was made for it

To a source, a claim is ``reproduced`` if all its parts are, ``partly`` if some are, else what the gravest of its parts is. The source with the most
chains decides; where another with enough of them sees the opposite of what that one sees, the claim is ``partly`` so. A claim about every chain and
about a limit (``by_theory``) is not for chains to decide: a counterexample does, and chains stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from collapse_lib.experiment.paths import runs_root
from collapse_lib.experiment.run import Run
from collapse_lib.studies import inference
from collapse_lib.studies.analysis import ContrastAnswer, analyse
from collapse_lib.studies.chains import experiments, sizes
from collapse_lib.studies.design import Study
from collapse_lib.studies.grades import can_fall
from collapse_lib.studies.results import load
from collapse_lib.studies.study import open_study, studies_with_results, table
from collapse_lib.studies.twins import comparisons
from collapse_lib.text.tasks import TASKS

if TYPE_CHECKING:
    from pandas import DataFrame

LEVEL = 0.05
MARGIN = 0.02  # accuracy: a benefit of less is none worth speaking of
LAST = 40  # generations of the paper
TURN = 25  # the paper's generation from which entropy falls and repetition is said to grow

Outcome = Literal["reproduced", "partly", "contradicted", "opposite so far", "not at this scale", "underpowered", "not tested"]
EARLY: dict[Outcome, Outcome] = {"contradicted": "opposite so far", "underpowered": "not at this scale"}  # before the paper's generation
OPPOSITES = {"reproduced": ("contradicted", "opposite so far"), "contradicted": ("reproduced",), "opposite so far": ("reproduced",)}
Measure = tuple[str, str, bool]  # step, metric, whether its logarithm is taken
LOSSES = ("perplexity.perplexity", "exact.excess_loss", "exact.log_excess_loss")
PERPLEXITY: Measure = ("perplexity", "perplexity", True)


@dataclass(frozen=True)
class Part:
    """One tested statement: its estimate (signed, in the measure's unit) with an interval, and whether it agrees with the paper in direction.

    ``decided`` is an outcome that is not read off ``p``: a declared contrast's, a count's, an interval's against a margin.
    """

    what: str
    test: str
    estimate: float
    low: float | None
    high: float | None
    p: float | None
    agrees: bool
    chains: tuple[int, ...]
    last: int
    is_finished: bool = True
    seen_by: int = 0
    decided: Outcome | None = None
    is_adjusted: bool = False  # p already accounts for the tests beside it

    @property
    def is_early(self) -> bool:
        """Whether there are too few chains, or not all that were planned, to speak of a verdict."""
        return min(self.chains) < inference.FEWEST or not self.is_finished

    @property
    def outcome(self) -> Outcome:
        """What it comes to, once ``p`` is adjusted for the tests beside it."""
        if self.is_early:
            return "underpowered"
        is_seen = self.p is not None and self.p <= LEVEL
        found: Outcome = self.decided or ("underpowered" if not is_seen else "reproduced" if self.agrees else "contradicted")
        return EARLY.get(found, found) if self.last < self.seen_by else found


@dataclass(frozen=True)
class Source:
    """Chains that can answer claims, as ``arms`` by what they are for (``roles``): an experiment's runs, or a study."""

    name: str
    table: DataFrame
    roles: Mapping[str, tuple[str, ...]]  # recursion, fresh, first_only, mix, larger -> arms
    planned: Mapping[str, int]  # chains by arm, as far as a number was planned
    generations: int = 0  # of each chain, as far as they were planned
    contrasts: tuple[ContrastAnswer, ...] = ()
    twins: Sequence[dict[str, Any]] = ()

    @property
    def is_study(self) -> bool:
        return bool(self.planned)

    def chains(self, arm: str, measure: Measure) -> DataFrame:
        """A measure, a row a chain and a column a generation from 1 on, of the arm's chains to the last generation that enough of them have.

        Enough are ``FEWEST``, or as many as there are. Generations in which any of these was not measured are left out.
        """
        step, metric, is_log = measure
        rows = self.table[
            (self.table["arm"] == arm) & (self.table["step"] == step) & (self.table["metric"] == metric) & (self.table["generation"] > 0)
        ]
        wide = rows.pivot(index="run", columns="generation", values="value")
        if len(wide):
            ends = wide.apply(lambda chain: chain.last_valid_index(), axis=1)
            last = sorted(ends, reverse=True)[min(len(ends), inference.FEWEST) - 1]
            wide = wide.loc[ends >= last, wide.columns <= last].dropna(axis=1)
        return np.log(wide) if is_log and len(wide) and (wide > 0).all(axis=None) else wide

    def arms(self, role: str) -> tuple[str, ...]:
        return self.roles.get(role, ())

    def is_finished(self, *arms: str) -> bool:
        """Whether all planned chains of these arms have come to their last generation."""
        done = self.table[self.table["generation"] >= self.generations]
        return all(done[done["arm"] == arm]["run"].nunique() >= self.planned.get(arm, 0) for arm in arms)


Question = Callable[[Source], list[Part | None]]  # None: a part that this source cannot answer


@dataclass(frozen=True)
class Evidence:
    """What one source says of a claim; ``outcomes`` has one for each of ``parts``, None among these stands for what was not measured."""

    source: Source
    parts: tuple[Part | None, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def tested(self) -> list[tuple[Part, Outcome]]:
        return [(part, outcome) for part, outcome in zip(self.parts, self.outcomes, strict=True) if part]

    @property
    def chains(self) -> int:
        """Chains of the smallest arm behind any part; 0 where nothing was measured."""
        return min((min(part.chains) for part, _ in self.tested), default=0)

    @property
    def last(self) -> int:
        """The last generation that any part has seen."""
        return max((part.last for part, _ in self.tested), default=0)

    @property
    def can_decide(self) -> bool:
        return any(not part.is_early for part, _ in self.tested)

    @property
    def rank(self) -> tuple[bool, bool, int, int]:
        """What decides comes first: enough chains that are done, then the paper's generation reached, then more chains, then longer ones."""
        return self.can_decide, all(part.last >= part.seen_by for part, _ in self.tested), self.chains, self.last

    @property
    def verdict(self) -> str:
        if not self.tested:
            return "not tested"
        found = set(self.outcomes)
        if found == {"reproduced"}:
            return "reproduced"
        ranked = ("contradicted", "opposite so far", "not at this scale", "underpowered")
        return "partly" if "reproduced" in found else next(outcome for outcome in ranked if outcome in found)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper's, by its key, and the question that holds it against a source; ``by_theory`` is what a counterexample decides."""

    key: str
    question: Question = field(default=lambda source: [])
    by_theory: Outcome | None = None


@dataclass(frozen=True)
class Answer:
    """A claim with all evidence, in the order of its ``rank``; without any there is nothing to test it."""

    claim: Claim
    evidence: tuple[Evidence, ...]

    @property
    def disputing(self) -> list[Evidence]:
        """Other sources with enough chains that see the opposite of what the first one sees."""
        if not (self.evidence and self.evidence[0].can_decide):
            return []
        against = OPPOSITES.get(self.evidence[0].verdict, ())
        return [one for one in self.evidence[1:] if one.can_decide and one.verdict in against]

    @property
    def verdict(self) -> str:
        if self.claim.by_theory or not self.evidence:
            return self.claim.by_theory or "not tested"
        return "partly" if self.disputing else self.evidence[0].verdict


def sources(runs: Sequence[str]) -> list[Source]:
    """Every study that has chains, and the experiments of the paper's recursion among ``runs``; see ``of_experiments``."""
    found = [of_study(study) for study in map(open_study, studies_with_results())]
    return found + of_experiments([run for run in runs if not (runs_root() / run / "study.json").is_file() and _is_recursion(run)])


def of_experiments(runs: Sequence[str]) -> list[Source]:
    """A source for each experiment, with the larger models of the same text beside it; the longest chain of several is one by itself, too."""
    if not runs:
        return []
    groups = experiments(runs)
    numbers = load(list(runs))
    numbers.insert(1, "arm", numbers["run"].map({run: name for name, chains in groups.items() for run in chains}))
    is_size = (numbers["step"] == "train") & (numbers["metric"] == "parameters")
    by_size = sizes(runs, numbers[is_size].groupby("arm")["value"].max().astype(int).to_dict())
    found = []
    for name, chains in groups.items():
        larger = tuple(by_size[by_size.index(name) + 1 :]) if name in by_size else ()
        table = numbers[numbers["arm"].isin([name, *larger])]
        found.append(Source(name, table, {"recursion": (name,), "larger": larger}, {}, twins=comparisons([name])))
        if len(chains) > 1:
            longest = numbers[numbers["run"] == name]
            found.append(Source(f"{name}, its longest chain", longest, {"recursion": (name,)}, {}))
    return found


def of_study(study: Study) -> Source:
    numbers = table(study)
    roles: dict[str, tuple[str, ...]] = {}
    for arm in study.arms:
        if arm in set(numbers["arm"]) and (role := _role(study, arm, numbers)):
            roles[role] = (*roles.get(role, ()), arm)
    planned = {arm: len(study.seeds_of(arm)) for arm in study.arms}
    measured = {f"{step}.{metric}" for step, metric in zip(numbers["step"], numbers["metric"], strict=True)}
    contrasts = analyse(study, numbers).contrasts if {measure.metric for measure in study.measures.values()} <= measured else ()
    of_loss = tuple(answer for answer in contrasts if study.measures[answer.question.measure].metric in LOSSES)
    return Source(study.name, numbers, roles, planned, study.generations, of_loss)


def answers(found: Sequence[Source], claims: Sequence[Claim] | None = None) -> list[Answer]:
    """All claims, each with what every source says of it; a source's tests, each once, are adjusted for one another (Holm)."""
    asked = CLAIMS if claims is None else claims
    evidence: dict[str, list[Evidence]] = {claim.key: [] for claim in asked}
    for source in found:
        parts = {claim.key: claim.question(source) for claim in asked}
        tested = {part: part.p for of_one in parts.values() for part in of_one if part and part.p is not None and not part.is_adjusted}
        adjusted = dict(zip(tested, inference.holm(list(tested.values())), strict=True))
        for key, of_one in parts.items():
            held = tuple(part and replace(part, p=adjusted.get(part, part.p), is_adjusted=True) for part in of_one)
            if any(held):
                evidence[key].append(Evidence(source, held, tuple(part.outcome if part else "not tested" for part in held)))
    return [Answer(claim, tuple(sorted(evidence[claim.key], key=lambda one: one.rank, reverse=True))) for claim in asked]


def _role(study: Study, arm: str, numbers: DataFrame) -> str | None:
    fields, base = study.arms[arm].fields, study.base_protocol.regime.name
    if not fields or set(fields) == {"regime.name"}:
        regime = fields.get("regime.name", base)
        return "recursion" if regime == "replace" else regime
    if fields.get("regime.name") == "mix" and all(name.startswith("regime.") for name in fields):
        return "mix"
    if base == "replace" and all(name.startswith("model.") for name in fields):
        sizes = numbers[numbers["metric"] == "parameters"].groupby("arm")["value"].max()
        usual = [other for other in study.arms if not study.arms[other].fields]
        return "larger" if usual and usual[0] in sizes and sizes.get(arm, 0) > sizes[usual[0]] else None
    return None


def _is_recursion(run: str) -> bool:
    return Run.open(run).protocol.regime.name == "replace"


# Parts.


def trend(source: Source, measure: Measure, sign: int, what: str, seen_by: int = 0, since: float = 0, until: float = math.inf) -> Part | None:
    """A measure's slope over the generations of the paper's recursion, or over those from ``since`` ``until``, one a chain."""
    for arm in source.arms("recursion"):
        wide = source.chains(arm, measure)
        wide = wide.loc[:, [since <= generation <= until for generation in wide.columns]]
        if len(wide) and wide.shape[1] > 1:
            found = inference.trend([(list(wide.columns), row.tolist()) for _, row in wide.iterrows()], 1 - LEVEL)
            return _of_mean(source, arm, wide, found, sign, f"{what}, slope a generation", "t test of the chains' slopes", seen_by)
    return None


def monotone(source: Source, measure: Measure, sign: int, what: str) -> Part | None:
    """In how many of its steps, of all chains, a measure goes the paper's way: the claim is all of them, and one step the other way is enough."""
    for arm in source.arms("recursion"):
        wide = source.chains(arm, measure)
        if len(wide) and wide.shape[1] > 1:
            steps = [sign * (after - before) > 0 for _, row in wide.iterrows() for before, after in pairwise(row)]
            done = source.is_finished(arm)
            return Part(
                f"{what}, share of steps",
                "count of steps",
                float(np.mean(steps)),
                None,
                None,
                None,
                all(steps),
                (len(wide),),
                int(wide.columns[-1]),
                done,
                decided="reproduced" if all(steps) else "contradicted",
            )
    return None


def no_better_than_untrained(source: Source, measure: Measure, what: str) -> Part | None:
    """The last generation less the untrained baseline (generation 0), paired by chain: is a benefit of ``MARGIN`` ruled out?"""
    step, metric, _ = measure
    for arm in source.arms("recursion"):
        wide = source.chains(arm, measure)
        rows = source.table[(source.table["step"] == step) & (source.table["metric"] == metric) & (source.table["generation"] == 0)]
        baseline = rows.set_index("run")["value"].reindex(wide.index).dropna()
        if len(baseline):
            found = inference.interval((wide.loc[baseline.index].iloc[:, -1] - baseline).tolist(), 1 - 2 * LEVEL)
            decided: Outcome = "underpowered"
            if found.high is not None and found.low is not None:
                decided = "reproduced" if found.high < MARGIN else "contradicted" if found.low > MARGIN else "underpowered"
            return Part(
                f"{what}, last generation less untrained",
                f"t interval of {1 - 2 * LEVEL:.0%} against {MARGIN:g}",
                found.mean,
                found.low,
                found.high,
                None,
                found.mean < MARGIN,
                (found.chains,),
                int(wide.columns[-1]),
                source.is_finished(arm),
                LAST,
                decided,
            )
    return None


def declared(source: Source, role: str, against: str) -> Part | None:
    """A contrast of loss that the study declared, with its own verdict (``analysis``); the paper has the first arm's greater."""
    for answer in source.contrasts:
        question, test = answer.question, answer.test
        if question.arm in source.arms(role) and question.against in source.arms(against) and test:
            known: dict[str, Outcome] = {"reproduced": "reproduced", "contradicted": "contradicted"}
            return Part(
                f"{question.measure} at the last generation, {question.arm} less {question.against}",
                "exact permutation, declared",
                test.difference,
                test.low,
                test.high,
                answer.p_holm,
                test.difference > 0,
                test.chains,
                answer.generation,
                answer.verdict not in ("unfinished", "too few chains"),
                decided=known.get(answer.verdict, "underpowered"),
                is_adjusted=True,
            )
    return None


def contrast(source: Source, arm: str, sign: int, what: str, number: Callable[[DataFrame], Sequence[float]]) -> Part | None:
    """An arm less the paper's recursion in one ``number`` a chain of log perplexity."""
    for control in source.arms("recursion"):
        ours, theirs = source.chains(arm, PERPLEXITY), source.chains(control, PERPLEXITY)
        common = ours.columns.intersection(theirs.columns)
        if len(ours) and len(theirs) and len(common) > 1:
            ours, theirs = ours[common], theirs[common]
            found = inference.permutation(number(ours), number(theirs), 1 - LEVEL)
            agrees, last, done = sign * found.difference > 0, int(ours.columns[-1]), source.is_finished(arm, control)
            return Part(what, "exact permutation", found.difference, found.low, found.high, found.p, agrees, found.chains, last, done)
    return None


def other_corpus(source: Source) -> list[Part | None]:
    """What another initial corpus adds to the distance between twins: does it fall from the first generation to the last?"""
    for record in source.twins:
        found = [
            (one["generation"], one["positions"]["chain"]["excess_both"]["tv"]["value"])
            for one in record["generations"]
            if one["generation"] and "positions" in one
        ]
        if len(found) > 1:
            change = found[-1][1] - found[0][1]
            return [Part("distance that another corpus adds, last less first", "none", change, None, None, None, change < 0, (1,), found[-1][0])]
    return [None]


def _of_mean(source: Source, arm: str, wide: DataFrame, found: inference.Trend, sign: int, what: str, test: str, seen_by: int) -> Part:
    slope, last = found.slope, int(wide.columns[-1])
    agrees = sign * slope.mean > 0
    return Part(what, test, slope.mean, slope.low, slope.high, found.p, agrees, (slope.chains,), last, source.is_finished(arm), seen_by)


def _last(wide: DataFrame) -> Sequence[float]:
    return wide.iloc[:, -1].tolist()


def _slopes(wide: DataFrame) -> Sequence[float]:
    return inference.trend([(list(wide.columns), row.tolist()) for _, row in wide.iterrows()]).slopes


# Questions.


def _cause(source: Source) -> list[Part | None]:
    """Training on one generation's text, again and again, is the cost of one step without accumulation; training on real text is the null."""
    return [declared(source, "recursion", against) for against in ("first_only", "fresh")]


def _finding_1(source: Source) -> list[Part | None]:
    return [trend(source, PERPLEXITY, 1, "log perplexity"), monotone(source, PERPLEXITY, 1, "perplexity rises")]


def _repetition(source: Source) -> list[Part | None]:
    return [trend(source, ("free_text", "repeated", False), 1, "share of tokens that repeat the one before", TURN)]


def _concentration(source: Source) -> list[Part | None]:
    return [trend(source, ("free_text", "repeated_frequent", False), 1, "share of frequent tokens among the repeated", TURN)]


def _finding_2(source: Source) -> list[Part | None]:
    return [*_repetition(source), *_concentration(source)]


def _finding_3(source: Source) -> list[Part | None]:
    """A grade counts where the judge ranks its controls in it and it can fall; of the grammar's stories there is an exact judge as well."""
    grammar, consistency = (
        trend(source, ("gpt_eval", name, False), -1, f"{name} grade") if _is_trusted(source, name) and can_fall(source.table, name) else None
        for name in ("grammar", "consistency")
    )
    return [grammar or trend(source, ("exact", "legal_share", False), -1, "share of a story before it breaks the grammar"), consistency]


def _is_trusted(source: Source, grade: str) -> bool:
    """Whether the judge ranked its control rows in a grade, in all generations of all chains; older records say so of both grades together."""
    graded = source.table[source.table["step"] == "gpt_eval"]
    verdicts = [graded[graded["metric"] == name]["value"] for name in (f"judge_ranks_{grade}", "judge_ranks_controls")]
    found = next((values for values in verdicts if len(values)), None)
    return found is not None and bool((found == 1).all())


def _finding_4(source: Source) -> list[Part | None]:
    """The mean over the tasks that there is something to lose in: those in which every chain's first generation beats the commonest answer."""
    rows = source.table[source.table["step"] == "classification"]
    by_name = {name: of_name.set_index(["run", "generation"])["value"].sort_index() for name, of_name in rows.groupby("metric")}
    accuracies = []
    for task in TASKS:
        if f"{task}_accuracy" in by_name:
            lead = by_name[f"{task}_accuracy_low"] - by_name[f"{task}_accuracy_majority"]
            first = lead[lead.index.get_level_values("generation") > 0].groupby("run").first()
            accuracies += [by_name[f"{task}_accuracy"]] if len(first) and (first > 0).all() else []
    if not accuracies:
        return [None, None]
    mean = sum(accuracies) / len(accuracies)
    arms = source.table.drop_duplicates("run").set_index("run")["arm"]
    made = mean.dropna().rename("value").reset_index().assign(step="classification", metric="learned")
    of_learned = replace(source, table=made.assign(arm=made["run"].map(arms)))
    accuracy: Measure = ("classification", "learned", False)
    what = f"mean accuracy on {len(accuracies)} task{'s' * (len(accuracies) > 1)}"
    return [trend(of_learned, accuracy, -1, what), no_better_than_untrained(of_learned, accuracy, what)]


def _larger(source: Source) -> list[Part | None]:
    what = "slope of log perplexity, larger model less smaller"
    return [contrast(source, arm, -1, what, _slopes) for arm in source.arms("larger")]


def _entropy(source: Source) -> list[Part | None]:
    entropy: Measure = ("free_text", "entropy", False)
    return [
        trend(source, entropy, 1, f"entropy up to generation {TURN}", until=TURN),
        trend(source, entropy, -1, f"entropy from generation {TURN}", LAST, since=TURN),
    ]


def _proportion(source: Source) -> list[Part | None]:
    what = "log perplexity at the last generation, {} less recursion"
    return [contrast(source, arm, -1, what.format(arm), _last) for arm in source.arms("mix")]


CLAIMS = (
    Claim("cause", _cause),
    Claim("inevitable", by_theory="partly"),
    Claim("finding_1", _finding_1),
    Claim("finding_2", _finding_2),
    Claim("finding_3", _finding_3),
    Claim("finding_4", _finding_4),
    Claim("larger", _larger),
    Claim("entropy", _entropy),
    Claim("repetition", _repetition),
    Claim("concentration", _concentration),
    Claim("corpus", other_corpus, by_theory="partly"),
    Claim("proportion", _proportion),
)
