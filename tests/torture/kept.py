"""What is kept beside the steps of runs, in every way damaged: studies and their records, comparisons of twins, tables of n-gram chains, the judge's
answers, benches, machines, and the record of a campaign. Each is made as it is ever made, small, and read as commands and pages read it."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from scripted_judge import GOOD, KEY, Handler, Scripted

from collapse_lib.book.wording.campaign import campaign
from collapse_lib.cost import calibration
from collapse_lib.cost.bench import records
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.paths import runs_root
from collapse_lib.experiment.protocol import GPTEvalSettings, load_preset
from collapse_lib.experiment.regimes import Regime
from collapse_lib.experiment.run import Run
from collapse_lib.judge import client
from collapse_lib.judge.ledger import Ledger
from collapse_lib.metrics.gpt_eval import Exercise, Grade, messages
from collapse_lib.studies import ngram_regimes, study, twins
from collapse_lib.studies.design import Study, study_from_fields
from collapse_lib.studies.ngram_regimes import Arm
from torture.campaign import ROOT, Campaign, Case, Outcome
from torture.damages import DAMAGES, NotThere
from torture.record import report, write
from torture.small import NAME, SETTINGS, STUDY, WORK, content_of, made

HEAD, NUMBERS = "studies/pair/study.json", "studies/pair/numbers.parquet"
CHAIN = "pair-plain-1"


@dataclass(frozen=True)
class Kept:
    """A file below the runs' folder: how it and all that it needs are made there (of a seed), what everybody reads in it as one text, and how a
    person follows what the sentences say, of which each has to hold one of ``advice``. ``hidden`` is what is not there when it is read."""

    file: str
    make: Callable[[int], object]
    read: Callable[[], str]
    mend: Callable[[Path, bytes, Path], object]
    advice: tuple[str, ...]
    hidden: tuple[str, ...] = ()


def finish(run: Run, only: tuple[str, ...]) -> None:
    """The steps of these names, in this process."""
    for step in run.steps():
        if step.name in only:
            WORK[step.name](run, **({} if step.name == "corpus" else {"generation": step.generation}))


# --- a study -----------------------------------------------------------------------------------------------------------


def _study(seed: int = 1) -> Study:
    return study_from_fields(STUDY | {"evaluate": ["perplexity"], "common": STUDY["common"] | {"corpus.seed": seed}})


def _make_study(seed: int) -> None:
    for chain in _study(seed).chains():
        _make_chain(chain)
    study.record(_study(seed))


def _make_chain(chain: Any) -> None:
    run = Run.create(chain.name, chain.protocol)
    study.enrol(chain, run)
    finish(run, chain.study.steps)


def _read_record() -> str:
    return json.dumps(study.recorded_chains(_study()), sort_keys=True) + study.open_study("pair").hash + study.table(_study()).to_csv()


def _mend_record(file: Path, before: bytes, whole: Path) -> None:
    shutil.rmtree(file.parent)
    for run in whole.glob("pair-*"):
        shutil.copytree(run, file.parents[2] / run.name)
    study.record(_study())


def _read_chain() -> str:
    study.check_study(study.open_study("pair"), "cpu")
    study.check_study(_study(), "cpu")
    numbers = study.table(_study())
    return ", ".join(study.steps_wanted(Run.open(CHAIN))) + numbers[numbers["metric"] != "tokens_per_second"].to_csv(index=False)


def _mend_chain(file: Path, before: bytes, whole: Path) -> None:
    shutil.rmtree(file.parent)
    _make_chain(next(chain for chain in _study().chains() if chain.name == CHAIN))


# --- twins -------------------------------------------------------------------------------------------------------------


def _make_twins(seed: int) -> None:
    protocol = load_preset("smoke").with_changes(SETTINGS | {"generations": "1", "seed": str(seed)})
    for role, wanted in twins.protocols(NAME, protocol).items():
        finish(Run.create(twins.names(NAME)[role], wanted), ("corpus", "train", "sample"))
    twins.compare(NAME, "cpu")


def _read_twins() -> str:
    shown = twins.comparisons([NAME])  # by a page, before anybody compares again
    twins.compare(NAME, "cpu")
    compared = twins.table(twins.comparisons([NAME])).to_csv()
    return twins.table(shown).to_csv() if shown else compared


# --- n-gram chains -----------------------------------------------------------------------------------------------------


def _chains(seed: int = 1) -> str:
    arms = {"replace": Arm(tokens=200 * seed, chains=1), "mix": Arm(Regime("mix", 0.5), tokens=200, chains=1)}
    return ngram_regimes.run(arms, generations=2, workers=1).to_csv()


# --- benches, machines, a campaign -------------------------------------------------------------------------------------


def _make_bench(seed: int) -> None:
    shutil.copytree(ROOT / "papermill_runs" / "bench", runs_root() / "bench")


def _read_bench() -> str:
    reports = records.recorded()
    return "".join(table(reports).to_csv() for table in (records.rates, records.limits, records.checks))


def _make_machine(seed: int) -> None:
    rates = {name: seed * (number + 1) * 1e-6 for number, name in enumerate(calibration.RATES)}
    machine = calibration.Calibration("a machine", "cpu", "2026-01-01", {"torch": "2"}, {"hidden_size": 64}, 512, 64, 0, 2, 0.0, 9.0, rates)
    machine.save(runs_root() / "bench" / "laptop.json")


def _make_campaign(seed: int) -> None:
    class Attack:
        TITLE = "An attack"

        @staticmethod
        def cases(place: Path, order: Any) -> list[Case]:
            return [Case(f"case {number}", lambda scratch: Outcome("same")) for number in range(2 + seed)]

    tried = Campaign({"kills": Attack}, runs_root() / "build")
    tried.run()
    write(report(tried), runs_root() / "torture.json")


def _taken_back(file: Path, before: bytes, whole: Path) -> None:
    file.write_bytes(before)


def _deleted(file: Path, before: bytes, whole: Path) -> None:
    file.unlink(missing_ok=True)


RECORD_AGAIN = ("study record pair", "study run pair", "take the record from where it was made", "There is no study 'pair'")
KEPT = {
    "head of a study's record": Kept(HEAD, _make_study, _read_record, _mend_record, RECORD_AGAIN, ("pair-plain-1", "pair-warm-1")),
    "numbers of a study's record": Kept(NUMBERS, _make_study, _read_record, _mend_record, RECORD_AGAIN, ("pair-plain-1", "pair-warm-1")),
    "a chain's study.json": Kept(
        f"{CHAIN}/study.json",
        _make_study,
        _read_chain,
        _mend_chain,
        (f"collapse rm {CHAIN}", "rename its folder", "give the study another name"),
        ("studies",),
    ),
    "twins.json": Kept(f"{NAME}/twins.json", _make_twins, _read_twins, _deleted, ("delete it",)),
    "table of n-gram chains": Kept("studies/ngram_regimes.parquet", _chains, _chains, _deleted, ("delete it",)),
    "bench": Kept("bench/sampling-1m-cpu.json", _make_bench, _read_bench, _taken_back, ("let `collapse bench` write it again",)),
    "recorded machine": Kept(
        "bench/laptop.json",
        _make_machine,
        lambda: str(calibration.load("laptop")),
        _taken_back,
        ("record the machine again", "collapse plan --record"),
    ),
    "campaign": Kept("torture.json", _make_campaign, campaign, _taken_back, ("take it from where it was made",)),
}
# A whole record of another bench or campaign says so itself, and nothing that is read beside it could contradict it: there is nothing to notice.
SAYS_WHAT_IT_IS = ("bench", "recorded machine", "campaign")


def cases(place: Path) -> Iterator[Case]:
    """Each kind of damage to each of these files."""
    for name in KEPT:
        for damage in DAMAGES:
            if not (damage == "another run's" and name in SAYS_WHAT_IT_IS):
                yield Case(f"{name}: {damage}", _attempt(place, name, damage))
    for damage in DAMAGES:
        yield Case(f"judge.sqlite: {damage}", _attempt_answers(damage))


def _attempt(place: Path, name: str, damage: str) -> Callable[[Path], Outcome]:
    kept = KEPT[name]

    def make(folder: Path, seed: int = 1) -> None:
        (folder / NAME).mkdir()
        os.environ["COLLAPSE_RUNS"] = str(folder / NAME)
        kept.make(seed)
        for hidden in kept.hidden if seed == 1 else ():
            (folder / "hidden").mkdir(exist_ok=True)
            shutil.move(folder / NAME / hidden, folder / "hidden" / hidden)
        (folder / "expected").write_text(kept.read() if seed == 1 else "")

    def attempt(scratch: Path) -> Outcome:
        stem = f"kept-{name.replace(' ', '-')}"
        whole = made(place, stem, make)
        other = made(place, f"{stem}-2", lambda folder: make(folder, 2)) if damage == "another run's" else whole
        runs = scratch / NAME
        shutil.copytree(whole / NAME, runs)
        os.environ["COLLAPSE_RUNS"] = str(runs)
        return verdict(kept, runs / kept.file, damage, other / NAME, whole / "hidden", (whole / "expected").read_text())

    return attempt


def verdict(kept: Kept, target: Path, damage: str, other: Path, whole: Path, expected: str) -> Outcome:
    """Damage a file, read it, follow the advice if there is any, and say what came of it."""
    before = target.read_bytes()
    try:
        DAMAGES[damage](target, other)
    except NotThere:
        return Outcome("absent", "the file cannot have this damage")
    damaged = content_of(target)
    try:
        found = kept.read()
    except UserError as refusal:
        said = str(refusal)
    else:
        if damage == "deleted" and content_of(target) is None:
            if strange := told_otherwise(found, expected):
                return Outcome("used", strange)
            return Outcome("noticed", "what is not there is not shown") if found != expected else Outcome("harmless")
        if found != expected:
            return Outcome("used", differing(found, expected))
        return Outcome("harmless" if content_of(target) == damaged else "rebuilt")
    if "\n" in said.strip():
        return Outcome("not one sentence", said)
    if not any(words in said for words in kept.advice):
        return Outcome("dead end", said)
    kept.mend(target, before, whole)
    found = kept.read()
    return Outcome("noticed", said) if found == expected else Outcome("used", f"{said} -- and then {differing(found, expected)}")


def told_otherwise(found: str, expected: str) -> str:
    """The first line with a number that is in one text and not in the other, whatever the number of its row."""
    known = {re.sub(r"^\d+,", "", line) for line in expected.splitlines()}
    return next((line for line in found.splitlines() if re.search(r"\d", line) and re.sub(r"^\d+,", "", line) not in known), "")


def differing(found: str, expected: str) -> str:
    """The first line in which two texts differ."""
    pairs = zip_longest(found.splitlines(), expected.splitlines(), fillvalue="nothing")
    return next((f"{one[:150]} instead of {other[:150]}" for one, other in pairs if one != other), "the same")


# --- the judge's answers -----------------------------------------------------------------------------------------------

JUDGE = GPTEvalSettings(judge="scripted", concurrency=1, retries=0, price_in=1.0, price_out=1.0)


def _answers(seed: int = 1) -> str:
    """Answers to a dozen requests, of the ledger or, where it has none, of the endpoint, and what all cost."""
    exercises = [Exercise(f"The cat number {number}", f" sat on {seed}.") for number in range(12)]
    bodies = [client.request(JUDGE, messages(exercise), Grade.model_json_schema()) for exercise in exercises]
    answers = client.ask(bodies, JUDGE, "run")
    Ledger().paid("run", JUDGE)
    return json.dumps([[answer.text, answer.model, answer.prompt_tokens, answer.answer_tokens] for answer in answers])


def _graded(handler: Handler) -> None:
    """A grade that tells the exercises apart."""
    body = handler.server.seen[-1]
    number = sum(map(ord, body["messages"][-1]["content"])) % 10
    handler.reply(GOOD.replace("6", str(number)), body)


@contextmanager
def _grading() -> Iterator[Scripted]:
    with Scripted() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        os.environ |= {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY}
        server.script = [_graded] * 99
        yield server
        server.shutdown()


def _attempt_answers(damage: str) -> Callable[[Path], Outcome]:
    """Answers belong to their endpoint, so that each attack has one of its own from the first answer to the last."""

    def attempt(scratch: Path) -> Outcome:
        kept = Kept("judge.sqlite", _answers, _answers, _deleted, ("move the file away",))
        with _grading():
            for seed, folder in ((2, scratch / "other" / NAME), (1, scratch / NAME)):
                folder.mkdir(parents=True)
                os.environ["COLLAPSE_RUNS"] = str(folder)
                expected = _answers(seed)
            return verdict(kept, scratch / NAME / kept.file, damage, scratch / "other" / NAME, scratch, expected)

    return attempt
