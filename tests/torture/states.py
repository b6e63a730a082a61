"""An exit at every distinct state in which a run's files have been: from each, the run goes on and ends as an undisturbed one, bit for bit."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from collapse_lib.experiment.run import Run
from torture.campaign import Case, Outcome
from torture.small import NAME, REGIMES, SETTINGS, Refused, begin, composing, contents, finish, finished, is_sound, lost, made, other_than
from torture.watched import States, compiler, finished_in_itself, put, python, watching

TITLE = "An exit at every state of the files"
OF_THE_COMMAND = re.compile(r"\.tmp\.ipynb$|/manifests/\w+\.json\.tmp$")  # which executes notebooks, and then adds their hashes to manifests
UNFINISHED = ("checkpoint", "classification")
OF_TWO_PROCESSES = 3  # of so many states of a run in two processes, which are started for every step anew, one is tried
BY_COMMAND = 30  # of so many states of a run by the command, from one it is the command that goes on, notebooks and all

# Runs whose every state is kept: the regime, the generations, and the options of the command that makes them; None: made in one process.
RECORDED: dict[str, tuple[str, int, list[str] | None]] = {
    "a run by the command": ("replace", 2, []),
    "a run by the command, in two processes": ("replace", 1, ["--processes", "2"]),
    **{f"regime {regime}": (regime, composing(regime), None) for regime in REGIMES if regime != "replace"},
}


def command(regime: str, generations: int, *options: str) -> list[str]:
    """The arguments with which Python makes a small run by the command."""
    changes = SETTINGS | REGIMES[regime] | {"generations": str(generations)}
    return ["-m", "collapse_lib", "run", "smoke", "--name", NAME, *options, *(f"--set={field}={value}" for field, value in changes.items())]


def cases(place: Path, order: random.Random) -> Iterator[Case]:
    names = list(RECORDED)
    order.shuffle(names)
    for name in names:
        if compiler() is None:
            yield Case(name, lambda scratch: Outcome("absent", "there is no C compiler to watch the processes with"))
            continue
        folder = made(place, name.replace(" ", "-"), lambda folder, name=name: record(folder, *RECORDED[name]))
        states = json.loads((folder / "states.json").read_text())
        numbers = list(range(0, len(states), OF_TWO_PROCESSES if "two" in name else 1))
        order.shuffle(numbers)
        for number in numbers:
            yield Case(f"{name}, state {number + 1} of {len(states)}", _attempt(folder, states[number], name, number))


def record(folder: Path, regime: str, generations: int, options: list[str] | None) -> None:
    """Make a run under watch; keep its states, and itself as what every other has to become."""
    runs = folder / "runs"
    runs.mkdir()
    states = States(runs, folder / "store")
    with watching(runs, states.keep) as variables:
        if options is None:
            done = finished_in_itself(runs, regime, generations, variables)
        else:
            done = python(command(regime, generations, *options), variables | {"COLLAPSE_RUNS": str(runs)})
    if done.returncode:
        raise RuntimeError(done.stderr)
    known = list(states.known.values())
    if regime != "replace":  # whose generations are made like these, until one is that composes its text
        known = [state for state in known if f"{NAME}/generation-{composing(regime):02d}" in state]
    (folder / "states.json").write_text(json.dumps(known))


def _attempt(folder: Path, state: dict[str, str | None], name: str, number: int) -> Callable[[Path], Outcome]:
    regime, generations, options = RECORDED[name]

    def attempt(scratch: Path) -> Outcome:
        runs = scratch / "runs"
        runs.mkdir()
        put(state, folder / "store", runs)
        is_by_command, before = options is not None and number % BY_COMMAND == 0, finished(runs)
        os.environ["COLLAPSE_RUNS"] = str(runs)
        try:
            if is_by_command:
                done = python(command(regime, generations, *options))
                if done.returncode:
                    return Outcome("refused to go on", done.stderr)
            else:
                finish(begin(runs, regime, generations), 2 if options and "--processes" in options else 1)  # whose sums have other last digits
        except Refused as refusal:
            return Outcome("refused to go on", str(refusal))
        if gone := lost(before, runs):
            return Outcome("lost", gone)
        return compared(scratch, folder / "runs", is_by_command)

    return attempt


def compared(scratch: Path, undisturbed: Path, is_by_command: bool) -> Outcome:
    """The run in ``scratch/runs`` beside one that nobody disturbed."""
    run = Run.open(NAME)
    if different := other_than(contents(run), contents(Run(undisturbed / NAME, run.protocol))):
        return Outcome("different", different)
    if not is_sound(run):
        return Outcome("different", "a file is not what was recorded")
    found = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.name in UNFINISHED or ".tmp" in path.name}
    if left := sorted(path for path in found if is_by_command or not OF_THE_COMMAND.search(path)):
        return Outcome("left behind", ", ".join(left))
    if is_by_command and not all(step.is_finished() for step in run.steps()):
        return Outcome("different", "a notebook is missing")
    shutil.rmtree(scratch / "runs")
    return Outcome("same")
