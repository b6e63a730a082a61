"""The parameters that papermill gives a notebook, as the notebook's own kernel sees them."""

from __future__ import annotations

import ast
import sys

from collapse_lib.experiment.errors import UserError


def refuse_unknown_parameters() -> None:
    """Raise ``UserError`` if papermill gave this notebook a parameter that it does not have: papermill itself warns, and goes on without it.

    What papermill gives stands in a cell of its own, after the one with the notebook's defaults.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    cells = shell.user_ns.get("In", []) if shell else []
    given = max((number for number, cell in enumerate(cells) if cell.startswith("# Parameters\n")), default=0)
    if not given:
        return
    known, wanted = _assigned(cells[given - 1]), _assigned(cells[given])
    if "run" in known and (unknown := sorted(wanted - known)):  # else somebody executes cells by hand, in another order
        raise UserError(
            f"This notebook has no parameter '{unknown[0]}', only {', '.join(sorted(known))}; what decides a run's numbers is in its protocol "
            "(`collapse run NAME --set FIELD=VALUE`, or a .yaml file as the preset of corpus.ipynb)."
        )


def _assigned(cell: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
