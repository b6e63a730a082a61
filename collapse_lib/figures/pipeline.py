"""What a pipeline does to the text of its generations: the loss along the rows, the ends of the stories, their lengths.

A chain can drift for two reasons: the models forget, as the paper argues, or the way in which text is sampled, cut and learned again
changes it. The second leaves marks at fixed places: at a row's first token, where a story ends, behind the length of a training block.
And two ways of measuring give two numbers for the same models, which "the same models by two definitions" sets side by side.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from collapse_lib.experiment.errors import UserError
from collapse_lib.figures.paper import COLOURS, Interactive, drawn, plotly_layout
from collapse_lib.studies.results import measured, metric

if TYPE_CHECKING:
    from IPython.display import Markdown
    from matplotlib.figure import Figure
    from pandas import DataFrame

LOSS, RISE = "loss (nats a token)", "loss above generation 1's (nats a token)"
PERPLEXITY, ENTROPY = "perplexity on validation stories", "entropy (nats)"
LOOKS = tuple(zip(COLOURS, "osD^vP", strict=True))
# metric, its level in the initial corpus if it has one there, axis
ENDS = (
    ("eos_share", "initial_eos_share", "ends per 1000 sampled tokens", 1000),
    ("end_probability", None, "probability of an end where one is (%)", 100),
    ("story_length", "initial_story_length", "story length, cut at the row (tokens)", 1),
)
PAPER = {
    "loss_at_0": 'not reported; from generation 16 on, Table A1 has beginnings such as "did day one day"',
    "loss_at_512_599": "not reported; sequences of 600 tokens are written and at most 512 are the context",
    "eos_share": "not reported",
    "end_probability": "not reported; in its released code no end is ever a training target",
    "story_length": "not reported; all sequences are said to have 600 tokens",
}
# What runs that were evaluated before it was measured are said to lack; "loss" and "definitions" stand for several metrics.
MEASURES = {"loss": "losses by position", "story_length": "story lengths", "definitions": "perplexity and entropy by a second definition"}
DEFINED = {
    "paper": {"linestyle": "-", "marker": "o", "markerfacecolor": "white", "label": "by the paper's text"},
    "released": {"linestyle": "--", "marker": "s", "markerfacecolor": "white", "label": "by the released code"},
}
LABELS = {
    "loss_at_0": "loss at a story's first token (nats)",
    "loss_at_512_599": "loss behind 512 tokens (nats)",
    "eos_share": "share of ends among the sampled tokens",
    "end_probability": "probability of an end where a validation story ends",
    "story_length": "story length, cut at the row (tokens)",
}


class Band(NamedTuple):
    """A range of positions in one run: how it is drawn and called, its metric, and that metric by generation."""

    colour: str
    marker: str
    label: str
    name: str
    points: DataFrame


class Pair(NamedTuple):
    """A measure of one run by both definitions, each with the generations and errors that it has; empty where it was not measured."""

    paper: DataFrame
    released: DataFrame


def runs_with(table: DataFrame, name: str) -> list[str]:
    """The runs of a table in which a metric was measured.

    ``loss`` stands for the losses by position, ``definitions`` for the second perplexity and the second entropy, one of which is enough.
    """
    several = {"loss": _positions(table), "definitions": ("perplexity_paper", "perplexity_released", "entropy_padded")}
    return table[table["metric"].isin(several.get(name, [name]))]["run"].drop_duplicates().tolist()


def unmeasured(table: DataFrame, *names: str) -> Markdown:
    """A sentence on the runs that were evaluated before some of ``MEASURES`` were measured; nothing is missing otherwise."""
    from IPython.display import Markdown

    there = set.intersection(*(set(runs_with(table, name)) for name in names))
    missing = [run for run in table["run"].drop_duplicates() if run not in there]
    if not missing:
        return Markdown("Every run shown here has these measures.")
    runs, what = ", ".join(f"**{run}**" for run in missing), " or ".join(MEASURES[name] for name in names)
    return Markdown(f"Without {what}, because they were evaluated before these were measured: {runs}.")


@drawn
def loss_by_position(table: DataFrame) -> tuple[Figure, str]:
    """A row a run: the loss on validation stories by generation, a line for each range of positions (left), and its rise (right).

    Bands of one standard error over stories; positions that a run's models are never shown have no line.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    runs = _some(table, "loss")
    figure = Figure(figsize=(10.4, 3.6 * len(runs) + 0.5), layout="constrained")
    rows = figure.subplots(len(runs), 2, squeeze=False)
    for (left, right), run in zip(rows, runs, strict=True):
        for colour, marker, label, _, points in _bands(table, run):
            for panel, base in ((left, 0.0), (right, points["value"].iloc[0])):
                height, error = points["value"] - base, points["standard_error"].fillna(0.0)
                panel.plot(points["generation"], height, color=colour, marker=marker, label=label)
                panel.fill_between(points["generation"], height - error, height + error, color=colour, alpha=0.15, linewidth=0)
        for panel, words in ((left, LOSS), (right, RISE)):
            panel.set(xlabel="generation", ylabel=words)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(runs) > 1:
            left.set_title(run, loc="left", fontsize=11)
    lines = {line.get_label(): line for left, _ in rows for line in left.get_lines()}
    figure.legend(
        lines.values(), lines.keys(), loc="outside upper center", ncols=len(lines), frameon=False, fontsize=10, title="story tokens before it"
    )
    return figure, "Loss by position and generation"


def loss_by_position_interactive(table: DataFrame, run: str) -> Interactive:
    """The same of one run to hover over; two buttons change between loss and rise."""
    import plotly.graph_objects as go

    _some(table[table["run"] == run], "loss")
    figure, heights = go.Figure(), {LOSS: [], RISE: []}
    for colour, _, label, _, points in _bands(table, run):
        values = points["value"].tolist()
        heights[LOSS].append(values)
        heights[RISE].append([value - values[0] for value in values])
        errors = [None if error != error else error for error in points["standard_error"].tolist()]
        figure.add_scatter(
            x=points["generation"].tolist(),
            y=values,
            error_y={"type": "data", "array": errors, "thickness": 1, "width": 2},
            name=label,
            mode="lines+markers",
            line={"color": colour},
            hovertemplate=f"{label} tokens before it<br>generation %{{x}}: %{{y:.4f}}<extra></extra>",
        )
    buttons = [
        {"label": words.partition(" (")[0], "method": "update", "args": [{"y": of}, {"yaxis.title.text": words}]} for words, of in heights.items()
    ]
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "xanchor": "left", "y": 1.04, "yanchor": "bottom", "pad": {"b": 4}}
    plotly_layout(figure, LOSS, updatemenus=[menu], legend={"title": {"text": "story tokens before it"}}, showlegend=True)
    return Interactive(figure, f"loss-by-position-{run}")


@drawn
def ends(table: DataFrame) -> tuple[Figure, str]:
    """How often stories end, how well an end is foreseen, how long stories are: a line a run, dashed what the initial corpus has."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    runs = _some(table, "story_length")
    figure = Figure(figsize=(10.8, 4.2), layout="constrained")
    for panel, (name, initial, words, scale) in zip(figure.subplots(1, len(ENDS)), ENDS, strict=True):
        for place, run in enumerate(runs):
            colour, points = _colour(place), metric(table, run, name)
            height, error = scale * points["value"], scale * points["standard_error"].fillna(0.0)
            panel.plot(points["generation"], height, color=colour, marker="o")
            panel.fill_between(points["generation"], height - error, height + error, color=colour, alpha=0.2, linewidth=0)
            if initial:
                panel.axhline(scale * metric(table, run, initial)["value"].iloc[0], color=colour, linestyle="--", linewidth=1.3)
        panel.set(xlabel="generation", ylabel=words)
        panel.set_ylim(bottom=0)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    handles = [Line2D([], [], color=_colour(place), marker="o", label=run) for place, run in enumerate(runs)]
    grey = {"color": _colour(0) if len(runs) == 1 else "#444444", "linestyle": "--", "linewidth": 1.3}
    handles.append(Line2D([], [], **grey, label="initial corpus"))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)), frameon=False, fontsize=10)
    return figure, "Story ends and story lengths by generation"


@drawn
def definitions(table: DataFrame) -> tuple[Figure, str]:
    """Perplexity (left) and entropy (right) of the same models and text by the paper's definition and by the released code's.

    A colour a run, a full line and a dashed one; bands of one standard error over stories.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    runs = _some(table, "definitions")
    figure = Figure(figsize=(10.4, 4.3), layout="constrained")
    for panel, pair_of, words in zip(figure.subplots(1, 2), (perplexities, entropies), (PERPLEXITY, ENTROPY), strict=True):
        for place, run in enumerate(runs):
            for look, points in zip(DEFINED.values(), pair_of(table, run), strict=True):
                error = points["standard_error"].fillna(0.0)
                panel.plot(points["generation"], points["value"], color=_colour(place), **look)
                low, high = points["value"] - error, points["value"] + error
                panel.fill_between(points["generation"], low, high, color=_colour(place), alpha=0.15, linewidth=0)
        panel.set(xlabel="generation", ylabel=words)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    colour = _colour(0) if len(runs) == 1 else "#444444"
    handles = [Line2D([], [], color=_colour(place), label=run) for place, run in enumerate(runs)] if len(runs) > 1 else []
    handles += [Line2D([], [], color=colour, **look) for look in DEFINED.values()]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)), frameon=False, fontsize=10)
    return figure, "Perplexity and entropy by two definitions"


def definitions_interactive(table: DataFrame, run: str) -> Interactive:
    """The same of one run to hover over; two buttons change between perplexity and entropy."""
    import plotly.graph_objects as go

    _some(table[table["run"] == run], "definitions")
    figure, buttons = go.Figure(), []
    for look, colour, dash in zip(DEFINED.values(), COLOURS, ("solid", "dash"), strict=False):
        figure.add_scatter(
            name=look["label"],
            mode="lines+markers",
            line={"color": colour, "dash": dash},
            hovertemplate=f"{look['label']}<br>generation %{{x}}: %{{y:.5g}}<extra></extra>",
        )
    for words, pair in ((PERPLEXITY, perplexities(table, run)), (ENTROPY, entropies(table, run))):
        data = {"x": [points["generation"].tolist() for points in pair], "y": [points["value"].tolist() for points in pair]}
        buttons.append({"label": words.split()[0], "method": "update", "args": [data, {"yaxis.title.text": words}]})
    for trace, x, y in zip(figure.data, *buttons[0]["args"][0].values(), strict=True):
        trace.update(x=x, y=y)
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "xanchor": "left", "y": 1.04, "yanchor": "bottom", "pad": {"b": 4}}
    plotly_layout(figure, PERPLEXITY, updatemenus=[menu], showlegend=True)
    return Interactive(figure, f"definitions-{run}")


def perplexities(table: DataFrame, run: str) -> Pair:
    """The perplexity of a run by either definition: the run's own, just called ``perplexity``, is the one that has no metric of its name."""
    own = metric(table, run, "perplexity", "perplexity")
    paper, released = (metric(table, run, f"perplexity_{definition}") for definition in DEFINED)
    if len(released):
        return Pair(own, released)
    return Pair(paper, own) if len(paper) else Pair(paper, released)


def entropies(table: DataFrame, run: str) -> Pair:
    """The entropy of a run's text: of the tokens that the models wrote, and of rows with the padding behind their first end."""
    return Pair(metric(table, run, "entropy", "free_text"), metric(table, run, "entropy_padded"))


def definitions_compared(table: DataFrame) -> Markdown:
    """In words where each measure went, and where went what lies between the definitions, in the generations that have both."""
    from IPython.display import Markdown

    from collapse_lib.book.pages import course

    rows = ["| measure | run | here |", "|:--|:--|:--|"]
    for run in runs_with(table, "definitions"):
        perplexity, entropy = (pair.paper.merge(pair.released, on="generation") for pair in (perplexities(table, run), entropies(table, run)))
        padding = metric(table, run, "padding_share")
        measures = (
            ("perplexity by the paper's definition", perplexity, perplexity["value_x"]),
            ("perplexity by the released code's", perplexity, perplexity["value_y"]),
            ("how far the released code's lies above the paper's (%)", perplexity, 100 * (perplexity["value_y"] / perplexity["value_x"] - 1)),
            ("entropy of the tokens that were written (nats)", entropy, entropy["value_x"]),
            ("entropy with padding counted (nats)", entropy, entropy["value_y"]),
            ("what padding changes in entropy (nats)", entropy, entropy["value_y"] - entropy["value_x"]),
            ("share of positions that would be padding", padding, padding["value"]),
        )
        for label, points, values in measures:
            if len(points):
                rows.append(f"| {label} | {run} | {course(list(zip(points['generation'].tolist(), values.tolist(), strict=True)))} |")
    return Markdown("\n".join(rows))


def shares_of_the_rise(table: DataFrame) -> Markdown:
    """By range of positions: its share of the scored tokens, its loss in the first and the last generation, and its share of the whole rise."""
    from IPython.display import Markdown

    rows = [
        "| run | story tokens before it | share of the tokens | loss, first | loss, last | rise (nats) | share of the whole rise |",
        "|:--|:--|--:|--:|--:|--:|--:|",
    ]
    for run in runs_with(table, "loss"):
        bands = _bands(table, run)
        metrics = measured(run, int(bands[0].points["generation"].iloc[-1]), "perplexity")["metrics"]
        tokens = [metrics[band.name]["counts"]["tokens"] for band in bands]
        losses = [(band.points["value"].iloc[0], band.points["value"].iloc[-1]) for band in bands]
        rises = [count * (after - before) for count, (before, after) in zip(tokens, losses, strict=True)]
        for band, count, (before, after), rise in zip(bands, tokens, losses, rises, strict=True):
            # Of a chain that got no worse there is no rise to be shared out.
            part = f"{rise / sum(rises):.1%}" if sum(rises) > 0 else "–"
            share = f"{count / sum(tokens):.1%}"
            rows.append(f"| {run} | {band.label} | {share} | {before:.3f} | {after:.3f} | {after - before:+.3f} | {part} |")
    return Markdown("\n".join(rows))


def beside_paper(table: DataFrame) -> Markdown:
    """What the paper says of these things beside what each run shows."""
    from IPython.display import Markdown

    from collapse_lib.book.pages import course

    rows = ["| measure | the paper | run | here |", "|:--|:--|:--|:--|"]
    for name, label in LABELS.items():
        for run in runs_with(table, name):
            points = metric(table, run, name)
            said = course(list(zip(points["generation"].tolist(), points["value"].tolist(), strict=True)))
            rows.append(f"| {label} | {PAPER[name]} | {run} | {said} |")
    return Markdown("\n".join(rows))


def _some(table: DataFrame, name: str) -> list[str]:
    runs = runs_with(table, name)
    if not runs:
        raise UserError(f"No {MEASURES[name]} have been measured yet in {', '.join(table['run'].unique()) or 'an empty table'}.")
    return runs


def _positions(table: DataFrame) -> dict[str, str]:
    """Names of the metrics that hold losses by position, in the order of positions, and how each range is called."""
    found = {name: re.fullmatch(r"loss_at_(\d+)(?:_(\d+))?", name) for name in table["metric"].unique()}
    ranges = sorted((int(match[1]), match[2], name) for name, match in found.items() if match)
    return {name: f"{first} to {last}" if last else f"{first}" for first, last, name in ranges}


def _bands(table: DataFrame, run: str) -> list[Band]:
    """The ranges of positions that a run has; a range looks the same in all runs of the table."""
    names = _positions(table)
    bands = [Band(*look, label, name, metric(table, run, name)) for look, (name, label) in zip(LOOKS, names.items(), strict=False)]
    return [band for band in bands if len(band.points)]


def _colour(place: int) -> Any:
    return COLOURS[place] if place < len(COLOURS) else "#555555"
