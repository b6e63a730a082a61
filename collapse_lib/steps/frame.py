"""What every step has around its work: open what the step reads, do the work, record what came out.

The table ``experiment.lineage.STEPS`` says what a step reads; its work is a function that is given these things opened, by name, after a
``Task``, and that a test can call without a run. A finished step is not done again: it only reads. An unfinished one goes on from its last
checkpoint or shard.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collapse_lib.experiment.artefacts import content_hash, path_of, publish, remove
from collapse_lib.experiment.files import write_text
from collapse_lib.experiment.machine import choose_device
from collapse_lib.experiment.parameters import refuse_unknown_parameters
from collapse_lib.experiment.processes import ALONE, Group, launch, process_count
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.experiment.run import Record, Run, Step
from collapse_lib.steps.inputs import open_inputs
from collapse_lib.steps.room import check_room

Results = dict[str, Any]  # a metrics file: metrics, series, examples, seconds


@dataclass(frozen=True)
class Task:
    """What a step's work is told beside its inputs, and where it leaves what it makes.

    Attributes: ``folder`` of the generation; ``record`` takes what is measured; ``made_from`` decides the outcome: unfinished work carries it, to be
    known again; ``group`` is the processes that share the work, of which only the main one's record and artefacts are kept.
    """

    protocol: Protocol
    generation: int
    device: str
    folder: Path
    record: Record = field(default_factory=Record)
    made_from: dict[str, Any] = field(default_factory=dict)
    unfinished: list[Path] = field(default_factory=list)
    group: Group = ALONE

    def seed(self, purpose: str, generation: int | None = None) -> int:
        """``Protocol.derived_seed`` of this generation, if no other is named."""
        return self.protocol.derived_seed(self.generation if generation is None else generation, purpose)

    def path(self, artefact: str) -> Path:
        """Where an artefact is to be made."""
        return path_of(self.folder, artefact)

    def scratch(self, name: str) -> Path:
        """A folder for unfinished work; it is deleted when the step is done."""
        self.unfinished.append(self.folder / name)
        return self.folder / name

    def publish(self, artefact: str, made: Callable[[Path], object] | str) -> None:
        """Put an artefact into its place, whole or not at all, and record its hash: a text, or a folder that ``made`` writes."""
        if not self.group.is_main:
            return
        if isinstance(made, str):
            write_text(self.path(artefact), made)
        else:
            publish(self.folder, artefact, made)
        self.record_output(artefact)

    def record_output(self, artefact: str) -> None:
        """Record the hash of an artefact that the work has made in its place."""
        self.record.outputs[artefact] = content_hash(self.folder, artefact)


def perform(work: Callable[..., None], name: str, run: Run, generation: int, device: str = "auto", processes: int = 1) -> Results:
    """Do step ``name`` unless it is finished, and return what it measured. One worker at a time, or a group of ``processes`` (0: one a GPU).

    Raises ``UserError`` for a step or generation that the run does not have, when something it reads is missing or damaged, and for what the
    work itself refuses.
    """
    refuse_unknown_parameters()
    step, count = run.step(generation, name), process_count(processes, device)
    if step.manifest() is None:
        step.made_from()  # refused here, where nothing is left behind, if a parent is not there
    if count == 1:
        carry_out(work, step, device)
    elif step.results() is None:
        launch("collapse_lib.steps.worker", [run.name, name, str(generation), "--device", device], count, str(step))
    return step.results()


def carry_out(work: Callable[..., None], step: Step, device: str, group: Group = ALONE) -> None:
    """Do a step unless it is finished, as one of the group that shares its work; the main process locks it and records what came out."""
    with step.exclusive() if group.is_main else nullcontext():
        if not group.agree(step.results() is None):
            return
        if group.is_main:
            check_room(step)
        device = choose_device(device)
        with step.recording(device if step.kind.on_device else "cpu", group.size) if group.is_main else nullcontext(Record()) as record:
            task = Task(step.run.protocol, step.generation, device, step.folder, record, step.made_from(), group=group)
            work(task, **open_inputs(step, device))
        if group.is_main:
            for path in task.unfinished:
                remove(path)
