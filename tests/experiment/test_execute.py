"""What papermill and its kernel leave behind in the process that started them."""

from __future__ import annotations

import os
import signal
import threading

import nbformat
import pytest
from papermill.iorw import write_ipynb

from collapse_lib.experiment.errors import NotebookFailed, UserError
from collapse_lib.experiment.execute import advance, advance_step, execute
from collapse_lib.experiment.progress import PROGRESS_VARIABLE
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import Run
from collapse_lib.experiment.warm_kernel import warm_kernel


def notebook(path, *codes):
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [nbformat.v4.new_code_cell(code) for code in codes]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernelspec}), path)
    return path


def outputs(path):
    return [output for cell in nbformat.read(path, as_version=4).cells for output in cell.outputs]


def test_the_kernel_knows_the_runs_folder_and_this_process_forgets_it(tmp_path, monkeypatch):
    monkeypatch.delenv("COLLAPSE_RUNS", raising=False)
    before = dict(os.environ)
    source, target = notebook(tmp_path / "notebook.ipynb", "import os", "os.environ['COLLAPSE_RUNS']"), tmp_path / "executed.ipynb"
    with warm_kernel() as kernel:
        execute(source, target, {}, kernel)
    assert "papermill_runs" in outputs(target)[-1]["data"]["text/plain"]
    assert dict(os.environ) == before


def test_a_kernel_that_answers_late_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("collapse_lib.experiment.warm_kernel.SECONDS_BETWEEN_LOOKS", 0.1)
    with warm_kernel() as kernel:
        execute(notebook(tmp_path / "first.ipynb", "1"), tmp_path / "executed-first.ipynb", {}, kernel)
        os.kill(kernel.provisioner.pid, signal.SIGSTOP)
        timer = threading.Timer(2.0, os.kill, (kernel.provisioner.pid, signal.SIGCONT))
        timer.start()
        execute(notebook(tmp_path / "second.ipynb", "print('second')"), tmp_path / "executed-second.ipynb", {}, kernel)
        timer.join()
    assert [output["text"] for output in outputs(tmp_path / "executed-second.ipynb")] == ["second\n"]


def test_a_kernel_that_died_between_two_notebooks_is_no_kernel_that_answers_late(tmp_path):
    with warm_kernel() as kernel:
        execute(notebook(tmp_path / "first.ipynb", "1"), tmp_path / "executed.ipynb", {}, kernel)
        os.kill(kernel.provisioner.pid, signal.SIGKILL)
        with pytest.raises(NotebookFailed, match=r"the kernel that executed second\.ipynb died"):
            execute(notebook(tmp_path / "second.ipynb", "2"), tmp_path / "executed.ipynb", {}, kernel)


def test_a_notebook_is_written_now_and_then_and_when_it_ends_however_it_ends(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("papermill.engines.write_ipynb", lambda *arguments: written.append(None) or write_ipynb(*arguments))
    source = notebook(tmp_path / "source.ipynb", *(f"print({number})" for number in range(20)))
    dying = notebook(tmp_path / "dying.ipynb", "print('first')", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with warm_kernel() as kernel:
        execute(source, tmp_path / "executed.ipynb", {}, kernel)
        assert len(outputs(tmp_path / "executed.ipynb")) == 20 and len(written) < 20
        with pytest.raises(NotebookFailed) as failed:
            execute(dying, tmp_path / "died.ipynb", {}, kernel)
    assert [output["text"] for output in outputs(failed.value.saved)] == ["first\n"]


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
