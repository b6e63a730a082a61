"""Listing runs and deleting one, on made-up runs; JSON for programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from synthetic_runs import write_run

from collapse_lib import cli
from collapse_lib.cli.arguments import wanted_protocol
from collapse_lib.experiment import inventory
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import sealed, write_json
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.paths import run_names
from collapse_lib.experiment.protocol import Protocol, load_preset, preset_names
from collapse_lib.experiment.run import Run
from collapse_lib.studies import results, workflow
from collapse_lib.studies.study import steps_wanted


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture
def made_up(runs):
    """Three runs: ``whole``; ``half`` of a preset's, two of its three generations whole; ``torn``, whose protocol cannot be read."""
    for name, generations in (("whole", 2), ("half", 3), ("torn", 1)):
        for file in write_run(runs, name, generations).glob("generation-*/manifests/train.json"):
            for step in ("alpha", "exact", "texture", "continuations"):
                file.with_name(f"{step}.json").write_text(file.read_text().replace('"train"', f'"{step}"'))
    smoke = load_preset("smoke").with_changes({"completions.every": None, "classification.tasks": []})
    (runs / "half" / "protocol.yaml").write_text(smoke.with_changes({"generations": 3}).to_yaml())
    (runs / "whole" / "protocol.yaml").write_text(smoke.with_changes({"description": "mine"}).to_yaml())
    (runs / "half" / "generation-03" / "manifests" / "free_text.json").unlink()
    (runs / "torn" / "protocol.yaml").write_text("generations: [1")
    return runs


def printed(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_every_run_is_listed_with_how_far_it_is(made_up, capsys):
    listed = {entry["name"]: entry for entry in json.loads(printed(capsys, "list", "--json"))}
    assert {name: (entry["finished"], entry["planned"], entry["preset"]) for name, entry in listed.items()} == {
        "whole": (2, 2, None),
        "half": (2, 3, "smoke"),
        "torn": (0, None, None),
    }
    assert "torn/protocol.yaml" in listed["torn"]["problem"] and listed["whole"]["problem"] is None
    lines = printed(capsys, "list").splitlines()
    rows = {line.split()[0]: line for line in lines[1:]}
    assert "2 of 3" in rows["half"] and "smoke" in rows["half"] and "2 of 2" in rows["whole"] and "unreadable" in rows["torn"]


def test_a_list_of_no_runs_says_how_to_make_one(capsys):
    assert "collapse run demo" in printed(capsys, "list") and json.loads(printed(capsys, "list", "--json")) == []


def test_size_is_what_deleting_frees(made_up):
    before = inventory.run("whole").size
    (made_up / "whole" / "model").write_bytes(bytes(range(256)) * 4096)
    assert inventory.run("whole").size == pytest.approx(before + 2**20, rel=0.01)


@pytest.mark.parametrize("name", ["whole", "torn"])
def test_a_run_is_deleted_when_that_is_confirmed(made_up, capsys, name):
    said = printed(capsys, "rm", name, "--yes")
    assert str(made_up / name) in said and f"deleted run {name}" in said
    assert sorted(path.name for path in made_up.iterdir()) == sorted({"whole", "half", "torn"} - {name})


@pytest.mark.parametrize(("answer", "goes"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False), ("", False)])
def test_deleting_asks(made_up, answer, goes):
    command = [sys.executable, "-m", "collapse_lib", "rm", "whole"]
    done = subprocess.run(command, input=answer, capture_output=True, text=True, check=False)
    assert "2 of 2 generations" in done.stdout and "delete it? [y/N]" in done.stdout
    assert (made_up / "whole").exists() != goes
    assert done.returncode == (2 if answer == "" else 0)
    assert ("--yes" in done.stderr) == (answer == "")


@pytest.mark.parametrize("name", ["absent", "newest", "all", "..", "../runs/whole"])
def test_only_a_run_called_by_its_name_is_deleted(made_up, capsys, name):
    assert cli.main(["rm", name, "--yes"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and len(list(made_up.iterdir())) == 3


def test_a_run_that_is_driven_is_not_deleted(made_up, capsys):
    run = Run.open("whole")
    with run.exclusive():
        assert [entry.name for entry in inventory.runs() if entry.driven] == ["whole"]
        assert "a process works on it now" in printed(capsys, "list")
        assert cli.main(["rm", "whole", "--yes"]) == 2 and "in use by another process" in capsys.readouterr().err
        entry = inventory.run("half")
        with Run.open("half").exclusive(), pytest.raises(UserError, match="in use by another process"):
            inventory.remove(entry)  # begun since it was looked at
    assert len(list(made_up.iterdir())) == 3


def test_status_for_a_program(made_up, capsys):
    report = json.loads(printed(capsys, "status", "half", "--json"))
    assert (report["run"], report["driven"], report["working"]) == ("half", False, None)
    states = {row["generation"]: {name: step["state"] for name, step in row["steps"].items()} for row in report["generations"]}
    assert states[3]["free_text"] == "missing" and states[3]["train"] == "notebook missing" and states[0]["corpus"] == "notebook missing"
    assert report["steps"] == sum(map(len, states.values())) and report["finished"] == 0


def test_status_of_many_runs_is_a_line_each(made_up, capsys):
    lines = {line.split()[0]: line for line in printed(capsys, "status").splitlines()}
    assert lines.keys() == {"run", *run_names(), "together"} and "unreadable" in lines["torn"] and "torn/protocol.yaml" in lines["torn"]
    assert " ".join(lines["half"].split()) == "half 24 of 25 1.5 s 3 of 3 3 of 3" and lines["whole"].split()[4] == "-"
    steps = [int(words[column]) + int(others[column]) for column in (1, 3) for words, others in [(lines["half"].split(), lines["whole"].split())]]
    assert " ".join(lines["together"].split()).startswith(f"together {steps[0]} of {steps[1]} 1.5 s ")
    found = {report["run"]: report for report in json.loads(printed(capsys, "status", "half", "whole", "--json"))}
    assert (found["half"]["done"]["free_text"], found["half"]["planned"]["free_text"]) == (2, 3)
    assert found["half"]["steps"] - found["half"]["finished"] == sum(found["half"]["planned"].values()) - sum(found["half"]["done"].values())
    assert found["half"]["seconds_left"] == 1.5 and found["whole"]["seconds_left"] == 0
    assert cli.main(["status", "half", "torn"]) == 2


def test_the_time_left_is_that_of_the_same_steps_before(made_up):
    known = {"generations": 4, "completions.every": None, "classification.tasks": [], "corpus.source": "stories.txt", "corpus.stories": 10}
    (made_up / "half" / "protocol.yaml").write_text(load_preset("smoke").with_changes(known).to_yaml())
    run = Run.open("half")
    assert inventory.standing(Run(run.folder, run.protocol.with_changes({"completions.every": 1}))).seconds_left is None  # which nothing has timed
    seconds = {"train": 20.0, "sample": 30.0, "perplexity": 1.0, "free_text": 2.0, "alpha": 0.5, "texture": 0.25, "continuations": 0.25}
    for step in run.steps():
        if step.generation in (1, 2):
            slower = seconds[step.name] * step.generation
            own = {"step": step.name, "generation": step.generation, "seconds": slower}
            write_json(step.manifest_file, sealed(Run.open("half").step(1, "train").manifest() | own))
        elif step.generation > 2:
            step.manifest_file.unlink(missing_ok=True)
    assert inventory.standing(run).seconds_left == pytest.approx(2 * 1.5 * sum(seconds.values()))
    with run.step(3, "train").exclusive():
        write_json(run.step(3, "train").progress_file, {"n": 30, "total": 120})
        assert inventory.standing(run).working == ["train of 3 (25%)"] and run.is_driven()
    assert not run.is_driven()


def test_presets_for_a_program(capsys):
    assert [preset["name"] for preset in json.loads(printed(capsys, "presets", "--json"))] == preset_names()
    assert Protocol.from_fields(json.loads(printed(capsys, "presets", "demo", "--json"))) == load_preset("demo")
    fields = {field["name"]: field for field in json.loads(printed(capsys, "presets", "--fields", "--json"))}
    assert fields.keys() == load_preset("demo").flat().keys() and fields["sampling.temperature"]["default"] == 1.0


@pytest.mark.parametrize("module", ["collapse_lib", "collapse_lib.cli"])
def test_the_library_is_the_command(module):
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("collapse ")


def test_help_costs_no_heavy_import():
    program = (
        "import sys; from collapse_lib.cli import _parser; _parser().format_help(); "
        "sys.exit(bool({'torch', 'pydantic', 'pandas', 'argcomplete'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_run_named_like_its_preset_keeps_its_own_protocol():
    """ "collapse run smoke" goes on with it, as `collapse status smoke` says: with the preset's values it would be another run."""
    Run.create("smoke", load_preset("smoke").with_changes({"sampling.temperature": 1.5}))

    def temperature(*more: str) -> float:
        options = cli._parser().parse_args(["run", "smoke", *more])
        return wanted_protocol(options).sampling.temperature

    assert temperature() == temperature("--name", "smoke") == 1.5
    assert temperature("--set", "sampling.temperature=2") == 2.0
    assert temperature("--name", "another") == 1.0, "which is begun as the preset"


def test_a_copy_of_a_folder_or_of_a_manifest_is_no_result(runs):
    whole = write_run(runs, "whole", 2)
    before = results.load("whole")
    shutil.copytree(whole / "generation-01", whole / "generation-01.bak")
    shutil.copy(whole / "generation-01" / "manifests" / "train.json", whole / "generation-01" / "manifests" / "train (1).json")
    assert results.load("whole").equals(before)
    assert cli.main(["list"]) == 0 and cli.main(["status", "whole"]) == 0
    Run.create("whole", Run.open("whole").protocol.with_changes({"generations": 5}))


def test_a_studys_chain_is_made_in_its_studys_way_whoever_makes_it(runs, monkeypatch):
    seen = []

    def advance(run, device, only, processes):
        seen.append((only, os.environ["OMP_NUM_THREADS"]))
        return []

    monkeypatch.setattr("collapse_lib.experiment.execute.advance", advance)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    workflow.begin(workflow.targets({"studies": "smoke"}).values(), "cpu")
    steps = steps_wanted(Run.open("smoke-warm-1"))
    for name, expected in (("smoke-warm-1", (steps, "1")), ("smoke", (tuple(STEPS), "2"))):
        assert cli.main(["run", name, "--device", "cpu"]) == 0
        assert seen.pop() == expected
