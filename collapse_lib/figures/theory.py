"""Figures of the chapters on the proof: curves on one pair of axes, still or with a slider.

By convention of the chapters a closed form is a line and a simulation is dots of the same colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from collapse_lib.figures.style import COLOURS, LEGEND_ABOVE, Interactive, Picture, legend_above, plotly_layout, short, styled

Logarithmic = Literal["", "x", "y", "xy"]
PLOTLY_LOOKS: dict[str, dict[str, Any]] = {
    "line": {"mode": "lines"},
    "dashes": {"mode": "lines", "line": {"dash": "dash"}},
    "dots": {"mode": "markers", "marker": {"size": 7}},
    "both": {"mode": "lines+markers", "marker": {"size": 7}},
}
LOOKS: dict[str, dict[str, Any]] = {
    "line": {},
    "dashes": {"linestyle": "--"},
    "dots": {"linestyle": "none", "marker": "o"},
    "both": {"marker": "o"},
}


class Curve(NamedTuple):
    """A curve: its label in the legend, its points, how it looks, and the index of its colour (default: its own among the curves)."""

    label: str
    x: ArrayLike | Sequence[str]
    y: ArrayLike
    look: Literal["line", "dashes", "dots", "both", "bars"] = "line"
    colour: int | None = None


@styled()
def draw(curves: Sequence[Curve], x: str, y: str, log: Logarithmic = "", title: str = "") -> Picture:
    """A still figure with axes labelled ``x`` and ``y``, those in ``log`` logarithmic; bars of several curves stand side by side.

    Example: ``figures.draw([figures.Curve("memory", [0, 1, 2], [1.0, 0.5, 0.25])], "generation", "share", log="y")``
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    axes = figure.subplots()
    bars = [curve for curve in curves if curve.look == "bars"]
    for index, curve in enumerate(curves):
        colour = _colour(curve, index)
        if curve.look == "bars":
            width = 0.8 / len(bars)
            left = np.arange(len(curve.x)) - 0.4 + width * (bars.index(curve) + 0.5)
            axes.bar(left, curve.y, 0.92 * width, label=curve.label, color=colour)
            axes.set_xticks(range(len(curve.x)), [str(name) for name in curve.x])
        else:
            axes.plot(curve.x, curve.y, label=curve.label, color=colour, **LOOKS[curve.look])
    axes.set(xlabel=x, ylabel=y, **{f"{axis}scale": "log" for axis in log})
    if labels := [curve.label for curve in curves if curve.label]:
        legend_above(figure, axes.get_legend_handles_labels()[0], columns=len(labels) if len("".join(labels)) <= 60 else 2)
    return Picture(figure, title or f"{y} against {x}")


def turn(
    name: str, knob: str, settings: Mapping[Any, Sequence[Curve]], x: str, y: str, log: Logarithmic = "", start: int = 0, stacked: bool = False
) -> Interactive:
    """A figure with a slider labelled ``knob``: every setting (its label -> as many curves, in the same order) redraws the same curves.

    The axes have one range for all settings, so that what moves is the curve. ``start`` is the index of the setting at first; ``name``
    is the element's id and must be unique on its page; ``stacked`` bars stand on each other.

    Example: ``figures.turn("loss", "lost", {r: [figures.Curve("left", [0, 1, 2], [1, 1 - r, (1 - r) ** 2])] for r in (0.1, 0.5)}, "n", "share")``
    """
    import plotly.graph_objects as go

    labels, states = [str(label) for label in settings], list(settings.values())
    figure = go.Figure()
    for index, curve in enumerate(states[start]):
        colour = _colour(curve, index)
        shared = {"x": _plain(curve.x), "y": _plain(curve.y), "name": curve.label, "showlegend": bool(curve.label)}
        if curve.look == "bars":
            figure.add_bar(**shared, marker={"color": colour})
        else:
            look = PLOTLY_LOOKS[curve.look]
            figure.add_scatter(**shared, **look | {"line": {"color": colour} | look.get("line", {}), "marker": {"color": colour, "size": 7}})
    steps = [
        {
            "label": label,
            "method": "restyle",
            "args": [{"x": [_plain(c.x) for c in state], "y": [_plain(c.y) for c in state], "name": [c.label for c in state]}],
        }
        for label, state in zip(labels, states, strict=True)
    ]
    slider = {"active": start, "steps": steps, "currentvalue": {"prefix": f"{knob}: "}, "pad": {"t": 75}, "len": 1.0}
    legend = LEGEND_ABOVE | {"x": 0, "traceorder": "normal"}
    plotly_layout(figure, y, sliders=[slider], legend=legend, barmode="stack" if stacked else "group")
    figure.update_layout(height=540, margin={"l": 70, "r": 25, "t": 70, "b": 30}, hovermode="closest")
    figure.update_xaxes(title={"text": x})
    for axis, update, values in (
        ("x", figure.update_xaxes, [c.x for state in states for c in state]),
        ("y", figure.update_yaxes, [c.y for state in states for c in state]),
    ):
        span = _range(values, axis in log, stacked and axis == "y", states)
        update(range=span)
        if span and axis in log:  # powers of ten, at most seven of them, instead of 100µ and 10n
            update(type="log", exponentformat="power", dtick=int(np.ceil((span[1] - span[0]) / 7)))
    return Interactive(figure, name)


def _colour(curve: Curve, index: int) -> str:
    return COLOURS[(index if curve.colour is None else curve.colour) % len(COLOURS)]


def _plain(values: Any) -> list[Any]:
    values = list(values)
    return values if values and isinstance(values[0], str) else short(values)


def _range(values: Sequence[Any], log: bool, stacked: bool, states: Sequence[Sequence[Curve]]) -> list[float] | None:
    """One range around all finite values, in decades on a logarithmic axis; None for an axis of names."""
    if any(isinstance(value, str) for several in values for value in several):
        return None
    if stacked:
        values = [np.sum([np.asarray(c.y, float) for c in state if c.look == "bars"], axis=0) for state in states] + list(values)
    every = np.concatenate([np.asarray(several, float).ravel() for several in values])
    every = every[np.isfinite(every) & ((every > 0) | (not log))]
    every = np.log10(every) if log else every
    low, high = float(every.min()), float(every.max())
    edge = 0.04 * (high - low or 1.0)
    return [low if not log and low == 0 else low - edge, high + edge]
