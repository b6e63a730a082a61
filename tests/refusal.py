"""Notebooks that refuse their parameters, executed by papermill in a kernel that is kept for the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import papermill
import pytest
from jupyter_client.manager import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError

from collapse_lib.experiment.warm_kernel import ENGINE


def refusal(notebook: Path, parameters: dict[str, Any], kernel: AsyncKernelManager, folder: Path) -> str:
    """The sentence with which a notebook refuses parameters; as far as it came, it is left in ``folder``."""
    options = {"engine_name": ENGINE, "km": kernel, "kernel_name": "python3", "progress_bar": False}
    with pytest.raises(PapermillExecutionError) as refused:
        papermill.execute_notebook(notebook, folder / "out.ipynb", parameters, **options)
    assert refused.value.ename == "UserError"
    return refused.value.evalue
