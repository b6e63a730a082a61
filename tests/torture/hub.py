"""The hub: a server on this machine that speaks its API, with the files laid out as they truly are, reached by HF_ENDPOINT as the hub is reached."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from torture.campaign import Case, Outcome
from torture.watched import python

TITLE = "The hub"
SHA = "0123456789abcdef0123456789abcdef01234567"
STORIES, GLUE, GPT2 = "roneneldan/TinyStories", "nyu-mll/glue", "EleutherAI/gpt-neo-125M"
NAMES, THINGS, PLACES = ("Tom", "Mia", "Ben", "Zoë"), ("kite", "drum", "hat"), ("park", "wood", "sea", "barn")
TOLD = [f"One day, {name} found a {thing} in the {place}. They were happy." for name in NAMES for thing in THINGS for place in PLACES]
VALIDATION = 6  # of them, the last ones
PHRASES = [{"sentence": f"{word} film", "label": int(word == "fine"), "idx": number} for number, word in enumerate(["fine", "poor"] * 8)]
PROMPTS = ["Once upon a time", "Tom and Mia"]


@dataclass
class Repository:
    """Files of a data set, or of a model, by their paths."""

    files: dict[str, bytes]


@dataclass
class Faults:
    """How the server misbehaves: what happens to the first requests for a path that matches, and to everything."""

    by_path: dict[str, list[str]] = field(default_factory=dict)
    status: dict[str, tuple[int, str]] = field(default_factory=dict)  # by a repository's name: a status with the hub's code for it


class Hub(ThreadingHTTPServer):
    """Speaks what ``datasets`` and ``huggingface_hub`` ask for."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, Repository], faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.faults = repositories, faults
        self.resumed: list[str] = []  # files of which only the rest was asked for
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {self.path}")
        kind, rest = ("datasets", path.removeprefix("/api")) if "/datasets/" in path else ("models", path.removeprefix("/api"))
        found = re.match(rf"(?:/{kind})?/([\w.-]+/[\w.-]+)(?:/(resolve|revision|tree|paths-info)/([^/]+)/?(.*))?$", rest)
        if not found or found[1] not in self.server.repositories:
            return self._refuse(401, "RepoNotFound")  # as the hub says to those who have not logged in
        name, action, _, inside = found.groups()
        if name in self.server.faults.status:
            return self._refuse(*self.server.faults.status[name])
        files = self.server.repositories[name].files
        if action == "resolve":
            return self._file(files, inside)
        if action == "tree":
            return self._json(_listed(files, inside, parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"))
        if action == "paths-info":
            return self._json([entry for entry in _listed(files, "", True) if entry["path"] in _wanted(body, self.headers.get("Content-Type", ""))])
        siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
        about = {"_id": "1", "id": name, "sha": SHA, "private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        return self._json(about | {"siblings": siblings, "lastModified": "2024-01-01T00:00:00.000Z", "createdAt": "2024-01-01T00:00:00.000Z"})

    def _file(self, files: dict[str, bytes], path: str) -> None:
        if path not in files:
            return self._refuse(404, "EntryNotFound")
        content, fault = files[path], self._fault(path)
        if fault and fault.isdigit():
            return self._refuse(int(fault), "")
        begin = int(found[1]) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        if begin and self.command == "GET":
            self.server.resumed.append(path)
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        for name, value in {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if self.command == "GET":
            rest = content[begin:]
            self.wfile.write(rest[: len(rest) // 2] if fault == "break off" else bytes(len(rest)) if fault == "zeros" else rest)
            self.close_connection = fault == "break off"

    def _fault(self, path: str) -> str | None:
        """What is to happen to this request for a file, if anything."""
        if self.command != "GET":
            return None
        for pattern, waiting in self.server.faults.by_path.items():
            if re.search(pattern, path) and waiting:
                return waiting.pop(0)
        return None

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode())

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b'{"error": "refused"}', **({"X-Error-Code": code, "X-Error-Message": code} if code else {}))

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), "X-Repo-Commit": SHA, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def _listed(files: dict[str, bytes], inside: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders as the API lists them."""
    prefix = f"{inside}/" if inside else ""
    found: dict[str, dict[str, Any]] = {}
    for path, content in files.items():
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            folder = prefix + "/".join(parts[:depth])
            found.setdefault(folder, {"type": "directory", "oid": SHA, "size": 0, "path": folder})
        found[path] = {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": path}
    return [entry for entry in found.values() if recursive or "/" not in entry["path"].removeprefix(prefix)]


def _wanted(body: bytes, kind: str) -> list[str]:
    if "json" in kind:
        return json.loads(body)["paths"]
    return parse_qs(body.decode()).get("paths", [])


# --- what lies on it ---------------------------------------------------------------------------------------------------


def _parquet(columns: dict[str, list]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def tiny_stories(declared: int | None = None) -> Repository:
    """TinyStories' layout: four training files and one of validation, a card with the splits' sizes, the prompts beside."""
    train, validation = TOLD[:-VALIDATION], TOLD[-VALIDATION:]
    quarter = -(-len(train) // 4)
    files = {
        f"data/train-{number:05d}-of-00004-2d5a1467fff1081b.parquet": _parquet({"text": train[number * quarter : (number + 1) * quarter]})
        for number in range(4)
    }
    files["data/validation-00000-of-00001-869c898b519ad725.parquet"] = _parquet({"text": validation})
    card = f"""---
dataset_info:
  features:
  - name: text
    dtype: string
  splits:
  - name: train
    num_bytes: {sum(map(len, train))}
    num_examples: {declared or len(train)}
  - name: validation
    num_bytes: {sum(map(len, validation))}
    num_examples: {len(validation)}
  download_size: {sum(map(len, files.values()))}
  dataset_size: {sum(map(len, TOLD))}
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: validation
    path: data/validation-*
---
Stories.
"""
    return Repository(files | {"README.md": card.encode(), "Evaluation prompts.yaml": json.dumps(PROMPTS).encode()})


def glue() -> Repository:
    """GLUE's layout: a folder a configuration, named in the card."""
    columns = {name: [row[name] for row in PHRASES] for name in PHRASES[0]}
    splits = ("train", "validation", "test")
    files = {f"sst2/{split}-00000-of-00001.parquet": _parquet(columns) for split in splits}
    listed = "\n".join(f"  - split: {split}\n    path: sst2/{split}-*" for split in splits)
    return Repository(files | {"README.md": f"---\nconfigs:\n- config_name: sst2\n  data_files:\n{listed}\n---\nGLUE.\n".encode()})


def gpt2() -> Repository:
    """GPT-2's tokeniser as its two older files, beside files of a model that nobody needs."""
    from collapse_lib.text import tokenizer as tokenization

    learned = json.loads(tokenization.learn(iter(TOLD), 300)._tokenizer.to_str())["model"]
    merges = ["#version: 0.2", *(" ".join(pair) if isinstance(pair, list) else pair for pair in learned["merges"])]
    files = {"vocab.json": json.dumps(learned["vocab"]), "merges.txt": "\n".join(merges) + "\n", "config.json": "{}", "README.md": "A model."}
    return Repository({name: text.encode() for name, text in files.items()} | {"pytorch_model.bin": b"\0" * 4096})


# What a user's process does, in one of its own: HF_ENDPOINT is read once.
PROGRAM = """
import json, sys
from collapse_lib import steps
from collapse_lib.experiment.errors import explained
from collapse_lib.experiment.protocol import CorpusSettings, load_preset
from collapse_lib.metrics.gpt_eval import read_prompts
from collapse_lib.steps import preflight
from collapse_lib.text import sources, tasks, tokenizer
what, name = sys.argv[1:]
try:
    if what == "stories":
        found = [list(sources.read_stories(CorpusSettings(source=name), split)) for split in ("train", "validation")]
    elif what == "tokenizer":
        loaded = tokenizer.load(name)
        found = loaded.decode(loaded.encode("Tom found a kite."))
    elif what == "prompts":
        found = read_prompts(name)
    elif what == "task":
        (data,) = tasks.read_tasks(load_preset("smoke").with_changes({"classification.tasks": f"[{name}]"}).classification)
        found = [list(data.test.texts), data.test.labels.tolist()]
    else:  # the path that a user of a preset walks up to the first training
        run = preflight.begin("walk", load_preset(name).with_changes({"classification.tasks": "[sst2]", "model.max_position_embeddings": 2048}))
        measured = steps.corpus(run)["metrics"]
        found = [measured[f"{part}_stories"]["value"] for part in ("train", "holdout", "validation")]
    print(json.dumps({"found": found}))
except Exception as error:
    sentence = explained(error)
    if sentence is None:
        raise
    print(json.dumps({"refused": sentence}))
"""
RIGHT: dict[str, Any] = {
    "stories": [TOLD[:-VALIDATION], TOLD[-VALIDATION:]],
    "tokenizer": "Tom found a kite.",
    "prompts": PROMPTS,
    "task": [[[row["sentence"]] for row in PHRASES], [row["label"] for row in PHRASES]],
}


@dataclass(frozen=True)
class Try:
    """What is asked of a hub with faults: ``said`` is in the refusal, empty where the right thing comes; ``resumed``: of a rest alone."""

    what: str
    name: str
    said: str = ""
    by_path: dict[str, list[str]] = field(default_factory=dict)
    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    hub: Callable[[], dict[str, Repository]] = lambda: {STORIES: tiny_stories(), GLUE: glue(), GPT2: gpt2()}
    resumed: bool = False
    twice: bool = False  # the second time the hub is gone, and the cache serves


def _with(name: str, file: str, content: bytes | None) -> Callable[[], dict[str, Repository]]:
    """The hub with one file of a repository replaced, or taken away."""

    def hub() -> dict[str, Repository]:
        there = {STORIES: tiny_stories(), GLUE: glue(), GPT2: gpt2()}
        there[name].files.pop(file)
        there[name].files |= {} if content is None else {file: content}
        return there

    return hub


def _large() -> dict[str, Repository]:
    """Files large enough to be asked for by parts: clients keep what has come in pieces of ten megabytes."""
    there = {STORIES: tiny_stories()}
    for name, content in there[STORIES].files.items():
        if "train-00001" in name:
            footer = 8 + int.from_bytes(content[-8:-4], "little")  # with its length and the mark behind it; what is before it may have gaps
            there[STORIES].files[name] = content[:-footer] + bytes(40_000_000) + content[-footer:]
    return there


TRIES = {
    "stories": Try("stories", STORIES),
    "stories, from the cache when the hub is gone": Try("stories", STORIES, twice=True),
    "a tokeniser": Try("tokenizer", GPT2),
    "a tokeniser, from the cache when the hub is gone": Try("tokenizer", GPT2, twice=True),
    "prompts": Try("prompts", STORIES),
    "a task of GLUE": Try("task", "sst2"),
    "paper-1m up to its first training": Try("walk", "paper-1m"),
    "a download that breaks off goes on from there": Try("stories", STORIES, by_path={"train-00001": ["break off"]}, hub=_large, resumed=True),
    "a download that breaks off for ever": Try("stories", STORIES, "could not be fetched", by_path={"train-00001": ["break off"] * 99}),
    "no such data set": Try("stories", "nobody/tales", "could not be fetched"),
    "no such tokeniser": Try("tokenizer", "nobody/tokens", "could not be fetched"),
    "no such prompts": Try("prompts", "nobody/tales", "could not be fetched"),
    "a gated data set": Try("stories", STORIES, "could not be fetched", status={STORIES: (403, "GatedRepo")}),
    "a gated tokeniser": Try("tokenizer", GPT2, "could not be fetched", status={GPT2: (403, "GatedRepo")}),
    "a hub that is down": Try("stories", STORIES, "could not be fetched", status={STORIES: (503, "")}),
    "a card that declares other sizes": Try("stories", STORIES, "its card declares", hub=lambda: {STORIES: tiny_stories(declared=2_119_719)}),
    "a file of zeros": Try("stories", STORIES, "could not be fetched", by_path={"train-00002": ["zeros"] * 99}),
    "a Parquet file that is none": Try(
        "stories",
        STORIES,
        "could not be fetched",
        hub=_with(STORIES, "data/validation-00000-of-00001-869c898b519ad725.parquet", b"PAR1 not really"),
    ),
    "a tokeniser without its merges": Try("tokenizer", GPT2, "neither", hub=_with(GPT2, "merges.txt", None)),
    "a tokeniser that is a page": Try("tokenizer", GPT2, "cannot be read", hub=_with(GPT2, "vocab.json", b"<html>")),
    "prompts that are none": Try("prompts", STORIES, "not a YAML list", hub=_with(STORIES, "Evaluation prompts.yaml", b"{a: b")),
    "a data set without the configuration": Try("task", "sst2", "could not be fetched", hub=_with(GLUE, "README.md", b"GLUE.")),
}


def cases(place: Path, order: random.Random) -> list[Case]:
    names = list(TRIES)
    order.shuffle(names)
    return [Case(name, _attempt(TRIES[name])) for name in names]


@contextmanager
def serving(repositories: dict[str, Repository], faults: Faults) -> Iterator[Hub]:
    with Hub(repositories, faults) as hub:
        threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield hub
        hub.shutdown()


def _attempt(wanted: Try) -> Callable[[Path], Outcome]:
    def attempt(scratch: Path) -> Outcome:
        faults = Faults({path: [*waiting] for path, waiting in wanted.by_path.items()}, wanted.status)
        with serving(wanted.hub(), faults) as hub:
            outcome = _outcome(wanted, scratch, f"http://127.0.0.1:{hub.server_port}")
            if wanted.resumed and outcome.verdict == "right" and not hub.resumed:
                outcome = Outcome("fetched twice", "the whole file was asked for again")
        if wanted.twice and outcome.verdict == "right":
            outcome = _outcome(wanted, scratch, "http://127.0.0.1:9")  # where nobody listens
        return outcome

    return attempt


def _outcome(wanted: Try, scratch: Path, url: str) -> Outcome:
    variables = {"HF_ENDPOINT": url, "HF_HOME": str(scratch / "home"), "COLLAPSE_RUNS": str(scratch / "runs"), "HF_HUB_DISABLE_XET": "1"}
    variables |= {name: "" for name in os.environ if name.lower().endswith("_proxy")}
    done = python(["-c", PROGRAM, wanted.what, wanted.name], variables)
    if done.returncode:
        return Outcome("traceback", done.stderr[-3000:])
    answer = json.loads(done.stdout.splitlines()[-1])
    if refusal := answer.get("refused"):
        if not wanted.said:
            return Outcome("refused to go on", refusal)
        is_sentence = "\n" not in refusal and len(refusal) < 700 and "[{" not in refusal and "SplitInfo" not in refusal
        return Outcome("refused" if is_sentence and wanted.said in refusal else "another sentence", refusal)
    if wanted.said:
        return Outcome("used", str(answer)[:500])
    if wanted.what == "walk":
        return Outcome("right" if sum(answer["found"]) == len(TOLD) else "used", str(answer))
    return Outcome("right" if answer["found"] == json.loads(json.dumps(RIGHT[wanted.what])) else "used", str(answer)[:500])
