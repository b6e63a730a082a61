"""The campaign itself: its cases differ, it goes on where it was cut short, it sees a fault; and a sample of it, three minutes long."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from synthetic_runs import write_run

from collapse_lib.book.wording.campaign import campaign, faults_of, tried_of
from collapse_lib.experiment.files import sealed
from torture.__main__ import PARTS
from torture.campaign import HELD, Campaign, Case, Outcome
from torture.kept import told_otherwise
from torture.record import read, report, table, write
from torture.small import finished, lost
from torture.watched import FULL, GO, States, compiler, put, watching

SAMPLE = ["kills", "states", "matrix", "disk", "others", "judge", "hub"]  # stories and bad input have tests of their own
SAMPLE_MINUTES = 3.0

PROGRAM = """
import os, pathlib, shutil, sys
folder = pathlib.Path(sys.argv[1])
(folder / "a").mkdir()
with (folder / "a" / "x.tmp").open("w") as file:
    file.write("hello")
    file.flush()
    file.write(" world")
(folder / "a" / "x.tmp").replace(folder / "a" / "x")
os.chdir(folder)
pathlib.Path("near").write_text("7")
shutil.rmtree(folder / "a")
"""


def attacked(*attempts) -> SimpleNamespace:
    cases = [Case(f"case {number}", attempt) for number, attempt in enumerate(attempts)]
    return SimpleNamespace(TITLE="Made up", cases=lambda place, order: cases)


def test_a_campaign_goes_on_where_it_was_cut_short_and_tells_what_did_not_hold(tmp_path):
    tried = []

    def held(scratch: Path) -> Outcome:
        assert not list(scratch.iterdir())
        (scratch / "left").write_text("")
        os.environ["COLLAPSE_RUNS"] = str(scratch)
        tried.append("held")
        return Outcome("same")

    def broken(scratch: Path) -> Outcome:
        tried.append("broken")
        raise KeyError("here")

    def used(scratch: Path) -> Outcome:
        tried.append("used")
        return Outcome("used", "other numbers")

    before = os.environ.get("COLLAPSE_RUNS")
    parts = {"made-up": attacked(held, broken, used, held)}
    Campaign(parts, tmp_path).run(cases=2)
    assert tried == ["held", "broken"] and os.environ.get("COLLAPSE_RUNS") == before
    campaign = Campaign(parts, tmp_path)
    with (campaign.folder / "outcomes-0.jsonl").open("a") as file:
        file.write('\n{"part": "made-up", "case": "case 2", "ver')  # killed while it wrote
    campaign.run()
    assert tried == ["held", "broken", "used", "held"]
    found = report(campaign)
    (part,) = found["parts"]
    assert (tried_of(part), part["planned"]) == (4, 4)
    assert part["verdicts"] == {"broke": ["case 1"], "same": ["case 0", "case 3"], "used": ["case 2"]}
    assert [fault[:2] for fault in faults_of(part, found["meaning"])] == [("case 1", "broke"), ("case 2", "used")]
    assert "KeyError: 'here'" in part["said"]["case 1"]
    campaign.run()
    assert len(tried) == 4
    assert "Made up      4   4       2" in table(report(campaign))


def test_a_campaign_goes_on_from_its_record_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    tried, file = [], tmp_path / "torture.json"

    def held(scratch: Path) -> Outcome:
        tried.append("held")
        time.sleep(0.06)
        return Outcome("same", "as it was")

    parts = {"made-up": attacked(*[held] * 5), "inputs": attacked(held)}
    first = Campaign(parts, tmp_path / "here")
    first.run(cases=2)
    write(report(first), file)
    assert len(tried) == 3
    elsewhere = Campaign({"made-up": parts["made-up"]}, tmp_path / "clone", record=read(file))
    elsewhere.run()
    write(report(elsewhere, read(file), parts), file)
    assert len(tried) == 6  # the three that were left, and no other
    found = read(file)
    one, two = found["parts"]
    assert (tried_of(one), one["planned"], one["part"], one["said"]) == (5, 5, "made-up", {}) and one["seconds"] >= 5 * 0.06
    assert two == report(first)["parts"][1] and two["said"] == {"case 0": "as it was"}  # of a part that is shown case by case
    again = Campaign(parts, tmp_path / "third", record=found)
    again.run()
    assert len(tried) == 6 and sealed(report(again, found)) == found
    other = Campaign(parts, tmp_path / "third", seed=2, record=found)
    assert other.outcomes() == [] and report(other, found)["parts"] == found["parts"]  # of another seed: nothing to go on from, and nothing lost


def test_a_part_whose_cases_cannot_be_made_is_a_fault_and_ends_no_other(tmp_path):
    def cases(place, order):
        yield Case("the first", lambda scratch: Outcome("same"))
        raise OSError("no room to record anything")

    parts = {"broken": SimpleNamespace(TITLE="Broken", cases=cases), "made-up": attacked(*[lambda scratch: Outcome("same")] * 3)}
    campaign = Campaign(parts, tmp_path)
    campaign.run()
    broken, whole = report(campaign)["parts"]
    assert broken["verdicts"] == {"broke": ["its next case"], "same": ["the first"]} and tried_of(whole) == 3
    assert "no room to record anything" in broken["said"]["its next case"]


def test_work_that_was_finished_and_is_done_again_is_lost(tmp_path):
    write_run(tmp_path, "there", 1)
    before = finished(tmp_path)
    assert before and lost(before, tmp_path) == ""
    first, second, *_ = sorted(before)
    (tmp_path / first).unlink()
    manifest = json.loads((tmp_path / second).read_text())
    (tmp_path / second).write_text(json.dumps(manifest | {"finished": "2030-01-01T00:00:00"}))
    assert lost(before, tmp_path) == f"{first}, {second}"


def test_numbers_that_are_shown_without_their_file_have_to_be_those_with_it():
    assert told_otherwise("name,rate\n0,7.5\n", "name,rate\n0,3.1\n1,7.5\n") == ""
    assert told_otherwise("no campaign\n", "7 tried\n") == ""
    assert told_otherwise("name,rate\n0,7.6\n", "name,rate\n0,7.5\n") == "0,7.6"


def test_processes_share_the_cases(tmp_path):
    parts = {"made-up": attacked(*[lambda scratch: Outcome("same")] * 7)}
    for share in range(3):
        Campaign(parts, tmp_path, share=share, shares=3).run()
    lines = [file.read_text().count("\n") for file in sorted(tmp_path.glob("*/outcomes-*.jsonl"))]
    assert sorted(lines) == [2, 2, 3] and len(Campaign(parts, tmp_path).outcomes()) == 7


def test_the_book_shows_a_record_as_text(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    assert "No campaign has been recorded" in campaign()
    made = Campaign({"inputs": attacked(lambda scratch: Outcome("used", "<script>{{ 7 * 7 }}</script>"))}, tmp_path / "made")
    made.run()
    write(report(made), tmp_path / "torture.json")
    page = campaign()
    assert "| Made up | 1 | 1 | 1 used |" in page and "What did not hold" in page
    assert "<script>" not in page and "{{" not in page
    assert page.startswith("Recorded ") and "with seed 1" in page and "torch " in page and "Not recorded yet" not in page


def test_the_book_says_which_attacks_are_not_recorded_and_when_the_others_were(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    attacks = {name: attacked(lambda scratch: Outcome("same")) for name in ("kills", "states", "disk")}
    for number, name in enumerate(attacks):
        attacks[name].TITLE = f"Attack {number}"
    made = Campaign({"kills": attacks["kills"]}, tmp_path / "made")
    made.run()
    write(report(made, None, attacks), tmp_path / "torture.json")
    assert "| Attack 0 | 1 | 0 | 1 same |" in campaign() and "Not recorded yet: Attack 1; Attack 2." in campaign()
    later = report(Campaign({"disk": attacks["disk"]}, tmp_path / "made", seed=3), read(tmp_path / "torture.json"), attacks)
    part = later["parts"][0] | {"part": "disk", "commit": "abc1234", "seed": 3, "planned": None}
    write(later | {"parts": [*later["parts"], part]}, tmp_path / "torture.json")
    page = campaign()
    assert "Not recorded yet: Attack 1." in page and "| Attack 2 | 1 of more |" in page
    assert "- Attack 0: recorded" in page and "- Attack 2: recorded" in page and "at commit abc1234 with seed 3" in page


@pytest.mark.parametrize("part", ["kills", "inputs", "others", "judge", "stories", "hub"])
def test_cases_have_names_of_their_own_and_an_order_from_the_seed(tmp_path, part):
    def names(seed: int) -> list[str]:
        return [case.name for case in Campaign({part: PARTS[part]}, tmp_path, seed).planned(part)]

    assert len(set(names(1))) == len(names(1)) > 4 and names(1) == names(1) != names(2)


@pytest.mark.skipif(compiler() is None, reason="needs a C compiler")
def test_every_state_is_kept_and_a_disk_can_be_full_at_each(tmp_path):
    folder = tmp_path / "watched"
    folder.mkdir()
    states, operations = States(folder, tmp_path / "store"), []

    def keep(operation):
        operations.append(tuple(operation))
        return states.keep(operation)

    def ended(decide) -> subprocess.CompletedProcess:
        with watching(folder, decide) as variables:
            command = [sys.executable, "-c", PROGRAM, str(folder)]
            return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)

    assert ended(keep).returncode == 0
    kinds = ["mkdir", "open", "write", "write", "rename", "open", "write", "unlink", "rmdir"]
    assert [kind for kind, _ in operations] == kinds and ("write", "near") in operations
    assert len(states.known) == 8  # as many, but for the temporary file, of which a half is like the whole
    put(list(states.known.values())[-1], tmp_path / "store", tmp_path / "again")
    assert [path.name for path in sorted((tmp_path / "again").iterdir())] == ["a", "near"]
    (folder / "near").unlink()
    left = [5]

    def fill(operation):
        left[0] -= 1
        return GO if left[0] > 0 else FULL

    assert "No space left on device" in ended(fill).stderr and not (folder / "a" / "x").exists()

    def fail(operation):
        raise KeyError(operation.path)

    shutil.rmtree(folder / "a")
    with pytest.raises(KeyError, match="a"):
        ended(fail)
    assert (folder / "near").exists(), "who asked was told to go on"


@pytest.mark.slow
def test_a_sample_of_the_campaign(tmp_path):
    campaign = Campaign({name: PARTS[name] for name in SAMPLE}, tmp_path)
    campaign.run(minutes=SAMPLE_MINUTES, say=print)
    tried = campaign.outcomes()
    assert {outcome.part for outcome in tried} == set(SAMPLE)
    assert [outcome for outcome in tried if outcome.verdict not in HELD] == []
