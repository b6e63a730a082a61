"""Bad input: whatever is given, the command says in one sentence what was wrong, ends with status 2, and leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import nbformat
from synthetic_runs import write_run

from torture.campaign import Case, Outcome
from torture.small import fingerprint

TITLE = "Bad input"
LONG = "n" * 300
LONGEST_SENTENCE = 1500  # characters
NOT_UTF8 = b"description: \xff\xfe\n"
DEEP = b"[" * 100_000
PROTOCOL = "runs/there/protocol.yaml"
MANIFEST = "runs/there/generation-01/manifests/train.json"
METRICS = "runs/there/generation-01/metrics/train.json"
NOTEBOOK = "runs/there/generation-01/train.ipynb"


class Row(NamedTuple):
    """A command, what its sentence must hold, and the files that it meets: a path to its bytes; to a member and a value, of a JSON file that is
    there; or to None, for a folder. Paths are relative to the working directory, which has the runs in ``runs``."""

    arguments: list[str]
    said: str
    files: dict[str, bytes | tuple[str, object] | None] = {}  # noqa: RUF012 - of a named tuple
    environment: dict[str, str] = {}  # noqa: RUF012

    @property
    def name(self) -> str:
        damaged = [f"{path} = {_shown(content)}" for path, content in self.files.items()]
        words = [f"{name}={value}" for name, value in self.environment.items()]
        command = " ".join(map(_word, self.arguments))
        return "; ".join([" ".join([*words, "collapse", command]), *damaged])


def _word(word: str) -> str:
    """An argument for the eye."""
    shortened = f"{word[:40]}…{word[-5:]}" if len(word) > 60 else word
    return shortened if shortened and shortened.isprintable() else ascii(shortened)


def _shown(content: bytes | tuple[str, object] | None) -> str:
    return "a folder" if content is None else ascii(content[:24] if isinstance(content, bytes) else content)


def cases(place: Path, order: random.Random) -> list[Case]:
    rows = [*ROWS]
    order.shuffle(rows)
    return [Case(row.name, lambda scratch, row=row: attempt(row, scratch)) for row in rows]


class TooLate(BaseException):
    """What is refused by a step, and not before the first one."""


def attempt(row: Row, place: Path) -> Outcome:
    """Give the command what the row says, in a folder of its own."""
    os.chdir(place)
    os.environ |= {"COLLAPSE_RUNS": str(place / "runs")} | row.environment
    write_there(place / "runs")
    for path, content in row.files.items():
        _put(place / path, content)
    before = everything(place)
    try:
        with mock.patch("collapse_lib.experiment.execute._kernel", side_effect=TooLate):
            status, said, printed = called(row.arguments)
    except TooLate:
        return Outcome("too late", "a kernel would have been started")
    if "Traceback" in said + printed:
        return Outcome("traceback", said)
    if status != 2:
        return Outcome("accepted" if status == 0 else "unexplained", f"exit status {status}: {said}")
    if said.count("\n") != 1 or not said.startswith("collapse: ") or not said.endswith(".\n") or len(said) > LONGEST_SENTENCE or LONG in said:
        return Outcome("not one sentence", said)
    if row.said not in said:
        return Outcome("another sentence", said)
    after = everything(place)
    if left := sorted(path for path in after.keys() | before.keys() if after.get(path) != before.get(path)):
        return Outcome("left behind", ", ".join(left))
    return Outcome("refused", said.strip())


def called(arguments: list[str]) -> tuple[int, str, str]:
    """Exit status, standard error and standard output of a command, called in this process."""
    from collapse_lib import cli

    errors, printed = io.StringIO(), io.StringIO()
    with redirect_stderr(errors), redirect_stdout(printed):
        try:
            status = cli.main(arguments)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
    return status, errors.getvalue(), printed.getvalue()


def everything(folder: Path) -> dict[str, str]:
    """What is in a folder: files with their hashes and folders, but for locks, which are left to be taken again."""
    return {str(path.relative_to(folder)): "" for path in folder.rglob("*") if path.suffix != ".lock"} | fingerprint(folder)


def write_there(runs: Path) -> None:
    """A finished run ``there``, with one executed notebook."""
    write_run(runs, "there", 1)
    executed = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", execution_count=1, outputs=[nbformat.v4.new_output("display_data")])])
    executed.metadata["papermill"] = {"start_time": "2024-01-01T00:00:00", "end_time": "2024-01-01T00:00:01"}
    nbformat.write(executed, runs / "there" / "generation-01" / "train.ipynb")


def _put(path: Path, content: bytes | tuple[str, object] | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
        path.mkdir(parents=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, tuple):
        content = json.dumps(json.loads(path.read_text()) | {content[0]: content[1]}).encode()
    path.write_bytes(content)


# --- fields of a protocol ----------------------------------------------------------------------------------------------

SET = [
    ("sampling.temperature=1e-300", "sampling.temperature"),
    ("sampling.temperature=inf", "finite"),
    ("sampling.temperature=.nan", "sampling.temperature"),
    ("sampling.temperature=0", "sampling.temperature"),
    ("sampling.temperature=-1", "sampling.temperature"),
    ("sampling.temperature=hot", "sampling.temperature"),
    ("sampling.temperature=[1, 2]", "sampling.temperature"),
    ("sampling.temperature=", "sampling.temperature"),
    ("sampling.top_p=0", "sampling.top_p"),
    ("sampling.top_p=1.5", "sampling.top_p"),
    ("sampling.top_k=0", "sampling.top_k"),
    ("sampling.top_k=1.5", "sampling.top_k"),
    ("sampling.length=0", "sampling.length"),
    ("sampling.length=1" + "0" * 40, "sampling.length"),
    ("sampling.max_context=10000", "model.max_position_embeddings"),
    ("sampling.overflow=wrap", "sampling.overflow"),
    ("sampling.shard_sequences=1e999", "sampling.shard_sequences"),
    ("model.initializer_range=inf", "model.initializer_range"),
    ("model.initializer_range=nan", "model.initializer_range"),
    ("model.hidden_size=17", "model.num_heads = 4 does not divide"),
    ("model.hidden_size=100000000", "model.hidden_size"),
    ("model.num_layers=100000000", "model.num_layers"),
    ("model.num_layers=0", "model.num_layers"),
    ("model.num_layers=true", "field 'num_layers' is true"),
    ("model.attention_pattern=[]", "model.attention_pattern"),
    ("model.attention_pattern=[sideways]", "model.attention_pattern"),
    ("model.max_position_embeddings=10000000000", "model.max_position_embeddings"),
    ("training.block_size=65", "more than model.max_position_embeddings = 64"),
    ("training.micro_batch_size=7", "is not a multiple of training.micro_batch_size = 7"),
    ("training.schedule=linear", "give training.epochs a number"),
    ("training.holdout=0", "training.holdout"),
    ("training.holdout=1", "training.holdout"),
    ("training.holdout=0.9999", "holds out all 200 training stories"),
    ("training.precision=fp8", "training.precision"),
    ("training.learning_rate=inf", "training.learning_rate"),
    ("training.learning_rate=nan", "training.learning_rate"),
    ("training.learning_rate=-0.1", "training.learning_rate"),
    ("training.weight_decay=inf", "training.weight_decay"),
    ("training.weight_decay=nan", "training.weight_decay"),
    ("training.epsilon=1e-300", "training.epsilon"),
    ("training.max_grad_norm=inf", "training.max_grad_norm"),
    ("training.betas=[nan, 0.9]", "training.betas"),
    ("training.betas=[0.9]", "training.betas"),
    ("regime.name=mix", "share"),
    ("regime.name=chaos", "regime.name"),
    ("regime.share=0.5", "share"),
    ("regime.training=epochs", "'accumulate' alone"),
    ("corpus.stories=null", "the grammar has no end"),
    ("corpus.stories=0", "corpus.stories"),
    ("corpus.skip=-1", "corpus.skip"),
    ("corpus.grammar=klingon", "corpus.grammar"),
    ("corpus.seed=-1", "corpus.seed"),
    ("corpus.stories=1", "corpus.stories"),
    ("tokenizer.vocabulary=0", "tokenizer.vocabulary"),
    ("tokenizer.vocabulary=3", "tokenizer.vocabulary is 3; allowed is 257"),
    ("tokenizer.vocabulary=256", "tokenizer.vocabulary is 256; allowed is 257"),
    ("tokenizer.vocabulary=65537", "to 65536"),
    ("tokenizer.vocabulary=100000", "tokenizer.vocabulary is 100000"),
    ("generations=0", "generations"),
    ("generations=1000000000", "generations"),
    ("generations=2.5", "generations"),
    ("classification.epochs=inf", "classification.epochs"),
    ("classification.max_length=1", "classification.max_length"),
    ("classification.tasks=[chess]", "classification.tasks"),
    ("classification.tasks=[sst2, sst2]", "more than once"),
    ("gpt_eval.timeout=inf", "gpt_eval.timeout"),
    ("gpt_eval.price_in=inf", "gpt_eval.price_in"),
    ("gpt_eval.max_cost=nan", "gpt_eval.max_cost"),
    ("gpt_eval.max_cost=1", "needs gpt_eval.price_in"),
    ("gpt_eval.judge=''", "gpt_eval.judge"),
    ("alpha.smoothing=[0]", "alpha.smoothing"),
    ("texture.block_stories=1", "texture.block_stories"),
    ("seed=-1", "seed"),
    ("seed=4294967296", "seed"),
    ("seed=" + "9" * 5000, "not a plain value"),
    ("seed=2024-13-45", "not a plain value"),
    ("seed=" + "[" * 5000, "not a plain value"),
    ("seed=" + "x" * 5000, "field 'seed'"),
    ("seed={a: " + "b" * 5000 + "}", "field 'seed'"),
    ("seed=!!python/object/apply:os.system [true]", "not a plain value"),
    ("description=[1]", "description"),
    ("training.batch_sise=8", "did you mean training.batch_size."),
    ("training.nothing=8", "section 'training' has layout, block_size"),
    ("training=fast", "There is no field 'training'"),
    ("nothing.at.all=8", "`collapse presets --fields`"),
    ("no sign", "FIELD=VALUE"),
    ("=8", "FIELD=VALUE"),
    ("two\nlines", r"two\nlines"),
    ("training.batch_size=two\n\nlines", r"two\nlines"),
]

# --- arguments ---------------------------------------------------------------------------------------------------------

FOLDERS = {f"folder.{suffix}": None for suffix in ("csv", "json", "parquet", "yaml")}
ARGUMENTS = [
    ([], "required"),
    (["nonsense"], "invalid choice"),
    (["run"], "required: preset"),
    (["run", "smoke", "--generations", "many"], "invalid int value: 'many'"),
    (["run", "smoke", "--generations", "0"], "generations"),
    (["run", "smoke", "--generations", "9" * 5000], "generations"),
    (["run", "smoke", "--device", "abacus"], "'abacus'"),
    (["run", "smoke", "--device", "cpu", "--set", "training.precision=fp16"], "needs a GPU"),
    (["run", "smoke", "--device", "cpu", "--processes", "3"], "training.batch_size = 16 cannot be shared evenly by 3 processes"),
    (["run", "smoke", "--device", "cpu", "--processes", "4", "--set", "training.micro_batch_size=8"], "choose a micro-batch size that divides 4"),
    (["run", "smoke", "--set", "sampling.sequences=1", "--set", "sampling.length=8"], "fewer tokens than one block of training.block_size = 32"),
    (["run", "smoke", "--set", "sampling.overflow=extend", "--set", "sampling.length=65"], "more than model.max_position_embeddings = 64"),
    (["run", "smoke", "--set", "sampling.overflow=extend", "--set", "completions.max_new_tokens=65"], "more than model.max_position_embeddings = 64"),
    (["run", "smoke", "--set", "sampling.overflow=extend", "--set", "continuations.tokens=65"], "more than model.max_position_embeddings = 64"),
    (["run", "smoke", "--set", "gpt_eval.judge=m", "--set", "corpus.validation_stories=1"], "corpus.validation_stories is 1"),
    (["run", "smoke", "--processes", "-1"], "whole number of at least 0"),
    (["run", "smoke", "--processes", "many"], "whole number of at least 0"),
    (["run", "smoke", "--processes", "9" * 30], "whole number of at least 0"),
    (["run", "smoke", "--max-cost", "much"], "gpt_eval.max_cost"),
    (["run", "smoke", "--no-such-option"], "unrecognized arguments"),
    (["run", "smoke", "--name", "two\nlines"], r"two\nlines"),
    (["run", "smoke", "--name", "\x1b[31mred"], r"\x1b[31mred"),
    (["run", "smoke", "--name", ""], "cannot be called ''"),
    (["run", "smoke", "--name", "a/b"], "cannot be called 'a/b'"),
    (["run", "smoke", "--name", ".."], "cannot be called '..'"),
    (["run", "smoke", "--name", "-x"], "--name"),
    (["run", "smoke", "--name", "all"], "cannot be called 'all'"),
    (["run", "smoke", "--name", "newest"], "cannot be called 'newest'"),
    (["run", "smoke", "--name", "judge.sqlite"], "cannot be called 'judge.sqlite'"),
    (["run", "smoke", "--name", LONG], "100 characters"),
    (["run", "smoke", "--name", "наука"], "cannot be called"),
    (["run", LONG + ".yaml"], "too long"),
    (["run", LONG], "no preset"),
    (["run", "absent.yaml"], "absent.yaml"),
    (["run", "folder.yaml"], "no protocol file"),
    (["run", ""], "no preset ''"),
    (["step", "absent", "train", "1"], "no run"),
    (["step", "there", "juggle", "1"], "no step 'juggle'"),
    (["step", "there", "train", "0"], "no step 'train' in generation 0"),
    (["step", "there", "train", "2"], "no generation 2"),
    (["step", "there", "train", "-1"], "no step 'train' in generation -1"),
    (["step", "there", "train", "one"], "invalid int value"),
    (["status", LONG], "no run"),
    (["status", "two\nlines"], r"two\nlines"),
    (["status", "../runs/there"], "no run"),
    (["results", "no\u2028where"], r"no\u2028where"),
    (["results", "\udcff"], r"\udcff"),
    (["results", "--format", "xml"], "'xml'"),
    (["results", "there", "--output", "numbers.docx"], ".csv, .json or .parquet"),
    (["results", "there", "--output", "folder.csv"], "a file is wanted there, not a folder"),
    (["results", "there", "--output", "folder.json"], "a file is wanted there, not a folder"),
    (["results", "there", "--output", "folder.parquet"], "folder.parquet"),
    (["results", "there", "--output", LONG + ".csv"], "too long"),
    (["results", "there", "--output", "absent/out.csv"], "no folder"),
    (["repair", "absent"], "no run"),
    (["rm", "absent", "--yes"], "no run"),
    (["rm", "newest", "--yes"], "cannot be called 'newest'"),
    (["rm", "..", "--yes"], "cannot be called '..'"),
    (["rm", "."], "cannot be called '.'"),
    (["twins", "absent"], "no preset"),
    (["twins", "smoke", "--change", "nothing=1"], "not in 'nothing'"),
    (["twins", "smoke", "--change", "no sign"], "--change takes FIELD=VALUE"),
    (["twins", "smoke", "--name", "n" * 100], "characters"),
    (["book", "absent"], "no run"),
    (["export", "absent"], "no run"),
    (["export", "there", "--generation", "1"], "--hub-folder"),
    (["export", "there", "--hub-folder", "--generation", "7"], "7"),
    (["export", "there", "--hub-folder", "--generation", "0"], "at least 1"),
    (["export", "there"], "made under another protocol"),
    (["presets", "absent"], "no preset"),
    (["study"], "required: TASK"),
    (["study", "plan", "absent"], "no study 'absent'"),
    (["study", "plan", "absent.yaml"], "no study file"),
    (["study", "run", "regimes", "--chain", "absent-1"], "no chain 'absent-1'"),
    (["study", "run", "regimes", "--jobs", "0"], "at least 1"),
    (["study", "run", "regimes", "--generations", "-2"], "at least 1"),
    (["study", "status", "../studies/x"], "no study"),
    (["study", "results", "regimes"], "no results yet"),
    (["study", "record", "regimes"], "no results yet"),
    (["judge"], "required: TASK"),
    (["judge", "estimate", "there"], "judge"),
    (["judge", "serve", "--port", "99999"], "not a port"),
    (["judge", "serve", "--port", "-1"], "not a port"),
    (["judge", "serve", "--threads", "0"], "at least 1"),
    (["bench", "sampling", "--rounds", "0"], "at least one round"),
    (["bench", "sampling", "--output", LONG + "/x.json"], "too long"),
    (["bench", "knitting"], "'knitting'"),
    (["completion", "tcsh"], "'tcsh'"),
    (["plan", "smoke", "--machine", LONG], "too long"),
    (["plan", "smoke", "--machine", "none", "--record", "here.json"], "give one of the two"),
    (["plan", "smoke", "--machine", "none", "--output", "absent/plan.json"], "no folder"),
    (["plan", "smoke", "--check", "absent"], "no run"),
]

# --- files of a run ----------------------------------------------------------------------------------------------------

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
    (PROTOCOL, b"seed: !!python/object/apply:os.getpid []", ["status", "there"], "not valid YAML"),
    (MANIFEST, NOT_UTF8, ["status", "there"], "not UTF-8"),
    (MANIFEST, b"", ["results", "there"], "not valid JSON"),
    (MANIFEST, b"{}", ["status", "there"], "field required"),
    (MANIFEST, b"{}", ["results", "there"], "field required"),
    (MANIFEST, b"[]", ["results", "there"], "train.json"),
    (MANIFEST, b"7", ["results", "there"], "train.json"),
    (MANIFEST, b"null", ["results", "there"], "train.json"),
    (MANIFEST, DEEP, ["results", "there"], "not valid JSON"),
    (MANIFEST, None, ["results", "there"], "train.json"),
    (MANIFEST, ("step", "../../x"), ["results", "there"], "train.json"),
    (MANIFEST, ("generation", 10**30), ["results", "there"], "train.json"),
    (METRICS, NOT_UTF8, ["results", "there"], "not UTF-8"),
    (METRICS, b"{}", ["results", "there"], "field required"),
    (METRICS, b"[]", ["results", "there"], "train.json"),
    (METRICS, DEEP, ["results", "there"], "not valid JSON"),
    (METRICS, ("metrics", {"loss": {"value": "much", "unit": "1", "definition": ""}}), ["results", "there"], "metrics.loss.value"),
    (METRICS, ("metrics", {"loss": {"value": 10**400, "unit": "1", "definition": ""}}), ["results", "there"], "train.json"),
    (METRICS, ("metrics", [1]), ["results", "there"], "metrics"),
    (NOTEBOOK, NOT_UTF8, ["status", "there"], "not UTF-8"),
    (NOTEBOOK, b"[]", ["status", "there"], "train.ipynb"),
    (NOTEBOOK, b"{}", ["status", "there"], "train.ipynb"),
    (NOTEBOOK, ("cells", [{"cell_type": "code"}]), ["status", "there"], "cells"),
    ("runs/there/study.json", b"{}", ["study", "status"], "study.json"),
    ("runs/there/study.json", NOT_UTF8, ["study", "status"], "study.json is not UTF-8"),
    ("runs/studies/mine/study.json", b"{}", ["study", "status", "mine"], "study.json"),
    ("runs/studies/mine/study.json", b"[]", ["study", "status", "mine"], "study.json"),
    ("runs/studies/mine/study.json", DEEP, ["study", "results", "mine"], "study.json"),
    ("runs/studies/mine/study.json", b'{"specification": 7, "chains": 7}', ["study", "results", "mine"], "study.json"),
    ("runs/twins.json", b"{}", ["plan", "smoke", "--machine", "runs/twins.json"], "is not a machine"),
    ("runs/bench/laptop.json", b"[]", ["plan", "smoke", "--machine", "laptop"], "laptop.json"),
    ("runs/bench/laptop.json", DEEP, ["plan", "smoke", "--machine", "laptop"], "not valid JSON"),
    ("mine.yaml", NOT_UTF8, ["plan", "mine.yaml"], "mine.yaml is not UTF-8 text"),
    ("mine.yaml", b"nothing: 1", ["plan", "mine.yaml"], "no field 'nothing'"),
    ("mine.yaml", b"model: 7", ["plan", "mine.yaml"], "field 'model' is 7"),
    ("mine.yaml", b"1: 2", ["plan", "mine.yaml"], "mine.yaml"),
    ("study.yaml", b"", ["study", "plan", "study.yaml"], "study.yaml"),
    ("study.yaml", b"7", ["study", "plan", "study.yaml"], "study.yaml"),
    ("study.yaml", b"? [a]\n: b", ["study", "plan", "study.yaml"], "study.yaml"),
    ("study.yaml", b"? {a: b}\n: b", ["study", "plan", "study.yaml"], "study.yaml"),
    ("study.yaml", NOT_UTF8, ["study", "plan", "study.yaml"], "study.yaml is not UTF-8 text"),
    ("study.yaml", b"name: x\nname: y", ["study", "plan", "study.yaml"], "'name' stands twice"),
    (
        "study.yaml",
        b"{name: x, base: nowhere, generations: 1, arms: {a: }, measures: {m: perplexity.perplexity}}",
        ["study", "plan", "study.yaml"],
        "no preset 'nowhere'",
    ),
    (
        "study.yaml",
        b"{name: x, base: smoke, generations: 1, arms: {a: {nothing: 1}}, measures: {m: perplexity.perplexity}}",
        ["study", "plan", "study.yaml"],
        "no field 'nothing'",
    ),
    (
        "study.yaml",
        b"{name: ../x, base: smoke, generations: 1, arms: {a: }, measures: {m: perplexity.perplexity}}",
        ["study", "run", "study.yaml"],
        "no study can be called '../x'",
    ),
]

# --- stories -----------------------------------------------------------------------------------------------------------

STORIES = [
    ("one.txt", "Tom ran.\n<|endoftext|>\nMia sat.".encode("utf-16-le"), "NUL bytes"),
    ("one.txt", "Tom ran.\n<|endoftext|>\nMia sat.".encode("utf-16"), "not UTF-8"),
    ("one.txt", b"", "holds no story"),
    ("one.txt", b"Tom ran.", "one story only"),
    ("one.txt", b"Tom ran.\n<|endoftext|>\nMia sat.", "gives one training story only"),
    ("one.txt", b"<|endoftext|>" * 9, "holds no story"),
    ("one.txt", b"a" * 2_500_000, "longer than 1,000,000 characters"),
    ("one.jsonl", '{"text": "Tom ran."}\n'.encode("utf-16-le"), "NUL bytes"),
    ("one.jsonl", DEEP, "Line 1"),
    ("one.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "Line 1"),
    ("one.jsonl", b"[]", "JSON object"),
    ("one.jsonl", b'{"story": "Tom ran."}', "no field 'text'"),
    ("one.jsonl", b'{"text": 7}', "not text"),
    ("one.jsonl", b'{"text": "half \\ud800 pair"}\n' * 3, "surrogate"),
    ("one.jsonl.gz", b"\x1f\x8b\x08", "gzip"),
    ("one.jsonl.gz", b"not gzip", "gzip"),
    ("one.parquet", b"PAR1", "Parquet"),
    ("one.parquet", b"", "Parquet"),
    ("one.docx", b"PK", "story files"),
    ("one/notes.md", b"Tom ran.", "holds no story file"),
    ("one/validation.txt", b"Tom ran.", "validation files only"),
]


def _stories(name: str, content: bytes, said: str) -> Row:
    source = name.partition("/")[0]
    return Row(["run", "smoke", "--name", "mine", "--set", f"corpus.source={source}", "--set", "corpus.stories=null"], said, {name: content})


ELSEWHERE = [
    Row(["status"], "COLLAPSE_RUNS is 'file', which is a file", {"file": b""}, {"COLLAPSE_RUNS": "file"}),
    Row(["run", "smoke"], "COLLAPSE_RUNS is 'file', which is a file", {"file": b""}, {"COLLAPSE_RUNS": "file"}),
    Row(["results"], "COLLAPSE_RUNS is 'file', which is a file", {"file": b""}, {"COLLAPSE_RUNS": "file"}),
    Row(["book"], "COLLAPSE_RUNS is 'file', which is a file", {"file": b""}, {"COLLAPSE_RUNS": "file"}),
    Row(["status"], "give the path in full", {}, {"COLLAPSE_RUNS": "~nobody-of-this-name/runs"}),
    Row(["run", "smoke", "--name", "mine"], "cannot be read or written", {"runs/mine": b""}),
    Row(["run", "smoke", "--set", "corpus.source=absent.txt"], "no file or folder 'absent.txt'"),
    Row(["run", "smoke", "--set", "corpus.source=~nobody-of-this-name/x.txt"], "give the path in full"),
    Row(["run", "smoke", "--set", "corpus.validation_source=absent.txt"], "no file or folder 'absent.txt'"),
    Row(["run", "smoke", "--set", "tokenizer.source=run:absent"], "no run 'absent'"),
    Row(["run", "smoke", "--set", "tokenizer.source=run:there"], "there"),
    Row(["run", "smoke", "--set", "tokenizer.source=bad.json"], "bad.json", {"bad.json": b"{}"}),
    Row(["run", "smoke", "--set", "tokenizer.source=empty"], "neither tokenizer.json", {"empty": None}),
    Row(["run", "smoke", "--set", "completions.prompts=bad.yaml"], "bad.yaml", {"bad.yaml": b"7"}),
    Row(["run", "smoke", "--set", "completions.prompts=bad.yaml"], "bad.yaml", {"bad.yaml": NOT_UTF8}),
    Row(["run", "smoke", "--set", "completions.prompts=absent.yaml"], "absent.yaml"),
    Row(["run", "smoke", "--set", "classification.tasks=[sst2]", "--set", "classification.data=absent"], "absent"),
    Row(["run", "smoke", "--set", "gpt_eval.judge=m"], "OPENAI_API_KEY", {}, {"OPENAI_API_KEY": "", "OPENAI_BASE_URL": ""}),
    Row(["run", "smoke", "--set", "gpt_eval.judge=m"], "OPENAI_BASE_URL", {}, {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "no address"}),
    Row(["run", "smoke", "--device", "cuda"], "GPU"),
    Row(["run", "smoke", "--processes", "3", "--device", "cuda"], "GPU"),
]


def _rows() -> Iterator[Row]:
    for change, said in SET:
        # What belongs to a file or a machine is found last, so that a field that was let through is seen.
        yield Row(["run", "smoke", "--name", "mine", "--set", change], said)
    for arguments, said in ARGUMENTS:
        yield Row(arguments, said, FOLDERS)
    for path, content, arguments, said in DAMAGED:
        yield Row(arguments, said, {path: content})
    yield from (_stories(*row) for row in STORIES)
    yield from ELSEWHERE


ROWS = list(_rows())
