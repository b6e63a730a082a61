"""Any number that runs or a study measured, by generation: one call, one picture."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from collapse_lib.experiment.errors import UserError
from collapse_lib.figures.studies import draw_courses
from collapse_lib.figures.style import Picture, styled
from collapse_lib.studies.chains import experiments

if TYPE_CHECKING:
    from pandas import DataFrame


@styled()
def metric_by_generation(table: DataFrame, measure: str) -> Picture:
    """A measure, ``step.metric``, by generation; the band is a 95% t interval between chains, drawn where there are three of a kind.

    ``table`` is what ``results.load`` returns, or of a study what ``study.table`` does. In the former, runs whose protocols differ in their seeds
    alone are chains of one kind. Raises ``UserError`` for what was not measured, naming what is like it.

    Example: ``figures.metric_by_generation(results.load("demo"), "perplexity.perplexity")``
    """
    step, _, metric = measure.partition(".")
    rows = table[(table["step"] == step) & (table["metric"] == metric) & (table["generation"] > 0)]
    if not len(rows):
        raise UserError(f"Nothing called '{measure}' was measured there{_alike(table, measure)}.")
    if "arm" not in rows:
        kinds = {run: name for name, chains in experiments(list(rows["run"].unique())).items() for run in chains}
        rows = rows.assign(arm=rows["run"].map(kinds), seed=rows["run"])
    wide = rows.pivot(index=["arm", "seed"], columns="generation", values="value")
    unit = rows["unit"].iloc[0]
    label = metric.replace("_", " ") + (f" ({unit})" if unit not in ("", "1") else "")
    figure = draw_courses(wide, list(dict.fromkeys(rows["arm"])), label)
    return Picture(figure, f"{measure} by generation, with 95% t bands between chains")


def _alike(table: DataFrame, measure: str) -> str:
    known = sorted(set((table["step"] + "." + table["metric"])[table["generation"] > 0]))
    close = get_close_matches(measure, known, n=3, cutoff=0.4) or known[:3]
    return f"; there is {', '.join(close)}" if close else ""
