"""Comparisons of twins in tables and sentences, from records of ``studies.twins``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from IPython.display import Markdown

from collapse_lib.book.wording.numbers import pipe_table
from collapse_lib.figures.style import plus_minus
from collapse_lib.figures.twins import LINES, trained_generations
from collapse_lib.text.display import plain


def twins_setup(record: dict[str, Any]) -> Markdown:
    """In what the three runs differ."""
    runs, fields = record["runs"], record["fields"]
    rows = []
    for name in sorted({name for values in fields.values() for name in values}):
        values = [fields[role].get(name, fields["chain"][name]) for role in runs]
        rows.append((name, *("–" if value is None else plain(str(value)) for value in values)))
    for name, label in (("train_stories", "stories trained on"), ("epochs", "epochs")):
        rows.append((label, *(f"{record[name][role]:,}" for role in runs)))
    return Markdown(pipe_table(("What", *(f"`{run}`" for run in runs.values())), rows))


def twins_in_words(records: Sequence[dict[str, Any]]) -> Markdown:
    """What the comparisons say about the first and the last generation, as far as their numbers go."""
    return Markdown("\n\n".join(map(_in_words, records)) or "There is no comparison to put into words.")


def _in_words(record: dict[str, Any]) -> str:
    trained = trained_generations(record)
    first, last = trained[0], trained[-1]
    paragraphs = [f"**{record['runs']['chain']}.**"]
    for part, whose in (("chain", "the chain's"), ("twin", "the twin's")):
        if part not in last["positions"]:
            continue
        ends = [{pair: one["positions"][part][pair]["tv"] for pair in LINES} for one in (last, first)]
        now, then = ({pair: plus_minus(metric["value"], metric["standard_error"]) for pair, metric in pairs.items()} for pairs in ends)
        paragraphs.append(
            f"At {last['positions'][part]['contexts']} positions of {whose} held-out stories, two chains that differ in their initial corpora and in "
            f"their seeds are {now['both']} apart in total variation in generation {last['generation']} (generation {first['generation']}: "
            f"{then['both']}), two that differ in their seeds alone {now['reseeded']} ({then['reseeded']}). The difference, what another initial "
            f"corpus adds between these chains, is {now['excess_both']} ({then['excess_both']})."
        )
    paragraphs.append(
        "**One chain of each kind: no verdict.** A ± is one standard error over held-out stories. It does not cover chance among chains: other seeds "
        "would set other distances between them."
    )
    return "\n\n".join(paragraphs)
