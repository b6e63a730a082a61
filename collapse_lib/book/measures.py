"""The measures that the pages of a run follow from one generation to the next."""

from __future__ import annotations

from typing import NamedTuple

from collapse_lib.book.runs import BookRun


class Measure(NamedTuple):
    """A metric of a step, and what a page calls it (Markdown)."""

    step: str
    metric: str
    label: str


MEASURES = (
    Measure("perplexity", "perplexity", "{term}`Perplexity <perplexity>` on {term}`validation stories`"),
    Measure("train", "loss", "Training loss at the end"),
    Measure("free_text", "entropy", "{term}`Entropy <entropy>` of the text it wrote"),
    Measure("free_text", "oov_lexicon_rate", "{term}`OOV` words, against the English lexicon"),
    Measure("free_text", "oov_initial_rate", "{term}`OOV` words, against the initial corpus"),
    Measure("free_text", "distinct_2", "Distinct pairs of tokens"),
    Measure("free_text", "repeated", "Tokens that repeat the token before them"),
    Measure("free_text", "longest_repeat", "Longest run of one token"),
    Measure("sample", "stories", "Stories it brought to an end"),
    Measure("exact", "excess_loss", "{term}`Excess loss <excess loss>` of a validation story"),
    Measure("exact", "legal_share", "{term}`Legal <legal>` share of its stories"),
    Measure("texture", "conditional_entropy", "Entropy of its next-token law on its own text"),
    Measure("texture", "context_information", "{term}`Context information <context information>`"),
)
OVERVIEW = MEASURES[:5]  # columns of a run's overview


def with_unit(run: BookRun, measure: Measure) -> str:
    """A measure's label with its unit, if it has one."""
    metric = run.metric(1, measure.step, measure.metric)
    return f"{measure.label} ({metric['unit']})" if metric and metric["unit"] not in ("", "1") else measure.label
