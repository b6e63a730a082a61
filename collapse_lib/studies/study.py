"""A study's chains, side by side on the cores, and what they have measured.

Every chain is a run like any other, with one file more: ``study.json`` says to which study, arm and seed it belongs, and what the study declared
when the chain was begun. A chain has a process of its own with one thread, for a small model's matrices are too small to share: two chains on a
core each get farther than one after the other on two.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from collapse_lib.experiment import tables
from collapse_lib.experiment.artefacts import manifest_files
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.execute import advance, environment
from collapse_lib.experiment.files import read_json, sealed, sha256, write_json
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.machine import choose_device
from collapse_lib.experiment.paths import run_names, runs_root
from collapse_lib.experiment.progress import read_progress
from collapse_lib.experiment.run import Run, Step
from collapse_lib.experiment.shapes import Membership, StudyRecord
from collapse_lib.studies.design import Chain, Study, read_study, study_from_fields, study_names
from collapse_lib.studies.results import CHAIN_RECORD, COLUMNS, load

if TYPE_CHECKING:
    from pandas import DataFrame

HEAD, NUMBERS = "study.json", "numbers.parquet"  # of a study's record
PATIENCE = 30.0  # seconds that a chain may take to end when it is asked to


@dataclass(frozen=True)
class Failure:
    """A chain that did not come to its end, and why, in a sentence."""

    chain: Chain
    reason: str


def open_study(source: str = "newest") -> Study:
    """A study by its file, by its name among those of the library, or by the name that its runs carry; ``newest`` is that of the run advanced last,
    or of the record written last where there are no runs.

    A name of the library's comes before the same name in runs, whose study may since have been given more arms or seeds; a study of which there
    is a record alone (``record``) is what the record says.
    """
    if source.endswith((".yaml", ".yml")) or source in study_names():
        return read_study(source)
    members = _memberships().values()
    if source == "newest" and not members and (heads := _heads()):
        source = max(heads, key=lambda head: head.stat().st_mtime).parent.name
    if source != "newest" and (head := _head(source)):
        return study_from_fields(head["specification"], f"Study '{source}' as its record has it")
    found = [member for member in members if source in ("newest", member["study"])]
    if not found:
        known = sorted({member["study"] for member in members} | set(study_names()))
        raise UserError(f"There is no study '{source}'; there are {', '.join(known)}, or give a .yaml file.")
    name = found[0]["study"]
    carried = [study_from_fields(member["specification"], f"Study '{name}' as its runs carry it") for member in found if member["study"] == name]
    return max(carried, key=lambda study: len(study.chains()))  # as it was when its last chain was begun: a study can only grow


def check_study(study: Study, device: str = "auto") -> None:
    """Raise ``UserError`` for whatever would stop one of the chains before its first step; nothing is written.

    That is what ``collapse run`` refuses, runs of these names that are none of this study's, and a study that was changed since it has chains.
    """
    from collapse_lib.steps.preflight import check  # which imports torch, and most commands on studies need none

    memberships = _memberships()
    for name, member in memberships.items():
        if member["study"] == study.name:
            earlier = study_from_fields(member["specification"], f"{name}/{CHAIN_RECORD}")
            if field := study.differences(earlier):
                raise UserError(
                    f"Study '{study.name}' has changed in {field} since run '{name}' was begun; "
                    "arms and seeds may be added, and for anything else give the study another name."
                )
    seen = set()
    for chain in study.chains():
        run = Run.proposed(chain.name, chain.protocol)
        member = memberships.get(chain.name)
        if member is None and run.manifest_files():
            raise UserError(f"Run '{chain.name}' was not made by a study; rename its folder, or give the study another name.")
        if member is not None and member["study"] == study.name and (member["arm"], member["seed"]) != (chain.arm, chain.seed):
            another = f"{chain_folder(chain) / CHAIN_RECORD} is that of chain '{member['arm']}-{member['seed']}'"
            raise UserError(f"{another}; {_run_again(chain.name)}.")
        if member is not None and (member["study"], member["arm"], member["seed"]) != (study.name, chain.arm, chain.seed):
            raise UserError(f"Run '{chain.name}' belongs to study '{member['study']}'; give this one another name.")
        if chain.arm not in seen:
            check(run, device)
            seen.add(chain.arm)


def run_chain(study: Study, label: str, device: str = "auto", generations: int | None = None) -> list[Step]:
    """Make one chain, ``<arm>-<seed>``, or go on with it, in this process; returns the steps that were executed."""
    from collapse_lib.steps.preflight import begun

    chain = _chain(study, label)
    protocol = chain.protocol.model_copy(update={"generations": min(generations or study.generations, study.generations)})
    with begun(chain.name, protocol, device, exact=generations is not None) as run:
        enrol(chain, run)
        with threads(run, device):
            return advance(run, device, only=study.steps)


def threads(run: Run, device: str = "auto") -> AbstractContextManager[None]:
    """The environment that a run's steps want: how many threads share a sum decides its last digits, and a study's chain has one on a CPU, however
    many chains there are and whoever makes it.
    """
    return environment({} if _membership(run.name) is None or choose_device(device) != "cpu" else {"OMP_NUM_THREADS": "1"})


def enrol(chain: Chain, run: Run) -> None:
    """Have a run say that it is this chain of its study, unless it does."""
    study, file = chain.study, run.folder / CHAIN_RECORD
    if not file.exists():
        head = {"study": study.name, "arm": chain.arm, "seed": chain.seed, "hash": study.hash}
        write_json(file, sealed(head | {"specification": study.model_dump(mode="json")}))


def steps_wanted(run: Run) -> tuple[str, ...]:
    """The steps that a run is to have: its study's, if it is a chain of one, else all."""
    member = _membership(run.name)
    if member is None:
        return tuple(STEPS)
    return study_from_fields(member["specification"], f"{run.name}/{CHAIN_RECORD}").steps


def run_study(
    source: str,
    device: str = "auto",
    jobs: int | None = None,
    generations: int | None = None,
    say: Callable[[str], Any] = lambda line: print(line, flush=True),
) -> list[Failure]:
    """Make all chains of a study, or go on with them, ``jobs`` at once (default: one a core; on a GPU one after the other).

    ``generations`` ends every chain early, for a first look or to time one generation; a later call goes on. Returns the chains that failed: one
    loses no other. When the call is interrupted, or its process dies, the chains under way end too, and nothing finished is lost.
    """
    study = open_study(source)
    check_study(study, device)
    source = study.name if source == "newest" else source
    if jobs is None:
        jobs = len(os.sched_getaffinity(0)) if choose_device(device) == "cpu" else 1
    last = min(generations or study.generations, study.generations)
    # Every arm's first chain before any arm's second: a study that is stopped on the way says something of all arms.
    chains = sorted(study.chains(), key=lambda chain: study.seeds_of(chain.arm).index(chain.seed))
    elsewhere = {label for label, made in recorded_chains(study).items() if made["generations"] >= last}
    waiting = deque(chain for chain in chains if chain.label not in elsewhere and not _is_finished(chain, last))
    running: list[_Child] = []
    failures: list[Failure] = []
    with _display(study, last) as show, _ended(running):
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_Child.start(waiting.popleft(), source, device, last))
            time.sleep(0.2)
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                if reason := child.failure():
                    failures.append(Failure(child.chain, reason))
                show(running, say, f"{child.chain.label}: {reason or f'done in {time.monotonic() - child.began:.1f} s'}")
            show(running)
    return failures


def generations_done(study: Study) -> dict[str, int]:
    """Of each chain, by its label: generations from 1 on of which every step of the study is there, or was elsewhere and is in its record."""
    recorded = recorded_chains(study)
    return {chain.label: max(generations_here(chain), recorded.get(chain.label, {}).get("generations", 0)) for chain in study.chains()}


def generations_here(chain: Chain) -> int:
    """Generations from 1 on of which every step of the study is there."""
    done = 0
    while done < chain.study.generations and all(step.manifest_file.is_file() for step in _steps_of(chain, done + 1)):
        done += 1
    return done


def seconds_a_generation(study: Study) -> dict[str, float]:
    """Seconds that a generation from 1 on took here, the mean over an arm's finished ones; arms without any are left out."""
    found: dict[str, list[float]] = {}
    for chain in study.chains():
        for generation in range(1, generations_here(chain) + 1):
            manifests = [step.manifest() for step in _steps_of(chain, generation)]
            found.setdefault(chain.arm, []).append(sum(manifest["seconds"] for manifest in manifests if manifest))
    return {arm: sum(seconds) / len(seconds) for arm, seconds in found.items()}


def table(study: Study) -> DataFrame:
    """The tidy table (``results.load``) of a study's chains, with columns ``arm`` and ``seed`` after ``run``.

    Chains whose runs are not here, or are less far, are taken from the study's record (``record``), so that a study may be made in several places,
    one after the other. Raises ``UserError`` if nothing has been measured yet, and for the record of what was another study.
    """
    from pandas import concat

    runs, recorded = _chains_with_results(study), recorded_chains(study)
    here = {name: chain for name, chain in runs.items() if recorded.get(chain.label, {}).get("generations", 0) <= generations_here(chain)}
    elsewhere = {chain.name for chain in study.chains() if chain.label in recorded and chain.name not in here}
    parts = []
    if here:
        found = load(list(here))
        found.insert(1, "arm", found["run"].map(lambda run: here[run].arm))
        found.insert(2, "seed", found["run"].map(lambda run: here[run].seed))
        parts.append(found)
    if elsewhere:
        parts.append(_recorded_numbers(study, recorded, elsewhere))
    if not parts:
        raise UserError(f"Study '{study.name}' has no results yet; `collapse study run {study.name}` makes some.")
    found = concat(parts, ignore_index=True)
    assert list(found.columns) == [COLUMNS[0], "arm", "seed", *COLUMNS[1:]]
    return found


def _recorded_numbers(study: Study, recorded: dict[str, dict[str, Any]], runs: set[str]) -> DataFrame:
    """The rows of some runs in the table of a study's record; it is a file of its own, and has to be of the same chains as the head."""
    file = record_folder(study.name) / NUMBERS
    numbers = tables.load(file, _again(study.name))
    origins = numbers.attrs.pop(tables.MADE_FROM, None)  # None: of before they were stored
    wanted = {chain.label: recorded[chain.label]["manifests"] for chain in study.chains() if chain.name in runs}
    if origins is not None and (other := [label for label, manifests in wanted.items() if origins.get(label) != manifests]):
        raise UserError(f"{file} has not the numbers of the chain '{other[0]}' that {HEAD} beside it declares; {_again(study.name)}.")
    return numbers[numbers["run"].isin(runs)]


def recorded_chains(study: Study) -> dict[str, dict[str, Any]]:
    """What the record of a study says of each chain, by its label: ``generations``, ``seconds``, ``manifests``; empty if there is none.

    Raises ``UserError`` for the record of what was another study.
    """
    head = _head(study.name)
    if head is None:
        return {}
    if field := study.differences(study_from_fields(head["specification"], f"The record of study '{study.name}'")):
        remedy = "give this one another name, or take the record from where it was made"
        raise UserError(f"The record in {record_folder(study.name)} is of another study '{study.name}'; it differs in {field}; {remedy}.")
    return head["chains"]


def record(study: Study) -> Path:
    """Keep a study's numbers in one small folder of the runs' folder, from which its page can be made where its runs are not.

    There are the table of all its chains, what the study declares, and of each chain how long it took and a hash over its manifests, which carry the
    hashes of all that they were made from.
    """
    found, folder, chains = table(study), record_folder(study.name), recorded_chains(study)
    runs = _chains_with_results(study).values()
    if not runs:
        raise UserError(f"Study '{study.name}' has no runs here, only the record of them.")
    chains |= {chain.label: _provenance(chain) for chain in runs if chains.get(chain.label, {}).get("generations", 0) <= generations_here(chain)}
    tables.store(found, folder / NUMBERS, {label: chain["manifests"] for label, chain in chains.items()})
    head = {"study": study.name, "hash": study.hash, "specification": study.model_dump(mode="json"), "chains": chains}
    write_json(folder / HEAD, sealed(head))
    return folder


def record_folder(name: str) -> Path:
    return runs_root() / "studies" / name


def _head(name: str) -> dict[str, Any] | None:
    """What the record of a study declares; None if there is none."""
    file = record_folder(name) / HEAD
    head = read_json(file, StudyRecord, _again(name))
    if head is not None and head["study"] != name:
        raise UserError(f"{file} is the record of a study '{head['study']}'; {_again(name)}.")
    return head


def _again(name: str) -> str:
    """What to do about a damaged record."""
    return f"take {record_folder(name)} from where it was made, or delete it and let `collapse study record {name}` make it of the runs here"


def studies_with_results() -> list[str]:
    """Names of the studies of which some chain has finished generation 1 or that have a record, in alphabetical order."""
    recorded = {head.parent.name for head in _heads()}
    names = {member["study"] for member in _memberships().values()}
    return sorted(recorded | {name for name in names if any(generations_done(open_study(name)).values())})


def _heads() -> list[Path]:
    """Of the studies that have a record."""
    return sorted((runs_root() / "studies").glob(f"*/{HEAD}"))


def study_files(study: Study) -> list[Path]:
    """The small files that ``table`` and ``open_study`` read: of the study's runs and of its record."""
    folders = [chain_folder(chain) for chain in _chains_with_results(study).values()]
    files = [file for folder in folders for pattern in (CHAIN_RECORD, "generation-*/m*/*.json") for file in folder.glob(pattern)]
    return sorted([*files, *record_folder(study.name).glob("*")])


def _chains_with_results(study: Study) -> dict[str, Chain]:
    """By the names of their runs."""
    return {chain.name: chain for chain in study.chains() if manifest_files(chain_folder(chain))}


def _provenance(chain: Chain) -> dict[str, Any]:
    """Generations done, seconds of work, and SHA-256 over the chain's manifests in the order of their paths."""
    files = manifest_files(chain_folder(chain))
    manifests = [read_json(file) for file in files]
    digest = hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()
    return {"generations": generations_here(chain), "seconds": round(sum(found["seconds"] for found in manifests), 1), "manifests": digest}


def chain_folder(chain: Chain) -> Path:
    return runs_root() / chain.name


@dataclass(frozen=True)
class _Child:
    """A chain in a process of its own, which ends when its standard input does."""

    chain: Chain
    process: subprocess.Popen
    errors: IO[bytes]
    began: float

    @classmethod
    def start(cls, chain: Chain, source: str, device: str, generations: int) -> _Child:
        command = [sys.executable, "-m", "collapse_lib.cli", "study", "run", source, "--chain", chain.label]
        options = ["--device", device, "--generations", str(generations), "--end-with-input"]
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process; a pipe would have to be read meanwhile
        process = subprocess.Popen(
            command + options,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=os.environ | {"COLLAPSE_RUNS": str(runs_root())},
            start_new_session=True,  # a terminal's Ctrl-C comes to us alone, and we end the chains
        )
        return cls(chain, process, errors, time.monotonic())

    def failure(self) -> str | None:
        """Why the process, which has ended, did not do its work; None if it did."""
        status = self.process.returncode
        self.process.stdin.close()
        with self.errors:
            self.errors.seek(0)
            lines = self.errors.read().decode(errors="replace").strip().splitlines()
        if status == 0:
            return None
        if status < 0:
            return f"its process was killed by signal {-status}"
        return lines[-1].removeprefix("collapse: ") if lines else f"its process ended with status {status}"


@contextmanager
def _ended(running: list[_Child]) -> Iterator[None]:
    """End the chains that still run when the block does: each at its next step's edge, or after ``PATIENCE`` by force."""
    try:
        yield
    finally:
        for child in running:
            child.process.stdin.close()
        deadline = time.monotonic() + PATIENCE
        for child in running:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            child.errors.close()


@contextmanager
def _display(study: Study, generations: int) -> Iterator[Callable[..., None]]:
    """One bar for all chains, in a terminal: steps done, and where each chain under way is. Lines go above it."""
    from tqdm import tqdm

    steps = {chain.label: list(_steps(chain, generations)) for chain in study.chains()}
    done = {label: sum(step.manifest_file.is_file() for step in of_chain) for label, of_chain in steps.items()}
    bar = tqdm(total=sum(map(len, steps.values())), initial=sum(done.values()), unit=" step", desc=study.name, dynamic_ncols=True, disable=None)

    def show(running: Sequence[_Child], say: Callable[[str], Any] | None = None, line: str = "") -> None:
        if say:
            bar.clear()
            say(line)
        if not bar.disable:
            for child in running:
                label = child.chain.label
                done[label] = sum(step.manifest_file.is_file() for step in steps[label])
            bar.n = sum(done.values())
            bar.set_postfix_str("; ".join(_whereabouts(child.chain) for child in running))

    with bar:
        yield show


def _whereabouts(chain: Chain) -> str:
    state = read_progress(chain_folder(chain) / "progress.tmp.json")
    share = f" {state['n'] / state['total']:.0%}" if state and state["total"] else ""
    return f"{chain.label}: generation {generations_here(chain) + 1}{share}"


def _is_finished(chain: Chain, generations: int) -> bool:
    try:
        return all(step.is_finished() for step in _steps(chain, generations))
    except UserError:
        return False  # what is wrong with it, its own process will say, and stop no other


def _steps(chain: Chain, generations: int) -> Iterator[Step]:
    for generation in range(generations + 1):
        yield from _steps_of(chain, generation)


def _steps_of(chain: Chain, generation: int) -> list[Step]:
    run = Run(chain_folder(chain), chain.protocol)
    return [step for step in run.steps_of(generation) if step.name in chain.study.steps]


def _chain(study: Study, label: str) -> Chain:
    for chain in study.chains():
        if chain.label == label:
            return chain
    raise UserError(f"Study '{study.name}' has no chain '{label}'; its chains are {', '.join(chain.label for chain in study.chains())}.")


def _memberships() -> dict[str, dict[str, Any]]:
    """What the runs that belong to studies say of themselves, by the run's name, the one that advanced last first."""
    found = {name: _membership(name) for name in run_names()}
    return {name: member for name, member in found.items() if member}


def _membership(run: str) -> dict[str, Any] | None:
    """What a run says of the study that it belongs to, if it does."""
    return read_json(runs_root() / run / CHAIN_RECORD, Membership, _run_again(run))


def _run_again(run: str) -> str:
    """What to do about a chain that no longer says, or says wrongly, which it is."""
    return f"take it from a copy, or `collapse rm {run}` and have the study make the chain again"
