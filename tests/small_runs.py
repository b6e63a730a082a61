"""A run that the steps make in a second or two without notebooks, and what it measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from collapse_lib import steps
from collapse_lib.experiment.run import Run, Step

WORK = {name: getattr(steps, name) for name in steps.__all__}
SMALL = {  # changes of preset ``smoke``
    "corpus.stories": "120",
    "tokenizer.vocabulary": "300",
    "training.epochs": "1",
    "sampling.sequences": "48",
    "sampling.length": "32",
    "alpha.truth_stories": "0",
    "completions.beginnings": "2",
    "completions.samples": "1",
    "classification.tasks": "[]",
}


def finish(run: Run, after: Callable[[Run], Any] = lambda run: None) -> None:
    """Every step in order, each followed by ``after``: what ``execute.advance`` does, without notebooks."""
    for step in run.steps():
        arguments = {} if step.name == "corpus" else {"generation": step.generation}
        WORK[step.name](run, **arguments)
        after(run)


def contents(run: Run) -> dict[str, object]:
    """What a run measured and the hashes of what it made, by generation and step; rates differ from one time to the next."""
    return {f"{step.generation} {step.name}": _contents(step) for step in run.steps()}


def _contents(step: Step) -> tuple[Any, ...]:
    results = step.results()
    metrics = {name: metric for name, metric in results["metrics"].items() if name != "tokens_per_second"}
    return metrics, results["series"], results["examples"], step.output_hashes()
