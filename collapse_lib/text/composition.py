"""A composition on disk: which rows of which texts a generation learns from, without a copy of them.

A folder with ``composition.json``, written last, and what it names with its hash: ``rows-N.npy`` for a part that is not a whole text, and
``fresh/``, a corpus that was written for this generation alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import naming, read_json, sha256, write_json
from collapse_lib.experiment.shapes import Composition
from collapse_lib.text.corpus import TokenCorpus
from collapse_lib.text.view import Selection, Union

FRESH = "fresh"  # the folder of the corpus that is nobody's text yet


class Part(NamedTuple):
    """A part of a composition: of text ``text`` (a generation's number; None is the corpus in ``fresh/``) some rows or complete stories, or all."""

    text: int | None
    rows: NDArray[np.int64] | None = None  # numbers of rows, or of stories; None: all rows
    are_stories: bool = False


def save(folder: Path, parts: Sequence[Part]) -> None:
    """Write the composition of these parts; ``fresh/`` is there already if a part needs it."""
    folder.mkdir(parents=True, exist_ok=True)
    described = []
    for number, part in enumerate(parts):
        entry = {"text": part.text, "are_stories": part.are_stories, "rows": None}
        if part.text is None:
            entry["sha256"] = sha256(folder / FRESH / "corpus.json")
        if part.rows is not None:
            file = folder / f"rows-{number}.npy"
            with naming(file):
                np.save(file, part.rows.astype(np.int64), allow_pickle=False)
            entry |= {"rows": file.name, "rows_sha256": sha256(file)}
        described.append(entry)
    write_json(folder / "composition.json", {"parts": described})


def load(folder: Path, text: Callable[[int], TokenCorpus], remedy: str) -> TokenCorpus | Selection | Union:
    """The view that a composition describes; ``text`` opens the text of a generation.

    Raises ``UserError``, which advises ``remedy``, for a file that is missing or is not what ``composition.json`` names.
    """
    views = []
    for entry in read_json(folder / "composition.json", Composition, remedy)["parts"]:
        if entry["text"] is None:
            corpus = TokenCorpus.open(_checked(folder / FRESH / "corpus.json", entry["sha256"], remedy).parent, remedy)
        else:
            corpus = text(entry["text"])
        if entry["rows"] is None:
            views.append(corpus)
        else:
            rows = np.load(_checked(folder / entry["rows"], entry["rows_sha256"], remedy), allow_pickle=False)
            views.append((Selection.of_stories if entry["are_stories"] else Selection.of_rows)(corpus, rows))
    return views[0] if len(views) == 1 else Union(views)


def _checked(file: Path, recorded: str, remedy: str) -> Path:
    if not file.is_file() or sha256(file) != recorded:
        raise UserError(f"'{file}' is missing or damaged; {remedy}.")
    return file
