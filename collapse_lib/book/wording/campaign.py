"""What was tried to break the project, from the record of the last campaign (``make torture``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from collapse_lib.book.wording.numbers import pipe_table
from collapse_lib.experiment.files import read_json
from collapse_lib.experiment.paths import runs_root
from collapse_lib.experiment.shapes import CampaignRecord
from collapse_lib.text.display import literal, number, plain

NOT_RECORDED = '*No campaign has been recorded here; `make torture ARGS="--output papermill_runs/torture.json"` makes a record.*\n'


def campaign_record() -> Path:
    """Where the record of the last campaign is kept."""
    return runs_root() / "torture.json"


def campaign() -> str:
    """The last recorded campaign as Markdown: a line an attack, what did not hold, and each case of the attacks whose cases were kept.

    Raises ``UserError`` when the record is damaged.
    """
    found = read_json(campaign_record(), CampaignRecord, "delete it, or take it from where it was made")
    if found is None:
        return NOT_RECORDED
    rows = [
        (plain(part["title"]), _of(part), str(len(part["faults"])), _counted(part["verdicts"]), number(round(part["seconds"] / 60, 1)))
        for part in found["parts"]
    ]
    made = f"Recorded {plain(found['date'][:10])} at commit {plain(found['commit'])} with seed {found['seed']}, on {plain(found['machine'])}."
    table = pipe_table(("Attack", "Tried", "Faults", "What came of it", "Minutes"), rows, "lrrlr")
    came = {verdict for part in found["parts"] for verdict in part["verdicts"]}
    words = "\n".join(f"{plain(word)}\n: {plain(meaning)}\n" for word, meaning in found["meaning"].items() if word in came)
    faults = [(part["title"], case) for part in found["parts"] for case in part["faults"]]
    listed = _cases("What did not hold", [case for _, case in faults]) if faults else "Nothing that was tried got through.\n"
    more = "\n".join(_cases(f"{part['title']}, case by case", part["cases"]) for part in found["parts"] if part["cases"])
    return f"{made}\n\n{table}\n\n:::{{dropdown}} What these words mean\n{words}\n:::\n\n{listed}\n{more}"


def _of(part: dict[str, Any]) -> str:
    return str(part["tried"]) if part["tried"] == part["planned"] else f"{part['tried']} of {part['planned'] or 'more'}"


def _counted(verdicts: dict[str, int]) -> str:
    return plain(", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))


def _cases(title: str, cases: list[dict[str, str]]) -> str:
    rows = [(literal(case["case"]), plain(case["verdict"]), literal(case["said"]) if case["said"] else "") for case in cases]
    return f":::{{dropdown}} {plain(title)}\n{pipe_table(('Case', 'Verdict', 'What was said'), rows)}\n:::\n"
