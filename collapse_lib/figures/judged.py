"""Figure 3 and Table A2: what the judge said, never without what its word is worth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.run import Run
from collapse_lib.figures.paper import COLOURS, Interactive, drawn, plotly_layout
from collapse_lib.studies.results import executed, measured, metric, select
from collapse_lib.text.display import figure_text, literal

if TYPE_CHECKING:
    from IPython.display import Markdown
    from matplotlib.figure import Figure, FigureBase
    from pandas import DataFrame

GRADES = {"grammar": "grammar", "consistency": "consistency", "creativity": "creativity"}
CONTROLS = {"real": ("real continuation", COLOURS[2]), "shuffled": ("its words shuffled", COLOURS[3]), "random": ("random tokens", COLOURS[4])}
BASELINE = "untrained baseline"
LONGEST_CASE = 90  # characters of a completion in Table A2
PAPER = {
    "grammar": "tends to fall over generations 1 to 36 (33M, Fig. 3)",
    "consistency": "falls more sharply than grammar (33M, Fig. 3)",
    "control": "no control rows; about half of the untrained baseline's random tokens got surprisingly high grades (Table A2)",
}


def graded_runs(runs: str | Sequence[str]) -> list[str]:
    """Names of those runs of which a judge has graded a generation, not only the untrained baseline."""
    names = select(runs)
    done = executed(names)
    graded = set(done[(done["step"] == "gpt_eval") & (done["generation"] > 0)]["run"]) if len(done) else set()
    return [name for name in names if name in graded]


def verdict(record: dict[str, Any]) -> Markdown:
    """Who judged, and whether it passed its controls; from what a ``gpt_eval`` step measured."""
    from IPython.display import Markdown

    metrics, judge = record["metrics"], ", ".join(record["examples"]["judge"])
    answers = metrics["completions"]["value"] or 1
    wrong = f" {metrics['malformed']['value'] / answers:.0%} of its answers were malformed." if metrics["malformed"]["value"] else ""
    margin = metrics["judge_margin"]["value"]
    if _passes(record):
        return Markdown(
            f"Judge {literal(judge)} **ranks the control rows rightly**: the real continuation leads by {margin:.2g} points at least.{wrong}"
        )
    return Markdown(
        f"⚠ Judge {literal(judge)} is **unreliable here**: it does not put real continuations clearly above shuffled words and random tokens "
        f"(smallest lead {margin:.2g} points). Its grades below are what it said, and no evidence about the models.{wrong}"
    )


def ungraded(runs: str | Sequence[str]) -> Markdown:
    """A sentence on the runs that no judge has graded, and how to have them graded."""
    from IPython.display import Markdown

    graded = graded_runs(runs)
    missing = [name for name in select(runs) if name not in graded]
    if not missing:
        return Markdown("Every run shown here has been graded.")
    names = ", ".join(f"**{name}**" for name in missing)
    protocol = Run.open(missing[0]).protocol
    judge = "" if protocol.gpt_eval.judge else " --set gpt_eval.judge=MODEL"
    if protocol.completions.every is None:
        command = f"`collapse run {missing[0]} --set completions.every=1{judge}`"
        return Markdown(f"Not graded yet: {names}. {command} has the models, if they are there, complete stories and a judge grade them.")
    return Markdown(f"Not graded yet: {names}. `collapse run {missing[0]}{judge}` has a judge grade its completions.")


@drawn
def figure_3(table: DataFrame, runs: str | Sequence[str]) -> tuple[Figure, str]:
    """Grammar (left) and consistency (right) by generation with one standard error; lines for the untrained baseline and the control rows.

    Several runs get a row each, on the same axis: each run's grades mean something beside its own control rows only.
    """
    from matplotlib.figure import Figure

    names = [runs] if isinstance(runs, str) else list(runs)
    figure = Figure(figsize=(10.4, 4.0 * len(names) + 0.3), layout="constrained")
    for run, part in zip(names, figure.subfigures(len(names), 1, squeeze=False)[:, 0], strict=True):
        _grade_panels(part, table, run)
        if len(names) > 1:
            part.suptitle(run, fontsize=11)
        part.supxlabel(figure_text(_stamp(run)), fontsize=10, color="#222222" if _passes(_first(run)) else "#B00020")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=10)
    return figure, f"Grades by generation, {'run' if len(names) == 1 else 'runs'} {', '.join(names)}"


def _grade_panels(part: FigureBase, table: DataFrame, run: str) -> None:
    """Draw one run of Figure 3."""
    from matplotlib.ticker import MaxNLocator

    for panel, name in zip(part.subplots(1, 2, sharey=True), ("grammar", "consistency"), strict=True):
        points, lines = _grades(table, run, name)
        panel.errorbar(
            points["generation"], points["value"], yerr=points["standard_error"], color=COLOURS[0], marker="o", capsize=3, label="generations"
        )
        for (label, colour, style), level in lines.items():
            panel.axhline(level, color=colour, linestyle=style, linewidth=1.4, label=label)
        panel.set(xlabel="generation", ylabel=f"{name} (0 to 9)", ylim=(-0.3, 9.3))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.yaxis.set_tick_params(labelleft=True)


def figure_3_interactive(table: DataFrame, run: str) -> Interactive:
    """Figure 3 to hover over; buttons change between the three grades."""
    import plotly.graph_objects as go

    figure, views = go.Figure(), {name: _grades(table, run, name) for name in GRADES}
    points, lines = views["grammar"]
    figure.add_scatter(
        x=points["generation"].tolist(),
        y=points["value"].tolist(),
        error_y={"type": "data", "array": _errors(points), "thickness": 1, "width": 3},
        name="generations",
        mode="lines+markers",
        line={"color": COLOURS[0]},
        hovertemplate="generation %{x}<br>%{y:.2f}<extra></extra>",
    )
    generations = points["generation"].tolist()
    ends = [min(generations), max(generations)] if len(generations) > 1 else [generations[0] - 0.5, generations[0] + 0.5]
    for (label, colour, style), level in lines.items():
        dash = {"--": "dash", ":": "dot"}[style]
        template = label + ": %{y:.2f}<extra></extra>"
        figure.add_scatter(x=ends, y=[level] * 2, name=label, mode="lines", line={"color": colour, "dash": dash}, hovertemplate=template)
    buttons = []
    for name, (shown, levels) in views.items():
        heights = [shown["value"].tolist(), *([level] * 2 for level in levels.values())]
        errors = [_errors(shown), *([] for _ in levels)]
        data, axis = {"y": heights, "error_y.array": errors}, {"yaxis.title.text": f"{name} (0 to 9)"}
        buttons.append({"label": name, "method": "update", "args": [data, axis]})
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "xanchor": "left", "y": 1.04, "yanchor": "bottom", "pad": {"b": 4}}
    plotly_layout(figure, "grammar (0 to 9)", updatemenus=[menu], legend={"orientation": "h", "y": -0.24, "yanchor": "top"})
    figure.update_layout(margin={"b": 105})
    figure.update_yaxes(range=[-0.3, 9.3])
    return Interactive(figure, f"figure-3-{run}")


def table_a2(run: str, beginning: int = 0, each: int = 2) -> Markdown:
    """Extended Data Table A2: how every graded generation ends one broken sentence, with the judge's grades and what they are worth.

    The baseline comes last. ``beginning`` counts from 0 among the few of which a run keeps graded examples. Raises ``UserError`` where there is none.
    """
    from IPython.display import Markdown

    generations = _generations(run)
    cases = {generation: measured(run, generation, "gpt_eval")["examples"]["cases"] for generation in generations}
    kept = list(dict.fromkeys(case["beginning"] for case in cases[generations[0]]))
    if not 0 <= beginning < len(kept):
        raise UserError(f"There is no beginning {beginning} among the graded examples of run '{run}', which are 0 to {len(kept) - 1}.")
    rows = ["| Generation | Completion | Grammar | Creativity | Consistency |", "|:--|:--|--:|--:|--:|"]
    for generation in [*(g for g in generations if g), *(g for g in generations if not g)]:
        for case in [case for case in cases[generation] if case["beginning"] == kept[beginning]][:each]:
            grades = " | ".join(str(case.get(name, "malformed")) for name in ("grammar", "creativity", "consistency"))
            rows.append(f"| {generation or 'Baseline'} | {literal(first_sentence(case['completion']))} | {grades} |")
    return Markdown(f"{verdict(_first(run)).data}\n\nThe beginning: {literal(kept[beginning])}\n\n" + "\n".join(rows))


def first_sentence(text: str) -> str:
    """How the broken sentence was finished: up to its end, or cut with "…" where that is far away."""
    line = " ".join(text.split())
    found = re.match(r"(.*?[.!?][\"”']?)(?=\s|$)", line)
    sentence = found[1] if found else line
    return sentence if len(sentence) <= LONGEST_CASE else f"{sentence[: LONGEST_CASE - 1].rstrip()}…"


def controls_table(run: str) -> Markdown:
    """The judge's mean grades of the control rows and the baseline, with one standard error."""
    from IPython.display import Markdown

    metrics = _first(run)["metrics"]
    rows = ["| what was graded | grammar | creativity | consistency |", "|:--|--:|--:|--:|"]
    for label, prefix in [*((label, f"control_{kind}_") for kind, (label, _) in CONTROLS.items()), (BASELINE, "")]:
        found = [metrics.get(f"{prefix}{name}") for name in ("grammar", "creativity", "consistency")]
        cells = [f"{m['value']:.2f}" + (f" ± {m['standard_error']:.2f}" if "standard_error" in m else "") if m else "–" for m in found]
        rows.append(f"| {label} | " + " | ".join(cells) + " |")
    return Markdown("\n".join(rows))


def beside_paper(table: DataFrame, runs: Sequence[str]) -> Markdown:
    """What the paper saw beside what the judge said of each run."""
    from IPython.display import Markdown

    from collapse_lib.book.pages import course

    rows = ["| measure | the paper | run | here |", "|:--|:--|:--|:--|"]
    for run in runs:
        for name in ("grammar", "consistency"):
            points, _ = _grades(table, run, name)
            said = course(list(zip(points["generation"].tolist(), points["value"].tolist(), strict=True)))
            rows.append(f"| {name} grade | {PAPER[name]} | {run} | {said} |")
        passes = "yes" if _passes(_first(run)) else "**no**"
        rows.append(f"| does the judge pass its controls? | {PAPER['control']} | {run} | {passes}: {literal(_stamp(run))} |")
    if not runs:
        names = {"grammar": "grammar grade", "consistency": "consistency grade", "control": "does the judge pass its controls?"}
        rows += [f"| {label} | {PAPER[name]} | – | not graded |" for name, label in names.items()]
    return Markdown("\n".join(rows))


def _grades(table: DataFrame, run: str, name: str) -> tuple[DataFrame, dict[tuple[str, str, str], float]]:
    """A grade of the generations from 1 on, and the levels of the baseline and the controls under (label, colour, line style)."""
    points = metric(table, run, name, "gpt_eval")
    if not (points["generation"] > 0).any():
        raise UserError(f"No generation of run '{run}' has a {name} grade yet, or the run is not in this table.")
    levels = {(BASELINE, "#444444", "--"): points[points["generation"] == 0]["value"]}
    for kind, (label, colour) in CONTROLS.items():
        levels[label, colour, ":"] = metric(table, run, f"control_{kind}_{name}", "gpt_eval")["value"]
    lines = {key: float(values.iloc[0]) for key, values in levels.items() if len(values)}
    return points[points["generation"] > 0], lines


def _errors(points: DataFrame) -> list[float | None]:
    return [None if error != error else error for error in points["standard_error"].tolist()]


def _generations(run: str) -> list[int]:
    done = executed(run)
    found = sorted(done[done["step"] == "gpt_eval"]["generation"].tolist()) if len(done) else []
    if not found:
        raise UserError(f"Run '{run}' has not been graded yet; `collapse run {run} --set gpt_eval.judge=MODEL` does it.")
    return found


def _first(run: str) -> dict[str, Any]:
    return measured(run, _generations(run)[0], "gpt_eval")


def _passes(record: dict[str, Any]) -> bool:
    return bool(record["metrics"]["judge_ranks_controls"]["value"])


def _stamp(run: str) -> str:
    record = _first(run)
    judge = ", ".join(record["examples"]["judge"])
    return f"judge {judge} " + ("ranks its control rows rightly" if _passes(record) else "FAILS its control rows: unreliable")
