"""The rules of bands and fates, applied to the numbers of made-up runs."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_runs import EVALUATED, write_run

from collapse_lib.experiment.files import write_text
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.metrics.null_band import fresh_band, within_run_band
from collapse_lib.studies import results
from collapse_lib.studies.fates import departures, fate_of, fresh_chains, null_band


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    write_run(tmp_path, "chain", 5, steps=EVALUATED)
    return tmp_path


def fresh(root, name, seed, **corpus):
    folder = write_run(root, name, 5, steps=EVALUATED)
    fields = {"corpus": {"stories": 10} | corpus, "generations": 5, "seed": seed, "regime": {"name": "fresh"}}
    write_text(folder / "protocol.yaml", Protocol.from_fields(fields).to_yaml())


def test_alone_a_run_is_held_against_its_own_noise(runs):
    table = results.load("chain")
    points = results.metric(table, "chain", "self_bleu")
    band, expected = null_band(table, "chain", "self_bleu"), within_run_band(points["value"], points["standard_error"])
    assert band.source == "within run" and np.array_equal(band.low, expected.low) and np.array_equal(band.high, expected.high)
    assert (fate := fate_of(table, "chain")).label == "dissolving" and fate.dissolving == (2, 3, 4, 5) and fate.source == "within run"


def test_fresh_chains_of_the_same_protocol_give_the_band(runs):
    fresh(runs, "null-1", seed=11)
    fresh(runs, "null-2", seed=12)
    fresh(runs, "larger", seed=13, stories=20)
    table = results.load("chain,null-1,null-2,larger")
    assert fresh_chains(table, "chain") == ["null-1", "null-2"] and fresh_chains(table, "null-1") == ["null-2"]
    values = [results.metric(table, name, "self_bleu")["value"] for name in ("null-1", "null-2")]
    band, expected = null_band(table, "chain", "self_bleu"), fresh_band(values, 5)
    assert band.source == "fresh" and np.array_equal(band.low, expected.low)
    assert fate_of(table, "chain").label == "neither"  # for the made-up fresh chains go the same way
    half = table[(table["metric"] != "block_distinct_2") | (table["run"] == "chain")]
    assert fate_of(half, "chain") is None  # one band of fresh chains, one of the run itself


def test_a_measure_with_a_gap_or_without_errors_has_no_band(runs):
    table = results.load("chain")
    gap = table[~((table["metric"] == "conditional_entropy") & (table["generation"] == 3))]
    assert null_band(gap, "chain", "conditional_entropy") is None and fate_of(gap, "chain") is None
    without = table.assign(standard_error=table["standard_error"].where(table["metric"] != "self_bleu"))
    assert null_band(without, "chain", "self_bleu") is None
    assert {departure.measure for departure in departures(without, "chain")} == {d.measure for d in departures(table, "chain")} - {"self_bleu"}


def test_departures_come_in_their_order(runs):
    found = departures(results.load("chain"), "chain")
    keys = [(departure.generation, departure.tokens) for departure in found if departure.generation]
    assert keys == sorted(keys) and found[0].generation == 2 and len(found) == 8
    assert {departure.measure: departure.side for departure in found}["context_information"] == -1
