"""What several test files share: a finished run, the real data where there is any, and a few stories to work on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from command import collapse

from collapse_lib.experiment.files import exclusive
from collapse_lib.text import tokenizer as tokenization
from collapse_lib.text.tokenizer import Tokenizer

hypothesis.settings.register_profile("no-deadline", deadline=None)  # a busy machine is no bug
hypothesis.settings.load_profile("no-deadline")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """``made_once(name, make)``: a folder that ``make`` fills, once for all of pytest's processes; each works on a copy of its own."""

    def copied(name: str, make: Callable[[Path], None]) -> Path:
        base = tmp_path_factory.getbasetemp()
        made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"made-{name}"
        with exclusive(made.with_suffix(".lock"), f"what the tests share, {name},", patience=1800):
            if not made.exists():
                beside = base / f"beside-{name}"
                make(beside)
                beside.rename(made)
        return shutil.copytree(made, tmp_path_factory.mktemp(name) / "runs")

    return copied


@pytest.fixture(scope="session")
def finished_runs(made_once) -> Path:
    """A runs folder that holds a finished run ``smoke``."""

    def make(runs: Path) -> None:
        done = collapse("run", "smoke", runs=runs)
        assert done.returncode == 0, done.stdout + done.stderr

    return made_once("smoke", make)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real public data; the test skips where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "README.md").is_file():
        pytest.skip(f"needs the real data folder {folder}")
    return folder


@pytest.fixture(scope="session")
def stories() -> list[str]:
    """A hundred different short stories with a few characters beyond ASCII."""
    names, things, places = ("Tom", "Zoë", "Mia", "Ben"), ("kite", "drum", "café", "boat", "hat"), ("park", "wood", "sea", "town", "barn")
    return [f'{name} took a {thing} to the {place}. "Look, my {thing}!" said {name}.' for name in names for thing in things for place in places]


@pytest.fixture(scope="session")
def tokenizer(stories: list[str]) -> Tokenizer:
    """A byte-level BPE of 300 tokens learned from ``stories``."""
    return tokenization.learn(iter(stories), 300)
