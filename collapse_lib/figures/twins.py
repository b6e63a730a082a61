"""Twins: how far chains that differ in their initial corpora or in their seeds are apart, drawn from records of ``studies.twins``."""

from __future__ import annotations

from typing import Any

from collapse_lib.figures import style
from collapse_lib.figures.style import COLOURS, Interactive, Line, Picture, View, styled

# Of each pair of chains: colour, matplotlib's marker, label. The last is a difference of two pairs.
PAIRS = {
    "twin": (COLOURS[1], "o", "another initial corpus, same seeds"),
    "both": (COLOURS[3], "^", "another initial corpus, other seeds"),
    "reseeded": (COLOURS[0], "s", "same initial corpus, other seeds"),
}
ADDED = (COLOURS[2], "D", "what another initial corpus adds: ▲ less ■")
LINES = PAIRS | {"excess_both": ADDED}
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
    distances = {POSITIONS[part]: _distances(record, part, "tv") for part in _parts(record)}
    figure, axes = style.panels(len(distances) + 2, columns=3 if len(distances) == 1 else 2, size=(4.2 if len(distances) == 1 else 4.8, 4.1))
    *others, added, texts = axes
    for panel, part_colour, (title, view) in zip(others, (ADDED[0], style.GREY), distances.items(), strict=False):
        style.draw_lines(panel, view._replace(lines=view.lines[: len(PAIRS)]))
        panel.set_title(title, fontsize=11)
        style.draw_lines(added, View("difference of total variations", [view.lines[-1]._replace(label=title, colour=part_colour)]))
    added.axhline(0, color="black", linewidth=0.8)
    added.set_title(ADDED[2], fontsize=11)
    if len(distances) > 1:
        added.legend(frameon=False, fontsize=9)
    view = _texts(record)
    style.draw_lines(texts, view._replace(lines=view.lines[: len(PAIRS)]))
    texts.set_title("of their texts (0: the initial corpora)", fontsize=11)
    for panel in (*others, texts):
        panel.set_ylim(bottom=0)
    style.legend_above(figure, style.lines_only_once(others), columns=3)
    return Picture(figure, f"Twin chains by generation, run {record['runs']['chain']}")


def twin_distances_interactive(record: dict[str, Any]) -> Interactive:
    """The same with values on hovering; a list chooses total variation, Jensen-Shannon divergence or frequencies of tokens.

    Example: ``figures.twin_distances_interactive(twins.comparisons("demo")[0])``
    """
    views = {f"{DISTANCES[kind][0]}, {POSITIONS[part]}": _distances(record, part, kind) for part in _parts(record) for kind in DISTANCES}
    views["frequencies of tokens in their texts"] = _texts(record)
    made = style.interactive(f"twins-{record['runs']['chain']}", views, dropdown=True, legend=style.LEGEND_BELOW)
    made.figure.update_yaxes(rangemode="tozero")
    return made


def trained_generations(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The generations of a comparison that have models: all but the initial corpora, 0."""
    return [generation for generation in record["generations"] if generation["generation"]]


def _parts(record: dict[str, Any]) -> list[str]:
    return list(record["generations"][-1]["positions"])


def _distances(record: dict[str, Any], part: str, kind: str) -> View:
    """The pairs of models at the positions of one part, and what another initial corpus adds to their distance."""
    trained = trained_generations(record)
    return _view(DISTANCES[kind][1], trained, {pair: [one["positions"][part][pair][kind] for one in trained] for pair in LINES})


def _texts(record: dict[str, Any]) -> View:
    """The pairs of texts, and what another initial corpus adds to their distance."""
    every = [one["unigram_tv"] | {"excess_both": one["unigram_tv"]["both"] - one["unigram_tv"]["reseeded"]} for one in record["generations"]]
    return _view(TEXTS_AXIS, record["generations"], {pair: [{"value": distances[pair]} for distances in every] for pair in LINES})


def _view(axis: str, generations: list[dict[str, Any]], metrics: dict[str, list[dict[str, Any]]]) -> View:
    x, lines = [one["generation"] for one in generations], []
    for pair, (colour, marker, label) in LINES.items():
        values, errors = ([metric.get(name) for metric in metrics[pair]] for name in ("value", "standard_error"))
        lines.append(Line(label, x, values, errors, colour, marker))
    return View(axis, lines, {"xaxis.autorange": True, "yaxis.autorange": True})
