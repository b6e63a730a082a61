"""The whole pipeline at its smallest, through the command line and through papermill alone."""

import csv
import io
import json
import math
import shutil
import subprocess
import sys

import nbformat
import pytest
from command import ROOT, collapse
from refusal import refusal

from collapse_lib import cli, steps
from collapse_lib.experiment.execute import environment
from collapse_lib.experiment.lineage import steps_of
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import Run
from collapse_lib.experiment.warm_kernel import warm_kernel


def measured(folder):
    """Every metrics file of a run without the seconds that the machine took."""
    found = {}
    for path in sorted(folder.glob("generation-*/metrics/*.json")):
        content = json.loads(path.read_text())
        content.pop("seconds")
        content["metrics"].pop("tokens_per_second", None)
        found[str(path.relative_to(folder))] = content
    return found


def test_every_step_left_its_notebook_metrics_and_manifest(finished_runs):
    run = finished_runs / "smoke"
    expected = {(f"generation-0{n}", step) for n in range(3) for step in steps_of(load_preset("smoke"), n)}
    for kind, ending in (("", "ipynb"), ("metrics", "json"), ("manifests", "json")):
        pattern = f"generation-*/{kind}/*.{ending}" if kind else f"generation-*/*.{ending}"
        assert {(path.relative_to(run).parts[0], path.stem) for path in run.glob(pattern)} == expected
    assert not [path for path in run.rglob("*") if ".tmp" in path.name or path.name == "checkpoint"]


def test_executed_notebooks_are_complete_and_name_no_path_of_this_machine(finished_runs):
    for path in (finished_runs / "smoke").glob("generation-*/*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
        assert counts == list(range(1, len(counts) + 1)), path
        text = path.read_text()
        assert str(finished_runs) not in text and str(ROOT) not in text, path


def test_the_numbers_are_possible(finished_runs):
    found = measured(finished_runs / "smoke")
    vocabulary = found["generation-00/metrics/corpus.json"]["metrics"]["vocabulary"]["value"]
    for generation in (1, 2):
        metrics = {}
        for step in ("train", "sample", "perplexity", "free_text"):
            metrics |= found[f"generation-0{generation}/metrics/{step}.json"]["metrics"]
        assert 1 < metrics["perplexity"]["value"] < vocabulary
        assert math.isclose(
            math.log(metrics["perplexity"]["value"]), found[f"generation-0{generation}/metrics/perplexity.json"]["metrics"]["loss"]["value"]
        )
        assert 0 < metrics["entropy"]["value"] < math.log(vocabulary)
        assert math.isclose(metrics["entropy_bits"]["value"] * math.log(2), metrics["entropy"]["value"], rel_tol=1e-9)
        assert metrics["sequences"]["value"] == 256 and metrics["tokens"]["value"] > 0


def test_a_finished_run_is_left_alone(finished_runs):
    before = {path: path.stat().st_mtime_ns for path in (finished_runs / "smoke").rglob("*") if path.is_file() and path.suffix != ".lock"}
    again = collapse("run", "smoke", runs=finished_runs)
    assert again.returncode == 0 and "0 steps" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_status_and_results_tell_what_there_is(finished_runs, monkeypatch, capsys):
    monkeypatch.setenv("COLLAPSE_RUNS", str(finished_runs))

    def said(*arguments: str) -> str:
        assert cli.main(list(arguments)) == 0
        return capsys.readouterr().out

    status = said("status", "smoke")
    steps = sum(len(steps_of(load_preset("smoke"), n)) for n in range(3))
    assert f"{steps} of {steps} steps finished" in status and "no process works on it" in status
    rows = list(csv.DictReader(io.StringIO(said("results", "smoke", "--format", "csv"))))
    values = json.loads(said("results", "smoke", "--format", "json"))
    assert len(rows) == len(values) > 40
    assert {row["metric"] for row in rows} >= {"perplexity", "entropy", "oov_lexicon_occurrences", "loss"}
    assert "perplexity" in said("results", "smoke")


@pytest.mark.slow
def test_plain_papermill_does_the_same_bit_for_bit(finished_runs, tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    steps = [
        ("corpus", 0, ["-p", "preset", "smoke"]),
        *((name, 1, ["-p", "generation", "1"]) for name in ("train", "sample", "perplexity", "free_text")),
    ]
    for notebook, generation, more in steps:
        folder = tmp_path / "smoke" / f"generation-{generation:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{notebook}.ipynb"
        command = [sys.executable, "-m", "papermill", f"notebooks/steps/{notebook}.ipynb", str(target), "-p", "run", "smoke", *more, "-k", "python3"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    reference, found = measured(finished_runs / "smoke"), measured(tmp_path / "smoke")
    assert len(found) == len(steps) and found == {name: reference[name] for name in found}


@pytest.fixture(scope="module")
def unfinished(finished_runs, tmp_path_factory):
    """The run `smoke` without its second generation, and a kernel that works on it."""
    runs = tmp_path_factory.mktemp("unfinished")
    shutil.copytree(finished_runs / "smoke", runs / "smoke", ignore=shutil.ignore_patterns("generation-02"))
    with environment({"COLLAPSE_RUNS": str(runs)}), warm_kernel() as kernel:
        yield runs, kernel


@pytest.mark.parametrize(
    ("notebook", "parameters", "said"),
    [
        ("train", {"generation": 3}, "There is no generation 3 in run 'smoke', which has 2"),
        ("train", {"generation": "abc"}, "A generation is a whole number, not 'abc'"),
        ("train", {"generation": 2, "seed": 7}, "This notebook has no parameter 'seed', only device, generation, processes, run"),
        ("corpus", {"run": "other", "preset": "smoke", "seed": 7}, "This notebook has no parameter 'seed', only changes, preset, run"),
        ("sample", {"generation": 2}, "Step train of generation 2 in run 'smoke' has not been done yet"),
    ],
)
def test_plain_papermill_is_refused_what_cannot_be_and_leaves_nothing(unfinished, tmp_path, notebook, parameters, said):
    runs, kernel = unfinished
    before = sorted(runs.rglob("*"))
    sentence = refusal(ROOT / "notebooks" / "steps" / f"{notebook}.ipynb", {"run": "smoke"} | parameters, kernel, tmp_path)
    assert sentence.startswith(said)
    assert sorted(runs.rglob("*")) == before


def test_extending_a_finished_run_keeps_what_is_there(finished_runs, tmp_path):
    shutil.copytree(finished_runs / "smoke", tmp_path / "smoke")
    before = measured(tmp_path / "smoke")
    done = collapse("run", "smoke", "--generations", "3", runs=tmp_path)
    assert done.returncode == 0, done.stderr
    after = measured(tmp_path / "smoke")
    longer = load_preset("smoke").model_copy(update={"generations": 3})
    assert after.keys() - before.keys() == {f"generation-03/metrics/{step}.json" for step in steps_of(longer, 3)}
    assert {name: after[name] for name in before} == before
    again = collapse("run", "smoke", runs=tmp_path)
    assert again.returncode == 0 and "run smoke: 3 generations" in again.stdout and "0 steps" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "huge"], "no preset 'huge'"),
        (["run", "smoke", "--set", "seed=2"], "exists with seed = 1, not 2"),
        (["run", "smoke", "--set", "seed"], "FIELD=VALUE"),
        (["run", "smoke", "--name", "a/b"], "cannot be called 'a/b'"),
        (["run", "smoke", "--name", "a\nb"], "cannot be called 'a\\nb'"),
        (["run", "smoke", "--name", ""], "cannot be called ''"),
        (["run", "smoke", "--name", "x" * 300], "at most 100 characters"),
        (["run", "smoke", "--generations", "1"], "has 2 generations already"),
        (["run", "smoke", "--set", "generations=1"], "has 2 generations already"),
        (["run", "smoke", "--generations", "1000000000"], "less than or equal to 1000"),
        (["run", "smoke", "--name", "learned", "--set", "corpus.stories=2", "--set", "tokenizer.vocabulary=100"], "allowed is 257"),
        (["run", "smoke", "--name", "b", "--generations", "0"], "generations"),
        (["run", "smoke", "--name", "nowhere", "--set", "corpus.source=/does/not/exist.txt"], "/does/not/exist.txt"),
        (["status", "absent"], "no run 'absent'"),
        (["results", "absent"], "no run 'absent'"),
        (["book", "absent"], "no run 'absent'"),
        (["judge", "estimate", "smoke"], "Run 'smoke' has no judge"),
        (["judge", "forget", "absent"], "no run 'absent'"),
        (["run", "smoke", "--max-cost", "1"], "gpt_eval.max_cost needs gpt_eval.price_in"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(finished_runs, monkeypatch, capsys, arguments, said):
    monkeypatch.setenv("COLLAPSE_RUNS", str(finished_runs))
    assert cli.main(arguments) == 2
    sentence = capsys.readouterr().err
    assert said in sentence and "Traceback" not in sentence and sentence.count("\n") == 1
    assert sorted(path.name for path in finished_runs.glob("*/protocol.yaml")) == ["protocol.yaml"]


def test_a_damaged_model_is_noticed(finished_runs, tmp_path):
    shutil.copytree(finished_runs / "smoke", tmp_path / "smoke")
    weights = tmp_path / "smoke" / "generation-02" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (tmp_path / "smoke" / "generation-02" / "manifests" / "perplexity.json").unlink()
    done = collapse("run", "smoke", runs=tmp_path)
    assert done.returncode == 2 and "is not the model that step" in done.stderr


def test_shards_that_another_model_left_are_not_taken_over(finished_runs, tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    shutil.copytree(finished_runs / "smoke", tmp_path / "smoke")
    (tmp_path / "smoke" / "generation-02" / "manifests" / "sample.json").unlink()
    corpus = tmp_path / "smoke" / "generation-02" / "corpus"
    shutil.rmtree(corpus)
    shutil.copytree(tmp_path / "smoke" / "generation-01" / "corpus", corpus)
    steps.sample(Run.open("smoke"), 2, "cpu")
    assert measured(tmp_path / "smoke") == measured(finished_runs / "smoke")
    assert shard_files(corpus) == shard_files(finished_runs / "smoke" / "generation-02" / "corpus")


@pytest.fixture
def two_shards(finished_runs, tmp_path, monkeypatch):
    """The run `smoke` as a kill leaves it when two of the first generation's four shards have been sampled."""
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    shutil.copytree(finished_runs / "smoke", tmp_path / "smoke", ignore=shutil.ignore_patterns("generation-02"))
    first = tmp_path / "smoke" / "generation-01"
    for manifest in (first / "manifests").glob("*.json"):
        if manifest.stem != "train":
            manifest.unlink()
    for name in ("corpus.json", "shard-00002.arrow", "shard-00003.arrow"):
        (first / "corpus" / name).unlink()
    return first / "corpus"


def shard_files(corpus):
    return {path.name: path.read_bytes() for path in corpus.glob("*.arrow")}


@pytest.mark.parametrize("change", [{"temperature": "2.0"}, {"shard_sequences": "100"}, {"sequences": "100"}, {"length": "24"}])
def test_shards_sampled_under_other_settings_are_not_taken_over(two_shards, change):
    run = Run.open("smoke")
    run = Run.create("smoke", run.protocol.with_changes({f"sampling.{field}": value for field, value in change.items()}))
    steps.sample(run, 1, "cpu")
    mended = shard_files(two_shards)
    shutil.rmtree(two_shards)
    run.step(1, "sample").manifest_file.unlink()
    assert steps.sample(run, 1, "cpu")["metrics"]["sequences"]["value"] == run.protocol.sampling.sequences
    assert mended == shard_files(two_shards)


def test_shards_of_an_unchanged_sampling_are_taken_over(finished_runs, two_shards):
    before = {path: path.stat().st_mtime_ns for path in two_shards.glob("*.arrow")}
    steps.sample(Run.open("smoke"), 1, "cpu")
    assert len(before) == 2 and before == {path: path.stat().st_mtime_ns for path in before}
    assert shard_files(two_shards) == shard_files(finished_runs / "smoke" / "generation-01" / "corpus")


def test_the_corpora_open_with_datasets(finished_runs):
    from datasets import load_dataset

    files = sorted(str(path) for path in (finished_runs / "smoke" / "generation-01" / "corpus").glob("*.arrow"))
    opened = load_dataset("arrow", data_files=files, split="train", cache_dir=str(finished_runs / "cache"))
    assert len(opened) == 256 and opened.features["input_ids"].feature.dtype == "uint16"
