"""A run lets go of what nothing needs, says so, ends with the same numbers, can be extended, and gets everything back when it is asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_runs import SMALL, contents, finish

from collapse_lib.cli import main
from collapse_lib.experiment.artefacts import path_of, record_of
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_json
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.repair import faults
from collapse_lib.experiment.retention import all_gone, let_go_of_unneeded, users
from collapse_lib.experiment.run import Run
from collapse_lib.studies.twins import protocols

KINDS = ("corpus", "composition", "model")
MIXED = SMALL | {
    "generations": "3",
    "regime.name": "mix",  # whose compositions show parts of the initial corpus and of the last text
    "regime.share": "0.5",
}


def go_on(run: Run) -> None:
    finish(run, after=let_go_of_unneeded)


def here(run: Run, artefact: str) -> list[int]:
    return [generation for generation in range(run.protocol.generations + 1) if path_of(run.generation_folder(generation), artefact).exists()]


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """The runs `kept`, with everything, and `lean`, which let go of what it could: the same protocol else."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLAPSE_RUNS", str(root))
        protocol = load_preset("smoke").with_changes(MIXED)
        go_on(Run.create("kept", protocol))
        go_on(Run.create("lean", protocol.with_changes({"retention.drop": KINDS})))
    return root


@pytest.fixture
def runs(both, tmp_path, monkeypatch) -> Path:
    shutil.copytree(both, tmp_path / "runs")
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_a_run_that_lets_go_ends_with_the_same_numbers_and_half_of_the_files(runs):
    kept, lean = Run.open("kept"), Run.open("lean")
    assert contents(kept) == contents(lean)
    # Of four texts and three models stay the first and the last, with which a fourth generation would learn and be compared.
    assert [here(kept, kind) for kind in KINDS] == [[0, 1, 2, 3], [2, 3], [1, 2, 3]]
    assert [here(lean, kind) for kind in KINDS] == [[0, 1, 3], [], [1, 3]]
    assert faults(lean) == {} and all_gone(kept) == []
    assert {(step.generation, artefact) for step, artefact, _ in all_gone(lean)} == {
        (2, "corpus"),
        (2, "composition"),
        (3, "composition"),
        (2, "model"),
    }
    record = read_json(record_of(lean.generation_folder(2), "model"))
    assert record["content"] == lean.step(2, "train").output_hashes()["model"]
    assert record["bytes"] == sum(file.stat().st_size for file in path_of(kept.generation_folder(2), "model").iterdir())


def test_it_can_be_extended(runs):
    longer = {name: Run.create(name, Run.open(name).protocol.with_changes({"generations": 4})) for name in ("kept", "lean")}
    for run in longer.values():
        go_on(run)
    assert contents(longer["kept"]) == contents(longer["lean"])
    assert (here(longer["lean"], "model"), here(longer["lean"], "corpus")) == ([1, 4], [0, 1, 4])


def test_what_was_let_go_is_named_as_that_and_comes_back_for_good(runs, capsys):
    run = Run.open("lean")
    with pytest.raises(UserError, match=r"model of generation 2 of run 'lean' was let go .*repair lean --missing") as refusal:
        run.step(2, "train").artefact("model")
    assert "\n" not in str(refusal.value)
    assert main(["export", "lean", "--hub-folder", "--generation", "2", "--output", str(runs / "hub")]) == 2
    assert "was let go" in capsys.readouterr().err and not (runs / "hub").exists()
    assert main(["status", "lean"]) == 0
    assert "let go, for no step needs it any more: 1 text, 2 compositions, 1 model (" in capsys.readouterr().out
    assert main(["repair", "lean"]) == 0  # nothing is damaged
    assert "Everything is as it was recorded" in capsys.readouterr().out and Run.open("lean") == run
    assert main(["repair", "lean", "--missing"]) == 0
    said = capsys.readouterr().out
    assert "its model was let go" in said and "retention.drop is []" in said
    run = Run.open("lean")
    assert run.protocol.retention.drop == ()
    go_on(run)
    assert contents(run) == contents(Run.open("kept"))
    assert all_gone(run) == [] and faults(run, missing=True) == {} and here(run, "model") == [1, 2, 3]


def test_a_step_that_is_to_be_done_again_gets_what_it_needs(runs):
    run = Run.open("lean")
    run.step(3, "alpha").drop()  # which reads the composition of its generation, and through that the text of generation 2
    found = faults(run)
    assert {(step.generation, step.name) for step in found} == {(2, "train"), (2, "sample"), (2, "compose"), (3, "compose")}
    for step in found:
        step.drop()
    go_on(run)
    assert contents(run) == contents(Run.open("kept")) and here(run, "corpus") == [0, 1, 3]


def test_an_interruption_leaves_nothing_that_passes_for_lost(runs, monkeypatch):
    run = Run.create("lean", Run.open("lean").protocol)
    shutil.copytree(runs / "kept" / "generation-02" / "model", runs / "lean" / "generation-02" / "model")  # as if it had been made again

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            let_go_of_unneeded(run)
    assert faults(run) == {} and here(run, "model") == [1, 3]
    assert [path.name for path in run.generation_folder(2).glob("*.tmp")] == ["model.going.tmp"]
    assert let_go_of_unneeded(run) == []
    assert not list(run.folder.glob("*/*.tmp"))


@pytest.mark.parametrize(
    ("regime", "texts_that_stay"),
    [
        ({}, [1, 5]),  # texture compares with the first text, and a sixth generation would learn from the fifth
        ({"name": "mix", "share": 0.1}, [1, 5]),
        ({"name": "select", "share": 0.5}, [1, 5]),
        ({"name": "accumulate"}, [1, 2, 3, 4, 5]),
        ({"name": "accumulate_subsample"}, [1, 2, 3, 4, 5]),
        ({"name": "fresh"}, [1]),
        ({"name": "first_only"}, [1]),
    ],
)
def test_every_regime_keeps_the_texts_that_it_may_draw_from(regime, texts_that_stay, tmp_path):
    changes = {"generations": 5, "regime": regime, "retention.drop": KINDS}
    run = Run(tmp_path, load_preset("demo").with_changes(changes))
    kept = [maker.generation for (maker, artefact), needed_by in users(run).items() if artefact == "corpus" and needed_by[-1].generation == 6]
    assert kept == texts_that_stay


def test_a_model_waits_for_all_that_read_it(tmp_path):
    run = Run(tmp_path, load_preset("demo").with_changes({"generations": 5, "retention.drop": KINDS}))
    readers = {(step.generation, step.name) for step in users(run)[run.step(2, "train"), "model"]}
    names = {"sample", "perplexity", "alpha", "exact", "texture", "continuations"}  # no completions and no tasks in an even generation
    assert readers == {(2, name) for name in names} | {(3, "alpha")}
    warm = Run(tmp_path, run.protocol.with_changes({"training.init": "previous"}))
    assert {(step.generation, step.name) for step in users(warm)[warm.step(2, "train"), "model"]} == readers | {(3, "train")}
    few = {(step.generation, step.name) for step in users(run, ("corpus", "train", "sample", "perplexity"))[run.step(2, "train"), "model"]}
    assert few == {(2, "sample"), (2, "perplexity")}  # of a study that does not ask for the rest
    selecting = Run(tmp_path, run.protocol.with_changes({"regime": {"name": "select", "share": 0.5}}))
    first = {(step.generation, step.name) for step in users(selecting, ("corpus", "compose", "train", "sample"))[selecting.step(1, "train"), "model"]}
    assert first >= {(generation, "compose") for generation in range(2, 7)}  # its verifier


def test_a_view_is_needed_with_what_it_shows(tmp_path):
    run = Run(tmp_path, load_preset("demo").with_changes({"generations": 3, "regime.name": "accumulate"}))
    needed = {(step.generation, artefact) for step, artefact in run.step(3, "train").needs()}
    assert {(1, "corpus"), (2, "corpus"), (3, "composition"), (0, "train")} <= needed


def test_what_is_let_go_decides_nothing(tmp_path):
    kept, lean = load_preset("demo"), load_preset("demo").with_changes({"retention.drop": "[model]"})
    assert kept.differences(lean) == [] and all(kept.hash(kind.decided_by) == lean.hash(kind.decided_by) for kind in STEPS.values())
    with pytest.raises(UserError, match=r"retention\.drop"):
        kept.with_changes({"retention.drop": "[train]"})
    with pytest.raises(UserError, match=r"set retention\.drop=\[\]"):
        protocols("demo", load_preset("demo").with_changes({"retention.drop": "[model]"}))
