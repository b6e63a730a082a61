"""The fates of runs and their early warnings in tables: computed labels of single chains, each with what it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from IPython.display import Markdown

from collapse_lib.book.wording.numbers import number, pipe_table
from collapse_lib.figures.texture import MEASURES, textured
from collapse_lib.metrics.fate import LASTING
from collapse_lib.studies.fates import STEP, departures, fate_of, fresh_chains, null_band, sample_tokens
from collapse_lib.studies.results import metric

if TYPE_CHECKING:
    from pandas import DataFrame

LABELS = MEASURES | {
    "above_reference": "samples in generation 1's last percent",
    "below_reference": "samples in generation 1's likelier half",
}
SIDES = {1: "above", -1: "below"}


def fates(table: DataFrame) -> Markdown:
    """The computed fate of each run, a label of this one chain, with the generations in either state and the source of its band."""
    rows = []
    for run in textured(table):
        fate, generations = fate_of(table, run), len(metric(table, run, "conditional_entropy", STEP))
        if fate is None:
            rows.append((run, "*not known: a measure or its error is missing*", "–", "–", "–"))
        elif generations <= LASTING:
            rows.append((run, f"*not known: {generations} of the {LASTING + 1} generations that a label needs*", "–", "–", "–"))
        else:
            rows.append((run, f"**{fate.label}**", spans(fate.dissolving), spans(fate.fixating), _source(table, run, fate.source)))
    if not rows:
        return Markdown("*No fate: step `texture` has not been done.*")
    return Markdown(pipe_table(("run", "fate of this one chain", "dissolving in", "fixating in", "band"), rows))


def early_warnings(table: DataFrame, run: str) -> Markdown:
    """Which measure of a run left its band first, how many sampled tokens it needs to say so, and how many it had.

    Where all samples agree their spread says nothing of how many are needed.
    """
    rows = []
    for departure in departures(table, run):
        label, had = LABELS[departure.measure], number(sample_tokens(run, departure.measure) or 0)
        if departure.generation is None:
            rows.append((label, "never", "–", "–", had))
        else:
            needed = number(math.ceil(departure.tokens)) if departure.tokens else "not known"
            rows.append((label, f"generation {departure.generation}", SIDES[departure.side], needed, had))
    if not rows:
        return Markdown(f"Of run **{run}** no measure has a band: errors or counts of tokens are missing.")
    band = null_band(table, run, "conditional_entropy")
    source = f"Run **{run}**, one chain; band: {_source(table, run, band.source)}.\n\n" if band else ""
    return Markdown(source + pipe_table(("measure", "first outside its band", "side", "sampled tokens needed", "had"), rows, "lllrr"))


def spans(generations: Sequence[int]) -> str:
    """Whole numbers in ascending order as spans: "2 to 4, 7"."""
    if not generations:
        return "–"
    gaps = [index for index, (before, after) in enumerate(pairwise(generations), 1) if after > before + 1]
    parts = [generations[start:stop] for start, stop in pairwise((0, *gaps, len(generations)))]
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)


def _source(table: DataFrame, run: str, source: str) -> str:
    if source == "fresh":
        chains = len(fresh_chains(table, run))
        return f"{chains} fresh chain{'s' if chains > 1 else ''}"
    return "within this run, which knows nothing of other chains"
