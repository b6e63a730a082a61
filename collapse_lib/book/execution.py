"""The notebooks that become pages, executed side by side: each again only when something changed that it is made from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from collapse_lib.experiment.execute import environment, execute
from collapse_lib.experiment.files import write_text
from collapse_lib.experiment.processes import end_with_parent
from collapse_lib.experiment.warm_kernel import warm_kernel


@dataclass(frozen=True)
class Execution:
    """A notebook, where its execution is kept, its parameters, and a hash of all that it is made from."""

    notebook: Path
    target: Path
    parameters: dict[str, Any]
    inputs: str

    @property
    def mark(self) -> Path:
        """The file that says what the kept execution was made from."""
        return self.target.with_suffix(".sha256")

    @property
    def is_current(self) -> bool:
        return self.target.is_file() and self.mark.is_file() and self.mark.read_text() == self.inputs


@contextmanager
def executing(wanted: Sequence[Execution]) -> Iterator[None]:
    """Execute what is not current, in a kernel a core, while the block runs; it ends when they have ended.

    Raises what ``execute`` raises for a notebook that fails; those that its kernel would have executed next are left, those of other kernels are not.
    """
    missing = [execution for execution in wanted if not execution.is_current]
    if not missing:
        yield
        return
    kernels = min(len(os.sched_getaffinity(0)), len(missing))
    with (
        environment({"OMP_NUM_THREADS": "1"}),  # however many kernels there are: the threads of a sum decide its last digits
        ProcessPoolExecutor(kernels, get_context("spawn"), end_with_parent) as pool,
    ):
        running = [pool.submit(_execute, missing[first::kernels]) for first in range(kernels)]
        yield
        for execution in running:
            execution.result()


def _execute(wanted: Sequence[Execution]) -> None:
    """One after the other, in one kernel."""
    with warm_kernel() as kernel:
        for execution in wanted:
            execute(execution.notebook, execution.target, execution.parameters, kernel)
            write_text(execution.mark, execution.inputs)
