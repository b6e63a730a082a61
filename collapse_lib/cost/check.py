"""A plan beside what a finished run took."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

from collapse_lib.cost.printing import columns, duration
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_json
from collapse_lib.experiment.shapes import Notebook

if TYPE_CHECKING:
    from collapse_lib.cost.plan import Plan
    from collapse_lib.experiment.protocol import Protocol
    from collapse_lib.experiment.run import Run


def check(planned: Plan, protocol: Protocol, run: Run) -> list[dict[str, Any]]:
    """Seconds predicted and taken, and the relative error: of each step over all generations, of all steps, and of the wall clock.

    Raises ``UserError`` when the run has another protocol or is not finished.
    """
    from collapse_lib.experiment.run import fully_executed

    if protocol.generations != run.protocol.generations:
        raise UserError(f"Run '{run.name}' has {run.protocol.generations} generations, the plan {protocol.generations}; plan it with --generations.")
    if changed := protocol.differences(run.protocol):
        raise UserError(f"Run '{run.name}' has another {changed[0]} than the plan; plan the run itself or give the same --set.")
    taken: Counter[str] = Counter()
    begins, ends = [], []
    for step in run.steps():
        manifest, notebook = step.manifest(), read_json(step.notebook, Notebook)
        if manifest is None or notebook is None or not fully_executed(notebook):
            raise UserError(f"Run '{run.name}' is not finished: {step} is missing.")
        taken[step.name] += manifest["seconds"]
        begins.append(datetime.fromisoformat(notebook["metadata"]["papermill"]["start_time"]))
        ends.append(datetime.fromisoformat(notebook["metadata"]["papermill"]["end_time"]))
    compared = [(step, seconds, taken[step]) for step, seconds in planned.by_step.items()]
    compared.append(("all steps", sum(planned.by_step.values()), taken.total()))
    compared.append(("wall clock", planned.seconds, (max(ends) - min(begins)).total_seconds()))
    return [{"what": what, "predicted": seconds, "took": took, "off": seconds / took - 1 if took else 0.0} for what, seconds, took in compared]


def table(rows: list[dict[str, Any]], name: str) -> str:
    """What ``check`` returns, as text."""
    cells = [(row["what"], duration(row["predicted"]), duration(row["took"]), f"{row['off']:+.0%}") for row in rows]
    return "\n".join(columns([(f"run {name}", "predicted", "took", "off by"), *cells]))
