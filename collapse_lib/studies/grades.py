"""Whether a judge's grades could fall at all: what has the lowest grade in generation 1 has nothing to lose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collapse_lib.metrics.gpt_eval import LEVEL

if TYPE_CHECKING:
    from pandas import DataFrame


def can_fall(table: DataFrame, grade: str) -> bool | None:
    """Whether the first graded generation of every run in a table stands above the random tokens among its judge's control rows.

    The lower end of its 95% interval has to lie above their mean. None: nothing is graded.

    Example: ``can_fall(results.load("demo"), "grammar")``
    """
    from scipy.stats import norm

    rows = table[(table["step"] == "gpt_eval") & (table["generation"] > 0)].sort_values("generation")
    first, ruins = (rows[rows["metric"] == name].drop_duplicates("run").set_index("run") for name in (grade, f"control_random_{grade}"))
    if first.empty:
        return None
    low = first["value"] - norm.ppf((1 + LEVEL) / 2) * first["standard_error"].fillna(0.0)
    return bool((low > ruins["value"].reindex(first.index)).all())
