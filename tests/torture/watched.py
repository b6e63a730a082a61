"""Processes that ask before they change a file: a state of the files can be kept, a disk be full, at every operation."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR
from typing import NamedTuple

from torture.campaign import ROOT

SOURCE = Path(__file__).with_name("watched.c")
GO, FULL = b"g", b"n"


class Operation(NamedTuple):
    """What a process is about to do: ``open`` (to write), ``write``, ``truncate``, ``rename``, ``unlink``, ``mkdir`` or ``rmdir``, to which file."""

    kind: str
    path: str


Decide = Callable[[Operation], bytes]  # called before each operation, of whatever process, one at a time


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


@contextmanager
def watching(folder: Path, decide: Decide) -> Iterator[dict[str, str]]:
    """Have ``decide`` asked before every change under ``folder`` by the processes that are given the variables which this yields."""
    with tempfile.TemporaryDirectory(prefix="torture") as place:  # short, as a socket's name must be
        library, address = Path(place) / "watched.so", f"{place}/asked"
        subprocess.run([compiler(), "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
        server = socket.socket(socket.AF_UNIX)
        server.bind(address)
        server.listen(64)

        failures: list[Exception] = []

        def answer() -> None:
            while True:
                asking, _ = server.accept()
                with asking, asking.makefile("rb") as said:
                    line = said.readline().decode(errors="replace").rstrip("\n")
                    if not line:
                        return
                    kind, _, path = line.partition("\t")
                    try:
                        asking.send(decide(Operation(kind, path.removeprefix(f"{folder}/"))))
                    except Exception as error:  # who is asking waits for an answer, whatever becomes of this
                        failures.append(error)
                        asking.send(GO)

        listener = threading.Thread(target=answer, daemon=True)
        listener.start()
        try:
            yield {"LD_PRELOAD": str(library), "TORTURE_FOLDER": str(folder), "TORTURE_SOCKET": address}
        finally:
            with socket.socket(socket.AF_UNIX) as last:  # an empty line ends the listener
                last.connect(address)
            listener.join(timeout=10)
            server.close()
        if failures:
            raise failures[0]


# What a watched process does: all steps of a small run, in itself.
PROGRAM = """
import sys
from torture.small import Refused, begin, finish
from collapse_lib.experiment.errors import explained
try:
    finish(begin(__import__("pathlib").Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
except Exception as error:
    sentence = str(error) if isinstance(error, Refused) else explained(error)
    if sentence is None:
        raise
    print(sentence, file=sys.stderr)
    sys.exit(2)
"""


def finished_in_itself(runs: Path, regime: str, generations: int, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Finish a small run in a process of its own."""
    return python(["-c", PROGRAM, str(runs), regime, str(generations)], variables)


def python(arguments: list[str], variables: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A Python that finds the library, these tests, and a terminal without bars."""
    known = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TQDM_DISABLE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | known | (variables or {}), cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800
    )


class States:
    """Every distinct state in which the files of a folder have been, each content kept once in ``store``.

    Of a temporary file, which nobody reads, only counts whether it is there and whether it is empty; of a lock, whether it is there.
    """

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder, self.store = folder, store
        self.known: dict[str, dict[str, str | None]] = {}
        self.hashes: dict[tuple[int, ...], str] = {}
        store.mkdir(parents=True, exist_ok=True)

    def keep(self, operation: Operation) -> bytes:
        """Keep the state before an operation."""
        state: dict[str, str | None] = {}
        for path in sorted(self.folder.rglob("*")):
            with suppress(FileNotFoundError):  # another process was told to go on, and moves it just now
                status = path.stat()
                state[str(path.relative_to(self.folder))] = None if S_ISDIR(status.st_mode) else self._content(path, status)
        told = {name: content if content is None or ".tmp" not in name else path_is_empty(content) for name, content in state.items()}
        key = hashlib.sha256(json.dumps({name: None if name.endswith(".lock") else content for name, content in told.items()}).encode()).hexdigest()
        self.known.setdefault(key, state)
        return GO

    def _content(self, path: Path, status: os.stat_result) -> str:
        version = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if version not in self.hashes:
            content = path.read_bytes()
            self.hashes[version] = hashlib.sha256(content).hexdigest()
            (self.store / self.hashes[version]).write_bytes(content)
        return self.hashes[version]


EMPTY = hashlib.sha256(b"").hexdigest()


def path_is_empty(content: str) -> str:
    return "empty" if content == EMPTY else "something"


def put(state: dict[str, str | None], store: Path, folder: Path) -> None:
    """Have a folder be in a state that was kept."""
    for name, content in state.items():
        place = folder / name
        if content is None:
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(store / content, place)
