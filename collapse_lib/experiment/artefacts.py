"""The one door to what steps make: where each artefact lies, what its content hash is, and the check that comes before its use.

A manifest records the content hash of every artefact that its step made, of the metrics and of the executed notebook, and one of itself. Whoever
opens an artefact asks ``run.Step.artefact`` for its path, so that a hash that was recorded is a hash that was compared. A corpus of gigabytes is
compared in two parts: its ``corpus.json`` there, each of its shards when ``TokenCorpus`` maps it. A file that was read once in a process to be
compared is not read for it again as long as it stays the same.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_json, replace_folder, sealed, sha256, sync, write_json
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.shapes import Composition, Corpus, LetGo, Manifest, Measured


class Artefact(NamedTuple):
    """Where an artefact lies in its generation's folder, and the files in it that are its content (none: it is a file itself).

    ``is_view`` says that it shows rows of what its own step has read, and is nothing without that.
    """

    path: str
    files: tuple[str, ...] = ()
    is_view: bool = False


GENERATION = re.compile(r"generation-\d{2,}")  # what the folder of one is called
CORPUS_FILES = ("corpus.json",)  # which names the hashes of the shards

ARTEFACTS: dict[str, Artefact] = {
    "train": Artefact("corpus/train", CORPUS_FILES),
    "holdout": Artefact("corpus/holdout", CORPUS_FILES),
    "validation": Artefact("corpus/validation", CORPUS_FILES),
    "words": Artefact("corpus/words.txt"),
    "tokenizer": Artefact("../tokenizer", ("tokenizer.json",)),
    "composition": Artefact("composition", ("composition.json",), is_view=True),  # which names the hashes of the rest
    "model": Artefact("model", ("config.json", "model.safetensors")),
    "corpus": Artefact("corpus", CORPUS_FILES),
    "completions": Artefact("completions.jsonl"),
}


def path_of(folder: Path, name: str) -> Path:
    """Where artefact ``name`` lies, ``folder`` being its generation's."""
    path = ARTEFACTS[name].path
    return folder.parent / path.removeprefix("../") if path.startswith("../") else folder / path


def content_hash(folder: Path, name: str) -> str:
    """SHA-256, 64 hex digits, of what artefact ``name`` holds; raises ``FileNotFoundError`` where a part of it is missing."""
    path, files = path_of(folder, name), ARTEFACTS[name].files
    hashes = [sha256(path / file) for file in files] or [sha256(path)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def manifest_files(folder: Path) -> list[Path]:
    """The manifests of all that is finished in a run's folder; a copy that somebody made of one, or of a generation's folder, is none."""
    found = folder.glob("generation-*/manifests/*.json")
    return sorted(file for file in found if GENERATION.fullmatch(file.parents[1].name) and file.stem in STEPS)


def read_manifest(folder: Path, step: str) -> dict[str, Any] | None:
    """From what, by what and when a step in a generation's folder was done; None while it is not.

    Raises ``UserError`` when the file is damaged, or is another step's or another generation's.
    """
    file, advice = folder / "manifests" / f"{step}.json", mend(folder.parent.name)
    manifest = read_json(file, Manifest, advice)
    if manifest is not None and (manifest["step"], f"generation-{manifest['generation']:02d}") != (step, folder.name):
        raise UserError(f"{file} is of another step or generation; {advice}.")
    return manifest


def read_metrics(folder: Path, step: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """What the step of a manifest measured; ``UserError`` when that is not there, or not what was recorded."""
    file, advice = folder / "metrics" / f"{step}.json", mend(folder.parent.name)
    if not file.is_file():
        raise UserError(f"{file} is missing; {advice}.")
    if manifest.get("metrics", digest := sha256(file)) != digest:
        raise UserError(f"{file} is not what step {step} measured; {advice}.")
    return read_json(file, Measured, advice)


def publish(folder: Path, name: str, save: Callable[[Path], object]) -> None:
    """Have ``save`` write a folder beside the artefact's place, then move it there."""
    place = path_of(folder, name)
    beside = place.with_name(f"{place.name}.tmp")
    if beside.exists():
        remove(beside)
    save(beside)
    sync(beside)
    replace_folder(beside, place)


def is_whole(folder: Path, name: str) -> bool:
    """Whether every file that artefact ``name``, once ``content_hash`` has been compared, is said to hold is there and as it was: reads all of it."""
    path = path_of(folder, name)
    recorded: list[tuple[Path, str]] = []
    if name == "composition":
        for part in read_json(path / "composition.json", Composition)["parts"]:
            recorded += [(path / part["rows"], part["rows_sha256"])] if part["rows"] else []
            recorded += [(path / "fresh" / "corpus.json", part["sha256"]), *_shards(path / "fresh")] if part["text"] is None else []
    elif ARTEFACTS[name].files == CORPUS_FILES:
        recorded = _shards(path)
    return all(file.is_file() and sha256(file) == digest for file, digest in recorded)


def _shards(corpus: Path) -> list[tuple[Path, str]]:
    record = read_json(corpus / "corpus.json", Corpus)
    return [(corpus / shard["file"], shard["sha256"]) for shard in record["shards"]] if record else []


def let_go(folder: Path, name: str, digest: str) -> int:
    """Delete artefact ``name``, whose content hash is ``digest``, for want of use, and leave a record that says so; returns the bytes freed.

    The record comes first, so that an interruption leaves nothing that passes for lost; what is half deleted goes with the next call. One caller
    at a time.
    """
    place = path_of(folder, name)
    going = place.with_name(f"{place.name}.going.tmp")
    remove(going)
    if not place.exists():
        return 0
    size = size_of(place)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(record_of(folder, name), sealed({"artefact": name, "content": digest, "bytes": size, "when": now}))
    place.rename(going)
    remove(going)
    return size


def gone(folder: Path, name: str) -> dict[str, Any] | None:
    """The record of ``let_go`` if artefact ``name`` is not here because of it."""
    return None if path_of(folder, name).exists() else read_json(record_of(folder, name), LetGo)


def record_of(folder: Path, name: str) -> Path:
    """Where the record of ``let_go`` lies."""
    place = path_of(folder, name)
    return place.with_name(f"{place.name}.let_go.json")


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 where there is nothing."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def mend(run: str, option: str = "") -> str:
    """The advice that ends a sentence about something damaged or stale in a run; with ``--missing``, about something that is not there."""
    return f"`collapse repair {run}{f' {option}' if option else ''}` and then `collapse run {run}` make it again"
