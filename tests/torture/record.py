"""The record of a campaign: one table, as text for a terminal and as JSON for the book, from which a later call goes on."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from collapse_lib.book.wording.campaign import LISTED, faults_of, tried_of
from collapse_lib.cost.printing import columns
from collapse_lib.experiment.files import read_json, sealed, write_json
from collapse_lib.experiment.machine import device_name, versions
from collapse_lib.experiment.shapes import CampaignRecord
from torture.campaign import HELD, ROOT, Campaign, Tried

LONGEST = 400  # characters of what was said that the record keeps


def report(campaign: Campaign, earlier: dict[str, Any] | None = None, attacks: dict[str, ModuleType] | None = None) -> dict[str, Any]:
    """What came of a campaign so far, as ``papermill_runs/torture.json`` has it; parts that it has not tried are those of the ``earlier`` record.

    ``attacks`` are all that there are, in their order; those of the campaign, if not given.
    """
    attacks, outcomes = attacks or campaign.parts, campaign.outcomes()
    parts = {part["part"]: part for part in (earlier or {"parts": []})["parts"]}
    for name in campaign.parts:
        if tried := [outcome for outcome in outcomes if outcome.part == name]:
            parts[name] = _part(campaign, name, tried)
    titles = {name: module.TITLE for name, module in attacks.items()}
    return {"meaning": HELD, "titles": titles, "parts": [parts[name] for name in titles if name in parts]}


def _part(campaign: Campaign, name: str, tried: list[Tried]) -> dict[str, Any]:
    recorded, planned = campaign.recorded.get(name), campaign.plan_of(name)
    # Cases that were found on the way elsewhere may not have been found again here.
    planned = None if planned is None else max(planned, len(tried))
    if recorded and tried_of(recorded) == len(tried):
        return recorded | {"planned": planned}
    verdicts: dict[str, list[str]] = {}
    for outcome in sorted(tried, key=lambda outcome: (outcome.verdict, outcome.case)):
        verdicts.setdefault(outcome.verdict, []).append(outcome.case)
    return {
        "part": name,
        "planned": planned,
        "seed": campaign.seed,
        "source": campaign.source,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{device_name('cpu')}, {platform.system()} {platform.release()}",
        "versions": versions(),
        "seconds": round((recorded["seconds"] if recorded else 0.0) + sum(outcome.seconds for outcome in tried), 1),
        "verdicts": verdicts,
        "said": {outcome.case: _said(outcome) for outcome in tried if outcome.said and (name in LISTED or not outcome.held)},
    }


def table(found: dict[str, Any]) -> str:
    """The report as aligned text, a line a part."""
    rows = [("attack", "tried", "of", "faults", "minutes", "what came of it")]
    for part in found["parts"]:
        came = ", ".join(f"{len(cases)} {verdict}" for verdict, cases in part["verdicts"].items())
        counts = str(tried_of(part)), str(part["planned"] or "?"), str(len(faults_of(part, found["meaning"])))
        rows.append((found["titles"][part["part"]], *counts, f"{part['seconds'] / 60:.1f}", came))
    lines = columns([row[:-1] for row in rows])
    return "\n".join(f"{line}  {row[-1]}" for line, row in zip(lines, rows, strict=True))


def read(file: Path) -> dict[str, Any] | None:
    """An earlier record; None if there is none. Raises ``UserError`` when it is damaged."""
    return read_json(file, CampaignRecord, "take it from where it was made, or delete it to begin anew")


def write(found: dict[str, Any], file: Path) -> None:
    """Write the report, sealed, for the book's page."""
    write_json(file, sealed(found))


def _said(outcome: Tried) -> str:
    said = outcome.said if outcome.held else outcome.said[-LONGEST:]
    return _without_places(said)[:LONGEST]


def _without_places(said: str) -> str:
    """What was said without the folders of this machine, which mean nothing elsewhere."""

    def short(word: str) -> str:
        is_path = word.lstrip("'\"(").startswith("/") and word.count("/") > 3
        return f"…/{'/'.join(word.rsplit('/', 3)[-3:])}" if is_path else word

    return " ".join(map(short, said.split(" ")))


def _commit() -> str:
    """The commit whose code is attacked, marked if files of it were changed since; the record itself is none of them."""
    try:
        found = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", "collapse_lib", "notebooks", "workflow", "tests")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{found}, changed" if changed else found


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
