"""Studies as they run: chains in processes of their own, what stops them, and what they leave behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import nbformat
import pandas
import psutil
import pytest
from synthetic_runs import write_run, write_study

from collapse_lib import cli
from collapse_lib.book.runs import book_runs
from collapse_lib.book.studies import study_pages
from collapse_lib.experiment import tables
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.execute import execute
from collapse_lib.experiment.files import sealed
from collapse_lib.experiment.paths import project_root
from collapse_lib.experiment.run import Run
from collapse_lib.experiment.warm_kernel import warm_kernel
from collapse_lib.figures import studies as figures
from collapse_lib.steps.preflight import begin
from collapse_lib.studies import claims, results
from collapse_lib.studies.design import read_study, study_from_yaml
from collapse_lib.studies.study import (
    chain_folder,
    check_study,
    generations_done,
    open_study,
    record,
    run_study,
    seconds_a_generation,
    studies_with_results,
    study_files,
    table,
)

OWN = """
name: mine
base: smoke
common: {corpus.source: stories.txt, corpus.stories: null, corpus.validation_stories: null, tokenizer.vocabulary: 300, sampling.sequences: 64}
generations: 1
seeds: 1
arms:
  replace: {}
  warm: {sampling.temperature: 1.3}
measures: {loss: {metric: perplexity.perplexity, log: true}}
contrasts: [{arm: warm, against: replace, measure: loss, expected: greater}]
"""
GROWTHS = {"replace": [1.30, 1.33, 1.31], "warm": [1.5, 1.52, 1.55]}


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture
def own(tmp_path, stories):
    """A study of a user's own stories, in ten lines."""
    (tmp_path / "stories.txt").write_text("<|endoftext|>".join(stories), encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(OWN, encoding="utf-8")
    assert len(OWN.strip().splitlines()) == 10
    return "mine.yaml"


@pytest.fixture
def finished(runs):
    """A made-up study of three chains an arm, one of them not at its end yet."""
    study = study_from_yaml(OWN.replace("generations: 1", "generations: 4").replace("seeds: 1", "seeds: 3"))
    write_study(runs, study, GROWTHS)
    for file in (runs / "mine-warm-3" / "generation-04" / "manifests").iterdir():
        file.unlink()
    return study


@contextmanager
def started(*arguments):
    """A `collapse study run` in a process of its own, as in a terminal; nothing of it stays behind."""
    command = [sys.executable, "-m", "collapse_lib.cli", "study", "run", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # which a background job ignores
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def metrics(runs, name):
    """All that a chain measured, but for what depends on the clock."""
    files = sorted((runs / name).glob("generation-*/metrics/*.json"))
    read = {f"{file.parents[1].name}/{file.name}": json.loads(file.read_text())["metrics"] for file in files}
    return {place: {metric: value for metric, value in found.items() if "second" not in metric} for place, found in read.items()}


def test_a_study_of_ones_own_corpus_and_a_chain_that_fails(runs, own, capsys):
    study = read_study(own)
    blocked = begin("mine-warm-1", study.protocol("warm", 1))
    with blocked.exclusive(), pytest.raises(SystemExit, match="1"):
        cli.main(["study", "run", own, "--device", "cpu"])
    said = capsys.readouterr()
    assert said.err.startswith("collapse: 1 chain failed") and said.err.count("\n") == 1 and "warm-1: Run 'mine-warm-1' is in use" in said.err
    assert "replace-1: done in" in said.out and "1 of 2 chains" in said.out
    record = json.loads((runs / "mine-replace-1" / "study.json").read_text())
    assert (record["study"], record["arm"], record["seed"], record["hash"]) == ("mine", "replace", 1, study.hash)
    assert {path.stem for path in (runs / "mine-replace-1").glob("generation-01/manifests/*")} == {"train", "sample", "perplexity", "free_text"}
    before = metrics(runs, "mine-replace-1")

    assert cli.main(["study", "run", own, "--device", "cpu"]) == 0  # the same command goes on
    assert metrics(runs, "mine-replace-1") == before
    assert generations_done(study)[study.chains()[1].label] == 1
    assert cli.main(["study", "results", "mine", "--output", "mine.parquet"]) == 0
    found = pandas.read_parquet("mine.parquet")
    assert found.equals(table(study)) and set(zip(found["arm"], found["seed"], strict=True)) == {("replace", 1), ("warm", 1)}
    assert not any(".tmp" in path.name for path in runs.rglob("*"))


@pytest.mark.slow
def test_chains_end_with_the_study_and_go_on_with_it(runs, own, monkeypatch):
    for strike, moment in ((signal.SIGINT, "*/generation-01/train.lock"), (signal.SIGKILL, "*/generation-01/sample.lock")):
        with started(own, "--device", "cpu", "--jobs", "2") as driver:
            wait_for(lambda moment=moment: len(list(runs.glob(moment))) == 2)
            family = psutil.Process(driver.pid).children(recursive=True)
            assert len(family) >= 4  # two chains and their kernels
            driver.send_signal(strike)
            _, said = driver.communicate(timeout=60)
            assert driver.returncode == (130 if strike == signal.SIGINT else -signal.SIGKILL)
            assert strike == signal.SIGKILL or "interrupted; nothing finished is lost" in said
            assert psutil.wait_procs(family, timeout=45)[1] == []
    assert run_study(own, "cpu", say=lambda line: None) == []
    broken = {name: metrics(runs, name) for name in ("mine-replace-1", "mine-warm-1")}
    monkeypatch.setenv("COLLAPSE_RUNS", str(runs.with_name("unbroken")))
    assert run_study(own, "cpu", jobs=1, say=lambda line: None) == []  # and however many there are at once
    assert {name: metrics(runs.with_name("unbroken"), name) for name in broken} == broken


REFUSED = [
    ("replace: {}", "replace: {sampling.temprature: 2}", "arm 'replace': There is no field 'sampling.temprature'"),
    ("replace: {}", "replace: {corpus.skip: 3}", "arm 'replace' changes 'corpus.skip'"),
    ("arm: warm", "arm: cold", "contrast 1 names arm 'cold'"),
    ("seeds: 1", "seeds: [2, 2]", "repeat 2"),
    ("stories.txt", "absent.txt", "absent.txt"),
    ("name: mine", f"name: {'m' * 100}", "A run's name has at most 100 characters"),
]


@pytest.mark.parametrize(("old", "new", "said"), REFUSED)
def test_what_is_refused_leaves_nothing(runs, own, capsys, tmp_path, old, new, said):
    (tmp_path / own).write_text(OWN.replace(old, new))
    assert cli.main(["study", "run", own]) == 2
    assert said in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert not runs.exists()


def test_a_study_may_grow_and_not_change(finished, tmp_path, runs, own):
    text = OWN.replace("generations: 1", "generations: 4").replace("seeds: 1", "seeds: 3")
    check_study(study_from_yaml(text.replace("seeds: 3", "seeds: 4").replace("arms:", "arms:\n").replace("  warm", "  cool: {}\n  warm")))
    with pytest.raises(UserError, match=r"Study 'mine' has changed in arms\.warm\.fields\.sampling\.temperature since run 'mine-.*' was begun"):
        check_study(study_from_yaml(text.replace("1.3", "1.4")))
    with pytest.raises(UserError, match="has changed in contrasts since"):
        check_study(study_from_yaml(text.replace("greater", "less")))


def test_runs_of_others_are_left_alone(runs, own):
    study = read_study(own)
    write_run(runs, "mine-replace-1", 1)
    (runs / "mine-replace-1" / "protocol.yaml").write_text(study.protocol("replace", 1).to_yaml())
    with pytest.raises(UserError, match="Run 'mine-replace-1' was not made by a study"):
        check_study(study)
    write_study(runs, study, {"replace": [1.1]})
    check_study(study)
    file = runs / "mine-replace-1" / "study.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"study": "mine-replace", "arm": "1"}))
    with pytest.raises(UserError, match="Run 'mine-replace-1' belongs to study 'mine-replace'"):
        check_study(study)


def test_status_plan_and_results_of_finished_chains(finished, capsys):
    assert list(generations_done(finished).values()) == [4, 4, 4, 4, 4, 3]
    assert seconds_a_generation(finished) == {"replace": 4 * 1.5, "warm": 4 * 1.5}
    assert open_study("mine") == open_study() == finished
    for task, said in (
        ("status", ["5 of 6 chains have all 4 generations", "seed 3", "`collapse study run mine` goes on with it."]),
        ("plan", ["6 chains of 4 generations", "sampling.temperature=1.3", "0.0 hours of one core to go"]),
        ("results", ["mine-warm-3", "standard_error"]),
    ):
        assert cli.main(["study", task]) == 0
        out = capsys.readouterr().out
        assert all(words in out for words in said), out
    found = table(finished)
    assert list(found.columns)[:4] == ["run", "arm", "seed", "generation"] and found["run"].nunique() == 6


def test_a_plan_before_anything_was_timed(own, capsys):
    assert cli.main(["study", "plan", own]) == 0
    assert f"`collapse study run {own} --generations 1` does" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status"], "There is no study 'newest'; there are gerstgrasser-2024, kazdan-2024, regimes"),
        (["status", "absent"], "There is no study 'absent'"),
        (["results", "smoke"], "Study 'smoke' has no results yet; `collapse study run smoke` makes some."),
        (["run", "smoke", "--jobs", "0"], "'0' is not a whole number of at least 1"),
        (["run", "smoke", "--chain", "replace-7"], "Study 'smoke' has no chain 'replace-7'; its chains are replace-1, warm-1"),
    ],
)
def test_what_there_is_not_is_said_in_one_sentence(runs, capsys, arguments, said):
    assert cli.main(["study", *arguments]) == 2
    assert said in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert not runs.exists()


def test_the_study_that_runs_carry_is_the_largest(finished, runs):
    more = study_from_yaml(OWN.replace("generations: 1", "generations: 4").replace("seeds: 1", "seeds: 5"))
    write_study(runs, more, {"replace": [1.3] * 5})
    assert open_study("mine") == more and Run.open("mine-replace-5").protocol == more.protocol("replace", 5)


def test_a_band_is_drawn_between_three_chains_and_not_between_two(finished):
    panel = figures.by_generation(finished, table(finished), "loss").figure.axes[0]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["replace, 3 chains", "warm, 3 chains"]
    replace, warm = (collection.get_paths()[0].vertices for collection in panel.collections)
    assert replace[:, 0].max() == 4 and warm[:, 0].max() == 3  # of the fourth generation only two chains are there
    assert len(panel.get_lines()) == 2 * (3 + 1)
    with pytest.raises(UserError, match="Study 'mine' has no arm 'cold'"):
        figures.by_generation(finished, table(finished), "loss", arms=["cold"])


def test_the_control_stands_in_every_panel(runs):
    arms = "".join(f"  arm-{number}: {{sampling.top_k: {number}}}\n" for number in range(1, 9))
    study = study_from_yaml(OWN.replace("  warm", arms + "  warm"))
    write_study(runs, study, {arm: [1.2] for arm in study.arms})
    picture = figures.by_generation(study, table(study), "loss")
    legends = [[text.get_text() for text in panel.get_legend().get_texts()] for panel in picture.figure.axes]
    assert len(legends) == 2 and all(labels[0] == "replace, 1 chain" for labels in legends)
    assert sum(len(labels) - 1 for labels in legends) == 9 and "loss" in picture.title


def test_the_notebook_of_a_study(finished, tmp_path):
    target = tmp_path / "study.ipynb"
    with warm_kernel() as kernel:
        execute(project_root() / "notebooks" / "studies" / "study.ipynb", target, {"study": "mine"}, kernel)
    outputs = [output for cell in nbformat.read(target, as_version=4).cells for output in cell.get("outputs", [])]
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) == len(finished.measures)
    said = "\n".join(output["data"].get("text/markdown", "") for output in outputs if "data" in output)
    assert "**unfinished**" in said and finished.hash in said
    assert not any(output.get("name") == "stderr" for output in outputs)


def test_a_record_stands_for_runs_that_are_not_here(runs, finished, capsys):
    before = table(finished)
    assert cli.main(["study", "record", "mine"]) == 0 and "MB in" in capsys.readouterr().out
    for chain in finished.chains():
        shutil.rmtree(chain_folder(chain))
    assert table(finished).equals(before) and studies_with_results() == ["mine"]
    assert open_study("mine") == finished == open_study("newest")
    assert [source.name for source in claims.sources([])] == ["mine"], "a recorded study answers claims like one whose runs are here"
    assert {file.parent for file in study_files(finished)} == {runs / "studies" / "mine"}
    head = json.loads((runs / "studies" / "mine" / "study.json").read_text())
    assert head["chains"]["warm-3"]["generations"] == 3 and head["hash"] == finished.hash
    assert cli.main(["study", "record", "mine"]) == 2 and "has no runs here" in capsys.readouterr().err
    write_study(runs, finished, {"warm": [1.5]})  # a chain is made again, here, and goes into the record beside those made elsewhere
    mixed = table(finished)
    assert len(mixed) == len(before) and not mixed.equals(before) and set(mixed["run"]) == set(before["run"])
    assert cli.main(["study", "record", "mine"]) == 0
    shutil.rmtree(runs / "mine-warm-1")
    columns = ["run", "generation", "step", "metric"]
    assert table(finished).sort_values(columns, ignore_index=True).equals(mixed.sort_values(columns, ignore_index=True))
    assert all(done >= 3 for done in generations_done(finished).values())
    other = study_from_yaml(OWN.replace("generations: 1", "generations: 4").replace("greater", "less"))
    with pytest.raises(UserError, match="is of another study 'mine'; it differs in contrasts"):
        table(other)


def test_a_record_that_is_not_of_its_study_is_noticed(runs, finished, capsys):
    record(finished)
    head, numbers = (runs / "studies" / "mine" / name for name in ("study.json", "numbers.parquet"))
    whole = head.read_text()
    found = json.loads(whole)
    found["chains"]["warm-3"]["manifests"] = "0" * 64  # of a chain that was made again since, elsewhere
    head.write_text(json.dumps(sealed(found)))
    table(finished)  # whose runs are here
    for chain in finished.chains():
        shutil.rmtree(chain_folder(chain))
    with pytest.raises(
        UserError, match=r"numbers\.parquet has not the numbers of the chain 'warm-3' .*; take .* from where it was made, or delete it"
    ):
        table(finished)
    stored = tables.load(numbers, "")
    stored.attrs.clear()
    tables.store(stored, numbers)  # of before it was stored what the numbers are of
    assert len(table(finished)) == len(stored)
    head.write_text(whole.replace('"mine"', '"yours"'))
    with pytest.raises(UserError, match="damaged or changed by hand"):
        table(finished)
    head.write_text(json.dumps(sealed(json.loads(whole) | {"study": "yours"})))
    with pytest.raises(UserError, match=r"study\.json is the record of a study 'yours'"):
        table(finished)


def test_a_chain_that_says_it_is_another_is_told_how_to_be_made_again(runs, finished):
    shutil.copy(runs / "mine-warm-1" / "study.json", runs / "mine-replace-2" / "study.json")
    with pytest.raises(UserError, match=r"mine-replace-2/study\.json is that of chain 'warm-1'; .* `collapse rm mine-replace-2`"):
        check_study(finished)
    (runs / "mine-replace-2" / "study.json").write_text("{}")
    with pytest.raises(UserError, match="`collapse rm mine-replace-2` and have the study make the chain again"):
        check_study(finished)


def test_chains_of_a_study_are_no_single_runs(runs, finished):
    assert [page.title for page in study_pages() if page.name == "study-mine"] == ["Study mine"]
    with pytest.raises(UserError, match="No run in"):
        results.select("all")
    write_run(runs, "alone", 2)
    assert results.select("all") == ["alone"] and results.select("mine-warm-1") == ["mine-warm-1"]
    (runs / "mine-warm-1" / "protocol.yaml").write_text("seed: none")
    with pytest.raises(UserError, match="no run with a finished generation"):  # the damaged chain was not even looked at
        book_runs([])
