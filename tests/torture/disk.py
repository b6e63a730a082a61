"""A disk that is full from some operation on: one sentence that says so, and when there is room again the run goes on to the same end."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from torture.campaign import Case, Outcome
from torture.small import Refused, begin, finish, made
from torture.states import command, compared
from torture.watched import FULL, GO, Operation, compiler, finished_in_itself, python, watching

TITLE = "A full disk at every write"
GROWING = ("open", "write", "mkdir", "rename")  # what needs room
GENERATIONS = 1
BY_COMMAND = 24  # every so-many-th operation is tried with the command, notebooks and all


def cases(place: Path, order: random.Random) -> Iterator[Case]:
    if compiler() is None:
        yield Case("all", lambda scratch: Outcome("absent", "there is no C compiler to watch the processes with"))
        return
    for is_by_command in (False, True):
        how = "by the command" if is_by_command else "in one process"
        folder = made(place, how.replace(" ", "-"), lambda folder, by=is_by_command: record(folder, by))
        operations = (folder / "operations.txt").read_text().splitlines()
        numbers = list(range(0, len(operations), BY_COMMAND if is_by_command else 1))
        order.shuffle(numbers)
        for number in numbers:
            yield Case(f"{how}, {operations[number]}", _attempt(folder, operations[number], is_by_command))


def record(folder: Path, is_by_command: bool) -> None:
    """Note the first time that each operation is done to each file."""
    seen: dict[str, None] = {}

    def note(operation: Operation) -> bytes:
        if operation.kind in GROWING and operation.path != str(folder / "runs"):
            seen.setdefault(told(operation))
        return GO

    runs = folder / "runs"
    runs.mkdir()
    done = _run(runs, is_by_command, note)
    if done.returncode:
        raise RuntimeError(done.stderr)
    (folder / "operations.txt").write_text("\n".join(seen))


def told(operation: Operation) -> str:
    """An operation as it is called in every run: some temporary files are named after their process."""
    return re.sub(r"\.\d+\.tmp$", ".PID.tmp", f"{operation.kind} {operation.path}")


def _run(runs: Path, is_by_command: bool, decide: Callable[[Operation], bytes]):
    with watching(runs, decide) as variables:
        if is_by_command:
            return python(command("replace", GENERATIONS), variables | {"COLLAPSE_RUNS": str(runs)})
        return finished_in_itself(runs, "replace", GENERATIONS, variables)


def _attempt(folder: Path, first: str, is_by_command: bool) -> Callable[[Path], Outcome]:
    def attempt(scratch: Path) -> Outcome:
        runs, is_full = scratch / "runs", []
        runs.mkdir()

        def decide(operation: Operation) -> bytes:
            if told(operation) == first:
                is_full.append(True)
            return FULL if is_full and operation.kind in GROWING else GO

        done = _run(runs, is_by_command, decide)
        if not is_full:
            return Outcome("not tried", f"{first} did not come")
        if "Traceback" in done.stderr or done.returncode not in (0, 2):
            return Outcome("traceback", f"exit status {done.returncode}: {done.stderr}")
        said = (done.stderr.strip().splitlines() or [""])[-1]  # in one process torch may have warned before
        if done.returncode == 2 and "make room" not in said:
            return Outcome("another sentence", done.stderr)
        os.environ["COLLAPSE_RUNS"] = str(runs)
        try:
            if is_by_command:
                again = python(command("replace", GENERATIONS))
                if again.returncode:
                    return Outcome("refused to go on", again.stderr)
            else:
                finish(begin(runs))
        except Refused as refusal:
            return Outcome("refused to go on", str(refusal))
        outcome = compared(scratch, folder / "runs", is_by_command)
        return Outcome("same", said) if outcome.verdict == "same" else outcome

    return attempt
