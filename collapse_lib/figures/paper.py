"""Every figure of the book, drawn from the tidy table of ``results`` and from nothing else.

A function returns a ``Picture`` (SVG) or an ``Interactive`` (Plotly); each shows itself as the last line of a notebook cell. Colours are
Okabe and Ito's, which colour-blind readers tell apart; the ground is white in light and dark pages alike.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collapse_lib.experiment.errors import UserError
from collapse_lib.studies.results import measured, metric, select

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from IPython.display import Markdown
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
ENTROPY_COLOUR, LEXICON_COLOUR, INITIAL_COLOUR = COLOURS[0], COLOURS[4], COLOURS[5]
ABSOLUTE, RELATIVE = "perplexity on validation stories", "perplexity / that of the first generation"
FEW = 10  # generations apart, up to which every one gets a tick; Plotly's own ticks are whole numbers beyond
LOG_RANGE = 8.0  # highest over lowest value from which a logarithmic axis shows more than a linear one
STYLE = {
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

# What the paper reports, to stand beside what a run measured.
PAPER = {
    "perplexity": "rises in every generation from 1 to 40, faster for the 1M than for the 33M model (Fig. 1)",
    "entropy": "rises from generation 1 to 25, then falls sharply (33M, Fig. 2); rises, then falls in the late generations (1M, Fig. A2)",
    "oov_lexicon_occurrences": "rises from generation 1 to 39 (33M, Fig. 2); rises over 40 generations (1M, Fig. A2)",
    "repeated": "no number; repetition is said to grow, often of tokens frequent in the initial corpus (Finding 2), 'e' and 'z' among them",
}
LABELS = {
    "perplexity": "perplexity",
    "entropy": "entropy (nats)",
    "oov_lexicon_occurrences": "OOV words",
    "repeated": "share of tokens that repeat their predecessor",
}


@dataclass(frozen=True)
class Picture:
    """A static figure; ``figure`` is matplotlib's, laid out, for whoever wants to change something before it is shown or saved."""

    figure: Figure
    title: str

    @property
    def svg(self) -> str:
        """The figure as SVG text, the same bytes for the same numbers."""
        import matplotlib

        with matplotlib.rc_context(STYLE):
            file = io.StringIO()
            self.figure.savefig(file, format="svg", facecolor="white", metadata={"Title": self.title, "Date": None, "Creator": None})
        return file.getvalue()

    def save(self, path: str | Path) -> None:
        """Write ``.svg``, or any other format that matplotlib knows by the file's ending."""
        path = Path(path)
        if path.suffix == ".svg":
            path.write_text(self.svg, encoding="utf-8")
        else:
            self.figure.savefig(path, dpi=150, facecolor="white")

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"image/svg+xml": self.svg, "text/plain": self.title}


@dataclass(frozen=True)
class Interactive:
    """A Plotly figure. Jupyter draws it with Plotly's own renderer; a page that has loaded plotly.min.js shows its HTML."""

    figure: go.Figure
    name: str

    @property
    def html(self) -> str:
        """A fragment for a page, without Plotly's 5 MB; element ids are fixed."""
        return self.figure.to_html(
            include_plotlyjs=False, full_html=False, div_id=self.name, default_height="440px", config={"displayModeBar": False, "responsive": True}
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"application/vnd.plotly.v1+json": self.figure.to_plotly_json(), "text/html": self.html, "text/plain": self.name}


def drawn(draw: Callable[..., tuple[Figure, str]]) -> Callable[..., Picture]:
    """Have a figure drawn in our style and laid out once: laid out again it would move by a hair, and its bytes would change."""

    @wraps(draw)
    def styled(*arguments: Any, **named: Any) -> Picture:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            figure, title = draw(*arguments, **named)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        return Picture(figure, title)

    return styled


@drawn
def figure_1(table: DataFrame) -> tuple[Figure, str]:
    """Perplexity on validation stories by generation, a line a run, with a band of one standard error to either side.

    Several runs get a second panel, perplexity over that of the first generation: the levels of runs with different tokenisers or stories have
    nothing to say to each other.
    """
    lines = _perplexities(table)
    views = [(lines, ABSOLUTE)] + ([(_relative(lines), RELATIVE)] if len(lines) > 1 else [])
    figure, axes = _axes(len(views))
    for panel, (shown, label) in zip(axes, views, strict=True):
        for colour, (run, points) in zip(_colours(), shown.items(), strict=False):
            error = points["standard_error"].fillna(0.0)
            panel.plot(points["generation"], points["value"], color=colour, marker="o", label=run)
            panel.fill_between(points["generation"], points["value"] - error, points["value"] + error, color=colour, alpha=0.2, linewidth=0)
        panel.set_ylabel(label)
        if _axis_type(shown) == "log":
            _log(panel)
        if len(lines) > 1:
            _label_ends(panel)
    return figure, "Perplexity by generation"


def figure_1_interactive(table: DataFrame) -> Interactive:
    """Figure 1 to hover over; two buttons change between perplexity and its ratio to the first generation."""
    import plotly.graph_objects as go

    lines = _perplexities(table)
    figure, buttons = go.Figure(), []
    for colour, (run, points) in zip(_colours(), lines.items(), strict=False):
        figure.add_scatter(
            x=points["generation"].tolist(),
            y=points["value"].tolist(),
            error_y={"type": "data", "array": _errors(points), "thickness": 1, "width": 2},
            name=run,
            mode="lines+markers",
            line={"color": colour},
            hovertemplate=f"{run}, generation %{{x}}<br>%{{y:.5g}}<extra></extra>",
        )
    for label, shown in ((ABSOLUTE, lines), (RELATIVE, _relative(lines))):
        data = {"y": [points["value"].tolist() for points in shown.values()], "error_y.array": [_errors(points) for points in shown.values()]}
        axis = {"yaxis.title.text": label, "yaxis.type": _axis_type(shown), "yaxis.autorange": True}
        buttons.append({"label": label, "method": "update", "args": [data, axis]})
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "xanchor": "left", "y": 1.04, "yanchor": "bottom", "pad": {"b": 4}}
    plotly_layout(figure, ABSOLUTE, updatemenus=[menu], showlegend=len(lines) > 1)
    figure.update_yaxes(type=_axis_type(lines))
    return Interactive(figure, "figure-1")


@drawn
def figure_2(table: DataFrame, runs: str | Sequence[str]) -> tuple[Figure, str]:
    """Entropy of the generated text (line, left axis) and its OOV words against both lexicons (bars, right axis), as in the paper.

    Several runs get a panel each: they write corpora of different sizes, so that their counts have no axis in common.
    """
    names = [runs] if isinstance(runs, str) else list(runs)
    found = [_free_text(table, run) for run in names]
    labels = list(with_sizes(table, names).values())
    figure, panels = _axes(len(found), columns=2)
    for panel, label, measures in zip(panels, labels, found, strict=True):
        bars = _entropy_and_words(panel, *measures)
        panel.set_title(label, fontsize=11)
    handles = [handle for axes in (panel, bars) for handle in axes.get_legend_handles_labels()[0]]
    figure.legend(handles, [handle.get_label() for handle in handles], loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    return figure, f"Entropy and out-of-vocabulary words by generation, {'run' if len(names) == 1 else 'runs'} {', '.join(labels)}"


def _entropy_and_words(panel: Axes, entropy: DataFrame, lexicon: DataFrame, initial: DataFrame) -> Axes:
    """Draw one run of Figure 2; returns the axes of the bars."""
    bars = panel.twinx()
    bars.bar(lexicon["generation"] - 0.2, lexicon["value"], 0.38, color=LEXICON_COLOUR, label="OOV, English lexicon")
    bars.bar(
        initial["generation"] + 0.2,
        initial["value"],
        0.38,
        color=INITIAL_COLOUR,
        hatch="////",
        edgecolor="white",
        linewidth=0,
        label="OOV, initial corpus",
    )
    panel.plot(entropy["generation"], entropy["value"], color=ENTROPY_COLOUR, marker="o", label="entropy")
    panel.set_zorder(bars.get_zorder() + 1)  # the line lies over the bars
    panel.patch.set_visible(False)
    bars.spines["right"].set_visible(True)
    panel.grid(False)
    bars.yaxis.set_major_formatter("{x:,.0f}")
    bars.set_ylabel("OOV words in the corpus")
    panel.set_ylabel("entropy (nats)", color=ENTROPY_COLOUR)
    panel.tick_params(axis="y", colors=ENTROPY_COLOUR)
    return bars


def figure_2_interactive(table: DataFrame, run: str) -> Interactive:
    """Figure 2 to hover over; a click on the legend hides a measure."""
    import plotly.graph_objects as go

    entropy, lexicon, initial = _free_text(table, run)
    figure = go.Figure()
    for name, points, colour, shape in (("OOV, English lexicon", lexicon, LEXICON_COLOUR, ""), ("OOV, initial corpus", initial, INITIAL_COLOUR, "/")):
        figure.add_bar(
            x=points["generation"].tolist(),
            y=points["value"].tolist(),
            name=name,
            yaxis="y2",
            marker={"color": colour, "pattern": {"shape": shape}},
            hovertemplate="generation %{x}<br>%{y:,} words<extra>" + name + "</extra>",
        )
    figure.add_scatter(
        x=entropy["generation"].tolist(),
        y=entropy["value"].tolist(),
        name="entropy",
        mode="lines+markers",
        line={"color": ENTROPY_COLOUR},
        hovertemplate="generation %{x}<br>%{y:.4f} nats<extra>entropy</extra>",
    )
    # Plotly draws the axis that overlays last: entropy has to be that one, or the bars would cover the line.
    words = {"title": {"text": "OOV words in the corpus"}, "side": "right", "showgrid": False, "rangemode": "tozero"}
    plotly_layout(figure, "entropy (nats)", yaxis2=words, barmode="group", legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})
    # Its ticks are its own: by default an overlaying axis has them where the other one's are, at values such as 5.7344.
    figure.update_layout(yaxis={"overlaying": "y2", "side": "left", "tickmode": "auto"})
    return Interactive(figure, f"figure-2-{run}")


@drawn
def loss_curve(training: dict[str, Any]) -> tuple[Figure, str]:
    """Training loss by optimizer step, from what the ``train`` step measured; hold-out losses by epoch beside it if there are any."""
    series = training["series"]
    holdout = series.get("holdout_losses", [])
    figure, axes = _axes(panels=2 if holdout else 1)
    axes[0].plot(*zip(*series["loss_curve"], strict=True), color=COLOURS[0])
    axes[0].set(xlabel="optimizer step", ylabel="training loss (nats a token)")
    if holdout:
        axes[1].plot(range(1, len(holdout) + 1), holdout, color=COLOURS[1], marker="o")
        axes[1].set(xlabel="epoch", ylabel="hold-out loss (nats a token)")
    return figure, f"Training loss of generation {training['generation']}"


def table_a1(run: str, generations: Sequence[int] = (), each: int = 2) -> Markdown:
    """Samples by generation, as in Extended Data Table A1: ``each`` of every chosen generation (default: up to eight, evenly spaced)."""
    from IPython.display import Markdown

    from collapse_lib.text.display import literal

    rows = [
        f"| {generation} | {literal(text)} |"
        for generation in generations or _evenly(_generations(run, "sample"), 8)
        for text in measured(run, generation, "sample")["examples"]["samples"][:each]
    ]
    return Markdown("\n".join(["| Generation | Sample |", "|--:|:--|", *rows]))


def beside_paper(table: DataFrame, metrics: Sequence[str]) -> Markdown:
    """What the paper saw beside what each run of the table shows, for some of the metrics in ``PAPER``."""
    from IPython.display import Markdown

    from collapse_lib.book.pages import course, peak

    rows = ["| measure | the paper | run | here |", "|:--|:--|:--|:--|"]
    for name in metrics:
        for run in table["run"].unique():
            found = metric(table, run, name, "perplexity" if name == "perplexity" else "free_text")  # the step alpha has an entropy, too
            if len(found):
                points = list(zip(found["generation"].tolist(), found["value"].tolist(), strict=True))
                rows.append(f"| {LABELS[name]} | {PAPER[name]} | {run} | {course(points)}; highest: {peak(points)} |")
    return Markdown("\n".join(rows))


def with_sizes(table: DataFrame, runs: Sequence[str]) -> dict[str, str]:
    """Runs with the parameters of their models, and which of two sizes is the smaller: "demo (238,976 parameters, the smaller model)"."""
    found = {run: metric(table, run, "parameters", "train")["value"] for run in runs}
    sizes = {run: int(values.iloc[0]) for run, values in found.items() if len(values)}
    different = sorted(set(sizes.values()))
    ranks = dict(zip(different, ("the smaller model", "the larger model"), strict=True)) if len(different) == 2 else {}
    words = {run: ", ".join([f"{size:,} parameters", *([ranks[size]] if ranks else [])]) for run, size in sizes.items()}
    return {run: f"{run} ({words[run]})" if run in words else run for run in runs}


def shown(table: DataFrame, runs: Sequence[str]) -> Markdown:
    """The runs of a figure and the sizes of their models, in a sentence."""
    from IPython.display import Markdown

    labels = "; ".join(f"**{run}**{label.removeprefix(run)}" for run, label in with_sizes(table, runs).items())
    return Markdown(f"Shown here: {labels or 'no run'}.")


def _perplexities(table: DataFrame) -> dict[str, DataFrame]:
    """Perplexity by generation of the runs that have any."""
    lines = {run: metric(table, run, "perplexity", "perplexity") for run in table["run"].unique()}
    lines = {run: points for run, points in lines.items() if len(points)}
    if not lines:
        raise UserError(f"No perplexity has been measured yet in {', '.join(table['run'].unique()) or 'an empty table'}.")
    return lines


def _free_text(table: DataFrame, run: str) -> tuple[DataFrame, DataFrame, DataFrame]:
    found = tuple(metric(table, run, name, "free_text") for name in ("entropy", "oov_lexicon_occurrences", "oov_initial_occurrences"))
    if not len(found[0]):
        raise UserError(f"The free text of run '{run}' has not been measured yet, or the run is not in this table.")
    return found


def _generations(run: str, step: str) -> list[int]:
    from collapse_lib.studies.results import executed

    manifests = executed(select(run))
    found = [] if manifests.empty else sorted(manifests[manifests["step"] == step]["generation"].tolist())
    if not found:
        raise UserError(f"Run '{run}' has no finished step '{step}' yet.")
    return found


def _evenly(generations: list[int], most: int) -> list[int]:
    """At most ``most`` of them, the first and the last included."""
    if len(generations) <= most:
        return generations
    return [generations[round(place * (len(generations) - 1) / (most - 1))] for place in range(most)]


def _relative(lines: dict[str, DataFrame]) -> dict[str, DataFrame]:
    """Each line over its first value, standard errors too (the first value is taken as exact)."""
    scaled = ["value", "standard_error"]
    return {run: points.assign(**{column: points[column] / points["value"].iloc[0] for column in scaled}) for run, points in lines.items()}


def _errors(points: DataFrame) -> list[float | None]:
    return [None if error != error else error for error in points["standard_error"].tolist()]


def _colours() -> list[str]:
    return [*COLOURS, *("#555555" for _ in range(50))]  # beyond six runs the labels have to do


def _axes(panels: int = 1, columns: int = 0) -> tuple[Figure, Sequence[Axes]]:
    """A figure with some panels, at most ``columns`` side by side (0: all of them)."""
    # Not pyplot: its global state would tie a figure to the notebook's.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    across = min(panels, columns or panels)
    rows = -(-panels // across)
    figure = Figure(figsize=(7.2 if panels == 1 else 5.2 * across, 3.9 * rows), layout="constrained")
    axes = figure.subplots(rows, across, squeeze=False).flat
    for spare in axes[panels:]:
        spare.remove()
    axes = axes[:panels]
    for panel in axes:
        panel.set_xlabel("generation")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure, axes


def _axis_type(lines: dict[str, DataFrame]) -> str:
    values = [value for points in lines.values() for value in points["value"]]
    return "log" if min(values) > 0 and max(values) / min(values) >= LOG_RANGE else "linear"


def _log(panel: Axes) -> None:
    """A logarithmic axis whose labels are plain numbers, 1, 2 and 5 of each decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:,.10g}")
    panel.yaxis.set_minor_formatter(NullFormatter())


def _label_ends(panel: Axes) -> None:
    """Write each run's name at the end of its line, pushed apart where two would overlap."""
    to_height = panel.transData + panel.transAxes.inverted()
    ends = [(*to_height.transform(line.get_xydata()[-1]), line) for line in panel.get_lines()]
    ground = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1}  # where a shorter run's name lies on a longer run's line
    lowest = float("-inf")
    for x, height, line in sorted(ends, key=lambda end: end[1]):
        lowest = max(height, lowest + 0.07)
        panel.text(x + 0.02, lowest, line.get_label(), color=line.get_color(), transform=panel.transAxes, va="center", fontsize=10, bbox=ground)


def plotly_layout(figure: go.Figure, y_title: str, **more: Any) -> None:
    """Give an interactive figure, whose traces are there, the looks of the still ones; ``more`` goes to Plotly's layout."""
    places = [place for trace in figure.data for place in trace.x]
    few = all(isinstance(place, int) for place in places) and max(places, default=0) - min(places, default=0) <= FEW
    axis = {"showline": True, "linecolor": "#444444", "gridcolor": "#e4e4e4", "zeroline": False}
    figure.update_layout(
        template=None,
        paper_bgcolor="white",
        plot_bgcolor="white",
        font={"color": "#222222", "size": 13},
        margin={"l": 70, "r": 70, "t": 60, "b": 55},
        height=440,
        xaxis=axis | {"title": {"text": "generation"}, "showgrid": False, "dtick": 1 if few else None},
        yaxis=axis | {"title": {"text": y_title}},
        **more,
    )
