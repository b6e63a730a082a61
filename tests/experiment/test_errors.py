"""Whatever is given or damaged, the command says it in one line and ends with status 2; only its own mistakes end with 1."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from synthetic_runs import write_run
from torture.campaign import kept_surroundings
from torture.inputs import DEEP, LONG, NOT_UTF8, ROWS, attempt, write_there

from collapse_lib import cli
from collapse_lib.cost.bench import records
from collapse_lib.experiment.errors import NotebookFailed, UserError, explained, one_line, rebuilt
from collapse_lib.experiment.files import write_json
from collapse_lib.experiment.paths import runs_root
from collapse_lib.studies import results

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A folder with the finished run ``there``, the working directory beside it."""
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    write_there(tmp_path / "runs")
    return tmp_path / "runs"


def told(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    """The one line that a command prints when it fails."""
    capsys.readouterr()
    ended = cli.main(list(arguments))
    shown = capsys.readouterr().err
    assert ended == status, shown
    assert shown.count("\n") == 1 and shown.endswith(".\n") and shown.startswith("collapse: ") and "Traceback" not in shown, shown
    return shown


@pytest.mark.parametrize("row", ROWS, ids=[f"{number} {row.name[:60]}" for number, row in enumerate(ROWS)])
def test_bad_input_is_refused_in_one_sentence(tmp_path, row):
    with kept_surroundings():
        outcome = attempt(row, tmp_path)
    assert outcome.verdict == "refused", outcome.said


def test_the_table_of_bad_input_is_long_and_names_each_once():
    assert len({row.name for row in ROWS}) == len(ROWS) >= 150


@pytest.mark.parametrize("content", [NOT_UTF8, b"", b"{}", b"[]", DEEP, b'{"bench": "knitting"}'])
def test_damaged_bench_reports_are_named_and_recorded_machines_are_none(runs, content):
    shutil.copytree(ROOT / "papermill_runs" / "bench", runs / "bench")
    (runs / "bench" / "broken.json").write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.json"):
        records.recorded()


@pytest.mark.parametrize("content", [NOT_UTF8, b"", b"{}", b"[]", DEEP, b'{"runs": 1, "generations": {}}'])
def test_a_damaged_comparison_of_twins_is_named(runs, content):
    from collapse_lib.studies import twins

    (runs / "there" / "twins.json").write_bytes(content)
    with pytest.raises(UserError, match=r"twins\.json"):
        twins.comparisons("there")


def refusing(number: int):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number), "some/file")

    return refuse


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EACCES, "COLLAPSE_RUNS=FOLDER"), (errno.EROFS, "COLLAPSE_RUNS=FOLDER"), (errno.ENOSPC, "make room"), (errno.EFBIG, "ulimit -f")],
)
def test_refusals_of_the_operating_system_come_with_a_remedy(runs, capsys, monkeypatch, number, remedy):
    monkeypatch.setattr(results, "load", refusing(number))
    line = told(capsys, "results")
    assert "'some/file'" in line and os.strerror(number) in line and remedy in line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), "0xff"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "ordinal"), "PYTHONIOENCODING"),
        (TimeoutError("Timeout waiting for reply"), "(Timeout waiting for reply); the same command tries again"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "make room"),
    ],
)
def test_what_is_nobodys_mistake_here_is_explained(runs, capsys, monkeypatch, error, said):
    def fail(runs):
        raise error

    monkeypatch.setattr(results, "load", fail)
    assert said in told(capsys, "results")


def test_a_mistake_of_this_program_is_called_so(runs, capsys, monkeypatch):
    def fail(runs):
        raise KeyError("the\nkey")

    monkeypatch.setattr(results, "load", fail)
    line = told(capsys, "results", status=1)
    assert "unexpected KeyError" in line and "mistake in collapse itself" in line and "--debug" in line
    for arguments in (["--debug", "results"], ["results", "--debug"], ["results", "there", "--debug", "--format", "csv"]):
        assert cli.main(arguments) == 1
        shown = capsys.readouterr().err
        assert "Traceback" in shown and 'raise KeyError("the' in shown and shown.splitlines()[-1].startswith("collapse: ")
    assert cli.main(["status", "absent", "--debug"]) == 2 and "Traceback" in capsys.readouterr().err


def test_sentences_stay_one_line_and_values_are_cut_where_names_are_long():
    assert one_line("a 'b\nc\r\x1b\u202e\udcff' d") == r"a 'b\nc\r\x1b\u202e\udcff' d"
    assert one_line(f"There is no run '{LONG}' here.") == f"There is no run '{'n' * 60}…{'n' * 20}' here."
    path = "/" + "/".join(["folder"] * 40)
    prose = "The run's own words, which " + "go on and " * 20 + "end with another's."
    for kept in (f"no '{path}' here", prose, f"'<|endoftext|>' and {'so on ' * 30} 'b'"):
        assert one_line(kept) == kept


def test_what_a_kernel_reports_becomes_the_error_it_was():
    full = rebuilt("OSError", "[Errno 28] No space left on device: '/a/b'")
    assert (full.errno, full.filename) == (errno.ENOSPC, "/a/b") and "'/a/b'" in explained(full)
    assert "Permission" in explained(rebuilt("PermissionError", "[Errno 13] Permission denied: '/a/b'"))
    assert "memory" in explained(rebuilt("OutOfMemoryError", "CUDA out of memory. Tried to allocate 9 GiB"))
    assert explained(rebuilt("KeyError", "'x'")) is explained(rebuilt("SystemExit", "1")) is explained(rebuilt("Mine", "x")) is None


FAILING = {
    "raise MemoryError": (UserError, "not enough memory"),
    "open('/no/such/folder/file', 'w')": (UserError, "'/no/such/folder/file' cannot be read or written"),
    "open('/dev/full', 'w').write('x' * 100_000)": (UserError, "make room"),
    "b'\\xff'.decode()": (UserError, "not in the encoding"),
    "raise KeyError('a\\nb')": (NotebookFailed, "failed: KeyError"),
}


def test_errors_inside_a_notebook_are_one_sentence_that_names_it(tmp_path, capsys, monkeypatch):
    from collapse_lib.experiment.execute import execute
    from collapse_lib.experiment.warm_kernel import warm_kernel

    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    with warm_kernel() as kernel:
        for code, (kind, said) in FAILING.items():
            nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata=metadata), tmp_path / "bad.ipynb")
            with pytest.raises(kind, match=said) as raised:
                execute(tmp_path / "bad.ipynb", tmp_path / "done.ipynb", {}, kernel)

            def fail(runs, error=raised.value):
                raise error

            monkeypatch.setattr(results, "load", fail)
            assert cli.main(["results"]) == (2 if kind is UserError else 1)
            line = capsys.readouterr().err
            saved = tmp_path / "done.tmp.ipynb"
            assert line.count("\n") == 1 and str(saved) in line and saved.is_file()


# --- in processes of their own


def collapse(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("environment", {})
    command = [sys.executable, "-m", "collapse_lib.cli", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment, check=False, **options)


def test_a_full_disk_behind_standard_output_is_one_sentence(runs):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = collapse("results", "there", stdout=full)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "make room" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(runs):
    reading, writing = os.pipe()
    os.close(reading)
    done = collapse("results", "there", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_limit_on_the_size_of_files_is_one_sentence(runs):
    import resource

    done = collapse(
        "results", "there", "--output", "out.csv", stdout=subprocess.DEVNULL, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "out.csv" in done.stderr and "ulimit -f" in done.stderr


STRANGER = """
import os, sys
import pandas, papermill, statistics, tokenizers, yaml
from collapse_lib.experiment import execute as batch
from collapse_lib import cli
from collapse_lib.experiment import files
from collapse_lib.experiment import warm_kernel as kernel
from collapse_lib.experiment import progress
from collapse_lib.studies import results
from collapse_lib.experiment import run
from collapse_lib.experiment import shapes
os.setgroups([]), os.setgid(65534), os.setuid(65534)  # after the imports: the interpreter may lie in a home folder
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_run_can_be_looked_at_and_not_driven(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders let nobody else in
        runs = Path(folder)
        runs.chmod(0o755)
        monkeypatch.setenv("COLLAPSE_RUNS", folder)
        write_run(runs, "there", 1)
        (runs / "there" / "run.lock").write_text("")
        seen = as_stranger("results", "there", "--format", "csv")
        assert (seen.returncode, seen.stderr) == (0, "")
        assert as_stranger("status", "there").returncode == 0  # that nobody holds a lock can be seen without writing to it
        for command, file in ((["run", "there"], "run.lock"), (["run", "smoke", "--name", "mine"], "mine")):
            done = as_stranger(*command)
            assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
            assert file in done.stderr and "Permission denied" in done.stderr and "COLLAPSE_RUNS=FOLDER" in done.stderr, done.stderr


def as_stranger(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", STRANGER, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_without_a_checkout_runs_and_the_book_go_to_the_working_directory(tmp_path, monkeypatch):
    from collapse_lib.experiment import paths

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLLAPSE_RUNS", raising=False)
    assert (runs_root(), paths.project_root(), paths.book_folder()) == (ROOT / "papermill_runs", ROOT, ROOT / "book")
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "collapse_lib" / "experiment" / "paths.py"))
    assert (runs_root(), paths.book_folder()) == (tmp_path / "papermill_runs", tmp_path / "book")
    with pytest.raises(UserError, match=r"notebooks is missing\); install it again, or clone the project"):
        paths.project_root()
    project = tmp_path / "site-packages" / "collapse_lib" / "project"
    (project / "notebooks" / "steps").mkdir(parents=True)
    assert paths.project_root() == project
    assert (runs_root(), paths.book_folder()) == (tmp_path / "papermill_runs", tmp_path / "book")


def test_a_recorded_machine_among_the_bench_reports_is_passed_over(runs):
    from collapse_lib.cost.calibration import Calibration

    shutil.copytree(ROOT / "papermill_runs" / "bench", runs / "bench")
    write_json(runs / "bench" / "machine.json", dict.fromkeys(Calibration.__annotations__))
    assert len(records.recorded()) == len(list((runs / "bench").glob("*.json"))) - 1
    with pytest.raises(UserError, match=r"machine\.json is not a machine"):
        from collapse_lib.cost import calibration

        calibration.load("machine")
