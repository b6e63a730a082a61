"""Ours beside what others would do: the figure of recorded bench reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collapse_lib.cost.bench import BENCHES, CONFIGS, IN_BF16
from collapse_lib.figures.style import NARROW_PANEL, Picture, colour, legend_above, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from collapse_lib.cost.bench.records import Report
    from collapse_lib.experiment.shapes import Ratio


@styled()
def ratios(reports: list[Report]) -> Picture:
    """How many times as fast ours is as the best of the others in the same precision.

    A bar is the median of the rounds, the line on it their range, the colour a device and what it multiplies in.

    Example: ``figures.ratios(records.recorded())``
    """
    return Picture(_bars(reports), "How many times as fast as the best of the others this library is", _bars(reports, is_narrow=True))


def _bars(reports: list[Report], is_narrow: bool = False) -> Figure:
    """A group of bars for each bench and size, with its name at the left or, for a phone, above."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    found = [(f"{report['bench']}, {report['config']}", kind, ratio) for report in reports for kind, ratio in _best(report).items()]
    groups, kinds = (list(dict.fromkeys(row[column] for row in found)) for column in (0, 1))
    groups.sort(key=lambda name: (BENCHES.index(name.partition(", ")[0]), list(CONFIGS).index(name.partition(", ")[2])))
    size = (NARROW_PANEL[0], 0.3 * (len(found) + len(groups)) + 1.6) if is_narrow else (9.0, 0.24 * (len(found) + len(groups)) + 1.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    row, middles = 0.0, []
    for group in groups:
        bars = [(kinds.index(kind), ratio) for name, kind, ratio in found if name == group]
        middles.append(row + (len(bars) - 1) / 2)
        if is_narrow:
            axes.text(0, row - 0.6, group, fontsize=10, va="bottom")
        for kind, ratio in sorted(bars, key=lambda bar: bar[0]):
            axes.barh(row, ratio["median"], color=colour(kind), height=0.8)
            axes.plot([ratio["least"], ratio["most"]], [row, row], color="black", linewidth=1.2)
            axes.annotate(f"{ratio['median']:.1f}×", (ratio["most"], row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
            row += 1
        row += 1
    axes.set_yticks([] if is_narrow else middles, [] if is_narrow else groups, fontsize=10)
    axes.set_ylim(row - 1, -1.6 if is_narrow else -1)  # the first group at the top
    axes.axvline(1, color="#777777", linewidth=1)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_xmargin(0.12)
    axes.set_xlabel("times as fast as the best of the others")
    legend_above(figure, [Patch(color=colour(index), label=kind) for index, kind in enumerate(kinds)], 1)
    return figure


def _best(report: Report) -> dict[str, Ratio]:
    """The ratio to the fastest of the others, by device and precision."""
    others: dict[str, list[str]] = {}
    for name in report["ratios"]:
        others.setdefault(report["device"] + (", products in bf16" if name.endswith(IN_BF16) else ""), []).append(name)
    return {kind: report["ratios"][max(names, key=lambda name: report["sides"][name]["rate"])] for kind, names in others.items()}
