"""A run folder: what exists, what is missing, what was made from what.

    papermill_runs/<run>/protocol.yaml
                         tokenizer/
                         generation-00/corpus.ipynb
                         generation-03/{train,sample,perplexity,free_text}.ipynb
                                       {model,corpus}/              large, not committed
                                       metrics/<step>.json          what was measured
                                       manifests/<step>.json        from what, by what, when

A step is finished when its manifest is there: it is written last. A manifest names the content hash of every output and of every
output it was made from, so a step whose parent has changed since is noticed and refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from numbers import Integral
from pathlib import Path
from typing import Any

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import exclusive, exclusive_folder, is_locked, read_json, read_text, write_json, write_text
from collapse_lib.experiment.lineage import STEPS, steps_of
from collapse_lib.experiment.machine import device_name, versions
from collapse_lib.experiment.paths import check_run_name, run_folder, runs_root
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.experiment.shapes import Manifest, Measured, Notebook

ORPHAN_PATIENCE = 30.0  # seconds that a kernel whose parent was killed may take to notice and let go of its step


@dataclass(frozen=True)
class Run:
    """One experiment in its folder."""

    folder: Path
    protocol: Protocol

    @classmethod
    def open(cls, name: str = "newest") -> Run:
        """Open a run by name; ``newest`` is, of those that can be opened, the one that advanced last."""
        return cls._read(run_folder(name, suits=cls._is_readable))

    @classmethod
    def _read(cls, folder: Path) -> Run:
        file = folder / "protocol.yaml"
        return cls(folder, Protocol.from_yaml(read_text(file), f"{file}"))

    @classmethod
    def _is_readable(cls, folder: Path) -> bool:
        """One broken run hides no other."""
        try:
            cls._read(folder)
        except UserError:
            return False
        return True

    @classmethod
    def proposed(cls, name: str, protocol: Protocol, exact: bool = False) -> Run:
        """The run that ``create`` would make, or the ``UserError`` that it would raise; nothing is written."""
        check_run_name(name)
        folder = runs_root() / name
        if not (folder / "protocol.yaml").is_file():
            return cls(folder, protocol)
        run = cls.open(name)
        existing, steps = run.protocol, {file.stem for file in run.manifest_files()} & STEPS.keys()
        checkpoint = folder / "generation-01" / "checkpoint"  # of later generations, the first one's training is finished
        if (checkpoint / "checkpoint.pt").is_file():
            steps.add("train")
        decided = {field for step in steps for field in existing.deciding(STEPS[step].decided_by)}
        if changed := [field for field in existing.differences(protocol) if field in decided]:
            field = changed[0]
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise UserError(
                f"Run '{name}' exists with {field} = {existing.flat()[field]}, not {protocol.flat()[field]}{more}; "
                "give another --name, or delete the run's folder."
            )
        last = max((int(file.parents[1].name.removeprefix("generation-")) for file in run.manifest_files()), default=0)
        if exact and protocol.generations < last:
            raise UserError(f"Run '{name}' has {last} generations already, more than {protocol.generations}; ask for {last} or more.")
        if not exact and protocol.generations < existing.generations:
            protocol = protocol.model_copy(update={"generations": existing.generations})
        return cls(folder, protocol)

    @classmethod
    def create(cls, name: str, protocol: Protocol, exact: bool = False) -> Run:
        """Make a run, or open the one of that name if its protocol decides the same results.

        Fields that decided no step, finished or kept half done, may differ and are taken over: the number of generations, the batch size of
        sampling, how to evaluate as long as nothing was evaluated. Whoever mends a wrong corpus path need not invent another name. A run that
        has more generations keeps them, unless their number is ``exact``: asked for, and not a preset's.

        Raises ``UserError`` for a name or a change that cannot be, and when another process drives the run.
        """
        run = cls.proposed(name, protocol, exact)
        if (run.folder / "protocol.yaml").is_file() and cls.open(name) == run:
            return run
        with run.exclusive():
            run = cls.proposed(name, protocol, exact)  # for what it was compared with may have changed until the lock was ours
            write_text(run.folder / "protocol.yaml", run.protocol.to_yaml())
        return run

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def tokenizer_folder(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def lock_file(self) -> Path:
        return self.folder / "run.lock"

    @property
    def progress_file(self) -> Path:
        return self.folder / "progress.tmp.json"

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the whole run: two drivers on one folder would undo each other's work."""
        what = f"Run '{self.name}'"
        with exclusive(self.lock_file, what, patience=1.0), exclusive_folder(self.folder, what, patience=1.0):
            yield

    def is_driven(self) -> bool:
        """Whether a ``collapse run`` works on this folder now."""
        return is_locked(self.lock_file) or is_locked(self.folder)

    def manifest_files(self) -> list[Path]:
        """The manifests of all that is finished, of steps that the protocol no longer has too."""
        return sorted(self.folder.glob("generation-*/manifests/*.json"))

    def generation_folder(self, generation: int) -> Path:
        return self.folder / f"generation-{generation:02d}"

    def step(self, generation: int, name: str) -> Step:
        """One step of one generation; raises ``UserError`` for a step or generation that cannot be."""
        if name not in STEPS:
            raise UserError(f"There is no step '{name}'; there are {', '.join(STEPS)}.")
        if not isinstance(generation, Integral):
            raise UserError(f"A generation is a whole number, not {generation!r}.")
        if not STEPS[name].done_in(self.protocol, generation):
            here = ", ".join(steps_of(self.protocol, generation)) or "no steps"
            raise UserError(f"There is no step '{name}' in generation {generation} of run '{self.name}', which has {here}.")
        if generation > self.protocol.generations:
            raise UserError(
                f"There is no generation {generation} in run '{self.name}', which has {self.protocol.generations}; "
                f"`collapse run {self.name} --generations {generation}` extends it."
            )
        return Step(self, generation, name)

    def steps(self) -> Iterator[Step]:
        """Every step of the run in the order of execution."""
        for generation in range(self.protocol.generations + 1):
            yield from self.steps_of(generation)

    def steps_of(self, generation: int) -> list[Step]:
        """The steps of one generation in the order of execution."""
        return [self.step(generation, name) for name in steps_of(self.protocol, generation)]

    def seed(self, generation: int, purpose: str) -> int:
        """A 63-bit seed that depends on the run's seed (the ``corpus`` on ``corpus.seed``, if given), the generation and the purpose alone."""
        own = self.protocol.corpus.seed if purpose == "corpus" else None
        text = f"{self.protocol.seed if own is None else own}/{generation}/{purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Step:
    """One notebook's worth of work."""

    run: Run
    generation: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} of generation {self.generation} in run '{self.run.name}'"

    @property
    def folder(self) -> Path:
        return self.run.generation_folder(self.generation)

    @property
    def notebook(self) -> Path:
        return self.folder / f"{self.name}.ipynb"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics" / f"{self.name}.json"

    @property
    def manifest_file(self) -> Path:
        return self.folder / "manifests" / f"{self.name}.json"

    def exclusive(self):
        """Hold this step: a notebook opened by hand and a batch run may meet."""
        return exclusive(self.folder / f"{self.name}.lock", f"Step {self}", patience=ORPHAN_PATIENCE)

    def parents(self) -> dict[str, Step]:
        """The steps whose outputs this one reads, under the names that ``lineage`` gives them."""
        found = {}
        for parent in STEPS[self.name].parents:
            when, _, name = parent.rpartition(" ")
            generation = {"": self.generation, "previous": self.generation - 1, "initial": 0}[when]
            if name == "corpus" and generation > 0:
                name = "sample"  # the step that makes a corpus from generation 1 on
            if STEPS[name].done_in(self.run.protocol, generation):
                found[parent] = self.run.step(generation, name)
        return found

    @property
    def protocol_hash(self) -> str:
        """Hash of the protocol's fields that decide this step."""
        return self.run.protocol.hash(STEPS[self.name].decided_by)

    def manifest(self) -> dict[str, Any] | None:
        return read_json(self.manifest_file, Manifest)

    def results(self) -> dict[str, Any] | None:
        """What this step measured, or None while it is unfinished.

        Raises ``UserError`` when it was made under another protocol or from parents that have changed since.
        """
        manifest = self.manifest()
        if manifest is None:
            return None
        if manifest["protocol_hash"] != self.protocol_hash:
            raise UserError(f"Step {self} was made under another protocol than the run now has; use another --name, or delete {self.manifest_file}.")
        for parent, step in self.parents().items():
            current = step.manifest()
            if current is not None and current["outputs"] != manifest["parents"].get(parent):
                raise UserError(
                    f"Step {self} was made from another {parent} than there is now; delete {self.folder} and the later generations to remake them."
                )
        return read_json(self.metrics_file, Measured)

    def is_finished(self) -> bool:
        """Whether its work and its executed notebook are both there, and whole."""
        notebook = read_json(self.notebook, Notebook)
        return notebook is not None and fully_executed(notebook) and self.results() is not None

    def made_from(self) -> dict[str, Any]:
        """What decides its outcome: its parents' content and its part of the protocol. Work that is kept unfinished carries it, to be known again."""
        return {"parents": {name: parent.output_hashes() for name, parent in self.parents().items()}, "protocol": self.protocol_hash}

    def output_hashes(self) -> dict[str, str]:
        """Content hashes of what this step made; ``UserError`` when it has not been done."""
        manifest = self.manifest()
        if manifest is None:
            raise UserError(f"Step {self} has not been done yet; `collapse run {self.run.name}` does every step in order.")
        return manifest["outputs"]

    @contextmanager
    def recording(self, device: str) -> Iterator[Record]:
        """Time the block and, when it ends well, write metrics and then the manifest that makes the step finished."""
        parents = {parent: step.output_hashes() for parent, step in self.parents().items()}
        started = datetime.now(UTC)
        record = Record({}, {}, {}, {})
        yield record
        finished = datetime.now(UTC)
        seconds = round((finished - started).total_seconds(), 3)
        head = {"step": self.name, "generation": self.generation}
        write_json(self.metrics_file, head | {"metrics": record.metrics, "series": record.series, "examples": record.examples, "seconds": seconds})
        write_json(
            self.manifest_file,
            head
            | {
                "protocol_hash": self.protocol_hash,
                "parents": parents,
                "outputs": record.outputs,
                "seed": self.run.seed(self.generation, self.name),
                "seconds": seconds,
                "device": device_name(device),
                "started": started.isoformat(timespec="seconds"),
                "finished": finished.isoformat(timespec="seconds"),
                "versions": versions(),
            },
        )


def fully_executed(notebook: dict[str, Any]) -> bool:
    """Whether papermill executed all of a notebook (its JSON).

    Papermill calls every cell of a killed kernel completed, so the cells themselves are asked: each must have its count, the last one
    something to show.
    """
    record = notebook["metadata"].get("papermill", {})
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and cell["source"]]
    counted = all(cell["execution_count"] for cell in code)
    return bool(code and counted and code[-1]["outputs"] and record.get("end_time") and not record.get("exception"))


@dataclass
class Record:
    """What a step hands over: ``metrics`` (value, unit, definition each), ``series``, ``examples`` and ``outputs`` (content hashes)."""

    metrics: dict[str, dict[str, Any]]
    series: dict[str, list]
    examples: dict[str, Any]
    outputs: dict[str, str]

    def measure(self, name: str, value: float | int, unit: str, definition: str, **more: Any) -> None:
        """Add one metric; ``more`` holds ``counts`` or ``standard_error`` where there are any."""
        self.metrics[name] = {"value": value, "unit": unit, "definition": definition} | more
