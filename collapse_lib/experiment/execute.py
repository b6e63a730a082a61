"""Papermill over a run: every missing step, in order, each to its own executed notebook.

Papermill's own record cannot be trusted after a kill, so a notebook is executed under a temporary name and renamed only when every
code cell completed. The work itself is made safe in ``steps``: whatever is killed here, the next call goes on from there.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collapse_lib.experiment.errors import NotebookFailed, UserError, explained, rebuilt
from collapse_lib.experiment.files import naming
from collapse_lib.experiment.limits import check_precision, share_of_batch
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.machine import choose_device
from collapse_lib.experiment.paths import project_root, runs_root
from collapse_lib.experiment.processes import process_count
from collapse_lib.experiment.progress import PROGRESS_VARIABLE, clear_progress, read_progress, settled
from collapse_lib.experiment.retention import let_go_of_unneeded
from collapse_lib.experiment.run import Run, Step, fully_executed

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager


def advance(run: Run, device: str = "auto", only: Container[str] = STEPS, processes: int = 1) -> list[Step]:
    """Execute every unfinished step of a run, of those named in ``only``, and return those that were executed.

    What the protocol lets go of (``retention``) goes as soon as no step named in ``only`` needs it.

    ``processes`` share the work of those steps that can be shared; 0 stands for one a GPU.

    Raises ``UserError`` when another process drives the run, or for what a notebook reports as the user's to mend.
    """
    _check_training(run, device, only, process_count(processes, device))  # both refuse what cannot be before a kernel starts
    with run.exclusive(), _kernel(run.progress_file) as kernel:
        if Run.open(run.name) != run:
            raise UserError(f"Run '{run.name}' was given another protocol by another command just now; the same command looks at it anew.")
        executed = []
        let_go_of_unneeded(run, only)
        for step in run.steps():
            if step.name in only and _advance_step(step, device, processes, kernel, run.progress_file):
                executed.append(step)
                let_go_of_unneeded(run, only)
    return executed


def _check_training(run: Run, device: str, only: Container[str], processes: int) -> None:
    """What the first training that is left would refuse, which may come long after the step before it."""
    settings = run.protocol.training
    if "train" in only and any(step.name == "train" and step.manifest() is None for step in run.steps()):
        share_of_batch(settings.batch_size, settings.micro_batch_size, processes)
        if settings.precision == "fp16":
            check_precision(settings.precision, choose_device(device))


def advance_step(step: Step, device: str = "auto", processes: int = 1, only: Container[str] = STEPS) -> bool:
    """Execute one step unless it is finished, and say whether that was needed: a job of a scheduler, beside others of the same run.

    ``only`` are the steps that the run is to have: what none of them needs may go, as in ``advance``. Raises ``UserError`` as that does, and while
    a process drives the whole run.
    """
    with step.run.shared(), _kernel(step.progress_file) as kernel:
        was_needed = _advance_step(step, device, processes, kernel, step.progress_file)
        let_go_of_unneeded(step.run, only)
    return was_needed


@contextmanager
def _kernel(progress_file: Path) -> Iterator[AsyncKernelManager]:
    """A kernel that says there how far it is. Threads that wait by spinning halve the speed of a machine that has anything else to do, and worse."""
    from collapse_lib.experiment.warm_kernel import warm_kernel

    inherited = {PROGRESS_VARIABLE: str(progress_file), "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    with environment(inherited), warm_kernel() as kernel:
        yield kernel


def _advance_step(step: Step, device: str, processes: int, kernel: AsyncKernelManager, progress_file: Path) -> bool:
    if _is_finished(step):
        step.record_notebook()  # one that plain papermill executed, or of a driver that was killed before it got here
        return False
    began = time.perf_counter()
    label = f"generation {step.generation:>2} of {step.run.protocol.generations}  {step.name:<10}"
    with _watched(progress_file, label):
        execute(project_root() / "notebooks" / "steps" / f"{step.name}.ipynb", step.notebook, _parameters(step, device, processes), kernel)
    step.record_notebook()
    headline = step.kind.headline_of(step.results()["metrics"])
    print(f"{label} {time.perf_counter() - began:7.1f} s   {headline}", flush=True)
    return True


def _is_finished(step: Step) -> bool:
    """Whether there is nothing to do; a notebook that cannot be read is executed again."""
    try:
        has_notebook = step.has_notebook()
    except UserError:
        has_notebook = False
    return has_notebook and step.results() is not None


def _parameters(step: Step, device: str, processes: int) -> dict[str, Any]:
    parameters: dict[str, Any] = {"run": step.run.name}
    if step.name != "corpus":  # the one step that only generation 0 has
        parameters["generation"] = step.generation
    if STEPS[step.name].on_device:
        parameters["device"] = device
    if STEPS[step.name].divisible:
        parameters["processes"] = processes
    return parameters


def execute(source: Path, target: Path, parameters: dict[str, Any], kernel: AsyncKernelManager) -> None:
    """Execute a notebook with papermill; ``target`` appears only if every cell ran without error.

    ``kernel`` comes from ``kernel.warm_kernel``. Raises ``UserError`` for a parameter that the notebook does not have and for a
    ``UserError`` inside it or what ``errors.explained`` can explain (a full disk, say), else ``NotebookFailed``.
    """
    import logging

    import papermill
    from papermill.exceptions import PapermillExecutionError

    from collapse_lib.experiment.warm_kernel import ENGINE

    logging.getLogger("papermill").setLevel(logging.ERROR)
    known = papermill.inspect_notebook(str(source))
    if unknown := sorted(set(parameters) - set(known)):
        raise UserError(f"Notebook {source.name} has no parameter '{unknown[0]}'; it has {', '.join(known) or 'none'}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f"{target.stem}.tmp.ipynb")
    try:
        with naming(beside), environment({"COLLAPSE_RUNS": str(runs_root())}):  # the kernel works elsewhere, but on the same runs
            papermill.execute_notebook(
                str(source),
                str(beside),
                parameters,
                engine_name=ENGINE,
                km=kernel,
                kernel_name="python3",
                progress_bar=False,
                start_timeout=600,  # one that dies is noticed at once; a busy machine may need minutes
                extra_arguments=["--log-level=ERROR"],  # the kernel would warn about its loopback connection in the middle of our lines
            )
    except PapermillExecutionError as error:
        if error.ename == "UserError":
            beside.unlink(missing_ok=True)
            raise UserError(error.evalue) from error
        if sentence := explained(rebuilt(error.ename, error.evalue)):
            raise UserError(f"{sentence.rstrip('.')}; {source.name} stopped there, and as far as it came it is {beside}.") from error
        raise NotebookFailed(f"{source.name} failed: {error.ename}: {error.evalue.strip().partition(chr(10))[0]}", beside) from error
    except RuntimeError as error:
        if not str(error).startswith(("Kernel died", "Kernel didn't respond")):
            raise
        raise NotebookFailed(
            f"the kernel that executed {source.name} died (out of memory, or killed); the same command goes on from there", beside
        ) from None
    _tidy(beside, source.name)
    beside.replace(target)


def _tidy(executed: Path, name: str) -> None:
    """Refuse an incomplete execution; join the pieces of streams; drop paths of this machine."""
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    if not fully_executed(notebook):
        raise NotebookFailed(f"{name} ended before all of its cells were executed", executed)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = settled(cell.outputs)
    for path in ("input_path", "output_path"):
        notebook.metadata.papermill[path] = Path(notebook.metadata.papermill[path] or "").name.replace(".tmp", "")
    nbformat.write(notebook, executed)


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables, for kernels that start while the block runs, and leave them as they were."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _watched(progress_file: Path, label: str) -> Iterator[None]:
    """Show the kernel's progress bar in this terminal while the block runs."""
    from tqdm import tqdm

    stop = threading.Event()
    bar = tqdm(desc=label, leave=False, unit_scale=True, dynamic_ncols=True, mininterval=0.2, disable=None)

    def watch() -> None:
        while not stop.wait(0.3):
            if state := read_progress(progress_file):
                if state["total"] != bar.total or state["n"] < bar.n:
                    bar.unit = state["unit"]
                    bar.initial = state["n"]
                    bar.reset(total=state["total"])
                    bar.set_description_str(f"{label}  {state['prefix'].rstrip(': ')}", refresh=False)
                bar.n = state["n"]
                bar.refresh()

    watcher = threading.Thread(target=watch, daemon=True)
    if not bar.disable:
        watcher.start()
    try:
        yield
    finally:
        stop.set()
        if watcher.ident:
            watcher.join()
        bar.close()
        clear_progress(progress_file)
