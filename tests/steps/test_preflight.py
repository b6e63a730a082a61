"""Check, then lock, then write: a refused start leaves things as they were."""

from __future__ import annotations

import pytest
from small_runs import SMALL, finish

from collapse_lib import steps
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import write_json
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import Run
from collapse_lib.steps.inputs import check_beginnings
from collapse_lib.steps.preflight import begin, begun


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return tmp_path / "runs"


MISSING = [
    ({"corpus.source": "/absent/stories.txt"}, "no file or folder '/absent/stories.txt'"),
    ({"corpus.validation_source": "/absent/others.jsonl"}, "no file or folder '/absent/others.jsonl'"),
    ({"tokenizer.source": "run:absent"}, "no run 'absent'"),
    ({"completions.prompts": "/absent/prompts.yaml"}, "no prompts at '/absent/prompts.yaml'"),
    ({"classification.tasks": "[sst2]", "classification.data": "/absent"}, "no folder '/absent/glue/sst2'"),
    ({"gpt_eval.judge": "some-model"}, "cannot be asked without a key"),
]


@pytest.mark.parametrize(("changes", "said"), MISSING)
def test_what_is_missing_is_said_before_anything_is_stored(runs, changes, said):
    protocol = load_preset("smoke")
    with pytest.raises(UserError, match=said):
        begin("one", protocol.with_changes(changes))
    assert not runs.exists()
    stored = begin("one", protocol)
    with pytest.raises(UserError, match=said):
        begin("one", protocol.with_changes(changes))
    assert Run.open("one") == stored


def test_a_source_that_is_not_what_it_should_be_is_said_before_anything_is_stored(runs, tmp_path):
    (tmp_path / "stories.jsonl").write_text('{"story": "Tom ran."}\n')
    with pytest.raises(UserError, match="no field 'text'"):
        begin("one", load_preset("smoke").with_changes({"corpus.source": str(tmp_path / "stories.jsonl")}))
    assert not runs.exists()


def test_a_gpu_that_is_not_there_is_missed_before_anything_is_stored(runs, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no GPU"):
        begin("one", load_preset("smoke"), "cuda")
    assert not runs.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classification.separator": " between " * 40}, r"classification\.separator takes .* classification\.max_length = 48"),
        ({"sampling.overflow": "extend", "completions.max_new_tokens": "60"}, r"completions\.max_new_tokens is 60, and the longest beginning"),
        (
            {"sampling.overflow": "extend", "completions.every": "null", "continuations.tokens": "62"},
            r"continuations\.tokens is 62, and the longest beginning",
        ),
    ],
)
def test_what_only_the_tokenizer_can_tell_is_said_with_the_corpus(runs, changes, said):
    run = begin("one", load_preset("smoke").with_changes(changes))
    with pytest.raises(UserError, match=said):
        steps.corpus(run)
    assert run.step(0, "corpus").manifest() is None


def test_one_story_and_none_to_train_on_are_said_before_anything_is_stored(runs, tmp_path):
    (tmp_path / "two.txt").write_text("Tom ran.<|endoftext|>Mia sat.")
    for changes, said in (
        ({"corpus.source": str(tmp_path / "two.txt"), "corpus.stories": "null"}, "gives one training story only"),
        ({"training.holdout": "0.9999"}, "holds out all 200 training stories"),
    ):
        with pytest.raises(UserError, match=said):
            begin("one", load_preset("smoke").with_changes(changes))
    assert not runs.exists()


def test_steps_that_are_finished_need_nothing(runs):
    run = begin("one", load_preset("smoke"))
    for generation, step in (
        (0, "corpus"),
        (0, "completions"),
        (1, "train"),
        (1, "sample"),
        (1, "continuations"),
        (1, "completions"),
        (2, "train"),
        (2, "sample"),
        (2, "continuations"),
        (2, "completions"),
    ):
        with run.step(generation, step).recording("cpu"):
            pass
    (run.folder / "protocol.yaml").write_text(
        run.protocol.with_changes({"corpus.source": "/absent/stories.txt", "completions.prompts": "/absent/prompts.yaml"}).to_yaml()
    )
    run = Run.open("one")
    assert begin("one", run.protocol) == run


def test_of_a_new_run_that_is_refused_at_its_first_step_nothing_stays(runs):
    with pytest.raises(UserError, match="first"), begun("one", load_preset("smoke")) as run:
        assert (runs / "one" / "protocol.yaml").is_file()
        (run.folder / "generation-00" / "corpus").mkdir(parents=True)
        raise UserError("first")
    assert not (runs / "one").exists()


def test_a_notebook_that_shows_why_it_stopped_stays(runs):
    with pytest.raises(UserError, match="no room"), begun("one", load_preset("smoke")) as run:
        (run.folder / "generation-00").mkdir()
        (run.folder / "generation-00" / "corpus.tmp.ipynb").touch()
        raise UserError("no room")
    assert (runs / "one" / "generation-00" / "corpus.tmp.ipynb").is_file()


def test_what_was_done_or_there_before_stays(runs):
    with pytest.raises(UserError, match="second"), begun("one", load_preset("smoke")) as run:
        write_json(run.step(0, "corpus").manifest_file, {})
        raise UserError("second")
    assert Run.open("one") == run
    (runs / "two").mkdir()
    (runs / "two" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="first"), begun("two", load_preset("smoke")):
        raise UserError("first")
    assert (runs / "two" / "notes.txt").read_text() == "mine"
    with pytest.raises(RuntimeError), begun("three", load_preset("smoke")):
        raise RuntimeError  # a mistake of ours: what there is may show it
    assert (runs / "three").exists()


def test_prompts_that_were_changed_between_generations_are_not_completed(runs, tmp_path):
    """The protocol knows a file by its name alone, and grades of other beginnings cannot be compared."""
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("[One day, Tom saw, Once upon]")
    changes = {"generations": 1, "completions.prompts": str(prompts), "continuations.beginnings": 2}
    run = Run.create("one", load_preset("smoke").with_changes(SMALL | changes))
    finish(run)
    longer = run.protocol.with_changes({"generations": 2})
    begin("one", longer, "cpu")
    for text in ("[Tom saw, One day, Once upon]", "[One day]"):
        prompts.write_text(text)
        for name in ("completions", "continuations"):
            step = Run.open("one").step(2, name)
            with pytest.raises(UserError, match=rf"prompts\.yaml' are not those that {name} of generation \d in run 'one' was given; put them back"):
                check_beginnings(step)
        with pytest.raises(UserError, match="put them back"):
            begin("one", longer, "cpu")
    prompts.write_text("[One day, Tom saw, Something that no generation was given]")
    begin("one", longer, "cpu")
