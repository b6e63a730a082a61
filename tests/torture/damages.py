"""The ways in which a file can be damaged."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from torture.small import NAME


def _cut(file: Path, other: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _clip(file: Path, other: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _flip(file: Path, other: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _digit(file: Path, other: Path) -> None:
    """A number becomes another one: the file still reads well."""
    content = file.read_bytes()
    digits = list(re.finditer(rb"(?<=[ :\[\"])[0-8](?=[\d.,\s\]}\"])", content))
    if not digits:
        raise NotThere
    at = digits[len(digits) // 2].start()
    file.write_bytes(content[:at] + bytes([content[at] + 1]) + content[at + 1 :])


def _zeros(file: Path, other: Path) -> None:
    file.write_bytes(b"\0" * file.stat().st_size)


def _encoding(file: Path, other: Path) -> None:
    try:
        file.write_bytes(file.read_bytes().decode().encode("utf-16"))
    except UnicodeDecodeError:
        raise NotThere from None


def _shape(shape: bytes) -> Callable[[Path, Path], None]:
    def damage(file: Path, other: Path) -> None:
        if file.suffix not in (".json", ".ipynb", ".yaml", ".jsonl"):
            raise NotThere
        file.write_bytes(shape)

    return damage


def _another(file: Path, other: Path) -> None:
    """The same file of a chain of another seed, or of other runs altogether: at the same place below the folder ``one``."""
    place = other / file.relative_to(file.parents[len(file.parts) - file.parts.index(NAME) - 2])
    if not place.is_file() or place.read_bytes() == file.read_bytes():
        raise NotThere
    shutil.copy(place, file)


def _neighbour(file: Path, other: Path) -> None:
    """The same file of the generation before or after."""
    here = next((part for part in file.parts if part.startswith("generation-")), None)
    for number in range(4) if here else ():
        place = Path(*(f"generation-{number:02d}" if part == here else part for part in file.parts))
        if place.is_file() and place != file and place.read_bytes() != file.read_bytes():
            shutil.copy(place, file)
            return
    raise NotThere


class NotThere(Exception):
    """A damage that a file cannot have."""


DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    "cut in half": _cut,
    "cut by a byte": _clip,
    "one bit flipped": _flip,
    "one digit changed": _digit,
    "all zeros": _zeros,
    "emptied": lambda file, other: file.write_bytes(b""),
    "deleted": lambda file, other: file.unlink(),
    "another run's": _another,
    "another generation's": _neighbour,
    "UTF-16": _encoding,
    "{}": _shape(b"{}"),
    "[]": _shape(b"[]"),
    "null": _shape(b"null"),
}
