"""A run folder: what exists, what is missing, what was made from what.

    papermill_runs/<run>/protocol.yaml
                         tokenizer/
                         generation-00/corpus.ipynb
                         generation-03/{train,sample,perplexity,free_text}.ipynb
                                       {model,corpus}/              large, not committed
                                       metrics/<step>.json          what was measured
                                       manifests/<step>.json        from what, by what, when

A step is finished when its manifest is there: it is written last. A manifest names the content hash of every output and of every
output it was made from, so a step whose parent has changed since is noticed and refused (``artefacts`` compares the outputs themselves).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from numbers import Integral
from pathlib import Path
from typing import Any

from collapse_lib.experiment.artefacts import (
    ARTEFACTS,
    content_hash,
    gone,
    manifest_files,
    mend,
    path_of,
    read_manifest,
    read_metrics,
    record_of,
    remove,
)
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import exclusive, exclusive_folder, is_locked, read_json, read_text, sealed, sha256, shared, write_json, write_text
from collapse_lib.experiment.lineage import STEPS, Read, StepKind, reads_of, steps_of
from collapse_lib.experiment.machine import device_name, versions
from collapse_lib.experiment.paths import check_run_name, run_folder, runs_root
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.experiment.shapes import Notebook

FORMAT = 2  # of a run folder. 1, which manifests do not name, recorded no hashes of metrics, notebooks and word lists: it can be read, not continued.
ORPHAN_PATIENCE = 30.0  # seconds that a kernel whose parent was killed may take to notice and let go of its step


@dataclass(frozen=True)
class Run:
    """One experiment in its folder."""

    folder: Path
    protocol: Protocol = field(hash=False)

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
        existing, steps = run.protocol, {file.stem for file in run.manifest_files()}
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

    def shared(self):
        """Keep others from holding the whole run: several steps may be done at once, each under its own lock, while nobody drives the run."""
        return shared(self.lock_file, f"Run '{self.name}'", patience=1.0)

    def is_driven(self) -> bool:
        """Whether some process works on this folder now: on the whole run, or on a step."""
        return any(map(is_locked, (self.lock_file, self.folder, *self.folder.glob("generation-*/*.lock"))))

    def manifest_files(self) -> list[Path]:
        """The manifests of all that is finished, of steps that the protocol no longer has too."""
        return manifest_files(self.folder)

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

    def steps_named(self, name: str) -> list[Step]:
        """One step in every generation, be it one that the protocol no longer gives it."""
        return [Step(self, generation, name) for generation in range(self.protocol.generations + 1)]

    def seed(self, generation: int, purpose: str) -> int:
        """``Protocol.derived_seed``."""
        return self.protocol.derived_seed(generation, purpose)


@dataclass(frozen=True)
class Step:
    """One notebook's worth of work."""

    run: Run
    generation: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} of generation {self.generation} in run '{self.run.name}'"

    @property
    def kind(self) -> StepKind:
        return STEPS[self.name]

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

    @property
    def lock_file(self) -> Path:
        return self.folder / f"{self.name}.lock"

    @property
    def progress_file(self) -> Path:
        """Of a step that is done by itself."""
        return self.folder / f"{self.name}.progress.tmp.json"

    def exclusive(self):
        """Hold this step: a notebook opened by hand and a batch run may meet."""
        return exclusive(self.lock_file, f"Step {self}", patience=ORPHAN_PATIENCE)

    def reads(self) -> list[Read]:
        """What this step reads, as the table of steps says."""
        return reads_of(self.name, self.run.protocol, self.generation)

    def sources(self) -> dict[str, tuple[Step, str | None]]:
        """What this step reads, by the name of the argument: the step that makes it and which of its artefacts it is (None: what it measured)."""
        sources = {}
        for read in self.reads():
            generation, (name, artefact) = read.generation(self.generation), read.source(self.generation)
            if STEPS[name].done_in(self.run.protocol, generation) and (generation, name) != (self.generation, self.name):
                sources[read.argument] = (self.run.step(generation, name), artefact)
        return sources

    def parents(self) -> dict[str, Step]:
        """The steps that this one reads from, under the names that manifests give them."""
        sources = self.sources()
        return {read.parent(self.generation): sources[read.argument][0] for read in self.reads() if read.argument in sources}

    def needs(self) -> set[tuple[Step, str]]:
        """The artefacts without which this step cannot be done: those that it reads, and those of which they show parts."""
        found = {(maker, artefact) for maker, artefact in self.sources().values() if artefact}
        return found.union(*(maker.needs() for maker, artefact in found if ARTEFACTS[artefact].is_view))

    @property
    def protocol_hash(self) -> str:
        """Hash of the protocol's fields that decide this step."""
        return self.run.protocol.hash(STEPS[self.name].decided_by)

    def manifest(self) -> dict[str, Any] | None:
        """From what, by what and when this step was done; None while it is not. Raises ``UserError`` when the file is damaged."""
        return read_manifest(self.folder, self.name)

    def results(self) -> dict[str, Any] | None:
        """What this step measured, or None while it is unfinished.

        Raises ``UserError`` when it was made under another protocol or from parents that have changed since, or is not what was recorded.
        """
        manifest = self.manifest()
        if manifest is None:
            return None
        if manifest["protocol_hash"] != self.protocol_hash:
            raise UserError(f"Step {self} was made under another protocol than the run now has; {mend(self.run.name)}.")
        for parent, step in self.parents().items():
            current = step.manifest()
            if current is not None and current["outputs"] != manifest["parents"].get(parent, current["outputs"]):
                raise UserError(f"Step {self} was made from another {parent} than there is now; {mend(self.run.name)}.")
        return read_metrics(self.folder, self.name, manifest)

    def is_finished(self) -> bool:
        """Whether its work and its executed notebook are both there, and whole."""
        return self.has_notebook() and self.results() is not None

    def has_notebook(self) -> bool:
        """Whether the executed notebook is there and is the one that was recorded; one that plain papermill executed is known by its parameters."""
        notebook = read_json(self.notebook, Notebook, f"`collapse run {self.run.name}` executes it again")
        if notebook is None or not fully_executed(notebook):
            return False
        if recorded := (self.manifest() or {}).get("notebook"):
            return sha256(self.notebook) == recorded
        given = notebook["metadata"].get("papermill", {}).get("parameters", {})
        return given.get("run", self.run.name) == self.run.name and given.get("generation", self.generation) == self.generation

    def record_notebook(self) -> None:
        """Have the manifest name the executed notebook that is there, if it names none."""
        manifest, digest = self.manifest(), sha256(self.notebook)
        if "format" in manifest and manifest.get("notebook") != digest:
            write_json(self.manifest_file, sealed(manifest | {"notebook": digest}))

    def drop(self) -> None:
        """Make this step undone: its manifest goes first, so that an interruption leaves nothing that passes for finished."""
        outputs = [path(self.folder, name) for name in STEPS[self.name].makes for path in (path_of, record_of)]
        for path in (self.manifest_file, self.metrics_file, self.notebook, *outputs):
            remove(path)

    def made_from(self) -> dict[str, Any]:
        """What decides its outcome: its parents' content and its part of the protocol. Work that is kept unfinished carries it, to be known again."""
        return {"parents": {name: parent.output_hashes() for name, parent in self.parents().items()}, "protocol": self.protocol_hash}

    def output_hashes(self) -> dict[str, str]:
        """Content hashes of what this step made; ``UserError`` when it has not been done, or by a version that recorded less."""
        manifest = self.manifest()
        if manifest is None:
            raise UserError(f"Step {self} has not been done yet; `collapse run {self.run.name}` does every step in order.")
        if manifest.get("format", 1) != FORMAT:
            raise UserError(
                f"Run '{self.run.name}' has format {manifest.get('format', 1)}, and this version goes on with format {FORMAT}; "
                "its results can be read, and the same experiment run under another --name."
            )
        return manifest["outputs"]

    def artefact(self, name: str) -> Path:
        """The path of an artefact that this step made, for whoever is about to open it.

        Raises ``UserError`` when the step is not done, when the artefact is not there, and when its content is not what was recorded.
        """
        recorded, path = self.output_hashes()[name], path_of(self.folder, name)
        try:
            if content_hash(self.folder, name) == recorded:
                return path
        except FileNotFoundError:
            if not path.exists():
                was_let_go = gone(self.folder, name) is not None
                why = "was let go when no step needed it (retention.drop)" if was_let_go else "is not here (large files are not committed)"
                what = f"The {name} of generation {self.generation} of run '{self.run.name}' {why}"
                raise UserError(f"{what}; {mend(self.run.name, '--missing')}.") from None
        raise UserError(f"{path} is not the {name} that step {self} made; {mend(self.run.name)}.")

    @contextmanager
    def recording(self, device: str, processes: int = 1) -> Iterator[Record]:
        """Time the block and, when it ends well, write metrics and then the manifest that makes the step finished.

        ``processes`` shared the work, each on a ``device``.
        """
        parents = {parent: step.output_hashes() for parent, step in self.parents().items()}
        started = datetime.now(UTC)
        record = Record()
        yield record
        finished = datetime.now(UTC)
        seconds = round((finished - started).total_seconds(), 3)
        head = {"step": self.name, "generation": self.generation}
        write_json(self.metrics_file, head | {"metrics": record.metrics, "series": record.series, "examples": record.examples, "seconds": seconds})
        content = head | {
            "format": FORMAT,
            "protocol_hash": self.protocol_hash,
            "parents": parents,
            "outputs": record.outputs,
            "metrics": sha256(self.metrics_file),
            "seed": self.run.seed(self.generation, self.name),
            "seconds": seconds,
            "device": device_name(device),
            "processes": processes,
            **({"products": record.products} if record.products else {}),
            "started": started.isoformat(timespec="seconds"),
            "finished": finished.isoformat(timespec="seconds"),
            "versions": versions(),
        }
        write_json(self.manifest_file, sealed(content))


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
    """What a step hands over: ``metrics`` (value, unit, definition each), ``series``, ``examples`` and ``outputs`` (content hashes).

    ``products`` is the dtype of the matrix products, "bf16" say, where a step chose it.
    """

    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    series: dict[str, list] = field(default_factory=dict)
    examples: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    products: str | None = None

    def measure(self, name: str, value: float | int, unit: str, definition: str, **more: Any) -> None:
        """Add one metric; ``more`` holds ``counts`` or ``standard_error`` where there are any."""
        self.metrics[name] = {"value": value, "unit": unit, "definition": definition} | more
