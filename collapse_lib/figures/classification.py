"""Figures 4, A3, A4 and A5: accuracy or weighted F1 after fine-tuning, a panel a task, drawn from the tidy table of ``results``.

A run's generations are a line with its 95% interval as a band, over test rows and, where there are several, fine-tunings; its untrained baseline is
a dashed line of the same colour, and always giving the commonest answer is a dotted grey one. Panels span 30 points, as in the paper, wherever the
numbers allow it, so that slopes can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.run import Run
from collapse_lib.figures.paper import COLOURS, Interactive, drawn, plotly_layout, with_sizes
from collapse_lib.metrics import crossed
from collapse_lib.metrics.crossed import Measure
from collapse_lib.studies.results import measured, metric
from collapse_lib.text.display import plain
from collapse_lib.text.tasks import TASKS, origins

if TYPE_CHECKING:
    import numpy as np
    from IPython.display import Markdown
    from matplotlib.figure import Figure
    from pandas import DataFrame

LABELS: dict[str, str] = {"accuracy": "accuracy (%)", "f1": "weighted F1 (%)"}
MAJORITY_COLOUR = "#767676"
SPAN = 30.0  # points that a panel shows at least, as the paper's do
COLUMNS = 4

# What the paper's text and captions say of each task; its figures carry no other numbers in print.
PAPER = {
    "imdb": "declines over the generations, in some cases to below the baseline",
    "sst2": "declines over the generations, in some cases to below the baseline",
    "yelp": "declines over the generations, in some cases to below the baseline",
    "qqp": "declines over the generations, in some cases to below the baseline",
    "qnli": "declines over the generations, in some cases to below the baseline",
    "mrpc": "F1 declines, accuracy does not: put down to the unequal classes",
    "rte": "around 50% in every generation",
    "cola": "no better than the baseline in any generation",
}
NOT_IN_PAPER = "*not one of its tasks*"


def finetuned(table: DataFrame) -> list[str]:
    """Names of the runs of a table that were fine-tuned on some task."""
    tasks = {f"{task}_accuracy" for task in TASKS}
    found = set(table.loc[(table["step"] == "classification") & table["metric"].isin(tasks), "run"])
    return [run for run in table["run"].unique() if run in found]


def unclassified(table: DataFrame) -> Markdown:
    """A sentence on the runs of a table that were fine-tuned on no task, and how to have them fine-tuned."""
    from IPython.display import Markdown

    done = finetuned(table)
    missing = [run for run in table["run"].unique() if run not in done]
    if not missing:
        return Markdown("Every run shown here has been fine-tuned.")
    names = ", ".join(f"**{run}**" for run in missing)
    chosen = "" if Run.open(missing[0]).protocol.classification.tasks else " --set 'classification.tasks=[grammar_fits, grammar_happy]'"
    return Markdown(f"Fine-tuned on no task: {names}. `collapse run {missing[0]}{chosen}` does it, as long as the run's models are there.")


def evidence(table: DataFrame) -> Markdown:
    """For each fine-tuned run how often its models were fine-tuned, what follows for its intervals, and where the rows came from."""
    from IPython.display import Markdown

    lines = []
    for run in finetuned(table):
        settings = Run.open(run).protocol.classification
        if settings.seeds == 1:
            how = (
                "one fine-tuning of each model on each task. Its intervals are about other test rows alone, and silent about other fine-tunings, "
                "which with few training rows can move a score by much more: nothing here is called better or worse."
            )
        else:
            how = f"{settings.seeds} fine-tunings of each model on each task; its intervals are about other test rows and other fine-tunings together"
            how += "." if settings.seeds >= crossed.ENOUGH else f", and too wide for a verdict, for which {crossed.ENOUGH} are needed."
        lines.append(f"- **{run}**: {how} {plain(origins(settings))}")
    return Markdown("\n".join(lines))


@drawn
def classification(table: DataFrame, measure: Measure = "accuracy") -> tuple[Figure, str]:
    """``measure`` by generation, a panel a task, a line a run; whiskers are one standard deviation between fine-tunings, if there are several."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    runs, tasks = _runs(table), _tasks(table, measure)
    colours = _colours(runs)
    columns = len(tasks) if len(tasks) <= COLUMNS else min(COLUMNS, math.ceil(len(tasks) / 2))
    lines = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(max(5.2, 3.0 * columns), 2.7 * lines + 0.7), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True).flat
    for panel, task in zip(panels, tasks, strict=False):
        limits = []
        for run in runs:
            points = _points(table, run, task, measure)
            if points is None:
                continue
            baseline, trained = points[points["generation"] == 0], points[points["generation"] > 0]
            colour = colours[run]
            panel.fill_between(trained["generation"], trained["low"], trained["high"], color=colour, alpha=0.2, linewidth=0)
            if len(trained) == 1:  # a band without width cannot be seen
                panel.vlines(trained["generation"], trained["low"], trained["high"], color=colour, alpha=0.2, linewidth=9)
            panel.plot(trained["generation"], trained["value"], color=colour, marker="o", label=run)
            spread = trained.dropna(subset=["seed_sd"])
            panel.errorbar(spread["generation"], spread["value"], spread["seed_sd"], fmt="none", ecolor=colour, elinewidth=1, capsize=2)
            for _, row in baseline.iterrows():
                panel.axhline(row["value"], color=colour, linestyle="--", linewidth=1.3)
                panel.axhspan(row["low"], row["high"], color=colour, alpha=0.08, linewidth=0)
            panel.axhline(points["majority"].iloc[0], color=MAJORITY_COLOUR, linestyle=":", linewidth=1.5)
            limits += [points["low"].min(), points["high"].max(), points["majority"].iloc[0]]
        panel.set_title(TASKS[task].title, fontsize=11)
        panel.set_ylim(*_limits(limits))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for place, panel in enumerate(figure.axes):
        panel.set_visible(place < len(tasks))
        panel.tick_params(labelbottom=True)
        if place + columns >= len(tasks):
            panel.set_xlabel("generation")
        if place % columns == 0:
            panel.set_ylabel(LABELS[measure])
    labels = with_sizes(table, runs)
    _legend(figure, {labels[run]: colour for run, colour in colours.items()})
    return figure, f"{LABELS[measure]} after fine-tuning, by generation, {', '.join(labels.values())}"


def classification_interactive(table: DataFrame, measure: Measure = "accuracy") -> Interactive:
    """The same to hover over, one task at a time: a menu changes the task."""
    import plotly.graph_objects as go

    runs, tasks = _runs(table), _tasks(table, measure)
    figure, shown_for = go.Figure(), []
    for task in tasks:
        for run, colour in _colours(runs).items():
            points = _points(table, run, task, measure)
            if points is None:
                continue
            baseline, trained = points[points["generation"] == 0], points[points["generation"] > 0]
            ends = [int(points["generation"].min()), int(points["generation"].max())]
            error = {"array": (trained["high"] - trained["value"]).tolist(), "arrayminus": (trained["value"] - trained["low"]).tolist()}
            traces: list[dict[str, Any]] = [
                {"x": trained["generation"].tolist(), "y": trained["value"].tolist(), "name": run, "mode": "lines+markers", "line": {"color": colour}}
                | {"error_y": {"type": "data", "symmetric": False, "thickness": 1, "width": 2} | error}
            ]
            for value in baseline["value"].tolist():
                traces.append({"x": ends, "y": [value] * 2, "name": f"{run}, untrained", "mode": "lines", "line": {"color": colour, "dash": "dash"}})
            level = float(points["majority"].iloc[0])
            grey = {"color": MAJORITY_COLOUR, "dash": "dot"}
            majority = {"x": ends, "y": [level] * 2, "name": "always the commonest answer", "mode": "lines", "line": grey}
            traces.append(majority | {"legendgroup": "majority", "showlegend": task not in shown_for})  # one name for every run's line
            for trace in traces:
                figure.add_scatter(visible=task == tasks[0], hovertemplate="generation %{x}<br>%{y:.2f}%<extra>%{fullData.name}</extra>", **trace)
                shown_for.append(task)
    choices = [
        {
            "label": TASKS[task].title,
            "method": "update",
            "args": [{"visible": [task == of for of in shown_for]}, {"title.text": TASKS[task].question}],
        }
        for task in tasks
    ]
    menu = {"buttons": choices, "x": 0, "xanchor": "left", "y": 1.06, "yanchor": "bottom"}
    plotly_layout(figure, LABELS[measure], updatemenus=[menu], legend={"orientation": "h", "y": -0.24, "yanchor": "top"})
    figure.update_layout(title={"text": TASKS[tasks[0]].question, "x": 0.5, "font": {"size": 14}}, margin={"t": 80, "b": 125}, height=470)
    return Interactive(figure, f"classification-{measure}")


def beside_paper(table: DataFrame, measure: Measure = "accuracy") -> Markdown:
    """For every task what the paper says, and what each run shows: first and last generation, the baseline, and how the last compares with both."""
    from IPython.display import Markdown

    rows = [
        "| task | the paper | run | first generation | last generation | untrained | last against first | last against untrained |",
        "|:--|:--|:--|--:|--:|--:|:--|:--|",
    ]
    runs = finetuned(table)
    examples = cache(lambda run, generation: measured(run, generation, "classification")["examples"])  # a file holds the answers of all tasks
    for task in _tasks(table, measure):
        for run in runs:
            points = _points(table, run, task, measure)
            if points is None:
                continue
            trained, baseline = points[points["generation"] > 0], points[points["generation"] == 0]
            parts = (trained.head(1), trained.tail(1), baseline)
            first, last, untrained = (part["generation"].tolist() for part in parts)
            recorded = partial(examples, run)
            cells = [*map(_cell, parts), *(_verdict(recorded, task, measure, last, other) for other in (first, untrained))]
            rows.append(f"| {TASKS[task].title} | {PAPER.get(task, NOT_IN_PAPER)} | {run} | {' | '.join(cells)} |")
    if not runs:
        rows += [f"| {TASKS[task].title} | {said} | – | – | – | – | – | *not measured* |" for task, said in PAPER.items()]
    return Markdown("\n".join(rows))


def scores(measured: dict[str, Any]) -> Markdown:
    """One step's results as a table, a row a task; ``measured`` is what the ``classification`` step returns."""
    from IPython.display import Markdown

    metrics = measured["metrics"]
    rows = [
        "| task | the question | test rows | accuracy, 95% interval | weighted F1, 95% interval | commonest answer |",
        "|:--|:--|--:|--:|--:|--:|",
    ]
    for task in [name for name in TASKS if f"{name}_accuracy" in metrics]:
        cells = []
        for measure in ("accuracy", "f1"):
            value, low, high = (100 * metrics[f"{task}_{measure}{end}"]["value"] for end in ("", "_low", "_high"))
            cells.append(f"{value:.1f} ({low:.1f} to {high:.1f})")
        count = metrics[f"{task}_accuracy"]["counts"]["test_rows"]
        always = f"{100 * metrics[f'{task}_accuracy_majority']['value']:.1f}"
        rows.append(f"| {TASKS[task].title} | {TASKS[task].question} | {count:,} | {' | '.join(cells)} | {always} |")
    return Markdown("\n".join(rows))


def _runs(table: DataFrame) -> list[str]:
    found = finetuned(table)
    if not found:
        raise UserError(f"No classification task has been measured yet in {', '.join(table['run'].unique()) or 'an empty table'}.")
    return found


def _tasks(table: DataFrame, measure: Measure) -> list[str]:
    """The tasks that some run was fine-tuned on, in the paper's order."""
    names = set(table.loc[table["step"] == "classification", "metric"])
    return [task for task in TASKS if f"{task}_{measure}" in names]


def _points(table: DataFrame, run: str, task: str, measure: Measure) -> DataFrame | None:
    """By generation (0: untrained), in percent: ``value``, ``low``, ``high``, ``majority`` and ``seed_sd`` (missing for a single fine-tuning)."""
    points = metric(table, run, f"{task}_{measure}", "classification")[["generation", "value"]].set_index("generation")
    if points.empty:
        return None
    for name in ("low", "high", "majority", "seed_sd"):
        points[name] = metric(table, run, f"{task}_{measure}_{name}", "classification").set_index("generation")["value"]
    return (100 * points).reset_index()


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    middle, half = (low + high) / 2, max(SPAN, 1.08 * (high - low)) / 2
    return middle - half, middle + half


def _colours(runs: Sequence[str]) -> dict[str, str]:
    return {run: COLOURS[place] if place < len(COLOURS) else "#555555" for place, run in enumerate(runs)}


def _legend(figure: Figure, colours: dict[str, str]) -> None:
    """One legend for all panels: what each colour and each kind of line is."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, marker="o", label=run) for run, colour in colours.items()]
    dashes = next(iter(colours.values())) if len(colours) == 1 else "#444444"  # of several runs each has its own
    handles.append(Line2D([], [], color=dashes, linestyle="--", linewidth=1.3, label="untrained baseline"))
    handles.append(Line2D([], [], color=MAJORITY_COLOUR, linestyle=":", label="always the commonest answer"))
    # Names of runs with their sizes are long: of several, four in a line would not fit.
    columns = 1 if figure.get_figwidth() <= 8 else len(handles) if len(colours) == 1 else 2
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=10)


def _cell(points: DataFrame) -> str:
    if points.empty:
        return "*not measured*"
    row = points.iloc[0]
    return f"{row['value']:.1f} ({row['low']:.1f} to {row['high']:.1f})"


def _verdict(examples: Callable[[int], dict[str, Any]], task: str, measure: Measure, generation: list[int], other: list[int]) -> str:
    """How a generation's model compares with another's on the same rows, in points with a 95% interval; no word where fine-tunings are too few.

    ``examples`` gives what the step of a generation recorded, by task.
    """
    if not generation or not other:
        return "*not measured*"
    if generation == other:
        return "–"
    ours, theirs = (examples(which[0])[task] for which in (generation, other))
    tunings = min(len(one["confusions"]) for one in (ours, theirs))
    if tunings < crossed.ENOUGH:
        return f"{'one fine-tuning' if tunings == 1 else f'{tunings} fine-tunings'}: no verdict"
    if "answers" not in ours or "answers" not in theirs or ours["rows"] != theirs["rows"]:
        return "not asked the same rows, or its answers are not recorded: no verdict"
    found = crossed.difference(_scores(ours, measure), _scores(theirs, measure))
    low, high = found.value - found.reach, found.value + found.reach
    word = "better" if low > 0 else "worse" if high < 0 else "not told apart"
    points = (f"{100 * value:+.1f}".replace("-", "−") for value in (found.value, low, high))
    return "{}: {} ({} to {})".format(word, *points)


def _scores(example: dict[str, Any], measure: Measure) -> np.ndarray:
    """Scores [fine-tunings, rows] of what a step recorded of a task."""
    classes, rows = len(example["labels"]), sum(example["test_balance"])
    true = crossed.unpacked(example["true"], rows, classes)
    return crossed.row_scores(true, crossed.unpacked(example["answers"], rows, classes), classes, measure)
