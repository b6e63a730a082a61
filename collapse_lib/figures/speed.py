"""Ours beside what others would do: the figure of recorded bench reports."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from collapse_lib.figures.style import COLOURS, NARROW_PANEL, Picture, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from collapse_lib.cost.bench.records import Report


@styled()
def ratios(reports: list[Report]) -> Picture:
    """How many times as fast as each other side ours is; a bar is the median of the rounds, the line on it their range, the colour the device.

    Example: ``figures.ratios(records.recorded())``
    """
    return Picture(_bars(reports), "How many times as fast as the other side this library is", _bars(reports, is_narrow=True))


def _bars(reports: list[Report], is_narrow: bool = False) -> Figure:
    """Bars with what they are about at their left or, for a phone, above them."""
    from matplotlib.figure import Figure

    rows = [(report, name, ratio) for report in reports for name, ratio in report["ratios"].items()]
    devices = list(dict.fromkeys(report["device"] for report in reports))
    width, each = (NARROW_PANEL[0], 0.7) if is_narrow else (9.0, 0.5)
    figure = Figure(figsize=(width, each * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    for row, (report, name, ratio) in enumerate(rows):
        colour = COLOURS[devices.index(report["device"]) % len(COLOURS)]
        axes.barh(row, ratio["median"], color=colour, height=0.3 if is_narrow else 0.62)
        axes.plot([ratio["least"], ratio["most"]], [row, row], color="black", linewidth=1.2)
        axes.annotate(f"{ratio['median']:.1f}×", (ratio["most"], row), xytext=(5, 0), textcoords="offset points", va="center")
        if is_narrow:
            axes.text(0, row - 0.2, textwrap.fill(f"{report['bench']}, {report['config']}: {name}", 46), fontsize=9, va="bottom")
    labels = [f"{report['bench']}, {report['config']}\n{name}" for report, name, _ in rows]
    axes.set_yticks([] if is_narrow else range(len(rows)), [] if is_narrow else labels, fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.9 if is_narrow else -0.5)  # the first report at the top
    axes.axvline(1, color="#777777", linewidth=1)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_xmargin(0.12)
    axes.set_xlabel("times as fast as the other side")
    title = "; ".join(devices)
    axes.set_title(textwrap.fill(title, 48) if is_narrow else title, loc="left", fontsize=10)
    return figure
