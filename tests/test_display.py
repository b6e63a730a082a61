"""What notebooks show of results stays one table, whatever is written in a definition."""

from __future__ import annotations

import html
import re

from collapse_lib.display import literal, metrics_table, plain

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
