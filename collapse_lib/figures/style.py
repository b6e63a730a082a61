"""What all figures share: colours, the two kinds of figure, panels with a generation axis, and the layout and menus of interactive ones.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; the background is white, and pages turn it over where they are dark.
"""

from __future__ import annotations

import copy
import html
import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from collapse_lib.experiment.errors import UserError

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
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
PLOTLY_MARKERS = {"o": "circle", "^": "triangle-up", "s": "square", "D": "diamond", "v": "triangle-down", "P": "cross"}
PLOTLY_DASHES = {"-": "solid", "--": "dash", ":": "dot"}
PLOTLY_CONFIG = {"displayModeBar": False, "responsive": True}
NARROW_PANEL = (4.4, 3.3)  # inches: a panel of a figure for a phone, whose text then has at least ten pixels
LONGEST_TICK = 16  # letters beside such a panel, and of the entries of a legend in two columns
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

    ``figure`` is matplotlib's and may be changed: it is laid out and drawn anew whenever it is shown or saved. ``narrow`` is a drawing of its own
    for a phone, of a figure whose panels cannot just be put below each other.

        picture = figures.figure_1(table)
        picture.axes[0].set_title("Our runs")
        picture.save("figure_1.pdf")
    """

    figure: Figure
    title: str
    narrow: Figure | None = None

    def finished(self, title: str = "", file: str = "") -> Picture:
        """The same with a title above it and saved to a file, as far as these are given: what notebooks do with a reader's wishes."""
        if title:
            for drawing in (self.figure, self.narrow):
                if drawing:
                    drawing.suptitle(title)
        if file:
            self.save(file)
        return self

    @property
    def axes(self) -> list[Axes]:
        """Matplotlib's axes."""
        return self.figure.axes

    @property
    def svg(self) -> str:
        """The figure as SVG text, the same bytes for the same numbers."""
        return self._svg(copy.deepcopy(self.figure))

    @property
    def png(self) -> bytes:
        """The figure as a PNG image of 150 pixels an inch."""
        file = io.BytesIO()
        self._write(file, "png")
        return file.getvalue()

    @property
    def narrow_svg(self) -> str | None:
        """The same for a phone: ``narrow``, or the panels below each other, each as wide as the screen. None where they are not a plain grid."""
        drawing = copy.deepcopy(self.narrow) if self.narrow else _stacked(self.figure)
        return self._svg(drawing) if drawing else None

    def save(self, path: str | Path) -> None:
        """Write the figure in the format of the file's ending: .svg, .png, .pdf or another that matplotlib knows.

        Raises ``UserError`` for any other ending.
        """
        ending, known = Path(path).suffix[1:].lower(), self.figure.canvas.get_supported_filetypes()
        if ending not in known:
            raise UserError(f"A figure cannot be written to '{Path(path).name}'; the name must end in .{', .'.join(sorted(known))}.")
        self._write(path, ending)

    def _svg(self, drawing: Figure) -> str:
        file = io.StringIO()
        self._draw(drawing, file, "svg")
        return file.getvalue()

    def _write(self, file: str | Path | io.BytesIO, format: str) -> None:
        # A copy, because a layout starts from the one before: drawn twice, a figure would move by a hair and its bytes would change.
        self._draw(copy.deepcopy(self.figure), file, format)

    def _draw(self, drawing: Figure, file: str | Path | io.StringIO | io.BytesIO, format: str) -> None:
        metadata = {"Title": self.title, "Date": None, "Creator": None} if format == "svg" else None
        with styled():
            drawing.savefig(file, format=format, dpi=150, facecolor="white", metadata=metadata)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        narrow = self.narrow_svg
        return {"image/svg+xml": self.svg, "text/plain": self.title}, {"image/svg+xml": {"narrow": narrow}} if narrow else {}


@dataclass(frozen=True)
class Interactive:
    """A Plotly figure, ``figure``. Jupyter shows it with Plotly's own renderer; on the book's pages ``book/_static/chart.js`` draws it."""

    figure: go.Figure
    name: str

    @property
    def html(self) -> str:
        """A fragment for a page that has loaded ``chart.js``: the figure as JSON in a script element that no browser executes."""
        data = self.figure.to_json()
        for sign in "<>&":
            data = data.replace(sign, f"\\u{ord(sign):04x}")  # nothing in it can end the script element
        return f'<div class="chart" id="{html.escape(self.name)}"><script type="application/json">{data}</script></div>'

    def save(self, path: str | Path) -> None:
        """Write a page of HTML that stands alone: with Plotly inside, it needs no other file and no network.

        Raises ``UserError`` for an ending other than .html.
        """
        if Path(path).suffix.lower() not in (".html", ".htm"):
            raise UserError(f"An interactive figure cannot be written to '{Path(path).name}'; the name must end in .html.")
        page = self.figure.to_html(include_plotlyjs=True, full_html=True, div_id=self.name, default_height="440px", config=PLOTLY_CONFIG)
        Path(path).write_text(page, encoding="utf-8")

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"application/vnd.plotly.v1+json": self.figure.to_plotly_json(), "text/html": self.html, "text/plain": self.name}


def colour(index: int) -> str:
    """The colour of the run or curve at an index; beyond the sixth all are grey, and labels have to tell them apart."""
    return COLOURS[index] if index < len(COLOURS) else "#555555"


def shades(count: int) -> list[str]:
    """Colours for what has an order, from dark to light, as many as are asked for."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](place)) for place in np.linspace(0.0, 0.88, count)]  # the lightest would not be seen on white


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


def _stacked(figure: Figure) -> Figure | None:
    """A copy of a figure with its panels below each other; None for one that is no plain grid of panels, or whose words would take all the room."""
    from matplotlib.gridspec import GridSpec
    from matplotlib.ticker import FixedFormatter

    panels = [panel for panel in figure.axes if not hasattr(panel, "_colorbar")]  # a colour bar follows its panel by itself
    if figure.subfigs or not panels or not all(panel.axison and panel.get_subplotspec() for panel in panels):
        return None
    named = [panel.yaxis for panel in panels if isinstance(panel.yaxis.get_major_formatter(), FixedFormatter)]
    if any(len(tick.get_text()) > LONGEST_TICK for axis in named for tick in axis.get_ticklabels()):
        return None
    narrow = copy.deepcopy(figure)
    panels = [panel for panel in narrow.axes if not hasattr(panel, "_colorbar")]
    places = list(dict.fromkeys(panel.get_subplotspec().num1 for panel in panels))  # twins share a place
    narrow.set_size_inches(NARROW_PANEL[0], NARROW_PANEL[1] * len(places))
    grid, label = GridSpec(len(places), 1, figure=narrow), ""
    for panel in panels:
        panel.set_subplotspec(grid[places.index(panel.get_subplotspec().num1)])
        if panel.yaxis.get_label_position() == "left":  # what stood at the left of a row holds for all of it
            label = panel.get_ylabel() or label
            panel.set_ylabel(textwrap.fill(label, 36))
            panel.set_xlabel(textwrap.fill(panel.get_xlabel(), 44))
            panel.tick_params(labelleft=True, labelbottom=True)
        if (legend := panel.get_legend()) and not panel.bbox.contains(*legend.get_bbox_to_anchor().p0):
            legend.set_loc("upper center")  # one that stood beside the panel
            legend.set_bbox_to_anchor((0.5, -0.2), transform=panel.transAxes)
    for legend in [*narrow.legends]:
        labels, title = [text.get_text() for text in legend.get_texts()], legend.get_title().get_text() or None
        legend_above(narrow, legend.legend_handles, 1 if max(map(len, labels)) > LONGEST_TICK else 2, labels=labels, title=title)
        narrow.legends.remove(legend)
    return narrow


def over_generations(panel: Axes) -> None:
    """Make the horizontal axis one of generations: whole numbers."""
    from matplotlib.ticker import MaxNLocator

    panel.set_xlabel("generation")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


class Line(NamedTuple):
    """A line over generations: its points, the standard error of each (NaN or None: unknown), colour, and matplotlib's marker and line style.

    Errors to either side differ where ``below`` is given; ``words`` is what the points say on hovering (default: value and error); ``width`` is in
    points. Lines that share a label, as those of an experiment's chains do, are named once.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float | None]
    colour: str
    marker: str = "o"
    style: str = "-"
    below: Sequence[float] | None = None
    words: Sequence[str] | None = None
    width: float = RC_PARAMS["lines.linewidth"]

    @classmethod
    def of(cls, label: str, points: DataFrame, colour: str, marker: str = "o", style: str = "-") -> Line:
        """The line of what ``results.metric`` returns."""
        return cls(label, *(points[column].tolist() for column in ("generation", "value", "standard_error")), colour, marker, style)

    def emptied(self) -> Line:
        """The same without points, for a view in which it has none: all views have the same lines."""
        return self._replace(x=[], y=[], error=[])


class View(NamedTuple):
    """Lines on one vertical axis, and what else of Plotly's layout belongs to them."""

    axis: str
    lines: Sequence[Line]
    layout: dict[str, Any] = {}  # noqa: RUF012, never changed


def draw_lines(panel: Axes, view: View, alpha: float = 0.2, **look: Any) -> None:
    """Draw a view with bands of one standard error to either side; ``look`` goes to matplotlib's ``plot``."""
    for line in view.lines:
        y, error = np.asarray(line.y, float), np.nan_to_num(np.asarray(line.error, float))
        panel.plot(line.x, y, color=line.colour, marker=line.marker, linestyle=line.style, label=line.label, **{"linewidth": line.width} | look)
        panel.fill_between(line.x, y - error, y + error, color=line.colour, alpha=alpha, linewidth=0)
    panel.set_ylabel(view.axis)


def interactive(name: str, views: Mapping[str, View], dropdown: bool = False, menu_height: float = 1.04, **layout: Any) -> Interactive:
    """Lines with values on hovering. Of several views, with as many lines each, a reader chooses one by its label, with buttons or from a list.

    ``name`` is the element's id and must be unique on its page; ``layout`` goes to Plotly's layout.
    """
    import plotly.graph_objects as go

    figure, first = go.Figure(), next(iter(views.values()))
    for line in first.lines:
        figure.add_scatter(
            name=line.label,
            legendgroup=line.label,
            mode="lines+markers" if line.marker else "lines",
            line={"color": line.colour, "dash": PLOTLY_DASHES[line.style], "width": line.width},
            marker={"symbol": PLOTLY_MARKERS.get(line.marker), "size": 7},
            error_y={"type": "data", "thickness": 1, "width": 2},
            hovertemplate="%{fullData.name}<br>generation %{x}: %{customdata}<extra></extra>",
        )
    for attribute, values in _restyled(first).items():
        for trace, value in zip(figure.data, values, strict=True):
            trace[attribute] = value
    plotly_layout(figure, first.axis, **layout)
    figure.update_layout(first.layout)
    if len(views) > 1:
        changes = {label: [_restyled(view), {"yaxis.title.text": view.axis} | view.layout] for label, view in views.items()}
        buttons = [{"label": label, "method": "update", "args": arguments} for label, arguments in changes.items()]
        menu = {"buttons": buttons, "x": 0, "xanchor": "left", "y": menu_height, "yanchor": "bottom", "pad": {"b": 4}}
        figure.update_layout(updatemenus=[menu if dropdown else menu | {"type": "buttons", "direction": "right"}])
    return Interactive(figure, name)


def _restyled(view: View) -> dict[str, list[list[Any]]]:
    """Attributes of Plotly's traces that change from view to view, a list a line."""
    labels = [line.label if len(line.x) else None for line in view.lines]  # of lines that share a label, the legend names the first that is there
    attributes = {
        "showlegend": [label is not None and label not in labels[:index] for index, label in enumerate(labels)],
        "x": [list(line.x) for line in view.lines],
        "y": [_without_nan(line.y) for line in view.lines],
        "error_y.array": [_without_nan(line.error) for line in view.lines],
        "customdata": [line.words or [plus_minus(*point) for point in zip(line.y, line.error, strict=True)] for line in view.lines],
    }
    if any(line.below for line in view.lines):
        attributes["error_y.arrayminus"] = [line.below or [] for line in view.lines]
    return attributes


def plus_minus(value: float, error: float | None) -> str:
    """A value with its standard error, to two digits of the error: "0.213 ± 0.012"; to three digits where there is no error."""
    if not error or not math.isfinite(error):
        return f"{value:.3f}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def legend_above(figure: Figure, handles: Iterable[Any], columns: int, **more: Any) -> None:
    """One legend for all panels, above them."""
    figure.legend(handles=list(handles), loc="outside upper center", ncols=columns, frameon=False, fontsize=10, **more)


def draw_view(panel: Axes, view: View) -> None:
    """The lines of a view on the scale that it asks for, each named at its end where there are several."""
    draw_lines(panel, view)
    if view.layout["yaxis.type"] == "log":
        logarithmic(panel)
    if len(view.lines) > 1:
        label_ends(panel)


def logarithmic(panel: Axes) -> None:
    """A logarithmic vertical axis whose labels are plain numbers."""
    panel.set_yscale("log")
    plain_ticks(panel.yaxis)


def plain_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 of each decade, their labels plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:,.10g}")
    axis.set_minor_formatter(NullFormatter())


def label_ends(panel: Axes) -> None:
    """Write each name at the end of the longest line that bears it, pushed apart where two would overlap."""
    to_height = panel.transData + panel.transAxes.inverted()
    longest = {line.get_label(): line for line in sorted(panel.get_lines(), key=lambda line: line.get_xdata()[-1])}
    ends = [(*to_height.transform(line.get_xydata()[-1]), line) for line in longest.values()]
    ground = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1}  # where a shorter run's name lies on a longer run's line
    lowest = float("-inf")
    for x, height, line in sorted(ends, key=lambda end: end[1]):
        lowest = max(height, lowest + 0.07)
        panel.text(x + 0.02, lowest, line.get_label(), color=line.get_color(), transform=panel.transAxes, va="center", fontsize=10, bbox=ground)


def lines_only_once(axes: Iterable[Axes]) -> list[Any]:
    """What the legend of several panels shows: of each label the first handle."""
    found: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values())


def evenly(generations: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of them, the first and the last included."""
    if len(generations) <= most:
        return list(generations)
    return [generations[round(index * (len(generations) - 1) / (most - 1))] for index in range(most)]


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


def short(values: Iterable[float]) -> list[float | None]:
    """Numbers for Plotly with five digits, because a page carries those of every setting; None for infinite ones."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def _without_nan(values: Iterable[float | None]) -> list[float | None]:
    """Numbers for Plotly, whose JSON knows no NaN."""
    return [None if value is None or value != value else value for value in values]
