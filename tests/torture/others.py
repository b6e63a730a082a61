"""Others at work: a second driver, a folder that is another user's, one that can only be read."""

from __future__ import annotations

import os
import random
import select
import signal
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from synthetic_runs import write_run

from collapse_lib.experiment.run import Run
from torture.campaign import Case, Outcome
from torture.inputs import called, everything

TITLE = "Second drivers and other users"
READS = [
    ["list"],
    ["list", "--json"],
    ["status"],
    ["status", "there"],
    ["status", "there", "--json"],
    ["results", "there"],
    ["results", "there", "--format", "csv"],
    ["results", "--format", "json"],
    ["plan", "there", "--machine", "none"],
    ["study", "status", "regimes"],
]
WRITES = [
    ["run", "there"],
    ["run", "there", "--set", "sampling.temperature=2.0"],
    ["run", "there", "--generations", "2"],
    ["step", "there", "train", "1"],
    ["repair", "there"],
    ["repair", "there", "--missing"],
    ["rm", "there", "--yes"],
    ["judge", "forget", "there"],
]
BEGINS = [["run", "smoke", "--name", "mine"], ["study", "run", "smoke"], ["twins", "smoke"], ["results", "there", "--output", "RUNS/numbers.csv"]]
NOBODY = 65534
LONGEST = 120.0  # seconds that a command may take
IMPORTED = ("glob", "resource", "torch")
IMPORTED += ("collapse_lib.cost.plan", "collapse_lib.cost.calibration", "collapse_lib.cost.corpus_size", "collapse_lib.cost.check")
IMPORTED += ("collapse_lib.steps.preflight", "collapse_lib.studies.study", "collapse_lib.studies.twins", "collapse_lib.experiment.warm_kernel")


def cases(place: Path, order: random.Random) -> list[Case]:
    found = [Case(f"a second driver: collapse {' '.join(words)}", _second(words, lock=True)) for words in WRITES if words[0] != "judge"]
    found += [Case(f"a second driver, the lock file deleted: collapse {' '.join(words)}", _second(words, lock=False)) for words in WRITES[:3]]
    found += [
        Case(f"while another drives: collapse {' '.join(words)}", _second(words, lock=True, is_reading=True))
        for words in READS
        if "plan" not in words
    ]
    for whose in ("another user's folder", "a folder that can only be read"):
        found += [Case(f"{whose}: collapse {' '.join(words)}", _stranger(words, whose)) for words in (*READS, *WRITES, *BEGINS)]
    order.shuffle(found)
    return found


def _second(words: list[str], lock: bool, is_reading: bool = False) -> Callable[[Path], Outcome]:
    def attempt(scratch: Path) -> Outcome:
        os.environ["COLLAPSE_RUNS"] = str(scratch)
        write_run(scratch, "there", 1)
        run = Run.open("there")
        with run.exclusive():
            if not lock:
                run.lock_file.unlink()
            before = everything(scratch)
            status, said, _ = called(words)
            if everything(scratch) != before:
                return Outcome("undone", "the driver's files were changed")
        if is_reading:
            return Outcome("right") if status == 0 else Outcome("kept out", said)
        return judged(status, said, "in use by another process", ("exists with",))

    return attempt


def _stranger(words: list[str], whose: str) -> Callable[[Path], Outcome]:
    def attempt(scratch: Path) -> Outcome:
        if os.geteuid() != 0:
            return Outcome("absent", "only root can become another user")
        with tempfile.TemporaryDirectory() as folder:  # the campaign's own folders let nobody else in
            runs = Path(folder)
            write_run(runs, "there", 1)
            (runs / "there" / "run.lock").write_text("")
            for path in [runs, *runs.rglob("*")]:
                path.chmod(0o555 if path.is_dir() else 0o444)
                if whose != "another user's folder":
                    os.chown(path, NOBODY, NOBODY)
            before = everything(runs)
            os.environ["COLLAPSE_RUNS"] = folder
            status, said = as_nobody([word.replace("RUNS", folder) for word in words])
            if everything(runs) != before:
                return Outcome("undone", "files were changed")
        if words in READS and status == 0:
            return Outcome("right")
        allowed = ("made under another protocol", "exists with", "no recorded machine", "has 1 generations", "is missing", "there is none")
        return judged(status, said, "COLLAPSE_RUNS=FOLDER", allowed)

    return attempt


def judged(status: int, said: str, wanted: str, others: tuple[str, ...]) -> Outcome:
    """The outcome of a refusal that has to be one sentence with the words ``wanted``, or with some of ``others``, which come first."""
    if "Traceback" in said or status not in (0, 2):
        return Outcome("traceback", f"exit status {status}: {said}")
    if status == 0:
        return Outcome("let in", said)
    if said.count("\n") != 1:
        return Outcome("not one sentence", said)
    return Outcome("refused", said.strip()) if wanted in said or any(words in said for words in others) else Outcome("another sentence", said)


def as_nobody(words: list[str]) -> tuple[int, str]:
    """Exit status and standard error of a command as a user who owns nothing, in a child of this process, whose imports it has."""
    for module in IMPORTED:  # here, while the folders that they lie in can be read
        import_module(module)
    called(["results"])
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.chdir("/")
            status, said, _ = called(words)
        except BaseException as error:
            status, said = 1, f"Traceback of {error!r}"
        with os.fdopen(writing, "w", errors="replace") as file:
            file.write(f"{status}\n{said}")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        if not select.select([file], [], [], LONGEST)[0]:  # a child of a process with threads may wait for one that it does not have
            os.kill(child, signal.SIGKILL)
        status, _, said = file.read().partition("\n")
    os.waitpid(child, 0)
    return int(status or 1), said or "Traceback: it ended without a word, or took too long"
