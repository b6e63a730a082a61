"""Whatever is given or damaged, the command says it in one line and ends with status 2; only its own mistakes end with 1."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from synthetic_runs import write_run

from collapse_lib import cli
from collapse_lib.cost.bench import records
from collapse_lib.experiment.errors import NotebookFailed, UserError, explained, one_line, rebuilt
from collapse_lib.experiment.files import write_json
from collapse_lib.experiment.paths import runs_root
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.studies import results
from collapse_lib.text.sources import read_stories

ROOT = Path(__file__).resolve().parents[2]
LONG = "n" * 300
NOT_UTF8 = b"description: \xff\xfe\n"
DEEP = b"[" * 100_000
PROTOCOL = "there/protocol.yaml"
MANIFEST = "there/generation-01/manifests/train.json"
METRICS = "there/generation-01/metrics/train.json"
NOTEBOOK = "there/generation-01/train.ipynb"


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A folder with the finished run ``there``, the working directory beside it."""
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs", "there", 1)
    executed = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", execution_count=1, outputs=[nbformat.v4.new_output("display_data")])])
    executed.metadata["papermill"] = {"start_time": "2024-01-01T00:00:00", "end_time": "2024-01-01T00:00:01"}
    nbformat.write(executed, tmp_path / "runs" / NOTEBOOK)
    return tmp_path / "runs"


def told(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    """The one line that a command prints when it fails."""
    capsys.readouterr()
    ended = cli.main(list(arguments))
    shown = capsys.readouterr().err
    assert ended == status, shown
    assert shown.count("\n") == 1 and shown.endswith(".\n") and shown.startswith("collapse: ") and "Traceback" not in shown, shown
    return shown


SET = [
    ("sampling.temperature=1e-300", "sampling.temperature"),
    ("sampling.temperature=inf", "finite"),
    ("sampling.temperature=.nan", "sampling.temperature"),
    ("sampling.length=1" + "0" * 40, "sampling.length"),
    ("sampling.shard_sequences=1e999", "sampling.shard_sequences"),
    ("model.initializer_range=inf", "model.initializer_range"),
    ("model.initializer_range=nan", "model.initializer_range"),
    ("model.hidden_size=100000000", "model.hidden_size"),
    ("model.num_layers=100000000", "model.num_layers"),
    ("model.max_position_embeddings=10000000000", "model.max_position_embeddings"),
    ("training.learning_rate=inf", "training.learning_rate"),
    ("training.learning_rate=nan", "training.learning_rate"),
    ("training.weight_decay=inf", "training.weight_decay"),
    ("training.weight_decay=nan", "training.weight_decay"),
    ("training.epsilon=1e-300", "training.epsilon"),
    ("training.max_grad_norm=inf", "training.max_grad_norm"),
    ("training.betas=[nan, 0.9]", "training.betas"),
    ("classification.epochs=inf", "classification.epochs"),
    ("gpt_eval.timeout=inf", "gpt_eval.timeout"),
    ("gpt_eval.price_in=inf", "gpt_eval.price_in"),
    ("gpt_eval.max_cost=nan", "gpt_eval.max_cost"),
    ("seed=" + "9" * 5000, "not a plain value"),
    ("seed=2024-13-45", "not a plain value"),
    ("seed=" + "[" * 5000, "not a plain value"),
    ("seed=" + "x" * 5000, "field 'seed'"),
    ("seed={a: " + "b" * 5000 + "}", "field 'seed'"),
    ("training.batch_sise=8", "did you mean training.batch_size."),
    ("training.nothing=8", "section 'training' has layout, block_size"),
    ("nothing.at.all=8", "`collapse presets --fields`"),
    ("no sign", "FIELD=VALUE"),
    ("two\nlines", r"two\nlines"),
    ("training.batch_size=two\n\nlines", r"two\nlines"),
]


@pytest.mark.parametrize(("change", "said"), SET, ids=[change[:40] for change, _ in SET])
def test_impossible_values_are_refused(runs, capsys, change, said):
    line = told(capsys, "plan", "smoke", "--machine", "none", "--set", change)
    assert said in line and len(line) < 1500


ARGUMENTS = [
    ([], "required"),
    (["nonsense"], "invalid choice"),
    (["run"], "required: preset"),
    (["run", "smoke", "--generations", "many"], "invalid int value: 'many'"),
    (["run", "smoke", "--device", "abacus"], "'abacus'"),
    (["run", "smoke", "--no-such-option"], "unrecognized arguments"),
    (["run", "smoke", "--name", "two\nlines"], r"two\nlines"),
    (["run", "smoke", "--name", "\x1b[31mred"], r"\x1b[31mred"),
    (["run", LONG + ".yaml"], "too long"),
    (["run", LONG], "no preset"),
    (["run", "absent.yaml"], "absent.yaml"),
    (["run", "folder.yaml"], "no protocol file"),
    (["status", LONG], "no run"),
    (["status", "two\nlines"], r"two\nlines"),
    (["results", "no\u2028where"], r"no\u2028where"),
    (["results", "--format", "xml"], "'xml'"),
    (["results", "there", "--output", "folder.csv"], "a file is wanted there, not a folder"),
    (["results", "there", "--output", "folder.json"], "a file is wanted there, not a folder"),
    (["results", "there", "--output", "folder.parquet"], "folder.parquet"),
    (["results", "there", "--output", LONG + ".csv"], "too long"),
    (["results", "there", "--output", "absent/out.csv"], "no folder"),
    (["presets", "absent"], "no preset"),
    (["judge"], "required: TASK"),
    (["judge", "serve", "--port", "99999"], "not a port"),
    (["judge", "serve", "--port", "-1"], "not a port"),
    (["judge", "serve", "--threads", "0"], "at least 1"),
    (["bench", "sampling", "--rounds", "0"], "at least one round"),
    (["bench", "sampling", "--output", LONG + "/x.json"], "too long"),
    (["plan", "smoke", "--machine", LONG], "too long"),
]


@pytest.mark.parametrize(("arguments", "said"), ARGUMENTS, ids=[" ".join(arguments)[:40] for arguments, _ in ARGUMENTS])
def test_wrong_arguments_are_refused(runs, capsys, arguments, said):
    for name in ("folder.csv", "folder.json", "folder.parquet", "folder.yaml"):
        Path(name).mkdir()
    line = told(capsys, *arguments)
    assert said in line and LONG not in line


DAMAGED = [
    (PROTOCOL, b"", ["status", "there"], "protocol.yaml is empty"),
    (PROTOCOL, b"# a comment\n", ["status", "there"], "protocol.yaml is empty"),
    (PROTOCOL, b"false", ["status", "there"], "holds bool"),
    (PROTOCOL, NOT_UTF8, ["status", "there"], "not UTF-8"),
    (PROTOCOL, DEEP, ["status", "there"], "protocol.yaml"),
    (PROTOCOL, b"generations: [", ["status", "there"], "not valid YAML"),
    (PROTOCOL, b"seed: 2024-13-45", ["status", "there"], "not valid YAML"),
    (PROTOCOL, b"seed: " + b"9" * 5000, ["status", "there"], "not valid YAML"),
    (PROTOCOL, b"a: &a [*a]\nseed: *a", ["status", "there"], "protocol.yaml"),
    (PROTOCOL, b"\0", ["status", "there"], "not valid YAML"),
    (MANIFEST, NOT_UTF8, ["status", "there"], "not UTF-8"),
    (MANIFEST, b"", ["results", "there"], "not valid JSON"),
    (MANIFEST, b"{}", ["status", "there"], "field required"),
    (MANIFEST, b"{}", ["results", "there"], "field required"),
    (MANIFEST, b"[]", ["results", "there"], "train.json"),
    (MANIFEST, b"7", ["results", "there"], "train.json"),
    (MANIFEST, b"null", ["results", "there"], "train.json"),
    (MANIFEST, DEEP, ["results", "there"], "not valid JSON"),
    (METRICS, NOT_UTF8, ["results", "there"], "not UTF-8"),
    (METRICS, b"{}", ["results", "there"], "field required"),
    (METRICS, b"[]", ["results", "there"], "train.json"),
    (METRICS, DEEP, ["results", "there"], "not valid JSON"),
    (METRICS, ("metrics", {"loss": {"value": "much", "unit": "1", "definition": ""}}), ["results", "there"], "metrics.loss.value"),
    (METRICS, ("metrics", [1]), ["results", "there"], "metrics"),
    (NOTEBOOK, NOT_UTF8, ["status", "there"], "not UTF-8"),
    (NOTEBOOK, b"[]", ["status", "there"], "train.ipynb"),
    (NOTEBOOK, b"{}", ["status", "there"], "train.ipynb"),
    (NOTEBOOK, ("cells", [{"cell_type": "code"}]), ["status", "there"], "cells"),
]


@pytest.mark.parametrize(("file", "content", "arguments", "said"), DAMAGED)
def test_damaged_files_are_named(runs, capsys, file, content, arguments, said):
    path = runs / file
    if isinstance(content, tuple):
        content = json.dumps(json.loads(path.read_text()) | {content[0]: content[1]}).encode()
    path.write_bytes(content)
    line = told(capsys, *arguments)
    assert said in line and path.name in line


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


STORIES = [
    ("one.txt", "Tom ran.\n<|endoftext|>\nMia sat.".encode("utf-16-le"), "NUL bytes"),
    ("one.txt", "Tom ran.\n<|endoftext|>\nMia sat.".encode("utf-16"), "not UTF-8"),
    ("one.jsonl", '{"text": "Tom ran."}\n'.encode("utf-16-le"), "NUL bytes"),
    ("one.jsonl", DEEP, "Line 1"),
    ("one.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "Line 1"),
    ("one.jsonl", b"[]", "JSON object"),
    ("one.jsonl.gz", b"\x1f\x8b\x08", "gzip"),
    ("one.parquet", b"PAR1", "Parquet"),
]


@pytest.mark.parametrize(("name", "content", "said"), STORIES)
def test_damaged_stories_are_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        list(read_stories(load_preset("smoke").with_changes({"corpus.source": str(tmp_path / name)}).corpus))
    assert said in str(raised.value) and name in str(raised.value) and "\n" not in str(raised.value)


def test_a_preset_file_that_is_no_text_is_named(runs, capsys):
    Path("mine.yaml").write_bytes(NOT_UTF8)
    assert "mine.yaml is not UTF-8 text" in told(capsys, "plan", "mine.yaml")


def test_runs_kept_in_a_file_are_refused(runs, capsys, monkeypatch):
    Path("file").write_text("")
    monkeypatch.setenv("COLLAPSE_RUNS", "file")
    for command in (["status"], ["run", "smoke"], ["results"], ["book"]):
        assert "COLLAPSE_RUNS is 'file', which is a file" in told(capsys, *command)
    monkeypatch.setenv("COLLAPSE_RUNS", "~nobody-of-this-name/runs")
    assert "give the path in full" in told(capsys, "status")


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
