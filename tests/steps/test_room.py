"""A step that will not fit is refused before it begins; what it is said to take is what it takes."""

from __future__ import annotations

import shutil

import pytest

from collapse_lib import steps
from collapse_lib.experiment.artefacts import path_of, size_of
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import Run
from collapse_lib.steps.room import check_room, wanted

SMALL = {"corpus.stories": "120", "tokenizer.vocabulary": "300", "training.epochs": "1", "sampling.sequences": "96"}


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    """A run with its initial corpus."""
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    run = Run.create("one", load_preset("smoke").with_changes(SMALL))
    steps.corpus(run)
    return run


@pytest.mark.parametrize("changes", [{}, {"sampling.after_eos": "pad"}])
def test_a_text_and_a_model_take_what_was_said(run, changes):
    run = Run.create("one", run.protocol.with_changes(changes))
    train, sample = run.step(1, "train"), run.step(1, "sample")
    said = wanted(train), wanted(sample)
    steps.train(run, 1)
    assert size_of(path_of(train.folder, "model")) < said[0]  # a checkpoint is several times as large
    steps.sample(run, 1)
    taken = size_of(path_of(sample.folder, "corpus"))
    assert taken == pytest.approx(said[1], rel=0.3 if changes else 0.15)  # the hashes in the shards' heads, of texts this small
    assert wanted(sample) == said[1] - taken  # what is there is not wanted twice


def test_a_step_that_will_not_fit_leaves_nothing(run):
    steps.train(run, 1)
    run = Run.create("one", run.protocol.with_changes({"sampling.sequences": 10**12}))
    sentence = r"sample of generation 1 in run 'one' will write about 1\d\d\d\d\d.* GB, and .* are free in .*; make room .*retention\.drop"
    with pytest.raises(UserError, match=sentence) as refusal:
        steps.sample(run, 1)
    assert "\n" not in str(refusal.value) and {path.name for path in run.generation_folder(1).iterdir()} == {
        "manifests", "metrics", "model", "sample.lock", "train.lock"
    }  # fmt: skip
    steps.sample(Run.create("one", run.protocol.with_changes({"sampling.sequences": 64})), 1)  # the same goes on once it fits


def test_a_model_that_will_not_fit_is_not_begun(run):
    shape = {"model.hidden_size": 2**15, "model.num_layers": 1000, "model.num_heads": 4}
    with pytest.raises(UserError, match=r"train of generation 1 in run 'one' will write about .* GB"):
        steps.train(Run.create("one", run.protocol.with_changes(shape)), 1)
    assert not (run.generation_folder(1) / "model").exists()


def test_the_regimes_text_of_their_own_is_counted(run):
    tokens = run.step(0, "corpus").results()["metrics"]["train_tokens"]["value"]
    for regime, expected in (
        ({"name": "fresh"}, 2 * tokens),
        ({"name": "mix", "share": 0.25, "real": "fresh"}, round(tokens / 2)),
        ({"name": "first_only"}, 2 * 96 * 49),
        ({"name": "accumulate"}, 0),
    ):
        step = Run(run.folder, run.protocol.with_changes({"regime": regime, "generations": 3})).step(3, "compose")
        assert wanted(step) == pytest.approx(expected, abs=1)
        check_room(step)
    shutil.rmtree(run.folder)
