"""Twins: how far chains that differ in their initial corpora or in their seeds are apart, drawn from records of ``studies.twins``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from collapse_lib.figures.style import (
    COLOURS,
    GREY,
    LEGEND_BELOW,
    Interactive,
    Picture,
    legend_above,
    line_with_band,
    lines_only_once,
    panels,
    plotly_layout,
    plotly_line,
    plotly_menu,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of each pair of chains: colour, matplotlib's marker, label. The last is a difference of two pairs.
PAIRS = {
    "twin": (COLOURS[1], "o", "another initial corpus, same seeds"),
    "both": (COLOURS[3], "^", "another initial corpus, other seeds"),
    "reseeded": (COLOURS[0], "s", "same initial corpus, other seeds"),
}
ADDED = (COLOURS[2], "D", "what another initial corpus adds: ▲ less ■")
LINES = PAIRS | {"excess_both": ADDED}
PLOTLY_MARKERS = {"o": "circle", "^": "triangle-up", "s": "square", "D": "diamond"}
POSITIONS = {"chain": "at the chain's held-out stories", "twin": "at the twin's held-out stories"}
DISTANCES = {
    "tv": ("total variation", "total variation, next token"),
    "js": ("Jensen-Shannon divergence", "Jensen-Shannon divergence, next token (nats)"),
}
TEXTS_AXIS = "total variation, frequencies of tokens"


@styled()
def twin_distances(record: dict[str, Any]) -> Picture:
    """Distances between chains by generation, in total variation of the next token, and what another initial corpus adds to them.

    ``record`` is one of ``studies.twins.comparisons``. What the corpus adds is a difference of two pairs that both differ in their seeds. Bands
    are one standard error over stories. The last panel compares the frequencies of tokens in the texts.

    Example: ``figures.twin_distances(twins.comparisons("demo")[0])``
    """
    texts_of, trained = record["generations"], trained_generations(record)
    parts = list(texts_of[-1]["positions"])
    figure, axes = panels(len(parts) + 2, columns=3 if len(parts) == 1 else 2, size=(4.2, 4.1) if len(parts) == 1 else (4.8, 4.1))
    *distances, added, texts = axes
    for panel, part in zip(distances, parts, strict=True):
        for pair, (colour, marker, label) in PAIRS.items():
            _pair(panel, trained, part, pair, color=colour, marker=marker, label=label)
        panel.set_ylabel(DISTANCES["tv"][1])
        panel.set_title(POSITIONS[part], fontsize=11)
    colour, marker, title = ADDED
    for part, part_colour in zip(parts, (colour, GREY), strict=False):
        _pair(added, trained, part, "excess_both", color=part_colour, marker=marker, label=POSITIONS[part])
    added.axhline(0, color="black", linewidth=0.8)
    added.set_ylabel("difference of total variations")
    added.set_title(title, fontsize=11)
    if len(parts) > 1:
        added.legend(frameon=False, fontsize=9)
    for pair, (colour, marker, _) in PAIRS.items():
        values = [generation["unigram_tv"][pair] for generation in texts_of]
        texts.plot([generation["generation"] for generation in texts_of], values, color=colour, marker=marker)
    texts.set_ylabel(TEXTS_AXIS)
    texts.set_title("of their texts (0: the initial corpora)", fontsize=11)
    for panel in (*distances, texts):
        panel.set_ylim(bottom=0)
    legend_above(figure, lines_only_once(distances), columns=3)
    return Picture(figure, f"Twin chains by generation, run {record['runs']['chain']}")


def twin_distances_interactive(record: dict[str, Any]) -> Interactive:
    """The same with values on hovering; a list chooses total variation, Jensen-Shannon divergence or frequencies of tokens.

    Example: ``figures.twin_distances_interactive(twins.comparisons("demo")[0])``
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for colour, marker, label in LINES.values():
        template = "%{fullData.name}<br>generation %{x}: %{customdata}<extra></extra>"
        plotly_line(figure, label, colour, marker={"symbol": PLOTLY_MARKERS[marker], "size": 8}, hovertemplate=template)
    views = {}
    for label, (axis, values) in _views(record).items():
        views[label] = _traces(values), {"yaxis.title.text": axis, "xaxis.autorange": True, "yaxis.autorange": True}
    first, layout = next(iter(views.values()))
    for index, trace in enumerate(figure.data):
        trace.update(x=first["x"][index], y=first["y"][index], customdata=first["customdata"][index])
        trace.update(error_y={"type": "data", "array": first["error_y.array"][index], "thickness": 1, "width": 3})
    plotly_layout(figure, layout["yaxis.title.text"], legend=LEGEND_BELOW)
    plotly_menu(figure, views, dropdown=True)
    figure.update_yaxes(rangemode="tozero")
    return Interactive(figure, f"twins-{record['runs']['chain']}")


def trained_generations(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The generations of a comparison that have models: all but the initial corpora, 0."""
    return [generation for generation in record["generations"] if generation["generation"]]


def plus_minus(metric: dict[str, Any]) -> str:
    """A value with its standard error, to two digits of the error: "0.213 ± 0.012"; to three digits where there is no error."""
    value, error = metric["value"], metric.get("standard_error")
    if not error:
        return f"{value:.3f}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _views(record: dict[str, Any]) -> dict[str, tuple[str, dict[int, dict[str, Any]]]]:
    """What a comparison holds, by its label in the list: the axis, and by generation and pair a ``value`` with its ``standard_error``."""
    views = {}
    for part in record["generations"][-1]["positions"]:
        for kind, (name, axis) in DISTANCES.items():
            pairs = {one["generation"]: {pair: one["positions"][part][pair][kind] for pair in LINES} for one in trained_generations(record)}
            views[f"{name}, {POSITIONS[part]}"] = axis, pairs
    texts = {}
    for one in record["generations"]:
        distances = one["unigram_tv"] | {"excess_both": one["unigram_tv"]["both"] - one["unigram_tv"]["reseeded"]}
        texts[one["generation"]] = {pair: {"value": value} for pair, value in distances.items()}
    return views | {"frequencies of tokens in their texts": (TEXTS_AXIS, texts)}


def _traces(values: dict[int, dict[str, Any]]) -> dict[str, list[list[Any]]]:
    """Attributes of Plotly's traces, a list a pair; ``values`` by generation and pair."""
    by_pair = [[pairs[pair] for pairs in values.values()] for pair in LINES]
    return {
        "x": [list(values)] * len(by_pair),
        "y": [[metric["value"] for metric in metrics] for metrics in by_pair],
        "error_y.array": [[metric.get("standard_error") for metric in metrics] for metrics in by_pair],
        "customdata": [[plus_minus(metric) for metric in metrics] for metrics in by_pair],
    }


def _pair(panel: Axes, trained: Sequence[dict[str, Any]], part: str, pair: str, **look: Any) -> None:
    """The total variation between two of the twins' chains, or a difference of two of these, by generation."""
    metrics = [generation["positions"][part][pair]["tv"] for generation in trained]
    errors = [metric["standard_error"] or 0.0 for metric in metrics]
    line_with_band(panel, [generation["generation"] for generation in trained], [metric["value"] for metric in metrics], errors, **look)
