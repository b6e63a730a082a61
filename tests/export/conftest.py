"""A run to export: two generations that learn from a file, whose name and whose protocol try to be markup."""

from __future__ import annotations

from pathlib import Path

import pytest

from collapse_lib.experiment.execute import advance
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import Run

HOSTILE = "<script>alert(1)</script> ![x](http://a.b/c) |\n---\nlicense: evil\n---"
STEPS = ("corpus", "train", "sample", "perplexity")


@pytest.fixture(scope="session")
def exported_runs(made_once, tmp_path_factory, stories: list[str]) -> Path:
    """A runs folder that holds the run ``small``."""

    def make(runs: Path) -> None:
        source = tmp_path_factory.getbasetemp() / "<img src=x>`|.txt"  # beside the runs, whoever works on a copy of these
        source.write_text("\n<|endoftext|>\n".join(stories * 2), encoding="utf-8")
        changes = {"corpus.source": str(source), "corpus.stories": "null", "corpus.validation_stories": "5", "training.max_epochs": "1"}
        protocol = load_preset("smoke").with_changes(changes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLLAPSE_RUNS", str(runs))
            run = Run.create("small", protocol.model_copy(update={"description": HOSTILE}))
            advance(run, "cpu", only=STEPS)

    return made_once("export", make)


@pytest.fixture
def run(exported_runs: Path, monkeypatch) -> Run:
    monkeypatch.setenv("COLLAPSE_RUNS", str(exported_runs))
    return Run.open("small")
