"""What a pipeline does to the text of its generations: the loss along the rows, the ends of the stories, their lengths.

A chain can drift for two reasons: the models forget, as the paper argues, or the way in which text is sampled, cut and learned again
changes it. The second leaves marks at fixed positions: at a row's first token, where a story ends, beyond the length of a training block.
And two ways of measuring give two numbers for the same models, which ``definitions`` sets side by side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from collapse_lib.experiment.errors import UserError
from collapse_lib.figures import style
from collapse_lib.figures.style import COLOURS, Interactive, Line, Picture, View, styled
from collapse_lib.studies.results import metric

if TYPE_CHECKING:
    from pandas import DataFrame

LOSS, RISE = "loss (nats a token)", "loss above generation 1's (nats a token)"
BEFORE = "story tokens before it"
PERPLEXITY, ENTROPY = "perplexity on validation stories", "entropy (nats)"
# Metric, its level in the initial corpus if it has one there, axis, and what to multiply the metric by.
ENDS = (
    ("eos_share", "initial_eos_share", "ends per 1000 sampled tokens", 1000),
    ("end_probability", None, "probability of an end where one is (%)", 100),
    ("story_length", "initial_story_length", "story length, cut at the row (tokens)", 1),
)
DEFINITIONS = {"paper": ("by the paper's text", "o", "-"), "released": ("by the released code", "s", "--")}  # label, marker, line style
# What a run evaluated by an older version may lack; "loss" and "definitions" stand for several metrics.
MEASURES = {"loss": "losses by position", "story_length": "story lengths", "definitions": "perplexity and entropy by a second definition"}


class Band(NamedTuple):
    """A range of positions in one run: its look and label, its metric, and that metric by generation."""

    colour: str
    marker: str
    label: str
    metric: str
    points: DataFrame


class Pair(NamedTuple):
    """A measure of one run by both definitions, each with the generations and errors that it has; empty where it was not measured."""

    paper: DataFrame
    released: DataFrame


@styled()
def loss_by_position(table: DataFrame) -> Picture:
    """A row a run: the loss on validation stories by generation, a line for each range of positions (left), and its rise (right); nats a token.

    Bands of one standard error over stories; positions beyond a run's context have no line. Raises ``UserError`` if no run has these losses.

    Example: ``figures.loss_by_position(results.load("demo"))``
    """
    runs = _measured_runs(table, "loss")
    figure, axes = style.panels(2 * len(runs), columns=2, size=(5.2, 3.6 + 0.5 / len(runs)))
    for left, right, run in zip(axes[::2], axes[1::2], runs, strict=True):
        for panel, view in zip((left, right), _loss_views(table, run).values(), strict=True):
            style.draw_lines(panel, view, alpha=0.15)
        if len(runs) > 1:
            left.set_title(run, loc="left", fontsize=11)
    handles = style.lines_only_once(axes)
    style.legend_above(figure, handles, columns=len(handles), title=BEFORE)
    return Picture(figure, "Loss by position and generation")


def loss_by_position_interactive(table: DataFrame, run: str) -> Interactive:
    """The same of one run with values on hovering; two buttons choose between loss and rise.

    Example: ``figures.loss_by_position_interactive(results.load("demo"), "demo")``
    """
    _measured_runs(table[table["run"] == run], "loss")
    views = {axis.partition(" (")[0]: view for axis, view in _loss_views(table, run).items()}
    return style.interactive(f"loss-by-position-{run}", views, legend={"title": {"text": BEFORE}}, showlegend=True)


@styled()
def story_ends(table: DataFrame) -> Picture:
    """How often stories end, how well an end is foreseen, how long stories are: a line a run, dashed the level of the initial corpus.

    Raises ``UserError`` if no run has its story lengths measured.

    Example: ``figures.story_ends(results.load("demo"))``
    """
    runs = _measured_runs(table, "story_length")
    figure, axes = style.panels(len(ENDS), size=(3.6, 4.2))
    for panel, (name, initial, axis, scale) in zip(axes, ENDS, strict=True):
        for index, run in enumerate(runs):
            points = metric(table, run, name)
            scaled = points.assign(value=scale * points["value"], standard_error=scale * points["standard_error"])
            style.draw_lines(panel, View(axis, [Line.of(run, scaled, style.colour(index))]))
            if initial:
                panel.axhline(scale * metric(table, run, initial)["value"].iloc[0], color=style.colour(index), linestyle="--", linewidth=1.3)
        panel.set_ylim(bottom=0)
    _legend(figure, runs, {"marker": "o"}, [{"linestyle": "--", "linewidth": 1.3, "label": "initial corpus"}])
    return Picture(figure, "Story ends and story lengths by generation")


@styled()
def definitions(table: DataFrame) -> Picture:
    """Perplexity (left) and entropy (right) of the same models and text by the paper's definition and by the released code's.

    A colour a run, a full line and a dashed one; bands of one standard error over stories. Raises ``UserError`` if no run has a second definition.

    Example: ``figures.definitions(results.load("demo"))``
    """
    runs = _measured_runs(table, "definitions")
    figure, axes = style.panels(2, size=(5.2, 4.3))
    for index, run in enumerate(runs):
        for panel, view in zip(axes, _definition_views(table, run, *[style.colour(index)] * 2).values(), strict=True):
            style.draw_lines(panel, view, alpha=0.15, markerfacecolor="white")
    looks = [{"label": label, "marker": marker, "linestyle": dash, "markerfacecolor": "white"} for label, marker, dash in DEFINITIONS.values()]
    _legend(figure, runs if len(runs) > 1 else [], {}, looks)
    return Picture(figure, "Perplexity and entropy by two definitions")


def definitions_interactive(table: DataFrame, run: str) -> Interactive:
    """The same of one run with values on hovering; two buttons choose between perplexity and entropy.

    Example: ``figures.definitions_interactive(results.load("demo"), "demo")``
    """

    _measured_runs(table[table["run"] == run], "definitions")
    return style.interactive(f"definitions-{run}", _definition_views(table, run, *COLOURS[:2]), showlegend=True)


def runs_with(table: DataFrame, name: str) -> list[str]:
    """The runs of a table in which a metric was measured.

    ``loss`` stands for the losses by position, ``definitions`` for the second perplexity and the second entropy, one of which is enough.
    """
    several = {"loss": _position_labels(table), "definitions": ("perplexity_paper", "perplexity_released", "entropy_padded")}
    return table[table["metric"].isin(several.get(name, [name]))]["run"].drop_duplicates().tolist()


def loss_bands(table: DataFrame, run: str) -> list[Band]:
    """The ranges of positions that a run has; a range looks the same in all runs of the table."""
    looks = zip(COLOURS, "osD^vP", _position_labels(table).items(), strict=False)
    bands = [Band(band_colour, marker, label, name, metric(table, run, name)) for band_colour, marker, (name, label) in looks]
    return [band for band in bands if len(band.points)]


def perplexities(table: DataFrame, run: str) -> Pair:
    """The perplexity of a run by either definition: the run's own, just called ``perplexity``, is the one that has no metric of its name."""
    own = metric(table, run, "perplexity", "perplexity")
    paper, released = (metric(table, run, f"perplexity_{definition}") for definition in DEFINITIONS)
    if len(released):
        return Pair(own, released)
    return Pair(paper, own) if len(paper) else Pair(paper, released)


def entropies(table: DataFrame, run: str) -> Pair:
    """The entropy of a run's text: of the tokens that the models wrote, and of rows with the padding after their first end."""
    return Pair(metric(table, run, "entropy", "free_text"), metric(table, run, "entropy_padded"))


def _loss_views(table: DataFrame, run: str) -> dict[str, View]:
    lines = [Line.of(band.label, band.points, band.colour, band.marker) for band in loss_bands(table, run)]
    return {LOSS: View(LOSS, lines), RISE: View(RISE, [line._replace(y=[value - line.y[0] for value in line.y]) for line in lines])}


def _definition_views(table: DataFrame, run: str, *colours: str) -> dict[str, View]:
    views = {}
    for name, axis, pair in (("perplexity", PERPLEXITY, perplexities(table, run)), ("entropy", ENTROPY, entropies(table, run))):
        looks = zip(DEFINITIONS.values(), pair, colours, strict=True)
        views[name] = View(axis, [Line.of(label, points, line_colour, marker, dash) for (label, marker, dash), points, line_colour in looks])
    return views


def _measured_runs(table: DataFrame, name: str) -> list[str]:
    runs = runs_with(table, name)
    if not runs:
        raise UserError(f"No {MEASURES[name]} have been measured yet in {', '.join(table['run'].unique()) or 'an empty table'}.")
    return runs


def _position_labels(table: DataFrame) -> dict[str, str]:
    """Names of the metrics that hold losses by position, in the order of positions, and the label of each range."""
    matches = {name: re.fullmatch(r"loss_at_(\d+)(?:_(\d+))?", name) for name in table["metric"].unique()}
    ranges = sorted((int(match[1]), match[2], name) for name, match in matches.items() if match)
    return {name: f"{first} to {last}" if last else f"{first}" for first, last, name in ranges}


def _legend(figure: Any, runs: Sequence[str], run_look: dict[str, Any], line_looks: Sequence[dict[str, Any]]) -> None:
    """What each colour and each kind of line is."""
    from matplotlib.lines import Line2D

    line_colour = style.colour(0) if len(runs) <= 1 else "#444444"
    handles = [Line2D([], [], color=style.colour(index), label=run, **run_look) for index, run in enumerate(runs)]
    handles += [Line2D([], [], color=line_colour, **look) for look in line_looks]
    style.legend_above(figure, handles, columns=min(6, len(handles)))
