"""``collapse plan``: what a run will take, before it is started.

How much there is to do follows from the protocol, the initial corpus and the model's own counts (``amounts``); what it costs is measured on this
machine or was recorded on another (``calibration``). Seconds are the product of the two. What nobody can know beforehand is assumed, and each
assumption is among a plan's ``notes``.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collapse_lib.cost.amounts import AMOUNTS
from collapse_lib.cost.printing import columns, duration
from collapse_lib.cost.workload import EPOCHS, Workload
from collapse_lib.experiment.files import amount
from collapse_lib.experiment.lineage import STEPS, steps_of
from collapse_lib.experiment.retention import users
from collapse_lib.experiment.run import Run

if TYPE_CHECKING:
    from collapse_lib.cost.calibration import Calibration
    from collapse_lib.cost.corpus_size import CorpusSize
    from collapse_lib.experiment.protocol import Protocol

KERNEL_START, NOTEBOOK = 6.0, 1.2  # seconds of the one kernel's start and imports, and of each notebook around its step; 2 shared cores
KERNEL_MEMORY = 1_200_000_000  # bytes of a kernel that has imported everything and executed fifty notebooks
ASSUMED = {"judge": 2.0}  # seconds of a unit of work that this machine does not do: a request to a judge
BUSY = 0.5  # load from which on a measurement is said to be disturbed


@dataclass(frozen=True)
class Generation:
    """What one generation takes: ``seconds`` by step, and what it leaves on the disk."""

    number: int
    seconds: dict[str, float]
    bytes: int
    files: int


@dataclass(frozen=True)
class Plan:
    """What a run takes in one process with at most one GPU."""

    preset: str
    device: str
    on_gpu: bool
    parameters: int
    generations: tuple[Generation, ...]
    overhead: float  # seconds of the kernel's start and of the notebooks around the steps
    memory: dict[str, int]  # most bytes at once, by "host" and, with a GPU, "GPU"
    scratch: int  # bytes of the checkpoints that a training keeps while it lasts
    most_bytes: int  # of what a run leaves, the most at once: less than all where the protocol lets go of some
    notes: tuple[str, ...]  # what is assumed and not measured

    @property
    def by_step(self) -> dict[str, float]:
        """Seconds of each step over all generations."""
        total: Counter[str] = Counter()
        for generation in self.generations:
            total.update(generation.seconds)
        return {step: total[step] for step in STEPS if step in total}

    @property
    def seconds(self) -> float:
        """Wall time of the whole run."""
        return sum(self.by_step.values()) + self.overhead

    @property
    def bytes(self) -> int:
        """Bytes that the whole run leaves."""
        return sum(generation.bytes for generation in self.generations)

    @property
    def files(self) -> int:
        """Files that the whole run leaves."""
        return sum(generation.files for generation in self.generations) + 2  # protocol and lock

    def as_json(self) -> str:
        """The fields and what follows from them, as one line."""
        totals = {"by_step": self.by_step, "seconds": self.seconds, "bytes": self.bytes, "files": self.files}
        return json.dumps(asdict(self) | totals)


def plan(protocol: Protocol, calibration: Calibration, initial: CorpusSize, preset: str = "") -> Plan:
    """What a run of ``protocol`` takes on the calibrated machine; ``preset`` is what the plan is called."""
    from collapse_lib.model.gpt_neo import GPTNeoConfig
    from collapse_lib.model.weightless import without_weights

    config = GPTNeoConfig.from_settings(protocol.model, initial.vocabulary, initial.vocabulary - 1)
    work = Workload(protocol, initial, without_weights(config))
    rates = calibration.rates_for(config, max(1, protocol.training.block_size // 2)) | ASSUMED

    def generation(number: int) -> Generation:
        amounts = {step: AMOUNTS[step](work, number) for step in steps_of(protocol, number)}
        seconds = {step: sum(rates[unit] * amount for unit, amount in units.items()) for step, units in amounts.items()}
        left = [size for of_step in work.disk(number).values() for size in of_step.values()]
        return Generation(number, seconds, sum(size.bytes for size in left), sum(size.files for size in left))

    generations = tuple(map(generation, range(protocol.generations + 1)))
    parameters, on_gpu = work.model.num_parameters(), calibration.kind == "cuda"
    host = KERNEL_MEMORY + (4 * parameters if work.stops_early else 0)  # the best epoch's weights
    most = work.memory(on_gpu, calibration.device_memory, calibration.workers)
    return Plan(
        preset=preset,
        device=calibration.device,
        on_gpu=on_gpu,
        parameters=parameters,
        generations=generations,
        overhead=KERNEL_START + NOTEBOOK * sum(len(each.seconds) for each in generations),
        memory={"host": host + 16 * parameters, "GPU": most} if on_gpu else {"host": host + most},
        scratch=work.scratch,
        most_bytes=_most_bytes(work),
        notes=tuple(note for note, applies in _notes(work, calibration).items() if applies),
    )


def _most_bytes(work: Workload) -> int:
    """Most bytes that lie in a run's folder at once, steps being done in order and what may go going at once."""
    run, held, most = Run(Path(), work.protocol), 0, 0
    order = {step: number for number, step in enumerate(run.steps())}
    last_uses = {thing: max((order.get(step, len(order)) for step in needed_by), default=order[thing[0]]) for thing, needed_by in users(run).items()}
    sizes = {generation: work.disk(generation) for generation in range(work.protocol.generations + 1)}
    for number, step in enumerate(order):
        held += sum(size.bytes for size in sizes[step.generation][step.name].values())
        most = max(most, held)
        going = [maker for maker, last in last_uses.items() if last == number]
        held -= sum(sizes[maker.generation][maker.name][artefact].bytes for maker, artefact in going)
    return most


def _notes(work: Workload, machine: Calibration) -> dict[str, bool]:
    """What plans rest on, and whether this one does."""
    protocol, training, sampling = work.protocol, work.protocol.training, work.protocol.sampling
    batch_tokens, rows = round(training.batch_size * work.width), min(sampling.batch_size, sampling.sequences)
    epochs = f"{work.epochs} epochs (the paper found {EPOCHS}, max_epochs is {training.max_epochs})"
    tried = f"; generation 1 tries {work.epochs_tried(1)}" if work.epochs_tried(1) > work.epochs else ""
    smaller = machine.batch_tokens < min(batch_tokens, work.corpus(0)[1])
    no_fp16 = machine.kind == "cpu" and training.precision == "fp16"
    on_hub = any(not task.startswith("grammar") for task in protocol.classification.tasks)
    shape = "the machine was measured with a model of another shape: times are scaled by FLOP and parameters, which small models do not follow"
    return {
        work.initial.note: bool(work.initial.note),
        f"early stopping is assumed to find {epochs}{tried}": work.stops_early,
        shape: work.model.config.to_hf() != machine.model,
        f"other programs were waiting during the measurement, {machine.load:.1f} processes a core: a quiet machine is faster": machine.load > BUSY,
        f"training was timed with {machine.batch_tokens:,} tokens a step, not with {batch_tokens:,}, which overstates what a token costs": smaller,
        f"sampling was timed with {machine.decode_rows:,} sequences at once, not with {rows:,}": machine.decode_rows < rows,
        "no CPU trains in fp16: training was timed in fp32, and a run here needs --set training.precision=fp32": no_fp16,
        "classification tasks are taken to have the rows of the public data sets (the lengths of RTE's are a guess)": on_hub,
        f"a judge is taken to answer in {ASSUMED['judge']:g} s; `collapse judge estimate` counts tokens and money": bool(protocol.gpt_eval.judge),
        f"starting the kernel is taken to last {KERNEL_START:g} s, and a notebook {NOTEBOOK:g} s beyond its step, as on two shared cores": True,
        "memory follows from the model's counts and is not measured; sampled stories are taken to be as long as initial ones": True,
    }


def table(planned: Plan) -> str:
    """A plan as text, with one line for all generations that take the same."""
    steps, total = list(planned.by_step), sum(planned.by_step.values())
    alike: dict[tuple[str, ...], list[int]] = {}
    for generation in planned.generations:
        cells = [duration(generation.seconds[step]) if step in generation.seconds else "" for step in steps]
        alike.setdefault((*cells, duration(sum(generation.seconds.values())), amount(generation.bytes)), []).append(generation.number)
    rows = [
        ("generation", *steps, "together", "disk"),
        *((_ranges(numbers), *cells) for cells, numbers in alike.items()),
        ("whole run", *map(duration, planned.by_step.values()), duration(total), amount(planned.bytes)),
    ]
    longest = sorted(planned.by_step.items(), key=lambda item: -item[1])[:2]
    share = " and ".join(f"{step} ({seconds / planned.seconds:.0%})" for step, seconds in longest)
    gpu_hours = [f"GPU hours    {planned.seconds / 3600:,.1f}: a run holds its one GPU from start to end"] if planned.on_gpu else []
    at_once = f", of which {amount(planned.most_bytes)} at once at most" if planned.most_bytes < planned.bytes else ""
    held = ", ".join(f"{amount(size)} on the {where}" for where, size in planned.memory.items())
    lines = [
        f"{planned.preset or 'this protocol'}, {planned.parameters:,} parameters, on {planned.device}",
        "",
        *columns(rows),
        "",
        f"time         {duration(planned.seconds)}, of which {duration(planned.overhead)} for starting and executing notebooks; most is {share}",
        *gpu_hours,
        f"disk         {amount(planned.bytes)} in {planned.files:,} files{at_once}, and {amount(planned.scratch)} for checkpoints while one trains",
        f"memory       about {held}",
    ]
    return "\n".join([*lines, "", *(f"- {note}" for note in planned.notes)])


def _ranges(numbers: list[int]) -> str:
    """[2, 4, 6] as "2 to 6 by 2", [1, 2, 3] as "1 to 3", fewer than six others in full, and more by their number."""
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1, step := numbers[1] - numbers[0])):
        return f"{numbers[0]} to {numbers[-1]}" + (f" by {step}" if step > 1 else "")
    return ", ".join(map(str, numbers)) if len(numbers) < 6 else f"{len(numbers)} others"
