"""What was tried to break the project, from the record of the last campaign (``make torture``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from collapse_lib.book.wording.numbers import pipe_table
from collapse_lib.experiment.files import read_json
from collapse_lib.experiment.paths import runs_root
from collapse_lib.experiment.shapes import CampaignRecord
from collapse_lib.text.display import literal, number, plain

LISTED = ("inputs", "matrix")  # of these every case is shown, of the others only what did not hold
NOT_RECORDED = '*No campaign has been recorded here; `make torture ARGS="--output papermill_runs/torture.json"` makes a record.*\n'


def campaign_record() -> Path:
    """Where the record of the last campaign is kept."""
    return runs_root() / "torture.json"


def campaign() -> str:
    """The last recorded campaign as Markdown: a line an attack, what did not hold, and each case of the attacks whose cases were kept.

    Raises ``UserError`` when the record is damaged.
    """
    found = read_json(campaign_record(), CampaignRecord, "delete it, or take it from where it was made")
    if found is None or not found["parts"]:
        return NOT_RECORDED
    parts, titles, meaning = found["parts"], found["titles"], found["meaning"]
    rows = [
        (
            plain(titles[part["part"]]),
            _of(part),
            str(len(faults_of(part, meaning))),
            plain(", ".join(f"{len(cases)} {verdict}" for verdict, cases in part["verdicts"].items())),
            number(round(part["seconds"] / 60, 1)),
        )
        for part in parts
    ]
    table = pipe_table(("Attack", "Tried", "Faults", "What came of it", "Minutes"), rows, "lrrlr")
    came = {verdict for part in parts for verdict in part["verdicts"]}
    words = "\n".join(f"{plain(word)}\n: {plain(told)}\n" for word, told in meaning.items() if word in came)
    faults = [row for part in parts for row in faults_of(part, meaning)]
    listed = _cases("What did not hold", faults) if faults else "Nothing that was tried got through.\n"
    more = "\n".join(_cases(f"{titles[part['part']]}, case by case", _rows(part)) for part in parts if part["part"] in LISTED)
    missing = [plain(title) for name, title in titles.items() if name not in {part["part"] for part in parts}]
    waiting = f"Not recorded yet: {'; '.join(missing)}.\n\n" if missing else ""
    return f"{_when(parts, titles)}\n\n{table}\n\n{waiting}:::{{dropdown}} What these words mean\n{words}\n:::\n\n{listed}\n{more}"


def tried_of(part: dict[str, Any]) -> int:
    """How many cases of an attack were tried."""
    return sum(map(len, part["verdicts"].values()))


def faults_of(part: dict[str, Any], meaning: dict[str, str]) -> list[tuple[str, str, str]]:
    """The cases of an attack whose verdict has no ``meaning`` for a project that held: name, verdict, what was said."""
    return [row for row in _rows(part) if row[1] not in meaning]


def _rows(part: dict[str, Any]) -> list[tuple[str, str, str]]:
    return sorted((case, verdict, part["said"].get(case, "")) for verdict, cases in part["verdicts"].items() for case in cases)


def _when(parts: list[dict[str, Any]], titles: dict[str, str]) -> str:
    """When, of which code and where the attacks were made: a line for all of them, or for each group that was made together."""
    made: dict[str, list[str]] = {}
    for part in parts:
        packages = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
        code = f"at commit {plain(part['commit'])} with seed {part['seed']}"
        when = f"{plain(part['date'][:10])} {code}, on {plain(part['machine'])} ({plain(packages)})"
        made.setdefault(when, []).append(plain(titles[part["part"]]))
    if len(made) == 1:
        return f"Recorded {next(iter(made))}."
    return "\n".join(f"- {'; '.join(names)}: recorded {when}." for when, names in made.items())


def _of(part: dict[str, Any]) -> str:
    tried = tried_of(part)
    return str(tried) if tried == part["planned"] else f"{tried} of {part['planned'] or 'more'}"


def _cases(title: str, cases: list[tuple[str, str, str]]) -> str:
    rows = [(literal(case), plain(verdict), literal(said) if said else "") for case, verdict, said in cases]
    return f":::{{dropdown}} {plain(title)}\n{pipe_table(('Case', 'Verdict', 'What was said'), rows)}\n:::\n"
