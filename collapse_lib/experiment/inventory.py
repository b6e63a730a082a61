"""Which runs there are: how far each is, how large, whether it is worked on; and to be rid of one."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from collapse_lib.experiment.artefacts import manifest_files
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import is_locked
from collapse_lib.experiment.lineage import steps_of
from collapse_lib.experiment.paths import check_run_name, last_advance, run_folder, run_names, runs_root
from collapse_lib.experiment.progress import read_progress
from collapse_lib.experiment.protocol import Protocol, load_preset, preset_names
from collapse_lib.experiment.run import Run


@dataclass(frozen=True)
class Entry:
    """One run as a list of runs shows it.

    ``finished`` and ``planned`` count generations from 1 on; ``preset`` is the one whose description the run has kept, if any; ``size`` is in
    bytes on disk. Of a run whose protocol cannot be read, ``problem`` says why, and ``preset`` and ``planned`` are None.
    """

    name: str
    folder: Path
    preset: str | None
    finished: int
    planned: int | None
    last_advance: datetime
    size: int
    driven: bool
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The entry as plain JSON values."""
        return vars(self) | {"folder": str(self.folder), "last_advance": self.last_advance.isoformat(timespec="seconds")}


def runs() -> list[Entry]:
    """All runs, the most recently advanced one first; one that cannot be read hides no other."""
    presets = {load_preset(name).description: name for name in preset_names()}
    return [_entry(runs_root() / name, presets) for name in run_names()]


@dataclass(frozen=True)
class Standing:
    """How far a run is, as its manifests say, which are not compared with anything.

    ``done`` and ``planned`` count generations by step. ``seconds_left`` takes a step for as long as the same step took in the generations that have
    it, one after the other; None if some step to be done has not been timed. ``working`` is
    what some process does now.
    """

    run: str
    done: dict[str, int]
    planned: dict[str, int]
    seconds_left: float | None
    working: list[str]

    def as_json(self) -> dict[str, Any]:
        """The standing as plain JSON values."""
        return vars(self) | {"steps": sum(self.planned.values()), "finished": sum(self.done.values())}


def standing(run: Run) -> Standing:
    """How far a run is; raises ``UserError`` for a manifest that is damaged."""
    seconds: dict[str, list[float]] = {}
    planned, missing, working = Counter(), Counter(), []
    for step in run.steps():
        planned[step.name] += 1
        if manifest := step.manifest():
            if step.generation:
                seconds.setdefault(step.name, []).append(manifest["seconds"])
        else:
            missing[step.name] += 1
        if is_locked(step.lock_file):
            state = read_progress(step.progress_file) or read_progress(run.progress_file)
            share = f" ({state['n'] / state['total']:.0%})" if state and state["total"] else ""
            working.append(f"{step.name} of {step.generation}{share}")
    left = sum(count * fmean(seconds[name]) for name, count in missing.items()) if missing.keys() <= seconds.keys() else None
    return Standing(run.name, dict(planned - missing), dict(planned), left, working)


def together(standings: Sequence[Standing]) -> Standing:
    """Several runs as if they were one, called "together": its time left is that of one after the other, or None if a run's is not known."""
    done, planned = (sum(map(Counter, counts), Counter()) for counts in zip(*((found.done, found.planned) for found in standings), strict=True))
    seconds = [found.seconds_left for found in standings]
    left = None if None in seconds else sum(seconds)
    return Standing("together", dict(done), dict(planned), left, [])


def run(name: str) -> Entry:
    """One run by its own name; raises ``UserError`` if there is none."""
    check_run_name(name)
    return _entry(run_folder(name), {})


def remove(entry: Entry) -> None:
    """Delete a run's folder; raises ``UserError`` while a process works on it."""
    with Run(entry.folder, Protocol.model_construct()).exclusive():  # its own protocol may be what is broken
        shutil.rmtree(entry.folder)


def _entry(folder: Path, presets: dict[str, str]) -> Entry:
    done = {(int(file.parents[1].name.removeprefix("generation-")), file.stem) for file in manifest_files(folder)}
    try:
        protocol, problem = Run.open(folder.name).protocol, None
    except UserError as error:
        protocol, problem = None, str(error)
    generations = range(1, protocol.generations + 1) if protocol else []
    return Entry(
        name=folder.name,
        folder=folder,
        preset=presets.get(protocol.description) if protocol else None,
        finished=sum(all((generation, step) in done for step in steps_of(protocol, generation)) for generation in generations),
        planned=protocol.generations if protocol else None,
        last_advance=datetime.fromtimestamp(last_advance(folder), UTC),
        size=sum(file.lstat().st_blocks * 512 for file in folder.rglob("*")),
        driven=Run(folder, Protocol.model_construct()).is_driven(),
        problem=problem,
    )
