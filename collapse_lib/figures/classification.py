"""Figures 4, A3, A4 and A5: accuracy or weighted F1 after fine-tuning (section 5.4), a panel a task, from the tidy table of ``studies.results``.

A run's generations are a line with its 95% interval as a band, over test rows and, where there are several, fine-tunings; its untrained baseline is
a dashed line of the same colour, and always giving the commonest answer is a dotted grey one. Where even generation 1 does not beat that answer,
there is nothing to lose: the run's lines are grey and hollow in this task, and carry no verdict. Panels span 30 points, as in the paper, wherever the
numbers allow it, so that slopes can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from collapse_lib.experiment.errors import UserError
from collapse_lib.figures import chains
from collapse_lib.figures.paper import sized_names
from collapse_lib.figures.style import (
    GREY,
    LEGEND_BELOW,
    Interactive,
    Line,
    Picture,
    View,
    colour,
    draw_lines,
    interactive,
    legend_above,
    panels,
    styled,
)
from collapse_lib.metrics.crossed import Measure
from collapse_lib.studies.chains import experiments
from collapse_lib.studies.results import metric
from collapse_lib.text.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

LABELS: dict[str, str] = {"accuracy": "accuracy (%)", "f1": "weighted F1 (%)"}
MAJORITY = "always the commonest answer"
MAJORITY_COLOUR = "#767676"
NOT_LEARNED = "generation 1 not above the commonest answer"
MARKERS = ("o", "^", "s", "D", "v", "P")  # of runs, which are told apart where they are grey, too
SPAN = 30.0  # points that a panel shows at least, as the paper's do
COLUMNS = 4


@styled()
def figure_4(table: DataFrame, measure: Measure = "accuracy") -> Picture:
    """Figures 4 and A3 (``measure="accuracy"``), A4 and A5 (``"f1"``), in percent by generation: a panel a task, a line an experiment.

    ``table`` is what ``results.load`` returns. Whiskers are one standard deviation between fine-tunings, if there are several. Chains of one
    experiment (``studies.chains``) are thin lines, and where three of them or more have come, their mean has a 95% interval between chains; the
    dashed line is then the mean of their baselines. Raises ``UserError`` if no run was fine-tuned on a task.

    Example: ``figures.figure_4(results.load("demo"), "f1")``
    """
    runs, tasks = _runs(table), measured_tasks(table, measure)
    groups = experiments(runs)
    columns = len(tasks) if len(tasks) <= COLUMNS else min(COLUMNS, math.ceil(len(tasks) / 2))
    rows = math.ceil(len(tasks) / columns)
    figure, axes = panels(len(tasks), columns, size=(max(5.2 / columns, 3.0), 2.7 + 0.7 / rows), sharex=True)
    for index, (panel, task) in enumerate(zip(axes, tasks, strict=True)):
        for index_of_group, of_one in enumerate(groups.values()):
            learned = all(is_learned(table, run, task) is not False for run in of_one)
            _draw(panel, {run: scores(table, run, task, measure) for run in of_one}, index_of_group, learned)
        _span(panel, [scores(table, run, task, measure) for run in runs])
        panel.set_title(TASKS[task].title, fontsize=11)
        panel.tick_params(labelbottom=True)
        panel.set_xlabel("generation" if index + columns >= len(tasks) else "")
        panel.set_ylabel("" if index % columns else LABELS[measure])
    names = {run: name + chains.counted(groups[run]) for run, name in sized_names(table, list(groups)).items()}
    has_grey = any(is_learned(table, run, task) is False for run in runs for task in tasks)
    handles = _legend_handles(list(names.values()), has_grey)
    # Names of runs with their sizes are long: of several, four in a line would not fit.
    legend_above(figure, handles, columns=1 if figure.get_figwidth() <= 8 else len(handles) if len(groups) == 1 else 2)
    return Picture(figure, f"{LABELS[measure]} after fine-tuning, by generation, {', '.join(names.values())}")


def figure_4_interactive(table: DataFrame, measure: Measure = "accuracy") -> Interactive:
    """Figure 4 with values on hovering, one task at a time: a list chooses the task.

    Example: ``figures.figure_4_interactive(results.load("demo"), "accuracy")``
    """
    runs, views = _runs(table), {}
    index = {run: group for group, of_one in enumerate(experiments(runs).values()) for run in of_one}  # chains share their experiment's colour
    for task in measured_tasks(table, measure):
        lines = [line for run in runs for line in _lines(scores(table, run, task, measure), run, colour(index[run]), marker(index[run]))]
        unlearned = [run for run in runs if is_learned(table, run, task) is False]
        note = f"<br>no verdict on {', '.join(unlearned)}: {NOT_LEARNED}" if unlearned else ""
        views[TASKS[task].title] = View(LABELS[measure], lines, {"title.text": TASKS[task].question + note})
    made = interactive(f"classification-{measure}", views, dropdown=True, menu_height=1.06, legend=LEGEND_BELOW)
    made.figure.update_layout(title={"x": 0.5, "font": {"size": 14}}, margin={"t": 80, "b": 125}, height=470)
    return made


def finetuned(table: DataFrame) -> list[str]:
    """Names of the runs of a table that were fine-tuned on some task."""
    names = {f"{task}_accuracy" for task in TASKS}
    runs = set(table.loc[(table["step"] == "classification") & table["metric"].isin(names), "run"])
    return [run for run in table["run"].unique() if run in runs]


def measured_tasks(table: DataFrame, measure: Measure) -> list[str]:
    """The tasks that some run was fine-tuned on, in the paper's order."""
    names = set(table.loc[table["step"] == "classification", "metric"])
    return [task for task in TASKS if f"{task}_{measure}" in names]


def scores(table: DataFrame, run: str, task: str, measure: Measure) -> DataFrame | None:
    """By generation (0: untrained), in percent: ``value``, ``low``, ``high``, ``majority`` and ``seed_sd`` (missing for a single fine-tuning).

    None for a run that was not fine-tuned on the task.
    """
    points = metric(table, run, f"{task}_{measure}", "classification")[["generation", "value"]].set_index("generation")
    if points.empty:
        return None
    for name in ("low", "high", "majority", "seed_sd"):
        points[name] = metric(table, run, f"{task}_{measure}_{name}", "classification").set_index("generation")["value"]
    return (100 * points).reset_index()


def is_learned(table: DataFrame, run: str, task: str) -> bool | None:
    """Whether the first generation of a run beats the commonest answer: the lower end of its accuracy's interval lies above. None: not measured.

    Accuracy decides for F1, too: there guessing already beats one answer given to everything.
    """
    points = scores(table, run, task, "accuracy")
    first = points[points["generation"] > 0].head(1) if points is not None else []
    return bool((first["low"] > first["majority"]).all()) if len(first) else None


def marker(index: int) -> str:
    """The marker of the run at an index."""
    return MARKERS[index % len(MARKERS)]


def _runs(table: DataFrame) -> list[str]:
    runs = finetuned(table)
    if not runs:
        raise UserError(f"No classification task has been measured yet in {', '.join(table['run'].unique()) or 'an empty table'}.")
    return runs


def _draw(panel: Axes, scores_of: dict[str, DataFrame | None], index: int, is_learned: bool) -> None:
    """An experiment in a panel; ``scores_of`` has each of its chains."""
    found = {run: points for run, points in scores_of.items() if points is not None}
    if not found:
        return
    ink, face = (colour(index), colour(index)) if is_learned else (GREY, "white")
    trained = {run: points[points["generation"] > 0] for run, points in found.items()}
    if len(found) > 1:
        alone = [points.assign(standard_error=None) for points in trained.values()]
        draw_lines(panel, View("", chains.lines(next(iter(found)), alone, ink, marker(index))), markerfacecolor=face)
    else:
        _draw_chain(panel, *trained.values(), ink, face, index)
    baselines = [points[points["generation"] == 0] for points in found.values()]
    if values := [value for baseline in baselines for value in baseline["value"]]:
        panel.axhline(sum(values) / len(values), color=ink, linestyle="--", linewidth=1.3)
    if len(values) == 1:
        panel.axhspan(baselines[0]["low"].iloc[0], baselines[0]["high"].iloc[0], color=ink, alpha=0.08, linewidth=0)
    panel.axhline(next(iter(found.values()))["majority"].iloc[0], color=MAJORITY_COLOUR, linestyle=":", linewidth=1.5)


def _draw_chain(panel: Axes, trained: DataFrame, ink: str, face: str, index: int) -> None:
    """A single chain with the interval of each of its models."""
    panel.fill_between(trained["generation"], trained["low"], trained["high"], color=ink, alpha=0.2, linewidth=0)
    if len(trained) == 1:  # a band without width cannot be seen
        panel.vlines(trained["generation"], trained["low"], trained["high"], color=ink, alpha=0.2, linewidth=9)
    panel.plot(trained["generation"], trained["value"], color=ink, marker=marker(index), markerfacecolor=face)
    spread = trained.dropna(subset=["seed_sd"])
    panel.errorbar(spread["generation"], spread["value"], spread["seed_sd"], fmt="none", ecolor=ink, elinewidth=1, capsize=2)


def _span(panel: Axes, drawn: Sequence[DataFrame | None]) -> None:
    """Have the vertical axis show all intervals, and ``SPAN`` points at least."""
    extremes = [value for points in drawn if points is not None for value in (points["low"].min(), points["high"].max(), points["majority"].iloc[0])]
    low, high = min(extremes), max(extremes)
    middle, half = (low + high) / 2, max(SPAN, 1.08 * (high - low)) / 2
    panel.set_ylim(middle - half, middle + half)


def _lines(points: DataFrame | None, run: str, run_colour: str, run_marker: str) -> list[Line]:
    """One run and task for Plotly: the generations, the untrained baseline and the commonest answer; all empty where they were not measured."""
    looks = ((run, run_colour, run_marker, "-"), (f"{run}, untrained", run_colour, "", "--"), (MAJORITY, MAJORITY_COLOUR, "", ":"))
    generations, *levels = (Line(label, [], [], [], *look) for label, *look in looks)
    if points is None:
        return [generations, *levels]
    baseline, trained = points[points["generation"] == 0], points[points["generation"] > 0]
    words = [f"{row.value:.2f}% ({row.low:.2f}% to {row.high:.2f}%)" for row in trained.itertuples()]
    x, y, low, high = (trained[column] for column in ("generation", "value", "low", "high"))
    generations = generations._replace(x=x.tolist(), y=y.tolist(), error=(high - y).tolist(), below=(y - low).tolist(), words=words)
    ends = points["generation"].iloc[[0, -1]].tolist()
    for index, values in enumerate((baseline["value"], points["majority"])):
        if len(values):
            levels[index] = levels[index]._replace(x=ends, y=[float(values.iloc[0])] * 2, error=[None] * 2)
    return [generations, *levels]


def _legend_handles(names: Sequence[str], has_grey: bool) -> list[Any]:
    """What each colour and each kind of line is."""
    from matplotlib.lines import Line2D

    dashes = colour(0) if len(names) == 1 else "#444444"  # of several runs each has its own
    unlearned = [Line2D([], [], color=GREY, marker="o", markerfacecolor="white", label=NOT_LEARNED)] if has_grey else []
    return [
        *(Line2D([], [], color=colour(index), marker=marker(index), label=name) for index, name in enumerate(names)),
        Line2D([], [], color=dashes, linestyle="--", linewidth=1.3, label="untrained baseline"),
        Line2D([], [], color=MAJORITY_COLOUR, linestyle=":", label=MAJORITY),
        *unlearned,
    ]
