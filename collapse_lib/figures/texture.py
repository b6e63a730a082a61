"""The text of the generations as a whole: does it dissolve, does it fixate, and how does generation 1 see it?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from collapse_lib.experiment.errors import UserError
from collapse_lib.figures import style
from collapse_lib.figures.style import COLOURS, GREY, Interactive, Line, Picture, View, styled
from collapse_lib.studies.fates import STEP, null_band
from collapse_lib.studies.results import measured, metric

if TYPE_CHECKING:
    from pandas import DataFrame

MEASURES = {
    "conditional_entropy": "conditional entropy (nats)",
    "unigram_entropy": "entropy of the tokens (nats)",
    "context_information": "context information (nats)",
    "context_share": "share that context decides",
    "block_distinct_2": "distinct 2-grams",
    "self_bleu": "self-BLEU",
    "compression_ratio": "compression ratio",
    "text_distance": "distance from real stories",
}
HISTOGRAMS = 6  # generations whose histogram is drawn, at most


@styled()
def texture_measures(table: DataFrame) -> Picture:
    """What the text of each generation is like as a whole, a panel a measure, a line a run, with bands of one standard error.

    Dashed, if it was measured, what real stories have. A single run has its null band behind the line, in grey: outside, something has changed.
    Raises ``UserError`` if no run has been looked at.

    Example: ``figures.texture_measures(results.load("demo"))``
    """
    runs = textured(table)
    if not runs:
        raise UserError(f"No text has been looked at as a whole yet in {', '.join(table['run'].unique()) or 'an empty table'}.")
    figure, axes = style.panels(len(MEASURES), columns=2, size=(5.2, 3.2))
    for panel, (name, label) in zip(axes, MEASURES.items(), strict=True):
        points = {run: metric(table, run, name, STEP) for run in runs}
        band = null_band(table, runs[0], name) if len(runs) == 1 else None
        if band is not None:
            panel.fill_between(points[runs[0]]["generation"], band.low, band.high, color="#dddddd", linewidth=0, label=f"95% band, {band.source}")
        lines = [Line.of(run, of_run, style.colour(index)) for index, (run, of_run) in enumerate(points.items()) if len(of_run)]
        style.draw_lines(panel, View(label, lines))
        for index, run in enumerate(runs):
            for level in metric(table, run, f"real_{name}", STEP)["value"]:
                panel.axhline(level, color=style.colour(index), linestyle="--", linewidth=1.2, label="real stories")
    style.legend_above(figure, style.lines_only_once(axes), columns=3)
    return Picture(figure, "The text as a whole by generation")


def texture_measures_interactive(table: DataFrame, run: str) -> Interactive:
    """The same measures of one run with values on hovering, chosen from a list.

    Example: ``figures.texture_measures_interactive(results.load("demo"), "demo")``
    """
    points = {label: metric(table, run, name, STEP) for name, label in MEASURES.items()}
    views = {label: View(label, [Line.of(run, of_measure, COLOURS[0])]) for label, of_measure in points.items() if len(of_measure)}
    if not views:
        raise UserError(f"The text of run '{run}' has not been looked at as a whole, or the run is not in this table.")
    return style.interactive(f"texture-{run}", views, dropdown=True)


@styled()
def likelihoods(table: DataFrame, run: str) -> Picture:
    """Samples by their perplexity under generation 1, a histogram a generation (a few, evenly spaced), over that of generation 1's own samples.

    Dotted lines: the median of generation 1's samples, and the perplexity that 1% of them exceed. Raises ``UserError`` for a run that has none.

    Example: ``figures.likelihoods(results.load("demo"), "demo")``
    """
    generations = metric(table, run, "above_reference", STEP)["generation"].tolist()
    if not generations:
        raise UserError(f"The text of run '{run}' has not been looked at as a whole, or the run is not in this table.")
    chosen = style.evenly(generations, HISTOGRAMS)
    records = [measured(run, generation, STEP) for generation in chosen]
    shares = [np.array(record["series"]["likelihood_counts"]) / sum(record["series"]["likelihood_counts"]) for record in records]
    edges = np.exp(records[0]["series"]["likelihood_edges"])
    filled = np.flatnonzero(sum(shares))
    figure, axes = style.panels(len(chosen), columns=1, size=(7.2, 0.75 + 2.0 / len(chosen)), sharex=True, sharey=True)
    for panel, generation, of_generation in zip(axes, chosen, shares, strict=True):
        panel.stairs(of_generation, edges, fill=True, color=COLOURS[0], alpha=0.75)
        panel.stairs(shares[0], edges, color=GREY, linewidth=1.2)
        for level in ("0.5", "0.99"):
            panel.axvline(np.exp(records[0]["metrics"][f"likelihood_{level}"]["value"]), color=GREY, linestyle=":", linewidth=1.2)
        panel.set(xlabel="", ylabel="", yticks=[])
        panel.set_title(f"generation {generation}", loc="left", fontsize=10, pad=2)
    axes[-1].set_xscale("log")
    axes[-1].set_xlim(edges[max(filled[0] - 2, 0)], edges[min(filled[-1] + 3, len(edges) - 1)])
    style.plain_ticks(axes[-1].xaxis)
    axes[-1].set_xlabel("perplexity of a sample under generation 1")
    figure.supylabel("share of samples", fontsize=11)
    return Picture(figure, f"Samples by their perplexity under generation 1, run {run}")


def textured(table: DataFrame) -> list[str]:
    """The runs of a table whose text has been looked at as a whole."""
    return [run for run in table["run"].unique() if len(metric(table, run, "conditional_entropy", STEP))]
