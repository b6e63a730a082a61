"""Whatever is damaged is noticed when it is opened, and made again after a repair, with the same content."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from small_runs import SMALL, contents, finish

from collapse_lib import steps
from collapse_lib.experiment.artefacts import ARTEFACTS
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_json, sealed, write_json
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.repair import faults, repair
from collapse_lib.experiment.run import Run, Step
from collapse_lib.steps.inputs import open_artefact


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLAPSE_RUNS", str(tmp_path_factory.mktemp("runs")))
        run = Run.create("one", load_preset("smoke").with_changes(SMALL))
        finish(run)
    return run


@pytest.fixture
def run(finished, tmp_path, monkeypatch) -> Run:
    """A copy of a finished run."""
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    shutil.copytree(finished.folder, tmp_path / "one")
    return Run.open("one")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "emptied": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
}
FILES = {  # of each artefact: the step that makes it, the file
    "train": ((0, "corpus"), "generation-00/corpus/train/shard-00000.arrow"),
    "holdout": ((0, "corpus"), "generation-00/corpus/holdout/shard-00000.arrow"),
    "validation": ((0, "corpus"), "generation-00/corpus/validation/corpus.json"),
    "words": ((0, "corpus"), "generation-00/corpus/words.txt"),
    "tokenizer": ((0, "corpus"), "tokenizer/tokenizer.json"),
    "model": ((1, "train"), "generation-01/model/model.safetensors"),
    "config": ((1, "train"), "generation-01/model/config.json"),
    "corpus": ((1, "sample"), "generation-01/corpus/shard-00000.arrow"),
    "completions": ((1, "completions"), "generation-01/completions.jsonl"),
    "metrics": ((1, "train"), "generation-01/metrics/train.json"),
    "manifest": ((1, "train"), "generation-01/manifests/train.json"),
}


def test_every_artefact_is_damaged_here():
    assert ARTEFACTS.keys() - {"composition"} <= FILES.keys()  # that one in test_compose


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("artefact", FILES)
def test_a_damaged_artefact_is_noticed_and_made_again(finished, run, artefact, damage):
    (generation, name), file = FILES[artefact]
    step = run.step(generation, name)
    DAMAGES[damage](run.folder / file)
    if not (artefact in ("manifest", "words", "completions") and damage == "gone"):  # without a manifest it is not done, and says so
        with pytest.raises(UserError) as refused:
            use(step, artefact)
        advice = "`collapse repair one( --missing)?` and then `collapse run one` make it again"
        assert re.search(advice, str(refused.value)) and "\n" not in str(refused.value)
    whole_file_gone = damage == "gone" and artefact in ("manifest", "words", "completions")
    assert list(repair(run)) == ([] if whole_file_gone else [step])
    if whole_file_gone and artefact != "manifest":
        step.drop()  # nothing needs it in a finished run
    finish(run)
    assert contents(run) == contents(finished) and faults(run) == {}


def use(step: Step, artefact: str) -> None:
    """Read all of an artefact as a step that needs it would."""
    if artefact in ("metrics", "manifest"):
        step.results()
    opened = open_artefact(step, "model" if artefact == "config" else artefact)
    if artefact in ("train", "holdout", "validation", "corpus"):
        opened.token_counts()


def test_another_generations_artefacts_are_not_taken(finished, run):
    first, second = (run.generation_folder(generation) for generation in (1, 2))
    for name in ("model", "corpus"):
        shutil.rmtree(second / name)
        shutil.copytree(first / name, second / name)
    shutil.copy(first / "metrics" / "train.json", second / "metrics" / "train.json")
    with pytest.raises(UserError, match=r"generation-02/metrics/train\.json is not what step train measured"):
        run.step(2, "train").results()
    for step, name in ((run.step(2, "sample"), "corpus"),):
        with pytest.raises(UserError, match="is not the corpus that step sample of generation 2"):
            open_artefact(step, name)
    assert list(repair(run)) == [run.step(2, "train"), run.step(2, "sample")]
    finish(run)
    assert contents(run) == contents(finished)


def test_what_is_missing_is_made_again_where_it_is_needed(finished, run):
    """As in a run whose models and corpora were not kept."""
    for generation in (1, 2):
        for name in ("model", "corpus"):
            shutil.rmtree(run.generation_folder(generation) / name)
    assert faults(run) == {}  # nothing needs them
    assert {step.name for step in faults(run, missing=True)} == {"train", "sample"}
    run.step(2, "perplexity").drop()
    with pytest.raises(UserError, match="The model of generation 2 of run 'one' is not here"):
        steps.perplexity(run, 2)
    assert list(repair(run)) == [run.step(1, "train"), run.step(1, "sample"), run.step(2, "train")]
    finish(run)
    assert contents(run) == contents(finished)


def test_descendants_of_what_came_out_otherwise_go_together(run):
    step = run.step(1, "train")
    write_json(step.manifest_file, sealed(read_json(step.manifest_file) | {"outputs": {"model": "another"}}))
    remade = repair(run)
    assert "is not the model that step train" in remade[step]
    assert remade[run.step(1, "sample")].startswith("made from another train")
    assert {run.step(2, "train"), run.step(2, "sample"), run.step(2, "perplexity")} <= remade.keys()
    finish(run)
    assert faults(run) == {}


def test_a_step_of_another_protocol_is_made_again(run):
    text = (run.folder / "protocol.yaml").read_text()
    (run.folder / "protocol.yaml").write_text(text.replace("max_context: 32", "max_context: 16", 1))
    changed = Run.open("one")
    assert changed.protocol != run.protocol
    assert repair(changed)
    finish(changed)
    assert faults(changed) == {}


def test_a_run_of_an_older_format_is_read_and_not_continued(run):
    for file in run.manifest_files():
        manifest = read_json(file)
        for name in ("format", "metrics", "notebook", "sha256"):
            manifest.pop(name, None)
        file.write_text(json.dumps(manifest))
    assert run.step(2, "perplexity").results()["metrics"]["perplexity"]["value"] > 1
    run.step(2, "perplexity").drop()
    for attempt in (lambda: steps.perplexity(run, 2), lambda: repair(run)):
        with pytest.raises(UserError, match="has format 1, and this version goes on with format 2; its results can be read"):
            attempt()


def test_nothing_is_repaired_under_a_drivers_feet(run):
    flip(run.folder / "generation-01" / "metrics" / "train.json")
    with run.exclusive(), pytest.raises(UserError, match="in use"):
        repair(run)
    assert run.step(1, "train").manifest_file.is_file()
