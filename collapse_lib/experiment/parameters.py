"""The parameters that papermill gives to a notebook."""

from __future__ import annotations

import ast
import sys

from collapse_lib.experiment.errors import UserError


def refuse_unknown_parameters() -> None:
    """Raise ``UserError`` if papermill gave this notebook a parameter that it does not have: papermill itself warns, and goes on without it.

    What papermill gives is a cell of its own, after the one with the notebook's defaults.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    cells = shell.user_ns.get("In", []) if shell else []
    given = max((number for number, cell in enumerate(cells) if cell.startswith("# Parameters\n")), default=0)
    if not given:
        return
    known, wanted = _assigned(cells[given - 1]), _assigned(cells[given])
    if known and (unknown := sorted(wanted - known)):  # none known: somebody executes cells by hand, in another order
        advice = (
            "; what decides a run's numbers is in its protocol (`collapse run NAME --set FIELD=VALUE`, or a .yaml file as the preset of corpus.ipynb)"
        )
        raise UserError(f"This notebook has no parameter '{unknown[0]}', only {', '.join(sorted(known))}{advice if 'run' in known else ''}.")


def _assigned(cell: str) -> set[str]:
    """Names that a cell of nothing but assignments assigns; of other cells none."""
    statements = ast.parse(cell).body
    if not all(isinstance(statement, ast.Assign) for statement in statements):
        return set()
    return {target.id for statement in statements for target in statement.targets if isinstance(target, ast.Name)}
