"""The tidy table and its formats, on made-up runs."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from synthetic_runs import write_run

from collapse_lib import cli
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_json, write_json
from collapse_lib.studies import results


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    write_run(tmp_path, "alpha", 3)
    write_run(tmp_path, "beta", 2)
    return tmp_path


def test_one_row_a_number():
    table = results.load("alpha")
    assert list(table.columns) == results.COLUMNS
    assert len(table) == 2 + 3 * (2 + 1 + 1 + 4)
    row = table[(table["generation"] == 2) & (table["metric"] == "perplexity")].iloc[0]
    assert (row["run"], row["step"], row["unit"]) == ("alpha", "perplexity", "1")
    assert row["value"] == pytest.approx(3.0 * 1.12) and row["standard_error"] == pytest.approx(3.0 * 1.12 * 0.03)
    assert table["generation"].is_monotonic_increasing
    assert table[table["generation"] == 1]["step"].drop_duplicates().tolist() == ["train", "sample", "perplexity", "free_text"]


def test_a_run_without_results_is_not_the_newest(runs):
    (runs / "begun").mkdir()
    (runs / "begun" / "protocol.yaml").write_text((runs / "beta" / "protocol.yaml").read_text())
    assert results.select("newest") == ["beta"]
    with pytest.raises(UserError, match="Run 'begun' has no results yet"):
        results.load("begun")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("alpha", ["alpha"]),
        ("beta, alpha", ["beta", "alpha"]),
        (["beta", "beta"], ["beta"]),
        ("newest", ["beta"]),
        ("alpha,newest", ["alpha", "beta"]),
    ],
)
def test_naming_runs(asked, found, runs):
    write_run(runs, "beta", 2)  # advances last
    assert results.select(asked) == found
    assert results.load(asked)["run"].drop_duplicates().tolist() == found


def test_all_runs_leaves_out_those_without_results(runs):
    (runs / "empty").mkdir()
    (runs / "empty" / "protocol.yaml").write_text("generations: 1\ncorpus: {stories: 10}\n")
    assert sorted(results.select("all")) == sorted(results.runs_with_results()) == ["alpha", "beta"]
    with pytest.raises(UserError, match=r"^Run 'empty' has no results yet; .*\.$"):
        results.load("empty")
    with pytest.raises(UserError, match=r"alpha.*beta.*empty|beta.*alpha.*empty|empty.*alpha.*beta|empty.*beta.*alpha"):
        results.load("gamma")


def test_an_unfinished_step_does_not_count(runs):
    (runs / "alpha" / "generation-03" / "manifests" / "perplexity.json").unlink()
    assert results.metric(results.load("alpha"), "alpha", "perplexity")["generation"].tolist() == [1, 2]
    with pytest.raises(UserError, match="is not finished"):
        results.measured("alpha", 3, "perplexity")


def test_a_metric_that_two_steps_name_alike():
    table = results.load("alpha")
    assert results.metric(table, "alpha", "tokens", "sample")["value"].tolist() == [600, 600, 600]
    assert results.metric(table, "alpha", "tokens", "train")["value"].tolist() == [1000, 1000, 1000]
    assert results.metric(table, "alpha", "nothing").empty


def test_formats_hold_the_same_numbers():
    table = results.load("alpha,beta")
    rows = json.loads(results.formatted(table, "json"))
    lines = list(csv.DictReader(io.StringIO(results.formatted(table, "csv"))))
    assert len(rows) == len(lines) == len(table) == len(results.formatted(table, "table").splitlines()) - 1
    for row, line, value in zip(rows, lines, table["value"], strict=True):
        assert row["value"] == pytest.approx(value, abs=1e-15) and float(line["value"]) == value
    assert rows[0]["standard_error"] is None and lines[0]["standard_error"] == ""
    with pytest.raises(UserError, match="xml"):
        results.formatted(table, "xml")


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_files_can_be_read_back(tmp_path, suffix):
    import pandas

    table = results.load("alpha")
    results.save(table, tmp_path / f"results.{suffix}")
    back = getattr(pandas, f"read_{suffix}")(tmp_path / f"results.{suffix}")
    pandas.testing.assert_frame_equal(back, table, check_dtype=False)


def test_files_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"\.csv, \.json or \.parquet"):
        results.save(results.load("alpha"), tmp_path / "results.xlsx")
    with pytest.raises(UserError, match="no folder"):
        results.save(results.load("alpha"), tmp_path / "nowhere" / "results.csv")


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_the_command_writes_files(tmp_path, capsys, suffix):
    import pandas

    file = tmp_path / f"out.{suffix}"
    assert cli.main(["results", "alpha,beta", "--output", str(file)]) == 0
    table = results.load("alpha,beta")
    assert capsys.readouterr().out == f"{len(table)} numbers in {file}\n"
    pandas.testing.assert_frame_equal(getattr(pandas, f"read_{suffix}")(file), table, check_dtype=False)


def test_the_command_refuses_other_files_in_one_sentence(tmp_path, capsys):
    assert cli.main(["results", "alpha", "--output", str(tmp_path / "out.xlsx")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("collapse: Results cannot be written to 'out.xlsx'") and said.err.count("\n") == 1
    assert not (tmp_path / "out.xlsx").exists()


@pytest.mark.parametrize("step", ["alpha", "gpt_eval", "classification", "completions"])
def test_every_kind_of_step_is_in_the_table(runs, step):
    head = {"step": step, "generation": 2}
    place = runs / "alpha" / "generation-02"
    metric = {"value": 0.5, "unit": "1", "definition": "made up", "standard_error": 0.1}
    write_json(place / "metrics" / f"{step}.json", head | {"metrics": {"found": metric}, "series": {}, "examples": {}, "seconds": 1.0})
    manifest = read_json(place / "manifests" / "train.json")
    write_json(place / "manifests" / f"{step}.json", manifest | head | {"started": "2024-01-01T02:09:00+00:00"})
    row = results.load("alpha").query("metric == 'found'").iloc[0]
    assert row[["generation", "step", "value", "standard_error"]].tolist() == [2, step, 0.5, 0.1]


def test_execution_statistics():
    table = results.executed("alpha")
    assert len(table) == 1 + 3 * 4
    assert table.loc[0, ["run", "generation", "step", "seconds", "torch"]].tolist() == ["alpha", 0, "corpus", 1.5, "2.11.0"]
    assert set(results.executed()["run"]) == {"alpha", "beta"}


def test_no_run_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "nothing"))
    for asked in ("newest", "all"):
        with pytest.raises(UserError, match="collapse run demo"):
            results.load(asked)


def test_reading_results_and_drawing_needs_no_torch():
    program = (
        "import sys; from collapse_lib.studies import results; from collapse_lib import figures; table = results.load('alpha');"
        "figures.figure_1(table).svg; figures.figure_1_interactive(table).html;"
        "from collapse_lib.book import wording; wording.table_a1('alpha'); wording.beside_paper(table, ['perplexity']);"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_each_file_is_opened_once_however_many_runs_there_are(tmp_path, monkeypatch):
    """Work grows with the number of runs and no faster: neither a file's text nor a run's folder is asked for again for another run's sake."""
    opened, listed = Counter(), Counter()
    read, glob = Path.read_text, Path.glob
    monkeypatch.setattr(Path, "read_text", lambda path, *more, **options: opened.update([path]) or read(path, *more, **options))
    monkeypatch.setattr(Path, "glob", lambda path, *more, **options: listed.update([path]) or glob(path, *more, **options))
    counted = {}
    for runs in (4, 12):
        root = tmp_path / f"{runs}-runs"
        monkeypatch.setenv("COLLAPSE_RUNS", str(root))
        for number in range(runs):
            write_run(root, f"run-{number}", 3)
        opened.clear(), listed.clear()
        table = results.load("all")
        assert table["run"].nunique() == runs
        assert set(opened.values()) == {1} and len(opened) == runs * 2 * (1 + 3 * 4)
        counted[runs] = listed.total()
    assert counted[12] - 1 == 3 * (counted[4] - 1)  # one listing of the folder of runs
