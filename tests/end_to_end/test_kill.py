"""Kill anything at any moment: the next `collapse run` carries on and ends with the same metrics, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from command import ROOT, collapse

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


def start(runs, **options):
    # A shell's background jobs ignore Ctrl-C, and so would their children; a user's terminal does not.
    return subprocess.Popen(
        [sys.executable, "-m", "collapse_lib.cli", "run", "smoke"],
        env=os.environ | {"COLLAPSE_RUNS": str(runs)},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **{"stderr": subprocess.DEVNULL} | options,
    )


def wait_for(condition, driver, what):
    """Poll until the condition gives something true, and return that."""
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert driver.poll() is None, f"the run ended before {what}"
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.002)
    return found


def kernels_at_work(driver, runs):
    """The driver's kernels that hold the lock of some step."""
    holders = {path.read_text() for path in (runs / "smoke").glob("generation-*/*.lock")}
    children = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
    return [child for child in children if str(child.pid) in holders]


def strike(driver, runs, moment, whom):
    """Wait until the moment has come and a kernel is at work, then SIGKILL the kernel, the driver, or both."""
    wait_for(lambda: list((runs / "smoke").glob(moment)), driver, moment)
    kernels = wait_for(lambda: kernels_at_work(driver, runs), driver, "a kernel at work")
    for victim in {"kernel": kernels, "driver": [driver], "both": [driver, *kernels]}[whom]:
        os.kill(victim.pid, signal.SIGKILL)
    return driver.wait(timeout=60)


@pytest.mark.slow
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


@pytest.mark.slow
def test_papermill_killed_by_itself_leaves_a_run_that_goes_on(finished_runs, tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    shutil.copytree(finished_runs / "smoke", tmp_path / "smoke", ignore=shutil.ignore_patterns("generation-02"))
    folder = tmp_path / "smoke" / "generation-02"
    folder.mkdir()
    arguments = ["notebooks/steps/train.ipynb", str(folder / "train.ipynb"), "-p", "run", "smoke", "-p", "generation", "2", "-k", "python3"]
    papermill = subprocess.Popen([sys.executable, "-m", "papermill", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(folder.glob("checkpoint/*")), papermill, "a checkpoint")
    papermill.kill()
    papermill.wait()
    done = collapse("run", "smoke", runs=tmp_path)
    assert done.returncode == 0, done.stderr
    assert measured(tmp_path / "smoke") == measured(finished_runs / "smoke")


def test_a_second_driver_is_refused(tmp_path):
    first = start(tmp_path)
    try:
        wait_for(lambda: kernels_at_work(first, tmp_path), first, "a kernel at work")
        protocol = (tmp_path / "smoke" / "protocol.yaml").read_bytes()
        for more in ([], ["--set", "sampling.temperature=2.0"]):
            second = collapse("run", "smoke", *more, runs=tmp_path)
            assert second.returncode == 2 and f"in use by another process (pid {first.pid})" in second.stderr
        assert (tmp_path / "smoke" / "protocol.yaml").read_bytes() == protocol
        assert "a process works on it now" in collapse("status", "smoke", runs=tmp_path).stdout
    finally:
        first.kill()
        first.wait()


def test_an_interrupted_run_says_how_to_go_on(tmp_path):
    driver = start(tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: kernels_at_work(driver, tmp_path), driver, "a kernel at work")
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130 and errors.count("\n") <= 2 and "goes on from here" in errors
