"""A run on the grammar against its exact law: how far above the floor, how legal, and what goes first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from collapse_lib.experiment.errors import UserError
from collapse_lib.figures import style
from collapse_lib.figures.style import COLOURS, GREY, Interactive, Line, Picture, View, styled
from collapse_lib.metrics.legality import CAUSES
from collapse_lib.studies.results import measured, metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

EXCESS, SHARE = "excess loss (nats a story)", "excess loss / exact floor"
LOG_RANGE = 2.0  # highest over lowest excess from which its axis is logarithmic
LEGAL = {
    "legal_share": ("of a story before it breaks", COLOURS[0], "o"),
    "legal_sentences": ("of sentences", COLOURS[2], "s"),
    "legal_stories": ("of whole stories", COLOURS[1], "^"),
}  # metric -> label, colour, marker
BROKEN = dict(zip(CAUSES, (COLOURS[3], COLOURS[1], COLOURS[4], COLOURS[5], COLOURS[0]), strict=True))
KINDS = ("plots", "endings", "heroes")
SURVIVAL_GENERATIONS = 5


@styled()
def excess_loss(table: DataFrame) -> Picture:
    """How far each run's loss on validation stories lies above the smallest possible: in nats a story (left) and as a share of that floor (right).

    Bands of one standard error over stories. Raises ``UserError`` if no run has been held against an exact law.

    Example: ``figures.excess_loss(results.load("demo"))``
    """
    figure, axes = style.panels(2, size=(5.2, 3.9))
    for panel, view in zip(axes, _excess_views(table).values(), strict=True):
        style.draw_view(panel, view)
    return Picture(figure, "Excess loss by generation")


def excess_loss_interactive(table: DataFrame) -> Interactive:
    """The same with values on hovering; two buttons choose between nats and the share of the floor.

    Example: ``figures.excess_loss_interactive(results.load("demo"))``
    """
    views = _excess_views(table)
    return style.interactive("excess-loss", views, showlegend=len(views[EXCESS].lines) > 1)


@styled()
def legality(table: DataFrame, run: str) -> Picture:
    """The exact judge: which share of a run's text is legal (left), and what broke its stories (right), by generation.

    Bands of one standard error over stories; real stories are legal to the last character. Raises ``UserError`` for a run without judged stories.

    Example: ``figures.legality(results.load("demo"), "demo")``
    """
    lines = _legal_lines(table, run)
    figure, (left, right) = style.panels(2, size=(5.6, 3.9))
    left.axhline(1, color=GREY, linestyle="--", linewidth=1.3, label="real stories")
    style.draw_lines(left, View("legal share", lines))
    left.set_ylim(-0.03, 1.03)
    left.legend(frameon=False, fontsize=9, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    generations, stacked = lines[0].x, [0.0] * len(lines[0].x)
    for cause, label in {"": "nothing: legal to the end", **CAUSES}.items():
        name, colour = (f"broken_{cause}", BROKEN[cause]) if cause else ("legal_stories", COLOURS[2])
        shares = metric(table, run, name, "exact")["value"].tolist()
        right.bar(generations, shares, 0.8, bottom=stacked, color=colour, edgecolor="white", linewidth=0.5, label=label)
        stacked = [below + share for below, share in zip(stacked, shares, strict=True)]
    right.set_ylabel("share of stories")
    right.set_ylim(0, 1)
    handles, labels = right.get_legend_handles_labels()
    right.legend(handles[::-1], labels[::-1], frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5), title="broken by")
    return Picture(figure, f"Legal text and why stories break, run {run}")


def legality_interactive(table: DataFrame, run: str) -> Interactive:
    """The same with values on hovering; two buttons choose between legal shares and the share of stories that each cause broke.

    Example: ``figures.legality_interactive(results.load("demo"), "demo")``
    """
    legal = _legal_lines(table, run)
    broken = [Line.of(cause.replace("_", " "), metric(table, run, f"broken_{cause}", "exact"), BROKEN[cause]) for cause in CAUSES]
    views = {
        "legal": View("legal share", [*legal, *map(Line.emptied, broken)]),
        "broken by": View("share of stories", [*map(Line.emptied, legal), *broken]),
    }
    return style.interactive(f"legality-{run}", views, legend=style.LEGEND_BELOW)


@styled()
def loss_by_probability(table: DataFrame, run: str) -> Picture:
    """Excess loss by the true probability q of the token: of such a token (left), and what all of them add to a story's (right), by generation.

    Bands of one standard error over stories. Raises ``UserError`` for a run that has not been held against an exact law.

    Example: ``figures.loss_by_probability(results.load("demo"), "demo")``
    """
    figure, axes = style.panels(2, size=(5.2, 4.1))
    for panel, view in zip(axes, _tail_views(table, run).values(), strict=True):
        style.draw_lines(panel, view)
        panel.axhline(0, color=GREY, linewidth=1)
    handles = style.lines_only_once(axes)
    style.legend_above(figure, handles, columns=4, title="true probability of the token")
    return Picture(figure, f"Excess loss by true probability, run {run}")


def loss_by_probability_interactive(table: DataFrame, run: str) -> Interactive:
    """The same with values on hovering; two buttons choose between a token's excess and the bin's part of a story's.

    Example: ``figures.loss_by_probability_interactive(results.load("demo"), "demo")``
    """
    views = {axis.partition(" (")[0]: view for axis, view in _tail_views(table, run).items()}
    return style.interactive(f"tails-{run}", views, legend={"title": {"text": "true probability"}}, showlegend=True)


@styled()
def word_survival(table: DataFrame, run: str) -> Picture:
    """Which words are still written, by their count in the initial corpus, in a few generations; dashed what drift alone would leave.

    Error bars of one standard error over words. Raises ``UserError`` for a run that has not been held against an exact law.

    Example: ``figures.word_survival(results.load("demo"), "demo")``
    """
    _require(table, run, "excess_loss", "has not been held against an exact law")
    chosen = style.evenly(generations_of(table, run), SURVIVAL_GENERATIONS)
    figure, (panel,) = style.panels()
    for generation, colour in zip(chosen, style.shades(len(chosen)), strict=True):
        rows = measured(run, generation, "exact")["series"]["word_survival"]
        counts = [math.sqrt(row["first"] * row["last"]) for row in rows]
        shares, errors = ([row["survived"].get(of) or 0.0 for row in rows] for of in ("value", "standard_error"))
        panel.errorbar(counts, shares, errors, color=colour, marker="o", capsize=2, label=f"generation {generation}")
        panel.plot(counts, [row["predicted"] for row in rows], color=colour, linestyle="--", linewidth=1.2)
    panel.plot([], [], color=GREY, linestyle="--", linewidth=1.2, label="extinction law")
    panel.set_xscale("log")
    style.plain_ticks(panel.xaxis)
    panel.set(xlabel="count in the initial corpus", ylabel="share of word types still written", ylim=(-0.03, 1.05))
    panel.legend(frameon=False, fontsize=10, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return Picture(figure, f"Survival of words by their initial count, run {run}")


@styled()
def still_told(table: DataFrame, run: str) -> Picture:
    """How many plots, endings and heroes the judged stories of each generation tell; dashed what as many true stories would tell.

    Bands of one standard error (jackknife over stories). Raises ``UserError`` for a run without judged stories.

    Example: ``figures.still_told(results.load("demo"), "demo")``
    """
    _require(table, run, "plots_told", "has no judged stories")
    figure, axes = style.panels(len(KINDS), size=(3.6, 3.7))
    for panel, kind in zip(axes, KINDS, strict=True):
        told, expected = (metric(table, run, f"{kind}_{name}", "exact") for name in ("told", "told_expected"))
        lines = [Line.of("told", told, COLOURS[0]), Line.of("as many true stories", expected, GREY, "", "--")]
        style.draw_lines(panel, View(f"different {kind}", lines))
        _whole_numbers(panel, max(told["value"].max(), expected["value"].max()))
    style.legend_above(figure, style.lines_only_once(axes), columns=2)
    return Picture(figure, f"Plots, endings and heroes still told, run {run}")


def floor_perplexity(table: DataFrame, run: str) -> float | None:
    """The perplexity of the grammar's own law on a run's validation stories; None where it is not known.

    Perplexity by the paper's definition leaves out the ends of stories, so that their true losses are taken from the floor: a mean over those
    stories of which each token's was worked out. Of the released definition, which has tokens stand for each other, there is no floor.
    """
    if not generations_of(table, run) or len(metric(table, run, "perplexity_paper")):
        return None
    law, counts = measured(run, 1, "exact"), measured(run, 1, "perplexity")["metrics"]["perplexity"]["counts"]
    ends = [losses[-1] for losses in law["series"]["true_losses"]]
    return math.exp((law["metrics"]["story_floor"]["value"] - sum(ends) / len(ends)) * counts["stories"] / counts["tokens"])


def generations_of(table: DataFrame, run: str) -> list[int]:
    """The generations of a run that have been held against an exact law."""
    return metric(table, run, "excess_loss", "exact")["generation"].tolist()


def _require(table: DataFrame, run: str, name: str, lacks: str) -> None:
    if not len(metric(table, run, name, "exact")):
        raise UserError(f"Run '{run}' {lacks}, or is not in this table.")


def _excess_views(table: DataFrame) -> dict[str, View]:
    runs = [run for run in table["run"].unique() if generations_of(table, run)]
    if not runs:
        raise UserError(f"Nothing has been held against an exact law yet in {', '.join(table['run'].unique()) or 'an empty table'}.")
    views = {}
    for axis, name in ((EXCESS, "excess_loss"), (SHARE, "excess_share")):
        lines = [Line.of(run, metric(table, run, name, "exact"), style.colour(index)) for index, run in enumerate(runs)]
        views[axis] = View(axis, lines, {"yaxis.type": _scale([value for line in lines for value in line.y]), "yaxis.autorange": True})
    return views


def _scale(values: Sequence[float]) -> str:
    """Of a nearly perfect model the sampling of stories may make the excess negative."""
    return "log" if min(values) > 0 and max(values) >= LOG_RANGE * min(values) else "linear"


def _legal_lines(table: DataFrame, run: str) -> list[Line]:
    _require(table, run, "legal_share", "has no judged stories")
    return [Line.of(label, metric(table, run, name, "exact"), colour, marker) for name, (label, colour, marker) in LEGAL.items()]


def _tail_views(table: DataFrame, run: str) -> dict[str, View]:
    _require(table, run, "excess_loss", "has not been held against an exact law")
    records = {generation: measured(run, generation, "exact") for generation in generations_of(table, run)}
    bins: dict[tuple[float, float], dict[int, dict[str, Any]]] = {}
    for generation, record in records.items():
        for row in record["series"]["loss_by_probability"]:
            bins.setdefault((row["low"], row["high"]), {})[generation] = row
    views = {}
    for axis, name in (("excess loss of a token (nats)", "excess"), ("part of a story's excess (nats)", "excess_of_story")):
        lines = []
        for ((low, high), rows), colour, marker in zip(sorted(bins.items()), style.shades(len(bins)), cycle("osD^vP"), strict=False):
            values, errors = ([row[name].get(of) for row in rows.values()] for of in ("value", "standard_error"))
            lines.append(Line(f"{low:g} to {high:g}", list(rows), values, errors, colour, marker))
        views[axis] = View(axis, lines)
    return views


def _whole_numbers(panel: Axes, highest: float) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.set_ylim(0, max(1.0, 1.1 * highest))
    panel.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
