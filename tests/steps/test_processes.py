"""Processes that share a step: the same numbers as one process, and one sentence when one of them is killed or hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pyarrow as pa
import pytest

from collapse_lib import steps
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.processes import ALONE, PATIENCE_VARIABLE, process_count
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import Run
from collapse_lib.steps.worker import WORK

RATES = {"tokens_per_second"}  # what a clock decides


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in which one process has done everything that several can share; the untrained model has a generation too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLAPSE_RUNS", str(tmp_path_factory.mktemp("runs")))
        protocol = load_preset("smoke").with_changes(
            {"corpus.stories": 60, "training.epochs": 1, "sampling.sequences": 288, "sampling.shard_sequences": 48, "generations": 1}
        )
        run = Run.create("shared", protocol)
        steps.corpus(run)
        for name in ("train", "sample", "perplexity", "completions"):
            getattr(steps, name)(run, 1, "cpu")
        yield run


def measured(results):
    return {name: metric for name, metric in results["metrics"].items() if name not in RATES}


def again(run, name, processes):
    """The step done once more, by so many processes, from nothing."""
    step = run.step(1, name)
    step.drop()
    return getattr(steps, name)(run, 1, "cpu", processes)


def rows(run):
    """The rows of each shard, whatever its schema says of where it belongs."""
    files = (run.generation_folder(1) / "corpus").glob("*.arrow")
    return {path.name: pa.ipc.open_stream(path.read_bytes()).read_all()["input_ids"].to_pylist() for path in files}


def shards(run):
    return {path.name: path.read_bytes() for path in (run.generation_folder(1) / "corpus").glob("*.arrow")}


def test_the_table_says_which_work_can_be_shared():
    assert {name for name, kind in STEPS.items() if kind.divisible} == WORK.keys()


@pytest.mark.parametrize("name", ["sample", "perplexity", "completions"])
def test_two_processes_come_to_the_same_bits(run, name, capsys):
    step = run.step(1, name)
    expected, outputs, corpus = step.results(), step.output_hashes(), shards(run)
    assert len(corpus) == 6  # three for each process
    found = again(run, name, 2)
    assert measured(found) == measured(expected) and found["examples"] == expected["examples"]
    assert step.output_hashes() == outputs and shards(run) == corpus
    assert step.manifest()["processes"] == 2
    shown = capsys.readouterr().out
    assert ("100%" in shown) == (name != "completions") and shown.count("\n") <= 3, shown  # a bar a loop, not one a process


def test_two_processes_train_to_the_same_loss(run):
    expected = run.step(1, "train").results()
    found = again(run, "train", 2)
    for name, metric in measured(expected).items():
        assert found["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-5), name
    assert len(found["series"]["loss_curve"]) == len(expected["series"]["loss_curve"]) > 10
    assert not (run.generation_folder(1) / "checkpoint").exists()


@pytest.mark.parametrize(
    ("signal_sent", "said"),
    [(signal.SIGKILL, "Process 2 of 2 of step sample .* was killed by signal 9"), (signal.SIGSTOP, "2 processes .* hung: none")],
)
def test_a_process_that_is_killed_or_hangs_ends_the_step_and_the_next_call_goes_on(run, monkeypatch, signal_sent, said):
    step = run.step(1, "sample")
    corpus = rows(run)
    step.drop()
    longer = Run.create(run.name, run.protocol.with_changes({"sampling.sequences": 48 * 40}))  # long enough to be struck at

    def strike():
        deadline = time.monotonic() + 300
        while not list((step.folder / "corpus").glob("*.arrow")) and time.monotonic() < deadline:
            time.sleep(0.01)
        second = next(child for child in psutil.Process().children() if child.environ().get("RANK") == "1")
        second.send_signal(signal_sent)
        if signal_sent == signal.SIGSTOP:
            monkeypatch.setenv(PATIENCE_VARIABLE, "5")  # not from the beginning: a busy machine may take longer to start

    striker = threading.Thread(target=strike)
    striker.start()
    with pytest.raises(UserError, match=said):
        steps.sample(longer, 1, "cpu", 2)
    striker.join()
    assert not [child for child in psutil.Process().children() if "RANK" in child.environ()]
    assert step.manifest() is None
    kept = {path: path.stat().st_mtime_ns for path in (step.folder / "corpus").glob("*.arrow")}
    assert kept
    steps.sample(longer, 1, "cpu", 1)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert {name: found for name, found in rows(run).items() if name in corpus} == corpus
    step.drop()
    Run.create(run.name, run.protocol)
    again(run, "sample", 1)


@pytest.mark.slow
def test_no_process_outlives_whoever_started_it(run):
    step = run.step(1, "sample")
    corpus = shards(run)
    step.drop()
    program = f"from collapse_lib import steps; from collapse_lib.experiment.run import Run; steps.sample(Run.open({run.name!r}), 1, 'cpu', 2)"
    kernel = psutil.Popen([sys.executable, "-c", program], env=os.environ | {"COLLAPSE_RUNS": str(run.folder.parent)}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(workers := [child for child in kernel.children() if "RANK" in child.environ()]) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(1)  # until they listen
    kernel.kill()
    kernel.wait()
    assert len(workers) == 2 and psutil.wait_procs(workers, timeout=60)[1] == []
    steps.sample(run, 1, "cpu", 2)
    assert shards(run) == corpus


def test_what_one_process_refuses_is_said_once(run):
    uneven = Run.create("uneven", run.protocol.with_changes({"training.batch_size": 15}))
    steps.corpus(uneven)
    with pytest.raises(UserError, match=r"^training.batch_size = 15 cannot be shared evenly by 2 processes; use a number of them that divides it.$"):
        steps.train(uneven, 1, "cpu", 2)
    assert not list((uneven.generation_folder(1) / "manifests").glob("*"))


@pytest.mark.parametrize("processes", [-1, 1.5, "two", None])
def test_a_number_of_processes_that_cannot_be_is_refused(processes):
    with pytest.raises(UserError, match="number of processes is a whole number"):
        process_count(processes, "cpu")


def test_nought_processes_are_one_where_there_is_no_gpu():
    assert (process_count(0, "cpu"), process_count(3, "cpu"), process_count(1, "no such device")) == (1, 3, 1)


def test_a_process_alone_shares_with_nobody():
    assert ALONE.is_main and ALONE.agree(7) == 7 and list(ALONE.spread("abc", str.upper)) == list("ABC")
    with ALONE.progress(3, "token", "reading", initial=1) as bar:
        bar.update(2)
    assert bar.n == 3
