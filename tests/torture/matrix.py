"""Every file of a run, finished or not, and what is kept beside runs, in every way damaged: noticed, rebuilt or harmless, and never used."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.repair import repair
from collapse_lib.experiment.run import Run
from collapse_lib.studies import results
from torture import kept
from torture.campaign import Case, Outcome
from torture.damages import DAMAGES, NotThere
from torture.small import NAME, Refused, begin, composing, content_of, contents, fingerprint, finish, is_sound, made, mended, other_than

TITLE = "Damaged files"


# Where a run is broken off: when a file has come into its place for the so-many-th time; and the files that are attacked there.
MOMENTS = {
    "training": ("checkpoint.pt", 2, ["checkpoint/checkpoint.pt"]),
    "sampling": (
        "shard-00001.arrow",
        1,
        ["corpus/made_from.json", "corpus/shard-00000.arrow", "corpus/shard-00001.arrow"],
    ),
    "fine-tuning": ("grammar_happy-0.json", 2, ["classification/grammar_happy-0.json", "model/config.json"]),
    "record": ("train.json", 1, ["metrics/train.json", "model/model.safetensors"]),
}
# What a regime leaves in the folder ``composition`` of the first generation for which it composes anything.
COMPOSED = {
    "fresh": ["composition.json", "fresh/corpus.json", "fresh/shard-00000.arrow"],
    "first_only": ["composition.json", "fresh/corpus.json", "fresh/shard-00001.arrow", "fresh/made_from.json"],
    "accumulate": ["composition.json"],
    "accumulate_subsample": ["composition.json", "rows-0.npy", "rows-1.npy"],
    "mix": ["composition.json", "rows-1.npy", "fresh/shard-00000.arrow"],
    "select": ["composition.json", "rows-0.npy"],
}


class Exit(BaseException):
    """The end of a process."""


def broken_off(run: Run, name: str, times: int) -> None:
    """Go on with a run until a file of this name has come into its place so many times, and no farther."""
    replace, left = Path.replace, [times]

    def watched(path: Path, target: Path) -> Path:
        moved = replace(path, target)
        left[0] -= Path(target).name == name
        if not left[0]:
            raise Exit
        return moved

    with mock.patch.object(Path, "replace", watched):
        try:
            finish(run)
        except Exit:
            return
    raise AssertionError(f"{name} did not come {times} times")


def cases(place: Path, order: random.Random) -> list[Case]:
    found = [*_finished(place), *_unfinished(place), *_composed(place), *_notebooks(place), *kept.cases(place)]
    order.shuffle(found)
    return found


def _finished(place: Path) -> Iterator[Case]:
    """A finished generation that is gone on with: its damaged file is read by the next one, by measures made anew, and by tables and pages.

    Another generation's file is one of the next, which is finished as well.
    """
    for file in sorted(fingerprint(_made(place, "replace", 1))):
        for damage in DAMAGES:
            last = 2 if damage == "another generation's" else 1
            yield Case(
                f"finished run, {file}: {damage}", _attempt(place, lambda last=last: _made(place, "replace", last), "replace", file, damage, 2)
            )


def _unfinished(place: Path) -> Iterator[Case]:
    """A run that was ended in the middle of something: what it left is taken up by the next call."""
    for moment, (_, _, files) in MOMENTS.items():
        for file in files:
            for damage in DAMAGES:
                path, other = f"generation-01/{file}", lambda moment=moment: _broken(place, moment, "2")
                attempt = _attempt(place, lambda moment=moment: _broken(place, moment), "replace", path, damage, 1, other)
                yield Case(f"broken off in {moment}, {file}: {damage}", attempt)


def _broken(place: Path, moment: str, seed: str = "1") -> Path:
    name, times, _ = MOMENTS[moment]
    return made(place, f"broken-{moment}-{seed}", lambda runs: broken_off(begin(runs, seed=seed), name, times)) / NAME


def _composed(place: Path) -> Iterator[Case]:
    """What another regime than the paper's put together; its generation's training is done again from it."""
    for regime, files in COMPOSED.items():
        for file in files:
            for damage in DAMAGES:
                last = composing(regime)
                path = f"generation-{last:02d}/composition/{file}"
                attempt = _attempt(place, lambda regime=regime, last=last: _made(place, regime, last), regime, path, damage, last)
                yield Case(f"regime {regime}, {file}: {damage}", attempt)


def _made(place: Path, regime: str, generations: int, seed: int = 1) -> Path:
    """The folder of a finished run, as a copy of which every attack begins."""

    def make(runs: Path) -> None:
        before = None if generations == 1 else _made(place, regime, generations - 1, seed)
        if before:
            shutil.copytree(before, runs / NAME)
        finish(begin(runs, regime, generations, seed=str(seed)))

    return made(place, f"{regime}-{generations}-{seed}", make) / NAME


def _attempt(
    place: Path,
    folder: Callable[[], Path],
    regime: str,
    file: str,
    damage: str,
    generations: int,
    other: Callable[[], Path] | None = None,
) -> Callable[[Path], Outcome]:
    def attempt(scratch: Path) -> Outcome:
        expected = contents(Run(_made(place, regime, generations), begin(scratch / "asked", regime, generations).protocol))
        strange = other() if other else _made(place, regime, 1 if regime == "replace" else generations, seed=2)
        runs = scratch / "runs"
        shutil.copytree(folder(), runs / NAME)
        target = runs / NAME / file
        before = target.read_bytes()
        try:
            DAMAGES[damage](target, strange)
        except NotThere:
            return Outcome("absent", "the file cannot have this damage")
        os.environ["COLLAPSE_RUNS"] = str(runs)
        return verdict(runs, regime, generations, target, before, expected)

    return attempt


def verdict(runs: Path, regime: str, generations: int, target: Path, before: bytes, expected: dict) -> Outcome:
    """What a run says to its damaged file when everything that reads it does."""
    said, damaged = "", content_of(target)
    try:
        run = begin(runs, regime, generations)
        measure_again(run, target)
        finish(run)
        read(run)
    except Refused as refusal:
        said = str(refusal)
    except UserError as refusal:
        said = str(refusal)
    if said:
        if "\n" in said:
            return Outcome("not one sentence", said)
        if not restored(run_name=NAME, sentence=said, target=target, before=before, runs=runs, regime=regime, generations=generations):
            return Outcome("dead end", said)
        run = Run.open(NAME)
        if different := other_than(contents(run), expected):
            return Outcome("used", f"{said} -- and then other numbers in {different}")
        return Outcome("noticed", said)
    run = Run.open(NAME)
    if different := other_than(contents(run), expected):
        return Outcome("used", f"other numbers in {different}")
    is_rebuilt = content_of(target) != damaged
    found = repair(run, missing=True)
    if found:
        finish(run)
        if (different := other_than(contents(run), expected)) or not is_sound(run):
            return Outcome("used", f"after a repair, other numbers in {different}")
        return Outcome("noticed", f"by `collapse repair`: {', '.join(found.values())}")
    return Outcome("rebuilt" if is_rebuilt else "harmless")


def measure_again(run: Run, target: Path) -> None:
    """Have what is measured of generation 1 measured again, and a composed text learned again, so that all that they read is read.

    But not what was recorded in ``target``, which would be gone before anything has read it.
    """
    regime = run.protocol.regime.name
    learned = [] if regime == "replace" else [run.step(composing(regime), "train")]
    for step in [*(run.step(1, name) for name in ("perplexity", "free_text", "texture", "continuations")), *learned]:
        if step.manifest_file.exists() and target not in (step.manifest_file, step.metrics_file):
            step.drop()


def read(run: Run) -> None:
    """Read a run as tables and pages do."""
    results.load(run.name)
    for step in run.steps():
        step.results()


def restored(run_name: str, sentence: str, target: Path, before: bytes, runs: Path, regime: str, generations: int) -> bool:
    """Follow the advice of a sentence; a protocol that was damaged is a person's to restore."""
    if target.name == "protocol.yaml":
        if target.name not in sentence and "protocol" not in sentence and "exists with" not in sentence:
            return False
        target.write_bytes(before)
        run = begin(runs, regime, generations)
        finish(run)
        return True
    try:
        run = begin(runs, regime, generations)
    except UserError:
        return False
    return mended(run, sentence)


def _notebooks(place: Path) -> Iterator[Case]:
    """Executed notebooks: a driver executes again what is not what was recorded."""
    folder = place / "notebooks"
    for name in ("train", "corpus"):
        generation = 0 if name == "corpus" else 1
        for damage in DAMAGES:
            yield Case(f"executed notebook {name}: {damage}", _attempt_notebook(folder, f"generation-{generation:02d}/{name}.ipynb", damage))


def _attempt_notebook(place: Path, file: str, damage: str) -> Callable[[Path], Outcome]:
    def attempt(scratch: Path) -> Outcome:
        from collapse_lib.experiment.execute import advance

        def make(runs: Path, seed: str = "1") -> None:
            advance(begin(runs, seed=seed), only=("corpus", "train"))

        folder = made(place, "run", make) / NAME
        shutil.copytree(folder, scratch / "runs" / NAME)
        target = scratch / "runs" / file.replace("generation", f"{NAME}/generation", 1)
        before = json.loads(target.read_text())
        try:
            DAMAGES[damage](target, made(place, "other", lambda runs: make(runs, "2")) / NAME)
        except NotThere:
            return Outcome("absent", "the file cannot have this damage")
        run = begin(scratch / "runs")
        try:
            is_finished = all(step.is_finished() for step in run.steps() if step.name in ("corpus", "train"))
        except UserError:
            is_finished = False
        if is_finished:
            return Outcome("used", "the step passes for finished")
        executed = [f"{step.generation} {step.name}" for step in advance(run, only=("corpus", "train"))]
        after = json.loads(target.read_text())
        if [cell["source"] for cell in after["cells"]] != [cell["source"] for cell in before["cells"]] or len(executed) != 1:
            return Outcome("used", f"executed {executed}")
        return Outcome("rebuilt")

    return attempt
