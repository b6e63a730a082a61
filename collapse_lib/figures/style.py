"""What all figures share: colours, the two kinds of figure, panels with a generation axis, and the layout and menus of interactive ones.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; the background is white on light and dark pages alike.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collapse_lib.experiment.errors import UserError

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#777777"
RC_PARAMS = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",  # text stays text: it can be selected and searched
    "svg.hashsalt": "collapse",  # with no date inside, the same numbers give the same bytes
}
TICK_EACH = 10  # the widest range of generations in which each has a tick of its own; beyond it Plotly's own ticks are whole numbers
PLOTLY_CONFIG = {"displayModeBar": False, "responsive": True}
LEGEND_ABOVE = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
LEGEND_BELOW = {"orientation": "h", "y": -0.24, "yanchor": "top"}


@contextmanager
def styled() -> Iterator[None]:
    """Have matplotlib use our settings while a block runs; as a decorator, ``@styled()``, while a function does."""
    import matplotlib

    with matplotlib.rc_context(RC_PARAMS):
        yield


@dataclass(frozen=True)
class Picture:
    """A still figure, which shows itself as the last line of a notebook cell.

    ``figure`` is matplotlib's and may be changed: it is laid out and drawn anew whenever it is shown or saved.

        picture = figures.figure_1(table)
        picture.axes[0].set_title("Our runs")
        picture.save("figure_1.pdf")
    """

    figure: Figure
    title: str

    @property
    def axes(self) -> list[Axes]:
        """Matplotlib's axes."""
        return self.figure.axes

    @property
    def svg(self) -> str:
        """The figure as SVG text, the same bytes for the same numbers."""
        file = io.StringIO()
        self._write(file, "svg")
        return file.getvalue()

    def save(self, path: str | Path) -> None:
        """Write the figure in the format of the file's ending: .svg, .png, .pdf or another that matplotlib knows.

        Raises ``UserError`` for any other ending.
        """
        ending, known = Path(path).suffix[1:].lower(), self.figure.canvas.get_supported_filetypes()
        if ending not in known:
            raise UserError(f"A figure cannot be written to '{Path(path).name}'; the name must end in .{', .'.join(sorted(known))}.")
        self._write(path, ending)

    def _write(self, file: str | Path | io.StringIO, format: str) -> None:
        metadata = {"Title": self.title, "Date": None, "Creator": None} if format == "svg" else None
        with styled():
            # A copy, because a layout starts from the one before: drawn twice, a figure would move by a hair and its bytes would change.
            copy.deepcopy(self.figure).savefig(file, format=format, dpi=150, facecolor="white", metadata=metadata)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"image/svg+xml": self.svg, "text/plain": self.title}


@dataclass(frozen=True)
class Interactive:
    """A Plotly figure, ``figure``. Jupyter shows it with Plotly's own renderer; a page that has loaded plotly.min.js shows its HTML."""

    figure: go.Figure
    name: str

    @property
    def html(self) -> str:
        """A fragment for a page, without Plotly's 5 MB; element ids are fixed."""
        return self._html(whole=False)

    def save(self, path: str | Path) -> None:
        """Write a page of HTML that stands alone: with Plotly inside, it needs no other file and no network.

        Raises ``UserError`` for an ending other than .html.
        """
        if Path(path).suffix.lower() not in (".html", ".htm"):
            raise UserError(f"An interactive figure cannot be written to '{Path(path).name}'; the name must end in .html.")
        Path(path).write_text(self._html(whole=True), encoding="utf-8")

    def _html(self, whole: bool) -> str:
        return self.figure.to_html(include_plotlyjs=whole, full_html=whole, div_id=self.name, default_height="440px", config=PLOTLY_CONFIG)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"application/vnd.plotly.v1+json": self.figure.to_plotly_json(), "text/html": self.html, "text/plain": self.name}


def colour(index: int) -> str:
    """The colour of the run or curve at an index; beyond the sixth all are grey, and labels have to tell them apart."""
    return COLOURS[index] if index < len(COLOURS) else "#555555"


def panels(count: int = 1, columns: int = 0, size: tuple[float, float] = (7.2, 3.9), **subplots: Any) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels over generations, at most ``columns`` side by side (0: all), each of ``size`` (width, height) in inches."""
    # Not pyplot, whose global state would tie a figure to the notebook's.
    from matplotlib.figure import Figure

    across = min(count, columns or count)
    rows = -(-count // across)
    figure = Figure(figsize=(size[0] * across, size[1] * rows), layout="constrained")
    axes = list(figure.subplots(rows, across, squeeze=False, **subplots).flat)
    for spare in axes[count:]:
        spare.remove()
    for panel in axes[:count]:
        over_generations(panel)
    return figure, axes[:count]


def over_generations(panel: Axes) -> None:
    """Make the horizontal axis one of generations: whole numbers."""
    from matplotlib.ticker import MaxNLocator

    panel.set_xlabel("generation")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def line_with_band(panel: Axes, x: Any, y: Any, half_width: Any, alpha: float = 0.2, **look: Any) -> None:
    """A line and a band of ``half_width`` (missing: 0) to either side; ``look`` goes to matplotlib's ``plot``."""
    y, half_width = np.asarray(y, float), np.nan_to_num(np.asarray(half_width, float))
    (line,) = panel.plot(x, y, **look)
    panel.fill_between(x, y - half_width, y + half_width, color=line.get_color(), alpha=alpha, linewidth=0)


def legend_above(figure: Figure, handles: Iterable[Any], columns: int, **more: Any) -> None:
    """One legend for all panels, above them."""
    figure.legend(handles=list(handles), loc="outside upper center", ncols=columns, frameon=False, fontsize=10, **more)


def lines_only_once(axes: Iterable[Axes]) -> list[Any]:
    """What the legend of several panels shows: the handles of each label once."""
    pairs = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in axes]
    return list({label: handle for several in pairs for handle, label in several}.values())


def plotly_layout(figure: go.Figure, y_title: str, **more: Any) -> None:
    """Give an interactive figure, whose traces are there, the looks of the still ones; ``more`` goes to Plotly's layout."""
    generations = [value for trace in figure.data for value in trace.x]
    few = all(isinstance(value, int) for value in generations) and max(generations, default=0) - min(generations, default=0) <= TICK_EACH
    axis = {"showline": True, "linecolor": "#444444", "gridcolor": "#e4e4e4", "zeroline": False}
    figure.update_layout(
        template=None,
        paper_bgcolor="white",
        plot_bgcolor="white",
        font={"color": "#222222", "size": 13},
        margin={"l": 70, "r": 70, "t": 60, "b": 105 if more.get("legend") == LEGEND_BELOW else 55},
        height=440,
        xaxis=axis | {"title": {"text": "generation"}, "showgrid": False, "dtick": 1 if few else None},
        yaxis=axis | {"title": {"text": y_title}},
        **more,
    )


def plotly_menu(figure: go.Figure, views: Mapping[str, tuple[dict, dict]], dropdown: bool = False, y: float = 1.04) -> None:
    """Let a reader choose a view, with buttons or from a list: its label -> what it changes in the traces and what in the layout."""
    buttons = [{"label": label, "method": "update", "args": [traces, layout]} for label, (traces, layout) in views.items()]
    kind = {} if dropdown else {"type": "buttons", "direction": "right"}
    figure.update_layout(updatemenus=[kind | {"buttons": buttons, "x": 0, "xanchor": "left", "y": y, "yanchor": "bottom", "pad": {"b": 4}}])


def plotly_line(figure: go.Figure, name: str, colour: str, points: DataFrame | None = None, **more: Any) -> None:
    """Add a line with markers; ``points`` (default: none yet) has the columns ``generation``, ``value`` and ``standard_error``."""
    data: dict[str, Any] = {"name": name, "mode": "lines+markers", "line": {"color": colour}}
    if points is not None:
        data |= {"x": points["generation"].tolist(), "y": points["value"].tolist()}
        data |= {"error_y": {"type": "data", "array": without_nan(points["standard_error"]), "thickness": 1, "width": 2}}
    figure.add_scatter(**data | more)


def without_nan(values: Iterable[float]) -> list[float | None]:
    """Numbers for Plotly, whose JSON knows no NaN."""
    return [None if value != value else value for value in map(float, values)]


def short(values: Sequence[float]) -> list[float | None]:
    """Numbers for Plotly with five digits, because a page carries those of every setting; None for infinite ones too."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
