"""The errors of the proof on real models (sections 2.2 and 2.3), drawn from what the step ``alpha`` measured.

A line is a mean or a median over contexts, the same ones in every generation. A band is the middle half of them, or one standard error over
stories; means over counted contexts, which lie inside each other, have no such error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from collapse_lib.experiment.errors import UserError
from collapse_lib.figures.style import COLOURS, GREY, Interactive, Line, Picture, View, draw_lines, interactive, panels, short, styled
from collapse_lib.studies.results import executed, measured
from collapse_lib.text.display import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from numpy.typing import NDArray

MANY_DECADES = 50.0  # highest over lowest value from which labels at 2 and 5 of each power of ten would run into each other
SUM_AXIS = "sum of D∞ so far (nats)"
TWO_PANELS = (4.8, 4.1)  # inches, each


class ErrorSeries:
    """What the step ``alpha`` measured on a run: ``generations`` [G], and every series as an array [G, contexts].

    Raises ``UserError`` for a run on which the step has not been executed.
    """

    def __init__(self, run: str):
        steps = executed([run])
        generations = [] if steps.empty else sorted(steps[steps["step"] == "alpha"]["generation"].tolist())
        if not generations:
            raise UserError(f"Run '{run}' has no finished step 'alpha' yet; `collapse run {run}` goes on with it.")
        self.run, self.generations = run, np.array(generations)
        self.records = [measured(run, generation, "alpha") for generation in generations]
        series = self.records[0]["series"]
        self.left_out = ["", *(name.removeprefix("divergence") for name in series if name.startswith("divergence_"))]  # suffixes: "", "_0.01", ...
        self.contexts: list[str] = self.records[0]["examples"]["contexts"]

    def __contains__(self, name: str) -> bool:
        return name in self.records[0]["series"]

    def since(self, generation: int, name: str) -> NDArray[np.float64]:
        """A series from a generation on; not a number where a context has no value."""
        return np.array([record["series"][name] for record in self.records if record["generation"] >= generation], float)

    def shared(self, *names: str, since: int = 1) -> tuple[NDArray[np.float64], str]:
        """Series [names, generations, contexts] at the contexts that have a value in each of these generations; and how many these are, in words."""
        values = np.array([self.since(since, name) for name in names]).reshape(len(names), -1, len(self.contexts))
        complete = np.isfinite(values).all(axis=(0, 1))
        return values[..., complete], f"{complete.sum()} of {len(complete)} contexts"

    def means(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Generations in which something was measured at positions, its means, and their standard errors over stories (0 where unknown)."""
        metrics = {record["generation"]: record["metrics"][name] for record in self.records if name in record["metrics"]}
        errors = [metric.get("standard_error") or 0.0 for metric in metrics.values()]
        return np.array(list(metrics)), np.array([metric["value"] for metric in metrics.values()]), np.array(errors)


@styled()
def accumulated_errors(run: str) -> Picture:
    """The sum of D_inf over the generations (section 2.3), raw and without the worst tokens: medians over contexts and the middle half of them.

    The axis on the right has the paper's unit, y[n] / N_x = 1 + sum of alpha* / N_x. Raises ``UserError`` for a run without the step ``alpha``.

    Example: ``figures.accumulated_errors("demo")``
    """
    from matplotlib.ticker import LogLocator

    errors = ErrorSeries(run)
    figure, (panel,) = panels(size=(7.2, 4.1))
    series, contexts = errors.shared(*(f"accumulated{suffix}" for suffix in errors.left_out))
    for index, (suffix, values) in enumerate(zip(errors.left_out, series, strict=True)):
        _median(panel, errors.generations, values, COLOURS[index % len(COLOURS)], _left_out(suffix), "o^sDv"[index % 5])
    panel.set_ylabel(SUM_AXIS)
    panel.set_ylim(bottom=0)
    right = panel.secondary_yaxis("right", functions=(lambda nats: np.exp(np.clip(nats, -700, 700)), lambda ratio: np.log(np.maximum(ratio, 1e-300))))
    right.set_yscale("log")
    right.yaxis.set_major_locator(LogLocator(numticks=7))
    right.set_ylabel("y[n] / N")
    panel.legend(frameon=False, fontsize=10, title=contexts)
    return Picture(figure, f"Accumulated errors by generation, run {run}")


def accumulated_errors_interactive(run: str) -> Interactive:
    """The sum of D_inf at every counted context, with values on hovering; buttons choose how much probability is left out.

    Example: ``figures.accumulated_errors_interactive("demo")``
    """
    errors, views = ErrorSeries(run), {}
    generations = errors.generations.tolist()
    names = [context_label(context) for context in errors.contexts]
    for suffix in errors.left_out:
        values = errors.since(1, f"accumulated{suffix}").T
        lines = [Line(name, generations, short(line), [None] * len(line), "#b5cfe0", "") for name, line in zip(names, values, strict=True)]
        median = Line("median", generations, short(np.median(values, 0)), [None] * len(generations), COLOURS[0])
        views[_left_out(suffix)] = View(SUM_AXIS, [*lines, median], {"yaxis.autorange": True})
    made = interactive(f"accumulated-{run}", views, hovermode="closest", showlegend=False)
    made.figure.update_traces(line={"width": 1}, selector={"mode": "lines"})
    made.figure.data[-1].line.width = 3
    return made


@styled()
def initial_weights(run: str) -> Picture:
    """The weight w_n that equation (3) leaves to the initial corpus with minimal errors, and the largest share w*_n of it that p_n can contain.

    Right, w*_n again, also without the worst tokens, and the overlap of p_0 and p_n. Medians over counted contexts; bands hold the middle half.

    Example: ``figures.initial_weights("demo")``
    """
    errors = ErrorSeries(run)
    figure, (left, right) = panels(2, size=TWO_PANELS)
    suffixes = errors.left_out[1:]
    (summed, direct, moved, *without), contexts = errors.shared(
        "accumulated", "initial_divergence", "initial_tv", *(f"initial_divergence{suffix}" for suffix in suffixes)
    )
    _median(left, errors.generations, np.exp(-summed), COLOURS[1], "w, by the sum of errors", "s")
    _median(left, errors.generations, np.exp(-direct), COLOURS[0], "w*, measured directly", "o")
    _median(right, errors.generations, 1 - moved, GREY, "overlap of p₀ and pₙ, 1 − TV", "")
    for index, (suffix, values) in reversed(list(enumerate(zip(suffixes, without, strict=True)))):
        share = np.median(np.minimum(np.exp(-values), 1.0), axis=1)
        right.plot(errors.generations, share, color=COLOURS[2 + index % 3], marker="^Dv"[index % 3], label=f"w* {_left_out(suffix)}")
    _median(right, errors.generations, np.exp(-direct), COLOURS[0], "w*", "o")
    left.set(yscale="log", ylabel="share of the initial corpus")
    right.set_yscale("log")
    plain_ticks(right.yaxis)
    _legends(left, right, title=contexts)
    return Picture(figure, f"Weight and memory of the initial corpus by generation, run {run}")


@styled()
def sampling_drift(run: str) -> Picture:
    """What each generation changed against what drawing N_x tokens would change in a model that only counts (section 4), in total variation.

    Left: means over the counted contexts that came up in every generation's text. Right: every generation with all contexts that came up in its
    text; on the diagonal the two are equal.

    Example: ``figures.sampling_drift("demo")``
    """
    errors = ErrorSeries(run)
    figure, (left, right) = panels(2, size=TWO_PANELS)
    series, contexts = errors.shared("drift_tv", "text_tv", "tv", since=2)
    looks = (
        (COLOURS[1], "s", "drawing N tokens alone (expected)"),
        (COLOURS[4], "^", "from the model to its text (measured)"),
        (COLOURS[0], "o", "from the model to the next (measured)"),
    )
    for values, look in zip(series, looks, strict=True):
        _mean(left, errors.generations[errors.generations >= 2], values, *look)
    left.set(xlabel=f"generation (over {contexts}: those in every text)", ylabel="total variation in one generation")
    left.set_ylim(bottom=0)
    expected, moved, stories = (errors.since(2, name) for name in ("drift_tv", "tv", "learned_counts"))
    possible = np.isfinite(expected) & (expected > 0)
    if possible.any():
        expected, moved, log_stories = expected[possible], moved[possible], np.log10(stories[possible])
        dots = right.scatter(expected, moved, c=log_stories, s=9, cmap="viridis", linewidths=0)
        bar = figure.colorbar(dots, ax=right)
        bar.set_label("N, stories that began so")
        ticks = np.arange(np.ceil(log_stories.min()), np.floor(log_stories.max()) + 1)
        bar.set_ticks(ticks, labels=[f"{10**tick:,.0f}" for tick in ticks])
        ends = [min(expected.min(), moved.min()), max(expected.max(), moved.max())]
        right.plot(ends, ends, color=GREY, linewidth=1, linestyle="--")
    right.set(xscale="log", yscale="log", xlabel="expected of drawing N tokens alone", ylabel="measured, model to model")
    for axis in (right.xaxis, right.yaxis):
        plain_ticks(axis)
    _legends(left)
    return Picture(figure, f"Sampling drift and the models' own change, run {run}")


@styled()
def memory(run: str) -> Picture:
    """How far the next-token distribution has moved from where it began, in total variation (left), and its entropy in nats (right); means.

    Means over positions of validation stories have bands of one standard error over stories.

    Example: ``figures.memory("demo")``
    """
    errors = ErrorSeries(run)
    figure, (left, right) = panels(2, size=TWO_PANELS)
    for panel, name, colour, marker, start in (
        (left, "initial_tv", COLOURS[0], "o", ", from p₀"),
        (left, "truth_tv", COLOURS[2], "^", ", from the grammar's law"),
        (right, "entropy", COLOURS[0], "o", ""),
    ):
        if name in errors:
            (values,), contexts = errors.shared(name)
            _mean(panel, errors.generations, values, colour, marker, f"counted, {contexts}{start}")
    for panel, name, label in (
        (left, "position_first_tv", "validation positions, from p₁"),
        (right, "position_entropy", "validation positions"),
    ):
        generations, means, standard_errors = errors.means(name)
        if len(means):
            draw_lines(panel, View("", [Line(label, generations, means, standard_errors, COLOURS[1], "s")]))
    left.set_ylabel("total variation from the start")
    left.set_ylim(0, 1)
    right.set_ylabel("entropy of the next token (nats)")
    _legends(left, right)
    return Picture(figure, f"Memory of the initial corpus by generation, run {run}")


def context_label(context: str) -> str:
    """A story's first words as a label in Plotly, which reads HTML."""
    return plain(f"“{context}”") if context else "a story's beginning"


def plain_ticks(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis: on a short one at 1, 2 and 5 of each power of ten, on a long one at the powers alone."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < MANY_DECADES * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _median(panel: Axes, generations: Sequence[int], values: NDArray[np.float64], colour: str, label: str, marker: str) -> None:
    """The median over contexts and a band that holds the middle half of them; values [generations, contexts]."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=1)
    panel.plot(generations, middle, color=colour, marker=marker, label=label)
    panel.fill_between(generations, low, high, color=colour, alpha=0.15, linewidth=0)


def _mean(panel: Axes, generations: Sequence[int], values: NDArray[np.float64], colour: str, marker: str, label: str) -> None:
    """The mean over contexts; values [generations, contexts]. No band: contexts that lie inside each other have no standard error."""
    means = (generations, values.mean(axis=1)) if values.size else ([], [])
    panel.plot(*means, color=colour, marker=marker, label=label)


def _legends(*axes: Axes, title: str | None = None) -> None:
    """A legend above each panel, where it hides nothing."""
    above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "alignment": "left"}
    for panel in axes:
        panel.legend(**above, frameon=False, fontsize=9, title=title, title_fontsize=9)


def _left_out(suffix: str) -> str:
    return f"without the worst {100 * float(suffix[1:]):g}%" if suffix else "all tokens"
