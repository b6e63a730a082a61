"""Sentences on runs that lack what a page shows, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from IPython.display import Markdown

from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.run import Run
from collapse_lib.figures.classification import finetuned
from collapse_lib.figures.judged import graded_runs
from collapse_lib.figures.pipeline import MEASURES, runs_with
from collapse_lib.studies.results import Runs, select

if TYPE_CHECKING:
    from pandas import DataFrame


def ungraded(runs: Runs) -> Markdown:
    """The runs that no judge has graded, and how to have them graded."""
    missing, names = _missing(select(runs), graded_runs(runs))
    if not missing:
        return Markdown("Every run shown here has been graded.")
    protocol = Run.open(missing[0]).protocol
    judge = "" if protocol.gpt_eval.judge else " --set gpt_eval.judge=MODEL"
    if protocol.completions.every is None:
        command = f"`collapse run {missing[0]} --set completions.every=1{judge}`"
        return Markdown(f"Not graded yet: {names}. {command} has the models, if they are there, complete stories and a judge grade them.")
    return Markdown(f"Not graded yet: {names}. `collapse run {missing[0]}{judge}` has a judge grade its completions.")


def unclassified(table: DataFrame) -> Markdown:
    """The runs of a table that were fine-tuned on no task, and how to have them fine-tuned."""
    missing, names = _missing(table["run"].unique(), finetuned(table))
    if not missing:
        return Markdown("Every run shown here has been fine-tuned.")
    tasks = "" if Run.open(missing[0]).protocol.classification.tasks else " --set 'classification.tasks=[grammar_fits, grammar_happy]'"
    return Markdown(f"Fine-tuned on no task: {names}. `collapse run {missing[0]}{tasks}` does it, as long as the run's models are there.")


def unmeasured(table: DataFrame, *measures: str) -> Markdown:
    """The runs of a table that were evaluated before some of ``MEASURES`` were measured."""
    complete = set.intersection(*(set(runs_with(table, name)) for name in measures))
    missing, names = _missing(table["run"].unique(), complete)
    if not missing:
        return Markdown("Every run shown here has these measures.")
    what = " or ".join(MEASURES[name] for name in measures)
    return Markdown(f"Without {what}, because they were evaluated before these were measured: {names}.")


def undone(table: DataFrame, step: str) -> Markdown:
    """The runs of a table that lack the optional step ``exact`` or ``texture``, why, and how to have it done."""
    missing, _ = _missing(table["run"].unique(), set(table[table["step"] == step]["run"]))
    able = [run for run in missing if STEPS[step].done_in(Run.open(run).protocol, 1)]
    sentences = []
    if lawless := [run for run in missing if run not in able]:
        sentences.append(f"Without an exact law, because their stories do not come from the grammar: {_bold(lawless)}.")
    if able:
        sentences.append(
            f"Step `{step}` has not been done yet: {_bold(able)}. `collapse run {able[0]}` does it, if the run's models and texts are there."
        )
    return Markdown(" ".join(sentences) or "Every run shown here has these measures.")


def uncompared(runs: Runs, records: Sequence[dict[str, Any]]) -> Markdown:
    """The runs that ``records`` do not compare with twins, and how to have them compared."""
    missing, names = _missing(select(runs), {name for record in records for name in record["runs"].values()})
    if not missing:
        return Markdown("Every run shown here has been compared with its twins.")
    return Markdown(f"Not compared with twins: {names}. `collapse twins {missing[0]}` makes the two other runs, and compares.")


def _missing(runs: Sequence[str], complete: Sequence[str] | set[str]) -> tuple[list[str], str]:
    missing = [run for run in runs if run not in complete]
    return missing, _bold(missing)


def _bold(runs: Sequence[str]) -> str:
    return ", ".join(f"**{run}**" for run in runs)
