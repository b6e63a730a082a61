"""The record of a campaign: one table, as text for a terminal and as JSON for the book."""

from __future__ import annotations

import platform
import subprocess
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from collapse_lib.cost.printing import columns
from collapse_lib.experiment.files import sealed, write_json
from collapse_lib.experiment.machine import device_name
from torture.campaign import HELD, ROOT, Campaign, Tried

LISTED = ("inputs", "matrix")  # of these the record has every case, of the others only what did not hold
LONGEST = 400  # characters of what was said that the record keeps


def report(campaign: Campaign) -> dict[str, Any]:
    """What came of a campaign so far, as ``papermill_runs/torture.json`` has it."""
    outcomes = campaign.outcomes()
    parts = []
    for name, module in campaign.parts.items():
        tried = [outcome for outcome in outcomes if outcome.part == name]
        parts.append(
            {
                "part": name,
                "title": module.TITLE,
                "planned": campaign.plan_of(name),
                "tried": len(tried),
                "verdicts": dict(sorted(Counter(outcome.verdict for outcome in tried).items())),
                "seconds": round(sum(outcome.seconds for outcome in tried), 1),
                "faults": [_case(outcome) for outcome in tried if not outcome.held],
                "cases": sorted((_case(outcome) for outcome in tried), key=lambda case: case["case"]) if name in LISTED else [],
            }
        )
    head = {"date": datetime.now(UTC).isoformat(timespec="minutes"), "commit": _commit(), "seed": campaign.seed}
    return head | {"machine": f"{device_name('cpu')}, Python {platform.python_version()}", "meaning": HELD, "parts": parts}


def table(found: dict[str, Any]) -> str:
    """The report as aligned text, a line a part."""
    rows = [("attack", "tried", "of", "faults", "minutes", "what came of it")]
    for part in found["parts"]:
        came = ", ".join(f"{count} {verdict}" for verdict, count in part["verdicts"].items())
        rows.append((part["title"], str(part["tried"]), str(part["planned"] or "?"), str(len(part["faults"])), f"{part['seconds'] / 60:.1f}", came))
    lines = columns([row[:-1] for row in rows])
    return "\n".join(f"{line}  {row[-1]}" for line, row in zip(lines, rows, strict=True))


def write(found: dict[str, Any], file: Path) -> None:
    """Write the report, sealed, for the book's page."""
    write_json(file, sealed(found))


def _case(outcome: Tried) -> dict[str, Any]:
    said = outcome.said if outcome.held else outcome.said[-LONGEST:]
    return {"case": outcome.case, "verdict": outcome.verdict, "said": _without_places(said)[:LONGEST]}


def _without_places(said: str) -> str:
    """What was said without the folders of this machine, which mean nothing elsewhere."""

    def short(word: str) -> str:
        is_path = word.lstrip("'\"(").startswith("/") and word.count("/") > 3
        return f"…/{'/'.join(word.rsplit('/', 3)[-3:])}" if is_path else word

    return " ".join(map(short, said.split(" ")))


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
