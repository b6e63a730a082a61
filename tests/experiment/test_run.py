"""A run folder knows what is finished, what was made from what, and refuses what no longer fits."""

import os
import shutil

import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_json, sealed, write_json
from collapse_lib.experiment.paths import run_names
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import Run, fully_executed


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    return Run.create("one", load_preset("smoke"))


def record(step, **outputs):
    with step.recording("cpu") as done:
        done.measure("size", 3, "things", "how many")
        done.outputs.update(outputs)


def test_a_run_opens_as_it_was_created(run):
    assert Run.open("one") == run == Run.open("newest")


def test_free_fields_may_change_and_others_may_not(run):
    longer = Run.create("one", run.protocol.with_changes({"generations": "5"}))
    assert Run.open("one").protocol.generations == longer.protocol.generations == 5
    record(run.step(0, "corpus"))
    with pytest.raises(UserError, match="exists with seed = 1, not 2"):
        Run.create("one", run.protocol.with_changes({"seed": "2"}))


def test_a_run_in_which_nothing_is_finished_takes_any_protocol(run):
    assert Run.create("one", run.protocol.with_changes({"seed": "2"})) == Run.open("one")
    assert Run.open("one").protocol.seed == 2


@pytest.mark.parametrize(
    "name",
    ["", "../up", "a/b", "newest", ".hidden", "two words", "all", "bench", "studies", "judge.sqlite", "judge.sqlite-wal", "readme.md", "two\nlines"],
)
def test_names_that_are_no_folder_names_are_refused(run, name):
    with pytest.raises(UserError, match="cannot be called") as refused:
        Run.create(name, run.protocol)
    assert "\n" not in str(refused.value)


def test_a_name_that_file_systems_refuse_is_refused_before_them(run):
    assert Run.create("x" * 100, run.protocol).folder.is_dir()
    with pytest.raises(UserError, match=r"at most 100 characters, and 'x+'\.\.\. has 300") as refused:
        Run.create("x" * 300, run.protocol)
    assert len(str(refused.value)) < 100


def test_a_name_with_a_line_end_is_one_line_where_it_is_missed(run):
    with pytest.raises(UserError, match=r"no run 'two\\nlines'"):
        Run.open("two\nlines")


def test_an_extended_run_is_not_shrunk_unless_that_is_asked_for(run):
    preset = run.protocol
    Run.create("one", preset.with_changes({"generations": "5"}), exact=True)
    assert Run.create("one", preset).protocol.generations == Run.open("one").protocol.generations == 5
    assert Run.create("one", preset, exact=True).protocol.generations == Run.open("one").protocol.generations == 2


def test_generations_that_are_there_cannot_be_taken_back(run):
    record(run.step(0, "corpus"), train="abc")
    record(run.step(1, "train"), model="def")
    record(run.step(1, "sample"), corpus="ghi")
    record(run.step(2, "train"), model="jkl")
    with pytest.raises(UserError, match="has 2 generations already, more than 1; ask for 2 or more"):
        Run.create("one", run.protocol.with_changes({"generations": "1"}), exact=True)
    assert Run.open("one").protocol.generations == 2


def test_a_broken_run_hides_no_other(run, tmp_path):
    for age, (name, content) in enumerate((("torn", b"generations: [1"), ("foreign", b"description: \xff"), ("wrong", b"colour: red"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "protocol.yaml").write_bytes(content)
        os.utime(tmp_path / name / "protocol.yaml", (2e9 + age, 2e9 + age))
        assert run_names()[0] == name
        assert Run.open("newest") == Run.open("one") == run
        with pytest.raises(UserError, match=str(tmp_path / name)):
            Run.open(name)
    (run.folder / "protocol.yaml").unlink()
    with pytest.raises(UserError, match=r"protocol\.yaml"):
        Run.open("newest")


def test_a_folder_that_no_run_may_be_called_is_no_run(run):
    shutil.copytree(run.folder, run.folder.with_name("{{ 7*7 }} <b>"))
    assert run_names() == ["one"]


def test_missing_runs_are_named_with_those_there_are(run):
    with pytest.raises(UserError, match=r"no run 'two' .* there are one"):
        Run.open("two")


def test_steps_come_in_the_order_of_the_data(run):
    names = [(step.generation, step.name) for step in run.steps()]
    core = [name for name in names if name[1] in ("corpus", "train", "sample", "perplexity", "free_text")]
    assert core[:5] == [(0, "corpus"), (1, "train"), (1, "sample"), (1, "perplexity"), (1, "free_text")]
    seen = set()
    for step in run.steps():
        assert {(parent.generation, parent.name) for parent in step.parents().values()} <= seen
        seen.add((step.generation, step.name))


@pytest.mark.parametrize(("generation", "name"), [(0, "train"), (1, "corpus"), (-1, "corpus"), (1, "dance")])
def test_impossible_steps_are_refused(run, generation, name):
    with pytest.raises(UserError, match="no step"):
        run.step(generation, name)


@pytest.mark.parametrize("generation", [3, 99])
def test_generations_beyond_the_protocol_are_refused(run, generation):
    with pytest.raises(UserError, match=f"no generation {generation} in run 'one', which has 2; `collapse run one --generations {generation}`"):
        run.step(generation, "train")


@pytest.mark.parametrize("generation", ["abc", "1", 1.0, None])
def test_a_generation_is_a_number(run, generation):
    with pytest.raises(UserError, match="whole number"):
        run.step(generation, "train")


def test_generations_beyond_99_have_folders_and_an_order(run):
    long = Run.create("one", run.protocol.with_changes({"generations": "1000"}))
    folders = [long.generation_folder(generation).name for generation in (9, 99, 100, 1000)]
    assert folders == ["generation-09", "generation-99", "generation-100", "generation-1000"]
    record(long.step(0, "corpus"))
    for generation in (100, 101):
        write_json(long.generation_folder(generation) / "manifests" / "train.json", {})
    with pytest.raises(UserError, match="has 101 generations already"):
        Run.create("one", run.protocol, exact=True)


def test_a_step_is_finished_when_its_manifest_and_notebook_are_there(run):
    step = run.step(0, "corpus")
    assert step.results() is None
    with pytest.raises(UserError, match="has not been done yet"):
        step.output_hashes()
    record(step, train="abc")
    assert step.results()["metrics"]["size"] == {"value": 3, "unit": "things", "definition": "how many"}
    assert step.output_hashes() == {"train": "abc"}
    assert not step.is_finished()
    write_json(step.notebook, executed_notebook())
    assert step.is_finished()


def executed_notebook(**papermill):
    cells = [{"cell_type": "code", "source": "1", "execution_count": 1, "outputs": [{}]}]
    return {"cells": cells, "metadata": {"papermill": {"end_time": "2026-01-01T00:00:00", "exception": None} | papermill}}


def test_a_notebook_that_was_cut_short_is_not_fully_executed():
    assert fully_executed(executed_notebook())
    assert not fully_executed(executed_notebook(end_time=None))
    assert not fully_executed(executed_notebook(exception=True))
    for change in ({"execution_count": None}, {"outputs": []}):
        notebook = executed_notebook()
        notebook["cells"][0] |= change
        assert not fully_executed(notebook)


def test_a_step_that_fails_is_not_finished(run):
    step = run.step(0, "corpus")
    with pytest.raises(RuntimeError), step.recording("cpu"):
        raise RuntimeError
    assert step.results() is None and not step.metrics_file.exists()


def test_a_step_whose_parent_changed_is_refused(run):
    corpus, train = run.step(0, "corpus"), run.step(1, "train")
    record(corpus, train="abc")
    record(train, model="def")
    assert train.results() is not None
    record(corpus, train="changed")
    with pytest.raises(UserError, match="made from another previous corpus"):
        train.results()


def test_a_step_of_another_protocol_is_refused(run):
    step = run.step(0, "corpus")
    record(step)
    write_json(step.manifest_file, sealed(read_json(step.manifest_file) | {"protocol_hash": "0" * 16}))
    with pytest.raises(UserError, match="another protocol"):
        step.results()


def test_a_manifest_says_from_what_by_what_and_when(run):
    record(run.step(0, "corpus"), train="abc")
    record(run.step(1, "train"), model="def")
    manifest = run.step(1, "train").manifest()
    assert manifest["parents"] == {"previous corpus": {"train": "abc"}, "initial corpus": {"train": "abc"}}
    assert manifest["protocol_hash"] == run.step(1, "train").protocol_hash
    assert {"torch", "numpy", "python"} <= set(manifest["versions"])
    assert manifest["seconds"] >= 0 and manifest["device"] and manifest["started"] <= manifest["finished"]


def test_seeds_differ_by_generation_and_purpose_and_repeat(run):
    seeds = [run.seed(generation, purpose) for generation in range(20) for purpose in ("weights", "train", "sample")]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert run.seed(3, "sample") == Run.open("one").seed(3, "sample")


def test_two_drivers_are_refused(run):
    with run.exclusive():
        assert run.is_driven()
        with pytest.raises(UserError, match="Run 'one' is in use"), run.exclusive():
            pass
    assert not run.is_driven()


def test_a_lock_file_that_is_deleted_lets_no_second_driver_in(run):
    with run.exclusive():
        run.lock_file.unlink()
        assert run.is_driven()
        with pytest.raises(UserError, match="Run 'one' is in use by another process, whose lock file was deleted"), run.exclusive():
            pass
    assert not run.is_driven()
    with run.exclusive():
        assert run.lock_file.is_file()


def test_a_run_that_is_driven_keeps_its_protocol(run):
    before = (run.folder / "protocol.yaml").read_bytes()
    with run.exclusive(), pytest.raises(UserError, match="Run 'one' is in use"):
        Run.create("one", run.protocol.with_changes({"seed": "2"}))
    assert (run.folder / "protocol.yaml").read_bytes() == before
    with run.exclusive():
        assert Run.create("one", run.protocol) == run  # nothing to write


def test_a_training_with_a_checkpoint_keeps_what_decides_it(run):
    record(run.step(0, "corpus"), train="abc")
    faster = run.protocol.with_changes({"training.learning_rate": "0.5"})
    assert Run.create("one", faster).protocol == faster
    (run.folder / "generation-01" / "checkpoint").mkdir(parents=True)
    (run.folder / "generation-01" / "checkpoint" / "checkpoint.pt").touch()
    with pytest.raises(UserError, match=r"exists with training\.learning_rate = 0\.5, not 0\.002"):
        Run.create("one", run.protocol)
    assert Run.open("one").protocol == faster


def test_a_protocol_change_concerns_the_steps_that_it_decides(run):
    record(run.step(0, "corpus"), train="abc")
    record(run.step(1, "train"), model="def")
    other = Run.create("one", run.protocol.with_changes({"evaluation.max_context": "16"}))
    assert other.step(1, "train").results() is not None
    with pytest.raises(UserError, match=r"exists with model\.num_layers = 2, not 1"):
        Run.create("one", run.protocol.with_changes({"model.num_layers": "1"}))
    record(other.step(1, "perplexity"))
    with pytest.raises(UserError, match=r"evaluation\.max_context = 16, not 32"):
        Run.create("one", run.protocol)


def test_every_step_has_parents_that_come_before_it(run):
    assert run.step(1, "train").parents() == {"previous corpus": run.step(0, "corpus"), "initial corpus": run.step(0, "corpus")}
    assert run.step(2, "train").parents()["previous corpus"] == run.step(1, "sample")
    assert run.step(2, "train").parents()["first train"] == run.step(1, "train")
