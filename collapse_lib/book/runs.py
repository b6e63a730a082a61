"""A run as the book shows it: read once, up to its last finished generation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.paths import run_names
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.experiment.run import Run, Step
from collapse_lib.studies.chains import experiments, sizes
from collapse_lib.studies.results import is_of_study
from collapse_lib.studies.twins import RECORD as TWINS_RECORD
from collapse_lib.studies.twins import names as twins_names


@dataclass(frozen=True)
class BookRun:
    """A run with every finished generation's results: generation -> step -> the metrics file."""

    run: Run
    results: dict[int, dict[str, dict[str, Any]]]

    @classmethod
    def read(cls, run: Run) -> BookRun:
        """Read the generations, the initial corpus (0) included, up to the first of which a step is missing that the pages cannot do without."""
        results = {}
        for generation in range(run.protocol.generations + 1):
            steps = run.steps_of(generation)
            found = {step.name: step.results() for step in steps if step.has_notebook()}
            finished = {name: results for name, results in found.items() if results is not None}
            if any(step.name not in finished and not STEPS[step.name].optional for step in steps):
                break
            results[generation] = finished
        return cls(run, results)

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def protocol(self) -> Protocol:
        return self.run.protocol

    @property
    def last(self) -> int:
        """The last finished generation; -1 if not even the initial corpus is."""
        return max(self.results, default=-1)

    @property
    def models(self) -> list[int]:
        """The finished generations that have a model: 1, 2, ..."""
        return [generation for generation in self.results if generation]

    def step(self, generation: int, name: str) -> Step:
        return self.run.step(generation, name)

    def seconds(self, generations: Sequence[int]) -> float:
        """How long the steps of some generations took."""
        return sum(step["seconds"] for generation in generations for step in self.results[generation].values())

    def metric(self, generation: int, step: str, name: str) -> dict[str, Any] | None:
        """One metric with its unit and definition; None where it was not measured."""
        measured = self.results.get(generation, {}).get(step)
        return measured["metrics"].get(name) if measured else None

    def series(self, step: str, name: str) -> list[tuple[int, float]]:
        """A metric over the generations, as (generation, value)."""
        metrics = ((generation, self.metric(generation, step, name)) for generation in self.models)
        return [(generation, metric["value"]) for generation, metric in metrics if metric]

    def samples(self, generation: int) -> list[str]:
        """The first texts that a generation wrote."""
        return self.results[generation]["sample"]["examples"].get("samples", [])

    def records(self, generations: Collection[int] | None = None) -> list[Path]:
        """The small files that the pages about some generations (default: all) are made from: protocol, executed notebooks, metrics, manifests,
        comparison with twins.
        """
        chosen = self.results if generations is None else self.results.keys() & generations
        steps = [self.step(generation, name) for generation in sorted(chosen) for name in self.results[generation]]
        twins = [file for file in [self.run.folder / TWINS_RECORD] if file.is_file()]
        return [
            self.run.folder / "protocol.yaml",
            *twins,
            *(file for step in steps for file in (step.notebook, step.metrics_file, step.manifest_file)),
        ]


def runs_of_two_sizes(runs: Sequence[BookRun]) -> list[str]:
    """Names of the runs that have the paper's design: models of two sizes on one text, and all chains of either; [] where a book has none."""
    names = [run.name for run in runs]
    parameters = {run.name: int(metric["value"]) for run in runs if (metric := run.metric(1, "train", "parameters"))}
    return [chain for name in sizes(names, parameters) for chain in experiments(names)[name]]


def book_runs(names: Sequence[str]) -> tuple[list[BookRun], dict[str, str]]:
    """The runs of a book: those named, each of which must have a finished generation, or all that have one, without other runs' twins and the
    chains of studies.

    Of the latter, those that cannot be read are left out, and come second with the reason. Raises ``UserError`` when there is none.
    """
    if names:
        runs = [BookRun.read(Run.open(name)) for name in dict.fromkeys(names)]
        if unfinished := [run.name for run in runs if not run.models]:
            raise UserError(f"Run '{unfinished[0]}' has no finished generation to show yet; `collapse run {unfinished[0]}` goes on with it.")
        return runs, {}
    present = [name for name in run_names() if not is_of_study(name)]
    twins = {name for chain in present for role, name in twins_names(chain).items() if role != "chain"}  # the chain's page on twins tells of them
    runs, left_out = [], {}
    for name in sorted(set(present) - twins, key=lambda name: (name != "demo", name == "smoke", name)):
        try:
            runs.append(BookRun.read(Run.open(name)))
        except UserError as error:
            left_out[name] = str(error)
    runs = [run for run in runs if run.models]
    if not runs:
        raise UserError(next(iter(left_out.values()), "There is no run with a finished generation to make a book of; `collapse run demo` makes one."))
    return runs, left_out
