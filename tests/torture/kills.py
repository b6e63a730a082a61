"""SIGKILL at random times: to the command, its kernel, one of several processes or all of them, again and again; the last call ends with the same
numbers."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from pandas import DataFrame

from collapse_lib.experiment import tables
from collapse_lib.experiment.files import read_json
from collapse_lib.experiment.run import Run
from collapse_lib.experiment.shapes import StudyRecord
from torture.campaign import ROOT, Case, Outcome
from torture.small import REGIMES, STUDY, composing, contents, finished, is_sound, lost, made, other_than
from torture.states import command

EACH = 5  # kills of a case: what starting Python takes, and the work that is done once, are then paid once for five
TITLE = "Five SIGKILLs at random times"
KILLS = 200
LONGEST = 0.5  # of the time that the undisturbed takes: a process lives no longer before it is hit
PATIENCE = 1800.0  # seconds
# A study's chains, and then its record, in one process.
STUDIED = """
import sys
from collapse_lib.cli import main
sys.exit(main(["study", "run", sys.argv[1], "--jobs", "2"]) or main(["study", "record", sys.argv[1]]))
"""
# Snakemake in the place of this process, so that it is the one that is killed; its lock, which outlives it, is taken off as its message says.
UNLOCKED = """
import os, subprocess, sys
command = sys.argv[1:]
subprocess.run([*command, "--unlock"])
os.execv(command[0], command)
"""
# Chains of the learner that counts, two at once.
NGRAM = """
import sys
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.regimes import Regime
from collapse_lib.studies.ngram_regimes import Arm, run
if __name__ == "__main__":
    try:
        run({"replace": Arm(tokens=500, chains=2), "mix": Arm(Regime("mix", 0.5), tokens=500, chains=2)}, generations=3, workers=2)
    except UserError as refusal:
        sys.exit(str(refusal))
"""


@dataclass(frozen=True)
class Attacked:
    """Something that is made: what Python is told to make it, the files that it needs, whether there is a kernel, and its share of the kills."""

    arguments: Callable[[Path], list[str]]
    victims: tuple[str, ...]
    share: int
    is_missing: str = ""  # why it cannot be tried on this machine


def snakemake() -> str | None:
    own = ROOT / ".venv" / "workflow" / "bin" / "snakemake"
    return str(own) if own.is_file() else shutil.which("snakemake")


def _pair(folder: Path) -> Path:
    """A study of two chains, in a file."""
    file = folder / "pair.yaml"
    file.write_text(yaml.safe_dump(STUDY))
    return file


def _study(folder: Path) -> list[str]:
    return ["-c", STUDIED, str(_pair(folder))]


def _ngram(folder: Path) -> list[str]:
    file = folder / "chains.py"
    file.write_text(NGRAM)
    return [str(file)]


def _workflow(folder: Path) -> list[str]:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({"studies": [str(_pair(folder))], "device": "cpu"}))
    options = ["--snakefile", str(ROOT / "workflow" / "Snakefile"), "--profile", str(ROOT / "workflow" / "profiles" / "local")]
    options += ["--configfile", str(file), "--cores", "2", "--directory", str(folder)]
    return ["-c", UNLOCKED, snakemake() or "", *options]


ATTACKED: dict[str, Attacked] = {
    "run": Attacked(lambda folder: command("replace", 2), ("driver", "kernel", "group"), 90),
    "run in two processes": Attacked(lambda folder: command("replace", 1, "--processes", "2"), ("driver", "kernel", "group", "worker"), 40),
    **{
        f"run, regime {regime}": Attacked(lambda folder, regime=regime: command(regime, composing(regime)), ("driver", "kernel", "group"), 5)
        for regime in REGIMES
        if regime != "replace"
    },
    "study": Attacked(_study, ("driver", "kernel", "group"), 20),
    "n-gram chains": Attacked(_ngram, ("driver", "group", "worker"), 10),
    "workflow": Attacked(_workflow, ("driver", "kernel", "group"), 10, "" if snakemake() else "Snakemake is not installed (`make workflow`)"),
}


def cases(place: Path, order: random.Random) -> list[Case]:
    plan = [name for name, attacked in ATTACKED.items() for _ in range(attacked.share // EACH)]
    assert len(plan) * EACH == KILLS
    order.shuffle(plan)
    found = []
    for number, name in enumerate(plan):
        kills = [(order.choice(ATTACKED[name].victims), LONGEST * order.random()) for _ in range(EACH)]
        told = ", ".join(f"{victim} {moment:.3f}" for victim, moment in kills)
        found.append(Case(f"{number + 1}: {name}; {told} of its time", _attempt(place, name, kills)))
    return found


def _attempt(place: Path, name: str, kills: list[tuple[str, float]]) -> Callable[[Path], Outcome]:
    attacked = ATTACKED[name]

    def attempt(scratch: Path) -> Outcome:
        if attacked.is_missing:
            return Outcome("absent", attacked.is_missing)
        undisturbed = made(place, name.replace(" ", "-").replace(",", ""), lambda folder: _undisturbed(folder, attacked))
        seconds = float((undisturbed / "seconds").read_text())
        left, struck, done, runs = list(kills), [], {}, scratch / "runs"
        while True:
            began = time.monotonic()
            with started(attacked.arguments(scratch), scratch) as process:
                hit, below = _struck_in_time(process, *left[0], seconds) if left else ("", [])
                try:
                    _, said = process.communicate(timeout=PATIENCE)
                except subprocess.TimeoutExpired:
                    return Outcome("left running", f"after {struck}: {_ended([*below, *_below(process)])}")
            if alive := _ended(below, 60.0):  # chains and workers, which notice within seconds that they are alone
                return Outcome("left running", f"after {struck}: {alive}")
            if "Traceback" in said and process.returncode != -signal.SIGKILL:
                return Outcome("traceback", f"after {struck}: {said[-2000:]}")
            if process.returncode and not hit:
                return Outcome("refused to go on", f"after {struck}: exit status {process.returncode}: {said[-2000:]}")
            if gone := lost(done, runs):
                return Outcome("lost", f"after {struck}: {gone}")
            done = finished(runs)
            if hit:
                struck.append(hit)
                del left[0]
            if process.returncode == 0:
                if found := differences(runs, undisturbed / "runs"):
                    return Outcome("different", f"after {struck}: {found}")
                if not left:
                    return Outcome("same", f"killed {', '.join(struck)}")
                shutil.rmtree(scratch)  # it came to its end before all kills: the others hit a new one
                scratch.mkdir()
                done, seconds = {}, min(seconds, time.monotonic() - began)

    return attempt


def _undisturbed(folder: Path, attacked: Attacked) -> None:
    began = time.monotonic()
    with started(attacked.arguments(folder), folder) as process:
        _, said = process.communicate(timeout=PATIENCE)
    if process.returncode:
        raise RuntimeError(said)
    (folder / "seconds").write_text(str(time.monotonic() - began))


@contextmanager
def started(arguments: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A Python, the leader of a group of its own, on the runs in ``folder``; whatever is left of it at the end of the block is killed."""
    variables = {"COLLAPSE_RUNS": str(folder / "runs"), "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    (folder / "runs").mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | variables,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            below = _below(process)
            process.kill()
            _ended(below)


def _below(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """What a process has started, directly or not."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _ended(processes: list[psutil.Process], patience: float = 0.0) -> str:
    """Kill those of some processes that have not ended in so many seconds; returns their commands."""
    _, alive = psutil.wait_procs(processes, timeout=patience)
    told = "; ".join(_line(process)[-80:] for process in alive)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return told


def _struck_in_time(process: subprocess.Popen[str], victim: str, moment: float, seconds: float) -> tuple[str, list[psutil.Process]]:
    """Whom ``strike`` hit after that part of the seconds, "" if the process had ended; and what had been started below it."""
    try:
        process.wait(moment * seconds)
    except subprocess.TimeoutExpired:
        below = _below(process)
        return strike(process, below, victim, moment), below
    return "", []


def strike(process: subprocess.Popen[str], below: list[psutil.Process], victim: str, chance: float) -> str:
    """SIGKILL the driver, one of its kernels or workers (the driver, where there is none just now), or everything that it has started.

    ``chance``, in [0, 1), is which of several. Returns who was hit; "" if it had ended.
    """
    if process.poll() is not None:
        return ""
    words = {"kernel": "ipykernel", "worker": "worker" if any("steps.worker" in _line(child) for child in below) else "spawn_main"}.get(victim, "")
    found = [child for child in below if words and words in _line(child)]
    targets = [process.pid] if victim == "driver" or (words and not found) else [process.pid, *(child.pid for child in below)]
    if found:
        targets = [found[int(1000 * chance) % len(found)].pid]
    for target in targets:
        with suppress(ProcessLookupError):
            os.kill(target, signal.SIGKILL)
    hit = f"the driver, there being no {victim}" if words and not found else victim
    return f"{hit} ({len(targets)})"


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def differences(runs: Path, undisturbed: Path) -> str:
    """In what the runs of a folder, a study's record and tables of n-gram chains are other than those that nobody disturbed; empty if in nothing."""
    os.environ["COLLAPSE_RUNS"] = str(runs)
    found = []
    names = {file.parent.name for file in undisturbed.glob("*/protocol.yaml")}
    for name in sorted(names):
        run = Run.open(name)
        made = [step for step in Run(undisturbed / name, run.protocol).steps() if step.manifest() is not None]  # a chain has those of its study
        steps = [run.step(step.generation, step.name) for step in made]
        if missing := [step for step in steps if not step.is_finished()]:
            found.append(f"{missing[0]} is not finished")
        elif different := other_than(contents(run, steps), contents(made[0].run, made)):
            found.append(f"{name}: {different}")
        elif not is_sound(run):
            found.append(f"{name}: a file is not what was recorded")
        found += [f"{name}: {path.name} left behind" for path in run.folder.rglob("*") if ".tmp" in path.name or path.name == "checkpoint"]
    for file in undisturbed.glob("studies/**/*.parquet"):
        name = file.relative_to(undisturbed)
        if not _numbers(file).equals(_numbers(runs / name)):
            found.append(f"{name} differs")
    for head in runs.glob("studies/*/study.json"):
        declared = {label: chain["manifests"] for label, chain in read_json(head, StudyRecord)["chains"].items()}
        if tables.load(head.with_name("numbers.parquet"), "").attrs[tables.MADE_FROM] != declared:
            found.append("the record's two files are of different chains")
    return "; ".join(found)


def _numbers(file: Path) -> DataFrame:
    """A table without the rates, which no two runs have in common."""
    found = tables.load(file, "make it again")
    return found[found["metric"] != "tokens_per_second"].reset_index(drop=True) if "metric" in found else found
