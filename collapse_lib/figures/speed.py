"""Ours beside what others would do: the figure of recorded bench reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collapse_lib.figures.style import COLOURS, Picture, styled

if TYPE_CHECKING:
    from collapse_lib.cost.bench.records import Report


@styled()
def ratios(reports: list[Report]) -> Picture:
    """How many times as fast as each other side ours is; a bar is the median of the rounds, the line on it their range, the colour the device.

    Example: ``figures.ratios(records.recorded())``
    """
    from matplotlib.figure import Figure

    rows = [(report, name, ratio) for report in reports for name, ratio in report["ratios"].items()]
    devices = list(dict.fromkeys(report["device"] for report in reports))
    figure = Figure(figsize=(9.0, 0.5 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    for row, (report, _, ratio) in enumerate(rows):
        axes.barh(row, ratio["median"], color=COLOURS[devices.index(report["device"]) % len(COLOURS)], height=0.62)
        axes.plot([ratio["least"], ratio["most"]], [row, row], color="black", linewidth=1.2)
        axes.annotate(f"{ratio['median']:.1f}×", (ratio["most"], row), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [f"{report['bench']}, {report['config']}\n{name}" for report, name, _ in rows], fontsize=9)
    axes.invert_yaxis()
    axes.axvline(1, color="#777777", linewidth=1)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.set_xlabel("times as fast as the other side")
    axes.set_title("; ".join(devices), loc="left", fontsize=10)
    return Picture(figure, "How many times as fast as the other side ours is")
