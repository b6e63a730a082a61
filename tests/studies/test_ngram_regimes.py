"""The n-gram chains of every regime: made once, stored one by one, and the same again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.paths import project_root
from collapse_lib.experiment.regimes import Regime
from collapse_lib.studies import ngram_regimes
from collapse_lib.studies.ngram_regimes import ARMS, Arm, one_chain

FEW = {"replace": Arm(k=1, tokens=300, chains=2), "fresh": Arm(Regime("fresh"), k=1, tokens=300, chains=1)}


def test_chains_are_made_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    with pytest.raises(UserError, match=r"ngram_regimes\.run\(\)` makes it"):
        ngram_regimes.load()
    first = ngram_regimes.run({"replace": FEW["replace"]}, generations=3, workers=1)
    assert first.groupby("seed").size().to_dict() == {1: 4, 2: 4} and first["excess_loss"].notna().sum() == 6
    monkeypatch.setattr(ngram_regimes, "one_chain", one_chain_but_of_fresh)
    both = ngram_regimes.run(FEW, generations=3, workers=1)
    assert both[both["arm"] == "replace"].reset_index(drop=True).equals(first) and set(both["arm"]) == {"replace", "fresh"}
    assert first[first["seed"] == 2].reset_index(drop=True).equals(one_chain("replace", FEW["replace"], 2, 3))


def test_chains_of_another_kind_are_not_taken_for_these(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    few = Arm(k=1, tokens=300, chains=1)
    made = ngram_regimes.run({"replace": few}, generations=2, workers=1)
    for other, generations in ((Arm(k=1, tokens=400, chains=1), 2), (Arm(k=2, tokens=300, chains=1), 2), (few, 3)):
        with pytest.raises(UserError, match=r"has chains of 'replace' that are 2 generations of 300 tokens, contexts of 1 \(replace, .*delete it"):
            ngram_regimes.run({"replace": other}, generations=generations, workers=1)
    assert ngram_regimes.run({"replace": few}, generations=2, workers=1).equals(made) and not made.attrs


LONG = """
from collapse_lib.studies.ngram_regimes import Arm, run
if __name__ == "__main__":
    run({"replace": Arm(chains=4)}, workers=2)
"""


def at_work(tmp_path: Path) -> tuple[psutil.Popen, list[psutil.Process]]:
    """A process that makes chains, with its two workers."""
    (tmp_path / "chains.py").write_text(LONG)
    environment = os.environ | {"COLLAPSE_RUNS": str(tmp_path)}
    driver = psutil.Popen([sys.executable, str(tmp_path / "chains.py")], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while len(workers := [child for child in driver.children() if "spawn_main" in " ".join(child.cmdline())]) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)  # until they work, or wait for work
    return driver, workers


def test_a_worker_that_is_killed_is_explained(tmp_path):
    driver, workers = at_work(tmp_path)
    workers[0].kill()
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 1 and "UserError: A process of the n-gram chains was killed; what is done is in " in said


def test_workers_end_with_a_driver_that_is_killed(tmp_path):
    driver, workers = at_work(tmp_path)
    driver.kill()
    driver.wait()
    assert len(workers) == 2 and psutil.wait_procs(workers, timeout=120)[1] == []


def one_chain_but_of_fresh(name, arm, seed, generations):
    assert name == "fresh", "what there is is not made again"
    return one_chain(name, arm, seed, generations)


def test_the_table_in_the_checkout_is_what_the_arms_give(monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(project_root() / "papermill_runs"))
    table = ngram_regimes.load()
    assert set(table["arm"]) <= set(ARMS)
    chains = table.groupby(["arm", "seed"]).size()
    assert (chains == ngram_regimes.GENERATIONS + 1).all()
    kept = table[(table["arm"] == "quarter") & (table["seed"] == 1)].dropna(axis=1, how="all").reset_index(drop=True)
    again = one_chain("quarter", ARMS["quarter"], 1)
    assert list(kept.columns) == list(again.columns)
    assert all((kept[column].to_numpy() == again[column].to_numpy()).all() for column in ("arm", "seed", "generation", "tokens", "types", "contexts"))
    assert abs(kept["excess_loss"] - again["excess_loss"]).max() < 1e-3
