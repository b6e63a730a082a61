"""What several test files share: a finished run, the real data where there is any, and a few stories to work on."""

from __future__ import annotations

import os
import shutil
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
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder that holds a finished run ``smoke``: one is made, and each of pytest's processes works on a copy of its own."""
    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made"
    with exclusive(made.with_suffix(".lock"), "the run for the tests", patience=1800):
        if not made.exists():
            beside = base / "beside"
            done = collapse("run", "smoke", runs=beside)
            assert done.returncode == 0, done.stdout + done.stderr
            beside.rename(made)
    return shutil.copytree(made, tmp_path_factory.mktemp("finished") / "runs")


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
