"""Figure 3: the grades that a judge gave (section 5.3.3), never without what they are worth."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from collapse_lib.experiment.errors import UserError
from collapse_lib.figures import style
from collapse_lib.figures.style import COLOURS, GREY, Interactive, Line, Picture, View, styled
from collapse_lib.metrics.gpt_eval import RANKED
from collapse_lib.studies.grades import can_fall
from collapse_lib.studies.results import Runs, executed, measured, metric, select
from collapse_lib.text.display import figure_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

GRADES = ("grammar", "consistency", "creativity")
CONTROLS = {
    "real": ("real continuation", COLOURS[2]),
    "other": ("another story's continuation", COLOURS[5]),  # whose English is as good: it bears on consistency alone
    "shuffled": ("its words shuffled", COLOURS[3]),
    "random": ("random tokens", COLOURS[4]),
}
BASELINE = "untrained baseline"
TRUSTED, DISTRUSTED, LOWEST = ("generations", COLOURS[0]), ("generations, unreliable", GREY), ("generations, nothing to lose", GREY)
LIMITS = (-0.3, 9.3)  # of an axis for grades from 0 to 9


@styled()
def figure_3(table: DataFrame, runs: str | Sequence[str]) -> Picture:
    """Figure 3: mean grades for grammar (left) and consistency (right), 0 to 9, by generation, with one standard error over beginnings.

    Lines are the untrained baseline and the control rows. A grade in which the judge does not rank these is grey and hollow (``metrics.gpt_eval`` has
    the rule), and so is one that gives generation 1 no more than random tokens (``studies.grades``): it cannot fall. Each of several runs gets a row,
    with its judge below: grades can only be compared with the same run's control rows. Raises ``UserError`` for a run that was not graded.

    Example: ``figures.figure_3(results.load("demo"), "demo")``
    """
    names = [runs] if isinstance(runs, str) else list(runs)
    title = f"Grades by generation, {'run' if len(names) == 1 else 'runs'} {', '.join(names)}"
    return Picture(_by_run(table, names), title, _by_run(table, names, is_narrow=True))


def _by_run(table: DataFrame, names: Sequence[str], is_narrow: bool = False) -> Figure:
    """A part for each run, with its two panels side by side or, for a phone, below each other."""
    from matplotlib.figure import Figure

    (width, height), (down, across) = (style.NARROW_PANEL, (2, 1)) if is_narrow else ((5.2, 4.0), (1, 2))
    figure = Figure(figsize=(width * across, height * down * len(names) + (1.6 if is_narrow else 0.3)), layout="constrained")
    for run, part in zip(names, figure.subfigures(len(names), 1, squeeze=False)[:, 0], strict=True):
        record = judge_record(run)
        _grade_panels(part.subplots(down, across, sharey=True), table, run, record)
        if len(names) > 1:
            part.suptitle(run, fontsize=11)
        lowest = cannot_fall(table, run, record)
        note = f"; generation 1 is graded no better than random tokens in {' and '.join(lowest)}: no verdict" if lowest else ""
        judge = figure_text(judge_label(record) + note)
        part.supxlabel(textwrap.fill(judge, 48 if is_narrow else 120), fontsize=10, color="#B00020" if distrusted(record) else "#222222")
    handles = style.lines_only_once(figure.axes)
    style.legend_above(figure, handles, columns=1 if is_narrow else 4)
    return figure


def _grade_panels(panels: Iterable[Axes], table: DataFrame, run: str, record: dict[str, Any]) -> None:
    for panel, name in zip(panels, GRADES[:2], strict=True):
        points, levels = grades(table, run, name)
        error, (label, colour) = points["standard_error"], _look(table, run, record, name)
        face = {"markerfacecolor": "white"} if colour == GREY else {}
        panel.errorbar(points["generation"], points["value"], yerr=error, color=colour, marker="o", capsize=3, label=label, **face)
        for (label, colour, dash), level in levels.items():
            panel.axhline(level, color=colour, linestyle=dash, linewidth=1.4, label=label)
        style.over_generations(panel)
        panel.set(ylabel=f"{name} (0 to 9)", ylim=LIMITS)
        panel.yaxis.set_tick_params(labelleft=True)


def figure_3_interactive(table: DataFrame, run: str) -> Interactive:
    """Figure 3 of one run with values on hovering; buttons choose between the three grades, creativity among them.

    Example: ``figures.figure_3_interactive(results.load("demo"), "demo")``
    """
    views, record = {}, judge_record(run)
    for name in GRADES:
        points, levels = grades(table, run, name)
        first, last = points["generation"].iloc[[0, -1]].tolist()
        ends = [first, last] if last > first else [first - 0.5, first + 0.5]
        lines = [Line(label, ends, [level] * 2, [None] * 2, colour, "", dash) for (label, colour, dash), level in levels.items()]
        of_either = [Line.of(label, points, colour) for label, colour in (TRUSTED, DISTRUSTED, LOWEST)]  # all views have the same lines
        own = [line if line.label == _look(table, run, record, name)[0] else line.emptied() for line in of_either]
        views[name] = View(f"{name} (0 to 9)", [*own, *lines])
    made = style.interactive(f"figure-3-{run}", views, legend=style.LEGEND_BELOW)
    made.figure.update_yaxes(range=LIMITS)
    return made


def graded_runs(runs: Runs) -> list[str]:
    """Names of those runs of which a judge has graded a generation, and not only the untrained baseline."""
    return [run for run in select(runs) if any(graded_generations(run))]


def graded_generations(run: str) -> list[int]:
    """The generations that a judge has graded, 0 being the untrained baseline; empty if there is none."""
    steps = executed([run])
    return [] if steps.empty else sorted(steps[steps["step"] == "gpt_eval"]["generation"].tolist())


def grades(table: DataFrame, run: str, name: str) -> tuple[DataFrame, dict[tuple[str, str, str], float]]:
    """A grade of the generations from 1 on, and the levels of the baseline and the controls under (label, colour, line style)."""
    points = metric(table, run, name, "gpt_eval")
    if not (points["generation"] > 0).any():
        raise UserError(f"No generation of run '{run}' has a {name} grade yet, or the run is not in this table.")
    levels = {(BASELINE, "#444444", "--"): points[points["generation"] == 0]["value"]}
    for kind, (label, colour) in CONTROLS.items():
        if kind == "other" and name != "consistency":
            continue
        levels[label, colour, ":"] = metric(table, run, f"control_{kind}_{name}", "gpt_eval")["value"]
    return points[points["generation"] > 0], {key: float(values.iloc[0]) for key, values in levels.items() if len(values)}


def judge_record(run: str) -> dict[str, Any]:
    """What the first ``gpt_eval`` step of a run measured: who judges, and how the control rows did. ``UserError`` if there is none."""
    generations = graded_generations(run)
    if not generations:
        raise UserError(f"Run '{run}' has not been graded yet; `collapse run {run} --set gpt_eval.judge=MODEL` does it.")
    return measured(run, generations[0], "gpt_eval")


def is_trusted(record: dict[str, Any], grade: str) -> bool:
    """Whether the judge ranked its control rows in a grade; older records say so of grammar and consistency together."""
    metrics = record["metrics"]
    return bool(metrics.get(f"judge_ranks_{grade}", metrics["judge_ranks_controls"])["value"])


def distrusted(record: dict[str, Any]) -> list[str]:
    """Of the grades that conclusions are drawn from, those in which the judge fails its control rows."""
    return [name for name in RANKED if not is_trusted(record, name)]


def judge_label(record: dict[str, Any]) -> str:
    """Who judged, and whether it ranked its control rows correctly; the judge's name is text from outside."""
    judge, failed = ", ".join(record["examples"]["judge"]), distrusted(record)
    asked = ", asked in the strict wording, " if record["examples"].get("wording") == "strict" else " "
    verdict = f"FAILS its control rows in {' and '.join(failed)}: unreliable" if failed else "ranks its control rows correctly"
    return f"judge {judge}{asked}{verdict}"


def cannot_fall(table: DataFrame, run: str, record: dict[str, Any]) -> list[str]:
    """Of the grades that conclusions are drawn from, those that the judge is trusted in and that cannot fall."""
    return [name for name in RANKED if _look(table, run, record, name) == LOWEST]


def _look(table: DataFrame, run: str, record: dict[str, Any], grade: str) -> tuple[str, str]:
    """Label and colour of a grade's points."""
    if not is_trusted(record, grade):
        return DISTRUSTED
    return LOWEST if can_fall(table[table["run"] == run], grade) is False else TRUSTED
