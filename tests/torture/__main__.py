"""``python -m torture``, which is ``make torture``: try everything, print one table, write it as JSON."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from collapse_lib.book.wording.campaign import faults_of
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import exclusive
from collapse_lib.experiment.processes import end_with_input
from torture import disk, hub, inputs, judge, kills, matrix, others, states, stories
from torture.campaign import ROOT, Campaign
from torture.record import read, report, table, write

EVERY = 60.0  # seconds from one writing of the record to the next
PARTS = {
    "kills": kills,
    "states": states,
    "matrix": matrix,
    "inputs": inputs,
    "disk": disk,
    "others": others,
    "judge": judge,
    "stories": stories,
    "hub": hub,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make torture", description="Attack the project in every way that it was ever attacked by hand.")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this attack; may be repeated")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases in whose names this stands, such as 'workflow' or 'twins.json'")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many; the same command goes on")
    parser.add_argument("--cases", type=float, default=float("inf"), help="try at most so many more cases of each attack")
    parser.add_argument("--seed", type=int, default=1, help="decides the order of the cases, and the moments of the kills")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the cases")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "torture", help="where unfinished campaigns are kept")
    parser.add_argument(
        "--output", type=Path, help="write the table as JSON to this file, and go on from what it has (default: torture.json in that folder)"
    )
    parser.add_argument("--share", type=int, default=0, help=argparse.SUPPRESS)  # which of the processes this is
    options = parser.parse_args()
    if options.share:
        end_with_input(patience=60.0)  # which is its campaign's
    os.environ["TQDM_DISABLE"] = "1"
    parts = {name: module for name, module in PARTS.items() if name in (options.part or PARTS)}
    file = (options.output or options.folder / "torture.json").resolve()
    try:
        earlier = read(file)
    except UserError as refusal:
        parser.exit(2, f"torture: {refusal}\n")
    campaign = Campaign(parts, options.folder.resolve(), options.seed, options.share, options.jobs, earlier)
    try:
        with exclusive(campaign.folder / f"share-{options.share}.lock", "This campaign", patience=90.0 if options.share else 5.0):
            return _tried(campaign, options, file, earlier)
    except UserError as refusal:
        parser.exit(2, f"torture: {refusal}\n")


def _tried(campaign: Campaign, options: argparse.Namespace, file: Path, earlier: dict[str, Any] | None) -> int:
    """Go through a campaign, and the main one of its processes reports; the exit status."""
    helpers = [_helper(share, options) for share in range(1, options.jobs)] if options.share == 0 else []
    written = time.monotonic()

    def say(line: str) -> None:
        nonlocal written
        print(line, flush=True)
        if not options.share and time.monotonic() - written > EVERY:  # a campaign that is killed, machine and all, has its record
            write(report(campaign, earlier, PARTS), file)
            written = time.monotonic()

    was_stopped = False
    try:
        campaign.run(options.minutes, options.cases, say, options.only)
    except KeyboardInterrupt:
        was_stopped = True
        for helper in helpers:
            helper.stdin.close()
    ended_badly = [helper.args for helper in helpers if helper.wait() and not was_stopped]
    if options.share:
        return 0
    found = report(campaign, earlier, PARTS)
    print(f"\n{table(found)}")
    write(found, file)
    if was_stopped:
        return 130
    for command in ended_badly:
        print(f"torture: a process that shared the cases ended before them: {' '.join(map(str, command))}", file=sys.stderr)
    return 1 if ended_badly or any(faults_of(part, found["meaning"]) for part in found["parts"] if part["part"] in campaign.parts) else 0


def _helper(share: int, options: argparse.Namespace) -> subprocess.Popen:
    command = [sys.executable, "-m", "torture", "--share", str(share), "--jobs", str(options.jobs), "--seed", str(options.seed)]
    command += ["--minutes", str(options.minutes), "--cases", str(options.cases), "--folder", str(options.folder), "--only", options.only]
    command += ["--output", str(options.output)] if options.output else []
    return subprocess.Popen([*command, *(word for part in options.part or () for word in ("--part", part))], stdin=subprocess.PIPE)


if __name__ == "__main__":
    sys.exit(main())
