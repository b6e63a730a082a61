"""Figures 1, 2 and A2, and the loss of a training: drawn from the tidy table of ``studies.results``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from collapse_lib.experiment.errors import UserError
from collapse_lib.figures import chains, style
from collapse_lib.figures.exact import floor_perplexity
from collapse_lib.figures.style import COLOURS, Interactive, Line, Picture, View, styled
from collapse_lib.studies.chains import experiments
from collapse_lib.studies.results import metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

ABSOLUTE, RELATIVE = "perplexity on validation stories", "perplexity / that of the first generation"
LOG_RANGE = 8.0  # highest over lowest value from which a logarithmic axis is easier to read than a linear one
ENTROPY, ENTROPY_COLOUR = "entropy (nats)", COLOURS[0]
OOV_AXIS = "OOV words in the corpus"
OOV = (("OOV, English lexicon", COLOURS[4], "", -0.2), ("OOV, initial corpus", COLOURS[5], "/", 0.2))  # label, colour, hatch, offset of the bars
# What as much real text has: metric, colour, label. Of OOV words there is one level, for against its own words it has none.
REAL_ENTROPY = ("initial_entropy", COLOURS[0], "entropy, real text")
REAL_OOV = ("initial_oov_lexicon_occurrences", "#B37400", "OOV, English lexicon, real text")


@styled()
def figure_1(table: DataFrame) -> Picture:
    """Figure 1: perplexity on validation stories by generation (section 5.2), a line an experiment.

    ``table`` is what ``results.load`` returns. Around the line of a single run lies a band of one standard error over stories. Runs that are chains
    of one experiment (``studies.chains``) are thin lines, and where three of them or more have come, their mean has a 95% interval between chains.
    Several experiments get a second panel, perplexity relative to the first generation's, because levels of runs with different tokenisers or
    stories cannot be compared. A run on the grammar has a second line, dashed: the perplexity of the grammar's own law, below which no model comes.
    Raises ``UserError`` if no run has a perplexity yet.

    Example: ``figures.figure_1(results.load("demo")).save("figure_1.svg")``
    """
    views = _perplexity_views(table)
    several = len({line.label for line in views[RELATIVE].lines}) > 1
    figure, axes = style.panels(1 + several, size=(5.2, 3.9) if several else (7.2, 3.9))
    for panel, view in zip(axes, views.values(), strict=False):
        style.draw_view(panel, view)
    return Picture(figure, "Perplexity by generation")


def figure_1_interactive(table: DataFrame) -> Interactive:
    """Figure 1 with values on hovering; two buttons choose between perplexity and its ratio to the first generation's.

    Example: ``figures.figure_1_interactive(results.load("demo")).save("figure_1.html")``
    """
    views = _perplexity_views(table)
    absolute, relative = views[ABSOLUTE].lines, views[RELATIVE].lines
    views[RELATIVE] = views[RELATIVE]._replace(lines=[*relative, *map(Line.emptied, absolute[len(relative) :])])
    return style.interactive("figure-1", views, showlegend=len({line.label for line in absolute}) > 1)


@styled()
def figure_2(table: DataFrame, runs: str | Sequence[str]) -> Picture:
    """Figures 2 and A2: entropy of the generated text (line, left axis) and its out-of-vocabulary words (bars, right axis); sections 5.3.1, 5.3.2.

    ``runs`` is a name or several; each experiment gets a panel of its own, because counts of corpora of different sizes have no axis in common. Of
    several chains each has a thin line of entropy beside their mean with its interval (see ``figure_1``), and bars are the longest one's.
    Dashed lines, if they were measured, are what as many tokens of the initial corpus have. Raises ``UserError`` for a run whose text has not been
    measured.

    Example: ``figures.figure_2(results.load("demo"), "demo")``
    """
    groups = experiments([runs] if isinstance(runs, str) else runs)
    names = sized_names(table, list(groups))
    measures = [[_free_text(table, run) for run in of_one] for of_one in groups.values()]
    figure, axes = style.panels(len(names), columns=2, size=(7.2, 3.9) if len(names) == 1 else (5.2, 3.9))
    for panel, (run, title), of_one in zip(axes, names.items(), measures, strict=True):
        bars = _entropy_and_words(panel, [entropy for entropy, _ in of_one], of_one[0][1])
        for place, name, line_colour, label in ((panel, *REAL_ENTROPY), (bars, *REAL_OOV)):
            for level in metric(table, run, name, "free_text")["value"]:
                place.axhline(level, color=line_colour, linestyle="--", linewidth=1.3, label=label)
        panel.set_title(title + chains.counted(groups[run]), fontsize=11)
    style.legend_above(figure, style.lines_only_once(figure.axes), columns=3)
    return Picture(figure, f"Entropy and out-of-vocabulary words by generation, {'run' if len(names) == 1 else 'runs'} {', '.join(names.values())}")


def _entropy_and_words(panel: Axes, entropies: Sequence[DataFrame], words: Sequence[DataFrame]) -> Axes:
    """Draw the chains' entropies and the words of one, and return the axes of the latter."""
    bars = panel.twinx()
    for points, (label, bar_colour, hatch, offset) in zip(words, OOV, strict=True):
        look = {"color": bar_colour, "hatch": 4 * hatch, "edgecolor": "white", "linewidth": 0}
        bars.bar(points["generation"] + offset, points["value"], 0.38, label=label, **look)
    without_errors = [entropy.assign(standard_error=None) for entropy in entropies]  # too small to be seen
    style.draw_lines(panel, View(ENTROPY, chains.lines("entropy", without_errors, ENTROPY_COLOUR)))
    panel.set_zorder(bars.get_zorder() + 1)  # the line lies over the bars
    panel.patch.set_visible(False)
    bars.spines["right"].set_visible(True)
    panel.grid(False)
    bars.yaxis.set_major_formatter("{x:,.0f}")
    bars.set_ylabel(OOV_AXIS)
    panel.set_ylabel(ENTROPY, color=ENTROPY_COLOUR)
    panel.tick_params(axis="y", colors=ENTROPY_COLOUR)
    return bars


def figure_2_interactive(table: DataFrame, run: str) -> Interactive:
    """Figure 2 of one run with values on hovering; a click on the legend hides a measure.

    Example: ``figures.figure_2_interactive(results.load("demo"), "demo")``
    """
    import plotly.graph_objects as go

    (entropy, words), figure = _free_text(table, run), go.Figure()
    for points, (label, bar_colour, hatch, _) in zip(words, OOV, strict=True):
        figure.add_bar(
            x=points["generation"].tolist(),
            y=points["value"].tolist(),
            name=label,
            yaxis="y2",
            marker={"color": bar_colour, "pattern": {"shape": hatch}},
            hovertemplate="generation %{x}<br>%{y:,} words<extra>" + label + "</extra>",
        )
    figure.add_scatter(
        x=entropy["generation"].tolist(),
        y=entropy["value"].tolist(),
        name="entropy",
        mode="lines+markers",
        line={"color": ENTROPY_COLOUR},
        hovertemplate="generation %{x}<br>%{y:.4f} nats<extra>entropy</extra>",
    )
    generations = entropy["generation"].tolist()
    for (name, line_colour, label), axis in ((REAL_OOV, "y2"), (REAL_ENTROPY, "y")):
        for level in metric(table, run, name, "free_text")["value"]:
            look = {"color": line_colour, "dash": "dash", "width": 1.5}
            words = f"%{{y:,.5~g}}<extra>{label}</extra>"
            figure.add_scatter(x=generations, y=[level] * len(generations), name=label, yaxis=axis, mode="lines", line=look, hovertemplate=words)
    # Plotly draws the axis that overlays last: entropy has to be that one, or the bars would cover the line.
    right = {"title": {"text": OOV_AXIS}, "side": "right", "showgrid": False, "rangemode": "tozero"}
    style.plotly_layout(figure, ENTROPY, yaxis2=right, barmode="group", legend=style.LEGEND_ABOVE)
    # Its ticks are its own: by default an overlaying axis has them where the other one's are, at values such as 5.7344.
    figure.update_layout(yaxis={"overlaying": "y2", "side": "left", "tickmode": "auto"})
    return Interactive(figure, f"figure-2-{run}")


@styled()
def loss_curve(training: dict[str, Any]) -> Picture:
    """Training loss by optimizer step, and hold-out losses by epoch beside it where there are any; in nats a token.

    ``training`` is what the step ``train`` returns.

    Example: ``figures.loss_curve(results.measured("demo", 1, "train"))``
    """
    series = training["series"]
    holdout = series.get("holdout_losses", [])
    figure, axes = style.panels(2 if holdout else 1, size=(5.2, 3.9) if holdout else (7.2, 3.9))
    axes[0].plot(*zip(*series["loss_curve"], strict=True), color=COLOURS[0])
    axes[0].set(xlabel="optimizer step", ylabel="training loss (nats a token)")
    if holdout:
        axes[1].plot(range(1, len(holdout) + 1), holdout, color=COLOURS[1], marker="o")
        axes[1].set(xlabel="epoch", ylabel="hold-out loss (nats a token)")
    return Picture(figure, f"Training loss of generation {training['generation']}")


def sized_names(table: DataFrame, runs: Sequence[str]) -> dict[str, str]:
    """Runs by name, labelled with the size of their models and which of two sizes is the smaller: "demo (238,976 parameters, the smaller model)"."""
    measured = {run: metric(table, run, "parameters", "train")["value"] for run in runs}
    sizes = {run: int(values.iloc[0]) for run, values in measured.items() if len(values)}
    different = sorted(set(sizes.values()))
    ranks = dict(zip(different, (", the smaller model", ", the larger model"), strict=True)) if len(different) == 2 else {}
    return {run: f"{run} ({sizes[run]:,} parameters{ranks.get(sizes[run], '')})" if run in sizes else run for run in runs}


def _perplexity_views(table: DataFrame) -> dict[str, View]:
    """The lines of the runs that have perplexities, and each over its first value (taken as exact), standard errors too."""
    absolute, relative, floors = [], [], []
    groups = {
        name: {run: metric(table, run, "perplexity", "perplexity") for run in of_one} for name, of_one in experiments(table["run"].unique()).items()
    }
    groups = {name: of_one for name, of_one in groups.items() if any(map(len, of_one.values()))}
    if not groups:
        raise UserError(f"No perplexity has been measured yet in {', '.join(table['run'].unique()) or 'an empty table'}.")
    for index, (name, of_one) in enumerate(groups.items()):
        label, colour = name + chains.counted(of_one), style.colour(index)
        absolute += chains.lines(label, list(of_one.values()), colour)
        relative += chains.lines(label, list(map(_over_first, of_one.values())), colour)
        if (floor := floor_perplexity(table, name)) is not None:
            generations = max((own["generation"].tolist() for own in of_one.values()), key=len)
            exact = "exact floor" + (f", {name}" if len(groups) > 1 else "")
            floors.append(Line(exact, generations, [floor] * len(generations), [None] * len(generations), colour, "", "--"))
    return {ABSOLUTE: _scaled_view(ABSOLUTE, absolute + floors), RELATIVE: _scaled_view(RELATIVE, relative)}


def _over_first(points: DataFrame) -> DataFrame:
    first = points["value"].iloc[0]
    return points.assign(value=points["value"] / first, standard_error=points["standard_error"] / first)


def _scaled_view(axis: str, lines: list[Line]) -> View:
    values = [value for line in lines for value in line.y]
    scale = "log" if min(values) > 0 and max(values) / min(values) >= LOG_RANGE else "linear"
    return View(axis, lines, {"yaxis.type": scale, "yaxis.autorange": True})


def _free_text(table: DataFrame, run: str) -> tuple[DataFrame, list[DataFrame]]:
    """Entropy, and the words outside of the English lexicon and of the initial corpus."""
    entropy, *words = (metric(table, run, name, "free_text") for name in ("entropy", "oov_lexicon_occurrences", "oov_initial_occurrences"))
    if not len(entropy):
        raise UserError(f"The free text of run '{run}' has not been measured yet, or the run is not in this table.")
    return entropy, words
