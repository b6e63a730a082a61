"""What notebooks show of results stays one table, whatever is written in a definition."""

from __future__ import annotations

import html
import re

import pytest

from collapse_lib.display import early_stopping, literal, metrics_table, plain
from collapse_lib.results import measured

METRICS = {
    "metrics": {
        "ends_here": {"value": 0.25, "unit": "1", "definition": "share of '<|endoftext|>' | with $x$, *stars* and `ticks`", "standard_error": 0.01},
        "tokens": {"value": 1234, "unit": "<|tokens|>", "definition": "a_b ~ c^d"},
    }
}


def test_a_definition_cannot_split_its_row():
    rows = metrics_table(METRICS).data.split("\n")
    assert len(rows) == 4 and {row.count("|") for row in rows} == {5}
    assert rows[2].startswith("| ends here | 0.25 ± 0.01 |  | share of")
    for row, metric in zip(rows[2:], METRICS["metrics"].values(), strict=True):
        assert not re.search(r"[<*`$~^_]", row)
        assert html.unescape(row.split("|")[4].strip()) == metric["definition"]


def test_plain_text_says_the_same():
    text = "a < b & 'c' | _d_ {e} [f](g) \\ $h$ ~i^"
    assert html.unescape(plain(text)) == text
    assert literal(" two\r\nlines ") == '<span class="sample">two ⏎ lines</span>' and "(nothing)" in literal(" ")


@pytest.mark.parametrize(
    ("losses", "epochs", "said"),
    [
        ([4.1, 3.8, 3.61, 3.46], 4, r"^\*\*Cap reached, hold-out still falling by 0\.150 nats an epoch\*\*: `training\.max_epochs` = 4 ended"),
        ([4.1], 1, r"^\*\*Cap reached, hold-out still not seen to have stopped falling\*\*"),
        ([4.1, 3.8, 3.9], 2, r"^Early stopping: .* lowest after epoch 2, 3\.800 nats a token, and did not fall in the next\.$"),
        ([], 3, r"^Nothing was held out here .* the epochs, 3, were given or had been found in generation 1\.$"),
    ],
)
def test_what_ended_a_training_is_said(losses, epochs, said):
    assert re.search(said, early_stopping({"series": {"holdout_losses": losses}, "metrics": {"epochs": {"value": epochs}}}))


def test_the_committed_run_ran_into_its_cap():
    assert "still falling by 0.151 nats an epoch" in early_stopping(measured("tinystories-small", 1, "train"))
