"""What papermill and its kernel leave behind in the process that started them."""

from __future__ import annotations

import os

import nbformat
import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.execute import advance, advance_step, execute
from collapse_lib.experiment.progress import PROGRESS_VARIABLE
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import Run
from collapse_lib.experiment.warm_kernel import warm_kernel


def test_the_kernel_knows_the_runs_folder_and_this_process_forgets_it(tmp_path, monkeypatch):
    monkeypatch.delenv("COLLAPSE_RUNS", raising=False)
    before = dict(os.environ)
    source, target = tmp_path / "notebook.ipynb", tmp_path / "executed.ipynb"
    cells = [nbformat.v4.new_code_cell(code) for code in ("import os", "os.environ['COLLAPSE_RUNS']")]
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernelspec}), source)
    with warm_kernel() as kernel:
        execute(source, target, {}, kernel)
    assert "papermill_runs" in nbformat.read(target, as_version=4).cells[-1].outputs[0]["data"]["text/plain"]
    assert dict(os.environ) == before


def test_a_protocol_that_another_command_changed_meanwhile_is_not_driven(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    run = Run.create("one", load_preset("smoke"))
    Run.create("one", run.protocol.with_changes({"seed": "2"}))
    with pytest.raises(UserError, match="another protocol by another command"):
        advance(run, "cpu")
    assert not list(run.folder.glob("generation-*"))


def test_a_steps_job_and_whoever_drives_the_run_take_turns(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    run = Run.create("one", load_preset("smoke"))
    with run.shared(), run.shared(), pytest.raises(UserError, match="in use by another process"):  # two jobs of one run
        advance(run, "cpu")
    with run.exclusive(), pytest.raises(UserError, match="in use by another process"):
        advance_step(run.step(0, "corpus"), "cpu")
    assert advance_step(run.step(0, "corpus"), "cpu") and run.step(0, "corpus").is_finished()
    assert not advance_step(run.step(0, "corpus"), "cpu") and not list(run.folder.rglob("*.tmp*"))


@pytest.mark.parametrize("policy", [None, "ACTIVE"])
def test_a_run_that_stops_leaves_the_environment_as_it_was(tmp_path, monkeypatch, policy):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    monkeypatch.setenv(PROGRESS_VARIABLE, "another's")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    before = dict(os.environ)
    run = Run.create("broken", load_preset("smoke").with_changes({"corpus.source": str(tmp_path / "absent.txt")}))
    with pytest.raises(UserError, match=r"absent\.txt"):
        advance(run, "cpu")
    assert dict(os.environ) == before
