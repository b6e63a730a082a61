"""What several test files share: the real data where there is any, and a few stories to work on."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

from collapse_lib.text import tokenizer as tokenization
from collapse_lib.text.tokenizer import Tokenizer

hypothesis.settings.register_profile("no-deadline", deadline=None)  # a busy machine is no bug
hypothesis.settings.load_profile("no-deadline")


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
