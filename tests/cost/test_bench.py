"""The bench times both sides, checks that they agree, and says so when they do not."""

from __future__ import annotations

import json
from typing import get_args, get_type_hints

import numpy as np
import pytest

from collapse_lib import cli
from collapse_lib.cost import bench
from collapse_lib.cost.bench import free_text, ngram, perplexity, records, sampling, training
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import sealed
from collapse_lib.experiment.machine import bf16_units
from collapse_lib.experiment.paths import project_root
from collapse_lib.experiment.shapes import BenchReport
from collapse_lib.figures import speed
from collapse_lib.model.weightless import without_weights


@pytest.mark.slow
@pytest.mark.parametrize("config", ["demo", "3.7m"])
def test_a_bench_reports_rates_ratios_memory_and_checks(config: str, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    assert cli.main(["bench", "sampling", "--config", config, "--device", "cpu", "--rounds", "1", "--length", "4", "--output", str(file)]) == 0
    shown = capsys.readouterr().out
    report = json.loads(shown.splitlines()[-1])
    assert sealed(report) == json.loads(file.read_text())
    ours, *baselines = report["sides"].values()
    assert len(baselines) == (4 if bf16_units() else 2) and all(side["rate"] > 0 and side["peak_memory_bytes"] > 2**26 for side in (ours, *baselines))
    for name, ratio in report["ratios"].items():
        rival = report["sides"]["ours, bf16"] if name.endswith("bf16") else ours
        assert ratio["median"] == pytest.approx(rival["rate"] / report["sides"][name]["rate"])
    assert ("bf16_gain" in report) == bool(bf16_units())
    assert bench.is_equivalent(report) and len(report["checks"]) == 2 * len(baselines)
    assert all(0 < limit["share"] < 1.5 for limit in report["floors"])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["training", "perplexity", "free-text", "ngram"])
def test_every_bench_finds_both_sides_equal(what: str) -> None:
    report = bench.bench(what, "demo", "cpu", rounds=1)
    assert bench.is_equivalent(report), report["checks"]


def test_every_configuration_is_known_everywhere(tmp_path) -> None:
    by_config = (bench.VOCABULARY, sampling.OUR_BATCH, perplexity.MEAN_TOKENS, ngram.TOKENS)
    by_device = (sampling.LENGTH, training.STEPS, perplexity.STORIES)
    tables = [*by_config, *(table[device] for table in by_device for device in ("cpu", "cuda"))]
    assert all(list(table) == list(bench.CONFIGS) for table in tables)
    shape = get_type_hints(BenchReport)
    assert get_args(shape["config"]) == tuple(bench.CONFIGS) and get_args(shape["bench"]) == bench.BENCHES
    models = [without_weights(bench.Setup(config, "cpu", None, tmp_path).model_config) for config in bench.CONFIGS]
    parameters = [sum(weights.numel() for weights in model.parameters()) for model in models]
    assert parameters[1:] == [3_745_984, 3_697_408, 68_514_048]


THEIRS = ([3.0, 2.6], [3.0], [3.0, 2.5])  # other losses, fewer steps, the same


def test_sides_that_differ_are_called_so(tmp_path) -> None:
    setup = bench.Setup("demo", "cpu", None, tmp_path)
    passed = [
        check["passed"]
        for losses in THEIRS
        for check in training.checks(setup, {"losses": [3.0, 2.5]}, {"losses": losses, "batch": 8, "precision": "fp32"})
    ]
    assert passed == [False, False, True]
    assert [check["passed"] for check in perplexity.checks(setup, (2.0, 10, "fp32"), (2.0, 11, "fp32"))] == [False]
    assert [check["passed"] for check in free_text.checks(setup, (1.0, 5, 1, 1), (1.0, 5, 1, 2))] == [True, False]
    assert [check["passed"] for check in ngram.checks(setup, ("a", 7, 2.0), ("b", 7, 2.1))] == [False, True, False]


def test_samples_of_another_distribution_are_noticed(tmp_path) -> None:
    setup = bench.Setup("demo", "cpu", 8, tmp_path)
    bench.save_model(setup)
    work = sampling.ours(setup)()
    uniform = np.random.default_rng(1).integers(0, 1280, work.outcome["tokens"].shape)
    twisted = {"tokens": uniform, "logits": work.outcome["logits"] + 1, "batch": 200, "bf16": False}
    found = sampling.checks(setup, work.outcome, twisted)
    assert [check["passed"] for check in found] == [False, False]


@pytest.mark.parametrize(("arguments", "sentence"), [(("dance",), "no bench 'dance'"), (("sampling", "7b"), "no bench configuration '7b'")])
def test_what_there_is_not(arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        bench.bench(*arguments)


def test_a_folder_that_is_not_there_is_noticed_before_the_work(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "sampling", "--output", str(tmp_path / "no" / "report.json")]) == 2
    assert "There is no folder" in capsys.readouterr().err


def test_the_worker_passes_errors_on(tmp_path) -> None:
    setup = bench.Setup("demo", "cpu", None, tmp_path)  # without the model that the side needs
    with bench._worker(bench.Side("ours", sampling.ours), setup) as ask, pytest.raises(UserError, match=r"no config\.json"):
        ask("work")


def test_recorded_reports_become_tables_and_a_figure(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    assert records.recorded() == []
    (tmp_path / "bench").mkdir()
    for config, rate in (("33m", 50.0), ("1m", 400.0)):
        report = {
            "bench": "sampling",
            "config": config,
            "device": "a device",
            "date": "2026-01-01T00:00:00",
            "unit": "tokens",
            "sides": {"ours": {"rate": rate, "peak_memory_bytes": 2**20}, "theirs": {"rate": rate / 4, "peak_memory_bytes": 2**21}},
            "ratios": {"theirs": {"median": 4.0, "least": 3.0, "most": 5.0}},
            "floors": [{"name": "memory", "measured": "a copy", "limit_rate": 2 * rate, "share": 0.5}],
            "checks": [bench.check("the same", True)],
        }
        (tmp_path / "bench" / f"{config}.json").write_text(json.dumps(report))
    reports = records.recorded()
    assert [report["config"] for report in reports] == ["1m", "33m"]
    table = records.rates(reports)
    assert table["tokens/s"].tolist() == ["400", "100", "50", "12"] and table["ours is faster by"].tolist()[1] == "4.00x (3.00 to 5.00)"
    assert records.limits(reports)["share"].tolist() == ["50%", "50%"] and set(records.checks(reports)["same"]) == {"yes"}
    assert records.gains(reports).empty
    picture = speed.ratios(reports)
    assert all("4.0×" in drawn and "33m" in drawn for drawn in (picture.svg, picture.narrow_svg)), "a phone has a drawing of its own"
    sound = sealed(report)
    (tmp_path / "bench" / "33m.json").write_text(json.dumps(sound))
    assert records.recorded()[1] == sound
    (tmp_path / "bench" / "33m.json").write_text(json.dumps(sound | {"unit": "words"}))
    with pytest.raises(UserError, match=r"33m\.json was damaged or changed by hand"):
        records.recorded()


def test_the_reports_in_the_checkout_are_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLLAPSE_RUNS", str(project_root() / "papermill_runs"))
    found = records.recorded()
    assert len(found) >= 10 and all("sha256" in report for report in found)
    gains = records.gains(found).set_index("bench")
    assert len(gains) == 12 and float(gains.loc["training, 33m", "bf16 is faster by"].partition("x")[0]) > 1.5
    picture = speed.ratios(found)  # a bar a precision, against the best of the others that multiply in it
    assert "products in bf16" in picture.svg and "free-text, demo" in picture.narrow_svg
