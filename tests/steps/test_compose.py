"""Every regime in the pipeline: what each generation learned from, from whom, and that nothing is copied."""

from __future__ import annotations

import numpy as np
import pytest

from collapse_lib import steps
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.repair import faults, repair
from collapse_lib.experiment.run import Run
from collapse_lib.steps.inputs import open_artefact, open_text

CHANGES = {
    "generations": "3",
    "corpus.stories": "10",
    "corpus.validation_stories": "2",
    "tokenizer.vocabulary": "300",
    "training.epochs": "1",
    "sampling.sequences": "100",
    "sampling.length": "32",
    "alpha.truth_stories": "0",
    "completions.every": "null",
    "classification.tasks": "[]",
}


def finished(tmp_path, monkeypatch, **changes: str) -> Run:
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    run = Run.create("one", load_preset("smoke").with_changes(CHANGES | {name.replace("__", "."): value for name, value in changes.items()}))
    for step in run.steps():
        if step.name in ("corpus", "compose", "train", "sample"):
            getattr(steps, step.name)(run, **({} if step.name == "corpus" else {"generation": step.generation}))
    return run


def learned(run: Run, generation: int):
    return open_artefact(run.step(generation, "compose"), "composition")


def shares(run: Run, generation: int) -> dict[str, int]:
    return dict(run.step(generation, "compose").results()["series"]["tokens_by_text"])


def test_the_papers_regime_composes_nothing(tmp_path, monkeypatch):
    run = finished(tmp_path, monkeypatch, generations="1")
    assert not any(step.name == "compose" for step in run.steps())
    assert run.step(1, "train").parents()["previous corpus"] == run.step(0, "corpus")


def test_accumulated_texts_are_all_there_and_none_is_copied(tmp_path, monkeypatch):
    run = finished(tmp_path, monkeypatch, regime__name="accumulate")
    view = learned(run, 3)
    assert [part.hash for part in view.parts] == [open_text(run, generation).hash for generation in range(3)]
    assert view.tokens == sum(open_text(run, generation).tokens for generation in range(3))
    assert [file.name for file in (run.generation_folder(3) / "composition").iterdir()] == ["composition.json"]
    taken = [run.step(generation, "train").results()["metrics"]["steps"]["value"] for generation in (2, 3)]
    assert taken[0] == taken[1]  # as many steps, however much text there is
    assert {"0 corpus", "1 corpus", "2 corpus"} <= run.step(3, "compose").parents().keys()


def test_accumulated_texts_may_be_read_whole(tmp_path, monkeypatch):
    run = finished(tmp_path, monkeypatch, regime__name="accumulate", regime__training="epochs")
    taken = [run.step(generation, "train").results()["metrics"]["steps"]["value"] for generation in (2, 3)]
    assert taken[1] > 1.2 * taken[0]


def test_a_subsample_is_drawn_anew_from_the_union(tmp_path, monkeypatch):
    run = finished(tmp_path, monkeypatch, regime__name="accumulate_subsample")
    assert shares(run, 3).keys() == {"0", "1", "2"}
    assert 0 <= learned(run, 3).tokens - open_text(run, 0).tokens < 600
    second, third = (learned(run, generation).parts[0] for generation in (2, 3))
    assert second.starts.tolist() != third.starts.tolist()
    assert len(set(third.starts.tolist())) == third.rows


@pytest.mark.parametrize(("real", "source"), [("old", "0"), ("fresh", "real")])
def test_a_share_of_real_text(tmp_path, monkeypatch, real, source):
    run = finished(tmp_path, monkeypatch, regime__name="mix", regime__share="0.25", regime__real=real)
    for generation in (2, 3):
        assert shares(run, generation).keys() == {source, str(generation - 1)}
        assert run.step(generation, "compose").results()["metrics"]["real_share"]["value"] == pytest.approx(
            0.25, abs=0.12
        )  # in whole rows, of which there are few


def test_fresh_text_is_nobodys_and_another_each_time(tmp_path, monkeypatch):
    run = finished(tmp_path, monkeypatch, regime__name="fresh")
    initial = {tuple(row) for row in open_text(run, 0).iter_rows()}
    second, third = ({tuple(row) for row in learned(run, generation).iter_rows()} for generation in (2, 3))
    assert not second & third and not initial & second
    assert 0 <= learned(run, 3).tokens - open_text(run, 0).tokens < 600


def test_the_first_model_writes_every_text_and_never_the_same(tmp_path, monkeypatch):
    run = finished(tmp_path, monkeypatch, regime__name="first_only")
    assert run.step(2, "train").parents()["previous corpus"] == run.step(1, "sample")
    view = learned(run, 3)
    assert view.rows == open_text(run, 1).rows == 100 and view.hash not in {open_text(run, generation).hash for generation in (1, 2, 3)}
    assert set(run.step(3, "compose").parents()) == {"first train", "initial corpus"}  # and no text


def test_a_text_without_a_complete_story_cannot_be_selected_from(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"Generation 1 wrote nothing that regime 'select' can take; sample longer rows \(sampling\.length\)"):
        select = {"regime__name": "select", "regime__share": "0.25", "regime__verifier": "likelihood"}
        finished(tmp_path, monkeypatch, **select, sampling__length="2", generations="2")


@pytest.mark.parametrize("verifier", ["likelihood", "grammar"])
def test_the_stories_that_a_verifier_likes_best(tmp_path, monkeypatch, verifier):
    more = {"corpus__source": "grammar", "sampling__length": "64", "generations": "2"}
    run = finished(tmp_path, monkeypatch, regime__name="select", regime__share="0.25", regime__verifier=verifier, **more)
    text, view = open_text(run, 1), learned(run, 2)
    assert text.rows == 100 * 4 and view.rows_are_complete
    assert all(row[0] == text.eos_id and text.eos_id not in row[1:] for row in view.iter_rows())


def test_initial_weights_may_be_the_predecessors(tmp_path, monkeypatch):
    run = finished(tmp_path, monkeypatch, training__init="previous", training__learning_rate="1e-9", generations="2")
    first, second = (open_artefact(run.step(generation, "train"), "model") for generation in (1, 2))
    assert all(np.allclose(one.detach(), other.detach(), atol=1e-5) for one, other in zip(first.parameters(), second.parameters(), strict=True))
    assert run.step(2, "train").parents()["previous train"] == run.step(1, "train")


def test_a_damaged_composition_is_noticed_and_made_again(tmp_path, monkeypatch):
    run = finished(tmp_path, monkeypatch, regime__name="mix", regime__share="0.5", regime__real="fresh", generations="2")
    step = run.step(2, "compose")
    before = step.output_hashes()
    for name in ("rows-1.npy", "fresh/shard-00000.arrow", "composition.json"):
        file = run.generation_folder(2) / "composition" / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with pytest.raises(UserError, match="`collapse repair one` and then `collapse run one` make it again"):
            learned(run, 2).token_counts()
        assert list(repair(run)) == [step]
        steps.compose(run, 2)
        assert step.output_hashes() == before and faults(run) == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"regime.name": "fresh", "corpus.source": "stories.txt"}, "whose fresh text corpus.source = 'stories.txt' cannot give"),
        ({"regime.name": "mix"}, "share of regime 'mix' is None"),
        ({"regime.share": "0.5"}, "Regime 'replace' has no share"),
        ({"regime.name": "select", "regime.share": "0"}, "leaves nothing to learn from"),
        (
            {"regime.name": "select", "regime.share": "0.5", "regime.verifier": "grammar", "corpus.source": "a.txt"},
            "says nothing about corpus.source",
        ),
        ({"regime.name": "replicate"}, "regime.name"),
        ({"regime.training": "epochs"}, "'accumulate' alone has"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(changes, said):
    with pytest.raises(UserError, match=said) as refused:
        load_preset("smoke").with_changes(changes)
    assert "\n" not in str(refused.value)
