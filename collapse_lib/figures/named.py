"""Figures by name, for those who only want the picture: each function of ``figures`` that a run, or several, can fill in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from collapse_lib import figures
from collapse_lib.experiment.errors import UserError
from collapse_lib.studies import results
from collapse_lib.studies.study import open_study
from collapse_lib.studies.study import table as study_table
from collapse_lib.studies.twins import comparisons

if TYPE_CHECKING:
    from collapse_lib.figures import Picture


def names() -> list[str]:
    """Names of the figures that ``picture`` draws, beside any ``step.metric``."""
    return [name for name, function in vars(figures).items() if inspect.isfunction(function) and _can_be_filled_in(function)]


def picture(name: str, runs: Sequence[str], study: str | None = None) -> Picture:
    """A figure of some runs, or, of any measured ``step.metric``, of a study. Raises ``UserError`` for a name that is no figure's."""
    if "." in name:
        return figures.metric_by_generation(study_table(open_study(study)) if study else results.load(runs), name)
    if name not in names():
        close = get_close_matches(name, names(), n=3) or names()
        raise UserError(f"There is no figure '{name}'; there is {', '.join(close)}, or any step.metric, such as perplexity.perplexity.")
    if study:
        raise UserError(f"Figure '{name}' is about runs; of a study, any step.metric can be drawn, such as perplexity.perplexity.")
    function = getattr(figures, name)
    return function(**{parameter: GIVEN[parameter](results.select(runs), name) for parameter in _needed(function)})


def _one(runs: Sequence[str], name: str) -> str:
    if len(runs) > 1:
        raise UserError(f"Figure '{name}' shows one run, not {len(runs)}: {', '.join(runs)}.")
    return runs[0]


def _compared(runs: Sequence[str], name: str) -> dict[str, Any]:
    run = _one(runs, name)
    found = comparisons([run])
    if not found:
        raise UserError(f"Run '{run}' has not been compared with twins; `collapse twins {run}` does that.")
    return found[0]


GIVEN: dict[str, Callable[[Sequence[str], str], Any]] = {  # parameters of figures, from the names of runs and the figure's own
    "table": lambda runs, name: results.load(runs),
    "runs": lambda runs, name: runs,
    "run": _one,
    "record": _compared,
}


def _needed(function: Callable[..., Any]) -> list[str]:
    return [name for name, parameter in inspect.signature(function).parameters.items() if parameter.default is parameter.empty]


def _can_be_filled_in(function: Callable[..., Any]) -> bool:
    return inspect.signature(function).return_annotation == "Picture" and GIVEN.keys() >= {*_needed(function)}
