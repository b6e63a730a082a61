"""What an attack is made of, and how a campaign goes through the attacks: bounded, resumable, and from a seed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HELD = {  # what may come of an attack; any other verdict is a fault of the project
    "refused": "one sentence, exit status 2, nothing left behind",
    "noticed": "refused in one sentence, and the advice in it led back to the same numbers",
    "rebuilt": "made again without a word, with the same numbers",
    "same": "the same numbers and the same files, bit for bit",
    "harmless": "nothing that anything reads was hit: the same numbers",
    "text": "what was given as text is text on every page",
    "right": "the answer that belongs there",
    "absent": "could not be tried: the machine, or the file, lacks what it takes",
}


class Outcome(NamedTuple):
    """What came of a case: a verdict, of ``HELD`` if the project held, and what was said or went wrong."""

    verdict: str
    said: str = ""


@dataclass(frozen=True)
class Case:
    """One attack; ``attempt`` is given an empty folder, which is deleted after it."""

    name: str
    attempt: Callable[[Path], Outcome]


@dataclass
class Tried:
    """A case of a part with what came of it and the seconds that it took."""

    part: str
    case: str
    verdict: str
    said: str
    seconds: float

    @property
    def held(self) -> bool:
        return self.verdict in HELD


class Campaign:
    """The attacks of some parts, in turn, a case of each at a time, so that a campaign that is cut short has tried something of everything.

    ``folder`` keeps what came of each case, by the hash of all the code that decides it: a call that was interrupted goes on, and one on changed
    code begins anew. Of an earlier ``record`` (``record.report``), made elsewhere perhaps, the parts that this code and seed gave are gone on with
    too. With ``shares``, several processes take every so-many-th case each, ``share`` (0, 1, ...) being this one's.
    """

    def __init__(
        self,
        parts: dict[str, ModuleType],
        folder: Path,
        seed: int = 1,
        share: int = 0,
        shares: int = 1,
        record: dict[str, Any] | None = None,
    ) -> None:
        self.parts, self.seed, self.share, self.shares, self.source = parts, seed, share, shares, source_hash()
        self.folder = folder / f"{self.source}-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        found = record["parts"] if record else []
        self.recorded = {part["part"]: part for part in found if (part["source"], part["seed"]) == (self.source, seed)}

    def run(
        self, minutes: float = float("inf"), cases: float = float("inf"), say: Callable[[str], object] = lambda line: None, only: str = ""
    ) -> None:
        """Try what has not been tried, until it is all done, each part has had ``cases`` more, or ``minutes`` have passed and each has had one.

        ``only`` stands in the names of the cases that are tried.
        """
        deadline = time.monotonic() + 60 * minutes
        waiting = {part: self._waiting(part, only) for part in self.parts}
        taken = dict.fromkeys(self.parts, 0)
        while waiting:
            for part in list(waiting):
                case = self._next(part, waiting[part], say) if taken[part] < cases else None
                if case is None:
                    del waiting[part]
                    continue
                if time.monotonic() > deadline and all(taken[name] for name in waiting):
                    return
                taken[part] += 1
                tried = self._try(part, case)
                say(f"{part:<8} {tried.verdict:<9} {tried.seconds:6.1f} s  {case.name}" + ("" if tried.held else f"\n{tried.said}"))

    def outcomes(self) -> list[Tried]:
        """What has come of every case so far; of one that was tried twice, the last. Those of the earlier record took no time of this campaign."""
        found: dict[tuple[str, str], Tried] = {}
        for name, part in self.recorded.items():
            for verdict, cases in part["verdicts"].items():
                found |= {(name, case): Tried(name, case, verdict, part["said"].get(case, ""), 0.0) for case in cases}
        recorded = set(found)
        for file in sorted(self.folder.glob("outcomes-*.jsonl")):
            for line in file.read_text(encoding="utf-8").split("\n"):
                with suppress(ValueError, TypeError):  # the last line of a process that was killed
                    tried = Tried(**json.loads(line))
                    if (tried.part, tried.case) not in recorded:
                        found[tried.part, tried.case] = tried
        return list(found.values())

    def planned(self, part: str) -> Iterable[Case]:
        """The cases of a part, in the order in which the seed has them tried; some parts find theirs on the way."""
        place = self.folder / part
        place.mkdir(exist_ok=True)
        return self.parts[part].cases(place, random.Random(f"{self.seed}/{part}"))

    def plan_of(self, part: str) -> int | None:
        """How many cases a part has; None as long as nobody knows."""
        file = self.folder / f"planned-{part}.txt"
        with suppress(OSError, ValueError):  # another process may just be writing it
            return int(file.read_text(encoding="utf-8"))
        return self.recorded.get(part, {}).get("planned")

    def _waiting(self, part: str, only: str) -> Iterator[Case]:
        done = {tried.case for tried in self.outcomes() if tried.part == part}
        planned, number = self.planned(part), 0
        known = self.folder / f"planned-{part}.txt"
        if isinstance(planned, Sized):
            known.write_text(str(len(planned)), encoding="utf-8")
        for number, case in enumerate(planned, 1):
            if number % self.shares == self.share and case.name not in done and only in case.name:
                yield case
        known.write_text(str(number), encoding="utf-8")

    def _next(self, part: str, waiting: Iterator[Case], say: Callable[[str], object]) -> Case | None:
        """The next case; None, and a fault of the part, where there is none for an error."""
        try:
            return next(waiting, None)
        except Exception:
            broke = Tried(part, "its next case", "broke", traceback.format_exc(limit=-6), 0.0)
            say(f"{part:<8} broke\n{broke.said}")
            self._keep(broke)
            return None

    def _try(self, part: str, case: Case) -> Tried:
        for left in self.folder.glob(f"scratch-{self.share}-*"):
            shutil.rmtree(left, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"scratch-{self.share}-", dir=self.folder))  # in another, an orphan may still be writing
        began = time.perf_counter()
        try:
            with kept_surroundings():
                outcome = case.attempt(scratch)
        except Exception:
            outcome = Outcome("broke", traceback.format_exc(limit=-6))
        tried = Tried(part, case.name, outcome.verdict, outcome.said, round(time.perf_counter() - began, 2))
        self._keep(tried)
        shutil.rmtree(scratch, ignore_errors=True)
        return tried

    def _keep(self, tried: Tried) -> None:
        with (self.folder / f"outcomes-{self.share}.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(vars(tried))}")  # behind whatever a kill left of a line


def source_hash() -> str:
    """16 hex digits over all files that decide what comes of a case."""
    digest = hashlib.sha256()
    library = ("collapse_lib/**/*.py", "collapse_lib/**/*.yaml", "notebooks/**/*.ipynb", "workflow/profiles/*/*.yaml", "workflow/Snakefile")
    book = ("book/_config.yml", "book/_templates/*", "requirements.txt")  # what hostile stories are rendered by, and all packages' versions
    for pattern in (*library, *book, "tests/scripted_judge.py", "tests/synthetic_runs.py", "tests/torture/*.*"):
        for file in sorted(ROOT.glob(pattern)):
            digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def kept_surroundings() -> Iterator[None]:
    """Leave the working directory and the environment as they were."""
    folder, variables = Path.cwd(), dict(os.environ)
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)
