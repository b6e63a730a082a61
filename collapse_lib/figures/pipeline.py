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
from collapse_lib.figures.style import (
    COLOURS,
    Interactive,
    Picture,
    colour,
    legend_above,
    line_with_band,
    lines_only_once,
    panels,
    plotly_layout,
    plotly_line,
    plotly_menu,
    styled,
)
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
DEFINITIONS = {
    "paper": {"linestyle": "-", "marker": "o", "markerfacecolor": "white", "label": "by the paper's text"},
    "released": {"linestyle": "--", "marker": "s", "markerfacecolor": "white", "label": "by the released code"},
}
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
    figure, axes = panels(2 * len(runs), columns=2, size=(5.2, 3.6 + 0.5 / len(runs)))
    for left, right, run in zip(axes[::2], axes[1::2], runs, strict=True):
        for band in loss_bands(table, run):
            points, look = band.points, {"color": band.colour, "marker": band.marker, "label": band.label}
            for panel, base in ((left, 0.0), (right, points["value"].iloc[0])):
                line_with_band(panel, points["generation"], points["value"] - base, points["standard_error"], alpha=0.15, **look)
        left.set_ylabel(LOSS)
        right.set_ylabel(RISE)
        if len(runs) > 1:
            left.set_title(run, loc="left", fontsize=11)
    handles = lines_only_once(axes)
    legend_above(figure, handles, columns=len(handles), title=BEFORE)
    return Picture(figure, "Loss by position and generation")


def loss_by_position_interactive(table: DataFrame, run: str) -> Interactive:
    """The same of one run with values on hovering; two buttons choose between loss and rise.

    Example: ``figures.loss_by_position_interactive(results.load("demo"), "demo")``
    """
    import plotly.graph_objects as go

    _measured_runs(table[table["run"] == run], "loss")
    figure, bands = go.Figure(), loss_bands(table, run)
    for band in bands:
        template = f"{band.label} tokens before it<br>generation %{{x}}: %{{y:.4f}}<extra></extra>"
        plotly_line(figure, band.label, band.colour, band.points, hovertemplate=template)
    plotly_layout(figure, LOSS, legend={"title": {"text": BEFORE}}, showlegend=True)
    losses = [band.points["value"].tolist() for band in bands]
    heights = {LOSS: losses, RISE: [[value - values[0] for value in values] for values in losses]}
    plotly_menu(figure, {axis.partition(" (")[0]: ({"y": y}, {"yaxis.title.text": axis}) for axis, y in heights.items()})
    return Interactive(figure, f"loss-by-position-{run}")


@styled()
def story_ends(table: DataFrame) -> Picture:
    """How often stories end, how well an end is foreseen, how long stories are: a line a run, dashed the level of the initial corpus.

    Raises ``UserError`` if no run has its story lengths measured.

    Example: ``figures.story_ends(results.load("demo"))``
    """
    runs = _measured_runs(table, "story_length")
    figure, axes = panels(len(ENDS), size=(3.6, 4.2))
    for panel, (name, initial, axis, scale) in zip(axes, ENDS, strict=True):
        for index, run in enumerate(runs):
            points = metric(table, run, name)
            value, error = scale * points["value"], scale * points["standard_error"]
            line_with_band(panel, points["generation"], value, error, color=colour(index), marker="o")
            if initial:
                panel.axhline(scale * metric(table, run, initial)["value"].iloc[0], color=colour(index), linestyle="--", linewidth=1.3)
        panel.set_ylabel(axis)
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
    figure, axes = panels(2, size=(5.2, 4.3))
    for panel, pair_of, axis in zip(axes, (perplexities, entropies), (PERPLEXITY, ENTROPY), strict=True):
        for index, run in enumerate(runs):
            for look, points in zip(DEFINITIONS.values(), pair_of(table, run), strict=True):
                line_with_band(panel, points["generation"], points["value"], points["standard_error"], alpha=0.15, color=colour(index), **look)
        panel.set_ylabel(axis)
    _legend(figure, runs if len(runs) > 1 else [], {}, list(DEFINITIONS.values()))
    return Picture(figure, "Perplexity and entropy by two definitions")


def definitions_interactive(table: DataFrame, run: str) -> Interactive:
    """The same of one run with values on hovering; two buttons choose between perplexity and entropy.

    Example: ``figures.definitions_interactive(results.load("demo"), "demo")``
    """
    import plotly.graph_objects as go

    _measured_runs(table[table["run"] == run], "definitions")
    views = {}
    for axis, pair in ((PERPLEXITY, perplexities(table, run)), (ENTROPY, entropies(table, run))):
        data = {"x": [points["generation"].tolist() for points in pair], "y": [points["value"].tolist() for points in pair]}
        views[axis.split()[0]] = data, {"yaxis.title.text": axis}
    figure, (first, _) = go.Figure(), views["perplexity"]
    for look, line_colour, dash, x, y in zip(DEFINITIONS.values(), COLOURS, ("solid", "dash"), first["x"], first["y"], strict=False):
        template = f"{look['label']}<br>generation %{{x}}: %{{y:.5g}}<extra></extra>"
        plotly_line(figure, look["label"], line_colour, x=x, y=y, line={"color": line_colour, "dash": dash}, hovertemplate=template)
    plotly_layout(figure, PERPLEXITY, showlegend=True)
    plotly_menu(figure, views)
    return Interactive(figure, f"definitions-{run}")


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

    line_colour = colour(0) if len(runs) <= 1 else "#444444"
    handles = [Line2D([], [], color=colour(index), label=run, **run_look) for index, run in enumerate(runs)]
    handles += [Line2D([], [], color=line_colour, **look) for look in line_looks]
    legend_above(figure, handles, columns=min(6, len(handles)))
