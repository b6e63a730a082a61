"""The small runs that are attacked: made once, copied for each attack, gone on with in this process, and compared bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from collapse_lib import steps
from collapse_lib.experiment import tables
from collapse_lib.experiment.errors import UserError, explained
from collapse_lib.experiment.files import exclusive
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.repair import faults, repair
from collapse_lib.experiment.run import Run, Step

NAME = "one"
# The smoke preset, smaller still, and with something of every step.
SETTINGS = {
    "corpus.stories": "40",
    "corpus.validation_stories": "2",
    "corpus.grammar": "small",
    "tokenizer.vocabulary": "280",
    "training.epochs": "1",
    "training.checkpoint_every": "2",
    "sampling.sequences": "24",
    "sampling.length": "24",
    "sampling.shard_sequences": "8",
    "alpha.truth_stories": "0",
    "exact.stories": "2",
    "exact.loss_stories": "1",
    "texture.rows": "16",
    "texture.stories": "8",
    "texture.block_tokens": "200",
    "texture.block_stories": "2",
    "completions.beginnings": "2",
    "completions.samples": "1",
    "completions.prompts": "small",
    "classification.tasks": "[grammar_happy]",
    "classification.grammar": "small",
    "classification.train_rows": "4",
    "classification.test_rows": "4",
    "classification.max_length": "16",
}
REGIMES: dict[str, dict[str, str]] = {
    "replace": {},
    "fresh": {"regime.name": "fresh"},
    "first_only": {"regime.name": "first_only"},
    "accumulate": {"regime.name": "accumulate"},
    "accumulate_subsample": {"regime.name": "accumulate_subsample"},
    "mix": {"regime.name": "mix", "regime.share": "0.9", "regime.real": "fresh"},
    "select": {"regime.name": "select", "regime.share": "0.5", "regime.verifier": "grammar"},
}


def composing(regime: str) -> int:
    """The first generation that learns from a composition under a regime other than ``replace``."""
    return 3 if regime == "first_only" else 2


# A study of two chains.
STUDY = {
    "name": "pair",
    "base": "smoke",
    "generations": 1,
    "seeds": 1,
    "common": {field: yaml.safe_load(value) for field, value in SETTINGS.items()},
    "arms": {"plain": None, "warm": {"sampling.temperature": 1.5}},
    "measures": {"perplexity": "perplexity.perplexity"},
}
WORK = {name: getattr(steps, name) for name in steps.__all__}


class Refused(Exception):
    """What the library refuses or explains, as its sentence."""


def begin(runs: Path, regime: str = "replace", generations: int = 1, **changes: str) -> Run:
    """A run in the folder ``runs``, which holds the runs from here on."""
    os.environ["COLLAPSE_RUNS"] = str(runs)
    fields = {"generations": str(generations)} | SETTINGS | REGIMES[regime] | changes
    return Run.create(NAME, load_preset("smoke").with_changes(fields))


def finish(run: Run, processes: int = 1) -> None:
    """Do every step that is not done, from this process; raises ``Refused`` for what the command would say in a sentence."""
    try:
        for step in run.steps():
            shared = {"processes": processes} if step.kind.divisible else {}
            WORK[step.name](run, **({} if step.name == "corpus" else {"generation": step.generation}), **shared)
    except Exception as error:
        if sentence := explained(error):
            raise Refused(sentence) from error
        raise


def contents(run: Run, only: Iterable[Step] | None = None) -> dict[str, Any]:
    """What a run, or some of its steps, measured, and the hashes of what they made."""
    found = {}
    for step in run.steps() if only is None else only:
        results = step.results()
        metrics = {name: metric for name, metric in results["metrics"].items() if name != "tokens_per_second"}
        found[f"{step.generation} {step.name}"] = [metrics, results["series"], results["examples"], step.output_hashes()]
    return json.loads(json.dumps(found))


def finished(runs: Path) -> dict[str, str]:
    """When each step below a folder was finished, by the path of its manifest, and which n-gram chains are stored."""
    found = {str(file.relative_to(runs)): json.loads(file.read_text())["finished"] for file in runs.glob("*/generation-*/manifests/*.json")}
    for file in runs.glob("studies/ngram_regimes.parquet"):
        chains = tables.load(file, "make it again")
        found |= {f"n-gram chain {arm} {seed}": "" for arm, seed in zip(chains["arm"], chains["seed"], strict=True)}
    return found


def lost(before: dict[str, str], runs: Path) -> str:
    """What was ``finished`` and is not, or was done again."""
    now = finished(runs)
    return ", ".join(path for path, moment in before.items() if now.get(path) != moment)


def is_sound(run: Run) -> bool:
    """Whether every byte that is recorded is there and is what was recorded."""
    return not faults(run, missing=True)


def other_than(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """The steps in which two ``contents`` differ."""
    return ", ".join(step for step in found.keys() | expected.keys() if found.get(step) != expected.get(step))


def made(place: Path, name: str, make: Any) -> Path:
    """The folder ``place/name``, which ``make`` fills the first time that anyone asks for it."""
    folder = place / name
    if not folder.is_dir():
        with exclusive(place / f"{name}.lock", name, patience=3600.0):  # processes share what they attack
            if not folder.is_dir():
                beside = place / f"{name}.making"
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir(parents=True)
                make(beside)
                beside.rename(folder)
    return folder


def content_of(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def mended(run: Run, sentence: str, most: int = 12) -> bool:
    """Follow the advice in a sentence, to the letter, until the run goes on; False where it leads nowhere."""
    for _ in range(most):
        file = re.search(r"(/\S+?)[';,]? .*delete it", sentence)
        try:
            if command := re.search(r"`collapse repair [\w.-]+( --missing)?`", sentence):
                repair(Run.open(run.name), missing=bool(command[1]))
            elif file and (found := Path(file[1].strip("'"))).exists():
                found.unlink()
            else:
                return False
            finish(Run.open(run.name))
        except UserError as refusal:
            sentence = str(refusal)
        except Refused as refusal:
            sentence = str(refusal)
        else:
            return True
    return False


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder by its path, but for locks, whose content is a process's number."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
