"""Kill anything at any moment: the next `collapse run` carries on and ends with the same metrics, bit for bit."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from .conftest import ROOT, collapse
from .test_smoke import measured

# Where to strike: something that appears in the run's folder in the middle of a step.
MOMENTS = {
    "learning the initial corpus": "generation-00/corpus.lock",
    "training, after a checkpoint": "generation-01/checkpoint/*",
    "training done, model not yet recorded": "generation-01/model/model.safetensors",
    "sampling, after two shards": "generation-01/corpus/shard-00001.arrow",
    "between sampling and its record": "generation-01/corpus/corpus.json",
    "measuring perplexity": "generation-01/perplexity.lock",
    "counting words": "generation-01/free_text.lock",
    "training the second generation": "generation-02/checkpoint/*",
}


def start(runs):
    return subprocess.Popen(
        [sys.executable, "-m", "collapse_lib.cli", "run", "smoke"],
        env=os.environ | {"COLLAPSE_RUNS": str(runs)},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def strike(driver, runs, moment, whom):
    """Wait for the moment, then SIGKILL the kernel, the driver, or both."""
    deadline = time.monotonic() + 120
    while not list((runs / "smoke").glob(moment)):
        assert driver.poll() is None, "the run ended before its moment came"
        assert time.monotonic() < deadline, f"{moment} never appeared"
        time.sleep(0.002)
    kernels = [child for child in psutil.Process(driver.pid).children(recursive=True) if "ipykernel" in " ".join(child.cmdline())]
    victims = {"kernel": kernels, "driver": [driver], "both": [driver, *kernels]}[whom]
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
    return driver.wait(timeout=60)


def test_a_run_killed_at_every_turn_ends_as_an_unbroken_one(finished_runs, tmp_path):
    log = []
    for index, (name, moment) in enumerate(MOMENTS.items()):
        for whom in ("driver", "kernel") if index % 2 else ("both",):  # odd moments: twice in a row
            status = strike(start(tmp_path), tmp_path, moment, whom)
            log.append(f"{name}: killed {whom}, collapse ended with {status}")
            assert status == (1 if whom == "kernel" else -signal.SIGKILL), log
    done = collapse("run", "smoke", runs=tmp_path)
    print("\n".join([*log, done.stdout]))
    assert done.returncode == 0, done.stderr
    assert measured(tmp_path / "smoke") == measured(finished_runs / "smoke")
    left = [path.name for path in (tmp_path / "smoke").rglob("*") if ".tmp" in path.name or path.name == "checkpoint"]
    assert left == []


def test_a_second_driver_is_refused(finished_runs, tmp_path):
    first = start(tmp_path)
    try:
        while not (tmp_path / "smoke" / "generation-00" / "corpus.lock").exists():
            assert first.poll() is None
            time.sleep(0.01)
        second = collapse("run", "smoke", runs=tmp_path)
        assert second.returncode == 2 and f"in use by another process (pid {first.pid})" in second.stderr
        assert "a process works on it now" in collapse("status", "smoke", runs=tmp_path).stdout
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize("stop", [signal.SIGINT])
def test_an_interrupted_run_says_how_to_go_on(tmp_path, stop):
    process = subprocess.Popen(
        [sys.executable, "-m", "collapse_lib.cli", "run", "smoke"],
        env=os.environ | {"COLLAPSE_RUNS": str(tmp_path)},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while not (tmp_path / "smoke" / "generation-00" / "corpus.lock").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.count("\n") <= 2 and "goes on from here" in errors
