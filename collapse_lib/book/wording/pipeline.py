"""What the pipeline does, in tables: where the loss rises, and what lies between two definitions of a measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from IPython.display import Markdown

from collapse_lib.book.wording.numbers import course, pipe_table, points_of
from collapse_lib.figures.pipeline import entropies, loss_bands, perplexities, runs_with
from collapse_lib.studies.results import measured, metric

if TYPE_CHECKING:
    from pandas import DataFrame


def definitions_compared(table: DataFrame) -> Markdown:
    """Where each measure went, and where what lies between its definitions, in the generations that have both."""
    rows = []
    for run in runs_with(table, "definitions"):
        perplexity, entropy = (pair.paper.merge(pair.released, on="generation") for pair in (perplexities(table, run), entropies(table, run)))
        perplexity["excess"] = 100 * (perplexity["value_y"] / perplexity["value_x"] - 1)
        entropy["added"] = entropy["value_y"] - entropy["value_x"]
        for label, points, column in (
            ("perplexity by the paper's definition", perplexity, "value_x"),
            ("perplexity by the released code's", perplexity, "value_y"),
            ("how far the released code's lies above the paper's (%)", perplexity, "excess"),
            ("entropy of the tokens that were written (nats)", entropy, "value_x"),
            ("entropy with padding counted (nats)", entropy, "value_y"),
            ("what padding changes in entropy (nats)", entropy, "added"),
            ("share of positions that would be padding", metric(table, run, "padding_share"), "value"),
        ):
            if len(points):
                rows.append((label, run, course(points_of(points, column))))
    return Markdown(pipe_table(("measure", "run", "here"), rows))


def shares_of_the_rise(table: DataFrame) -> Markdown:
    """By range of positions: its share of the scored tokens, its loss in the first and the last generation, and its share of the whole rise."""
    rows = []
    for run in runs_with(table, "loss"):
        bands = loss_bands(table, run)
        metrics = measured(run, int(bands[0].points["generation"].iloc[-1]), "perplexity")["metrics"]
        tokens = [metrics[band.metric]["counts"]["tokens"] for band in bands]
        losses = [band.points["value"].iloc[[0, -1]].tolist() for band in bands]
        rises = [count * (last - first) for count, (first, last) in zip(tokens, losses, strict=True)]
        for band, count, (first, last), rise in zip(bands, tokens, losses, rises, strict=True):
            # A chain that got no worse has no rise to share out.
            share = f"{rise / sum(rises):.1%}" if sum(rises) > 0 else "–"
            rows.append((run, band.label, f"{count / sum(tokens):.1%}", f"{first:.3f}", f"{last:.3f}", f"{last - first:+.3f}", share))
    header = ("run", "story tokens before it", "share of the tokens", "loss, first", "loss, last", "rise (nats)", "share of the whole rise")
    return Markdown(pipe_table(header, rows, "llrrrrr"))
