"""What the files of this folder train on."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_training import random_rows, write

from collapse_lib.text.corpus import TokenCorpus


@pytest.fixture
def corpus(tmp_path: Path) -> TokenCorpus:
    rows = random_rows(60, 13)
    return write(tmp_path / "corpus", rows[:25], rows[25:], complete=False)
