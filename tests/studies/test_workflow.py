"""Runs and studies under Snakemake: its rules are the table of steps, and what is done is what `collapse run` takes for done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import one_node_slurm
import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import Run
from collapse_lib.studies import workflow
from collapse_lib.studies.study import steps_wanted

ROOT = Path(__file__).resolve().parents[2]
STUDY = """\
name: two
description: Two chains of one generation, of as few steps as a study can have.
base: smoke
generations: 1
seeds: 2
arms: {replace: {sampling.sequences: 64, training.epochs: 1}}
measures: {loss: {metric: perplexity.perplexity, log: true, label: loss (nats a token)}}
equivalences: [{arm: replace, measure: loss, margin: 0.05, expectation: Chains this short do not move.}]
"""


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_runs_are_presets_and_stored_ones_by_name(runs):
    Run.create("mine", load_preset("smoke").with_changes({"seed": 7, "generations": 1}))
    found = workflow.targets({"runs": "mine, demo"})
    assert {name: target.run.protocol for name, target in found.items()} == {"mine": Run.open("mine").protocol, "demo": load_preset("demo")}
    assert not (runs / "demo").exists()  # looking at it makes nothing
    configured = workflow.targets({"runs": {"hot": {"preset": "smoke", "set": {"sampling.temperature": 1.2}, "generations": 3}, "mine": None}})
    assert configured["hot"].run.protocol == load_preset("smoke").with_changes({"sampling.temperature": 1.2, "generations": 3})
    workflow.begin(configured.values())
    assert Run.open("hot") == configured["hot"].run


def test_fewer_generations_than_a_stored_run_has_planned_are_what_is_made():
    Run.create("mine", load_preset("smoke").with_changes({"generations": 9}))
    asked = workflow.targets({"runs": {"mine": {"generations": 3}}})
    workflow.begin(asked.values())
    assert Run.open("mine") == asked["mine"].run and Run.open("mine").protocol.generations == 3


def test_a_study_is_its_chains_and_its_steps():
    found = workflow.targets({"studies": "smoke"})
    assert len(found) == 4 and all(target.chain.name == name for name, target in found.items())
    assert {step.name for target in found.values() for step in target.steps()} == {*found["smoke-replace-1"].chain.study.steps} - {"compose"}
    workflow.begin(found.values())
    assert json.loads((Run.open("smoke-warm-2").folder / "study.json").read_text())["arm"] == "warm"
    assert steps_wanted(Run.open("smoke-warm-2")) == found["smoke-warm-2"].chain.study.steps  # so that what no other step needs may go
    assert steps_wanted(Run.create("mine", load_preset("smoke"))) == tuple(STEPS)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "nothing to do"),
        ({"run": "demo"}, "no setting 'run'; it has device, processes, runs, studies"),
        ({"runs": "absent"}, "no preset 'absent'"),
        ({"studies": "absent"}, "no study 'absent'"),
        ({"runs": {"a": {"presets": "demo"}}}, "no setting 'presets'; it has generations, preset, set"),
        ({"runs": {"a/b": {"preset": "demo"}}}, "cannot be called"),
    ],
)
def test_what_a_configuration_cannot_ask_for_is_said(config, said):
    with pytest.raises(UserError, match=said):
        workflow.targets(config)


def test_a_step_waits_for_what_it_reads_and_for_nothing_else():
    run = workflow.targets({"runs": "smoke"})["smoke"].run

    def waits(generation, name):
        return {str(file.relative_to(run.folder)) for file in workflow.waits_for(run.step(generation, name))}

    assert waits(0, "corpus") == set()
    assert waits(1, "sample") == {"generation-01/manifests/train.json", "generation-00/manifests/corpus.json"}
    assert "generation-01/manifests/perplexity.json" not in waits(2, "train") >= {"generation-01/manifests/sample.json"}
    assert [file.name for file in workflow.done_when(run.step(1, "train"))] == ["train.json", "train.ipynb"]


def test_metrics_are_on_nobodys_way():
    smoke = load_preset("smoke")
    assert workflow.critical_steps(Run.proposed("a", smoke)) == {"corpus", "train", "sample"}
    mixed = smoke.with_changes({"regime.name": "accumulate"})
    assert workflow.critical_steps(Run.proposed("b", mixed)) == {"corpus", "train", "sample", "compose"}


def python_with(package):
    """A Python that has Snakemake, or its executor: the one of `make workflow`, if this one has not."""
    if find_spec(package):
        return sys.executable
    environment = ROOT / ".venv" / "workflow"
    if not list(environment.glob(f"lib/python*/site-packages/{package}")):
        pytest.skip(f"needs {package}: make workflow")
    return str(environment / "bin" / "python")


def snakemake(profile, config, runs, cwd, *more, **environment):
    command = [
        python_with("snakemake" if profile == "local" else "snakemake_executor_plugin_slurm"),
        "-m",
        "snakemake",
        "-s",
        str(ROOT / "workflow" / "Snakefile"),
        "--profile",
        str(ROOT / "workflow" / "profiles" / profile),
    ]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}", "COLLAPSE_RUNS": str(runs)} | environment
    return subprocess.run([*command, *more, "--config", *config], cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200, check=False)


def jobs_done(done):
    return done.stderr.count("Finished jobid") - 1  # rule `all` is one


@pytest.mark.slow
def test_a_study_goes_through_snakemake_and_takes_turns_with_collapse(runs, tmp_path):
    (tmp_path / "two.yaml").write_text(STUDY)
    config = [f"studies={tmp_path / 'two.yaml'}", "device=cpu"]
    done = snakemake("local", config, runs, tmp_path, "--cores", "2")
    assert done.returncode == 0, done.stderr
    assert jobs_done(done) == 2 * 5  # chains, each of which has one initial corpus and four steps of one generation
    by_hand = tmp_path / "by-hand"
    command = [sys.executable, "-m", "collapse_lib", "study", "run", str(tmp_path / "two.yaml"), "--device", "cpu", "--jobs", "2"]
    collapse = subprocess.run(command, env=os.environ | {"COLLAPSE_RUNS": str(by_hand)}, capture_output=True, text=True, check=False)
    assert collapse.returncode == 0, collapse.stderr
    for file in by_hand.glob("*/generation-*/metrics/*.json"):
        mine, theirs = (json.loads((folder / file.relative_to(by_hand)).read_text())["metrics"] for folder in (runs, by_hand))
        assert {name: value for name, value in mine.items() if "per_second" not in name} == {n: v for n, v in theirs.items() if "per_second" not in n}
    # What is newer, but the same, is not redone; a notebook that is gone is executed again, and its work is not.
    corpus = runs / "two-replace-1" / "generation-00" / "manifests" / "corpus.json"
    corpus.touch()
    first = runs / "two-replace-1" / "generation-01"
    (first / "train.ipynb").unlink()
    seconds = json.loads((first / "manifests" / "train.json").read_text())["finished"]
    done = snakemake("local", config, runs, tmp_path, "--cores", "2")
    assert done.returncode == 0 and jobs_done(done) == 1, done.stderr
    assert json.loads((first / "manifests" / "train.json").read_text())["finished"] == seconds
    # A run that somebody drives is left alone.
    (first / "manifests" / "perplexity.json").unlink()
    with Run.open("two-replace-1").exclusive():
        done = snakemake("local", config, runs, tmp_path, "--cores", "2", "--retries", "0")
        assert done.returncode == 1 and "in use by another process" in done.stderr
    assert snakemake("local", config, runs, tmp_path, "--cores", "2").returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(one_node_slurm.missing() is not None, reason=str(one_node_slurm.missing()))
def test_a_study_goes_through_slurm(runs, tmp_path):
    (tmp_path / "two.yaml").write_text(STUDY)
    options = ["--slurm-no-account", "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "5"]
    with tempfile.TemporaryDirectory() as short, one_node_slurm.one_node(Path(short)) as environment:
        config = [f"studies={tmp_path / 'two.yaml'}", "device=cpu"]
        done = snakemake(
            "slurm", config, runs, tmp_path, "--jobs", "2", "--set-resources", "train:mem_mb=2000", "sample:mem_mb=2000", *options, **environment
        )
    assert done.returncode == 0, done.stderr
    assert jobs_done(done) == 2 * 5
    assert all(step.is_finished() for target in workflow.targets({"studies": str(tmp_path / "two.yaml")}).values() for step in target.steps())
