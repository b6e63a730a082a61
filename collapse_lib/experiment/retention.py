"""What a run may let go of: models and texts that nothing needs any more, of the kinds that its protocol's ``retention.drop`` names.

Who needs what is in the table of steps. A step that is not done needs what it reads; and as if the run had one generation more, none of whose steps
is done, so that it can be extended without making anything again: where all steps are wanted, that keeps the last generation and, as measures compare
with it, the first.
Checkpoints are no part of this: they go with the end of their training whatever the protocol says.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import NamedTuple

from collapse_lib.experiment.artefacts import gone, let_go
from collapse_lib.experiment.files import exclusive
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.run import Run, Step

PATIENCE = 300.0  # seconds that another job of the same run may take to delete gigabytes


class Gone(NamedTuple):
    """An artefact that was let go."""

    step: Step
    artefact: str
    bytes: int


def users(run: Run, only: Container[str] = STEPS) -> dict[tuple[Step, str], list[Step]]:
    """Which steps need each artefact that ``retention.drop`` names, in the order of execution; ``only`` are the steps that the run is to have.

    Steps of a generation beyond the last are among them.
    """
    last, drop = run.protocol.generations, run.protocol.retention.drop
    longer = replace(run, protocol=run.protocol.model_copy(update={"generations": last + 1}))
    found: dict[tuple[Step, str], list[Step]] = {(step, name): [] for step in run.steps() for name in step.kind.makes if name in drop}
    for step in (*run.steps(), *longer.steps_of(last + 1)):
        if step.name in only:
            for maker, artefact in step.needs():
                if (known := (Step(run, maker.generation, maker.name), artefact)) in found:
                    found[known].append(Step(run, step.generation, step.name))
    return found


def let_go_of_unneeded(run: Run, only: Container[str] = STEPS) -> list[Gone]:
    """Delete what the protocol lets go of and no step needs that is not done, and return it. The caller holds the run, or shares it."""
    if not run.protocol.retention.drop:
        return []
    freed = []
    with exclusive(run.folder / "retention.lock", f"What run '{run.name}' lets go of", patience=PATIENCE):
        for (maker, artefact), needed_by in users(run, only).items():
            if maker.manifest_file.is_file() and all(step.manifest_file.is_file() for step in needed_by):
                size = let_go(maker.folder, artefact, maker.output_hashes()[artefact])
                freed += [Gone(maker, artefact, size)] if size else []
    return freed


def all_gone(run: Run) -> list[Gone]:
    """What a run has let go of so far and has not made again."""
    artefacts = ((step, artefact) for step in run.steps() for artefact in step.kind.makes)
    return [Gone(step, artefact, record["bytes"]) for step, artefact in artefacts if (record := gone(step.folder, artefact))]


def keep_all(run: Run) -> Run:
    """The run with a protocol that lets go of nothing."""
    return replace(run, protocol=run.protocol.with_changes({"retention.drop": []}))
