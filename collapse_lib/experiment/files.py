"""Files that are either whole or not there, and locks that die with their holder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from collapse_lib.experiment.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: beside its place, then renamed into it. A device or a pipe, such as /dev/stdout, is written to as it is."""
    if path.exists() and not path.is_file():
        with naming(path):
            path.write_text(text, encoding="utf-8")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.tmp")  # one name, so that what a killed writer left is written over
    with naming(path):
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)


def sync(path: Path) -> None:
    """Have a file, or all files of a folder, on the disk before anything is said to vouch for them."""
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        with naming(file), file.open("rb") as opened:
            os.fsync(opened.fileno())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an ``OSError`` inside the block name ``path``: a full disk is reported without saying which file it was."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented so that a committed run has readable differences."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with the hash of its other members as its member ``sha256``, by which ``read_json`` knows that it is whole."""
    content = {name: member for name, member in value.items() if name != "sha256"}
    return content | {"sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def read_text(path: Path, remedy: str = "") -> str:
    """The text in a file; ``UserError``, which advises ``remedy`` if it is given, when its bytes are not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte 0x{error.object[error.start]:02x} does not fit){f'; {remedy}' if remedy else ''}.") from None


def read_json(path: Path, shape: Any = dict, remedy: str = "delete it to have it made again") -> Any | None:
    """The JSON in a file, or None if there is no such file.

    ``shape`` is the type that it must have, down to its members if it is one of ``shapes``: what it does not name may be anything.
    Raises ``UserError``, which advises ``remedy``, when the file holds no JSON, JSON of another shape, or an object that is not as it was ``sealed``.
    """
    try:
        text = read_text(path, remedy)
    except FileNotFoundError:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not valid JSON; {remedy}.") from None
    if wrong := _misfit(value, shape):
        raise UserError(f"{path} is not what it should be ({wrong}); {remedy}.")
    if shape not in (dict, list) and isinstance(value, dict) and "sha256" in value and value != sealed(value):
        raise UserError(f"{path} was damaged or changed by hand since it was written; {remedy}.")
    return value


def _misfit(value: Any, shape: Any) -> str | None:
    """What is wrong with the shape of a JSON value, if anything is."""
    if shape in (dict, list):  # asked without pydantic, which is not everywhere
        return None if isinstance(value, shape) else f"it holds {_kind(value)}, not {_kind(shape())}"
    from pydantic import ValidationError

    try:
        _checker(shape).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        return f"{f'{where}: ' if where else ''}{first['msg'][0].lower()}{first['msg'][1:]}"
    return None


@cache
def _checker(shape: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def replace_folder(beside: Path, place: Path) -> None:
    """Move a finished folder into its place; one that an interrupted attempt left there goes first."""
    if place.exists():
        shutil.rmtree(place)
    beside.replace(place)


def amount(size: float) -> str:
    """Bytes in a fitting decimal unit: 512 B, 1.2 kB, 3.4 MB, 5.6 GB."""
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if size >= 1000**power:
            return f"{size / 1000**power:.1f} {unit}"
    return f"{size:.0f} B"


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits; read once a process as long as the file stays the same."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if state not in _hashes:
            _hashes[state] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[state]


_hashes: dict[tuple[int, ...], str] = {}  # by a file's identity and when it last changed


def exclusive(path: Path, what: str, patience: float = 0.0) -> AbstractContextManager[None]:
    """Hold the lock file ``path`` while the block runs.

    The operating system drops the lock when its holder dies, however it dies. ``patience`` is how many seconds to wait for
    another holder: an orphaned kernel needs a moment to notice that its parent is gone. Raises ``UserError`` when it is still held.
    """
    return _locked(path, what, patience, fcntl.LOCK_EX)


def shared(path: Path, what: str, patience: float = 0.0) -> AbstractContextManager[None]:
    """Keep others from holding the lock file ``path``, as ``exclusive`` does, but for those who share it too."""
    return _locked(path, what, patience, fcntl.LOCK_SH)


@contextmanager
def _locked(path: Path, what: str, patience: float, operation: int) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8", errors="replace") as file:
        if not _is_taken(file.fileno(), patience, operation):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(f"{what} is in use by another process (pid {holder}); wait for it to end or stop it.")
        with naming(path):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield


@contextmanager
def exclusive_folder(folder: Path, what: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder itself while the block runs: unlike a lock file, it cannot be deleted and made anew as long as anyone needs what is in it.

    On a network's disk this holds within one machine only, so that a lock file is needed too.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not _is_taken(descriptor, patience):
            raise UserError(f"{what} is in use by another process, whose lock file was deleted; wait for it to end or stop it.")
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock file, or the folder, now."""
    try:
        descriptor = os.open(path, os.O_RDONLY)  # to read: a run may be another user's
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_taken(descriptor: int, patience: float, operation: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file or folder, waiting ``patience`` seconds for another holder; False if it is still held then."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)
        else:
            return True
