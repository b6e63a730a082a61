"""Token corpora on disk: what one generation writes and the next one reads.

A corpus is a folder of Arrow stream files ``shard-00000.arrow`` ..., each one record batch with one column
``input_ids: list<uint16>``, uncompressed so that the tokens can be memory-mapped, and ``corpus.json``, which is written last:
a folder without it is not a finished corpus. ``datasets.load_dataset("arrow", data_files=...)`` opens the shards as they are.

Two kinds of rows:

- *complete* rows are whole stories, ``<|endoftext|>`` and then the story. Read end to end they are one stream in which each
  row's first token also ends the story before it.
- *incomplete* rows are sampled sequences, cut off at their length. Their first token, ``<|endoftext|>``, was given to the model
  and not sampled, so it is context only: neither a training target nor counted in the text's statistics.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import naming, read_json, sha256, write_json
from collapse_lib.experiment.limits import LARGEST_VOCABULARY
from collapse_lib.experiment.progress import progress
from collapse_lib.text.sources import all_held_out, held_out, one_story_only, read_stories
from collapse_lib.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import Protocol

SHARD_TOKENS = 1 << 22  # of an initial corpus: 8 MiB a file
STORIES_AT_ONCE = 1024  # encoded in parallel
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # of Arrow; without it the rows are whole and the file is another one
DIGEST, ORIGIN = b"collapse_lib.sha256", b"collapse_lib.origin"  # where a shard's schema keeps the hash of its rows, and what decided them


Rows = Sequence[np.ndarray] | np.ndarray  # one integer array a row, or an array [rows, tokens]


class Shard(NamedTuple):
    """A shard's rows."""

    offsets: np.ndarray  # int32[rows + 1], where each row starts in values
    values: np.ndarray  # uint16[tokens], memory-mapped and read-only


class TokenCorpus:
    """A finished corpus, memory-mapped: opening it reads ``corpus.json`` alone, and no tokens are held in memory.

    Attributes: ``folder`` (None for one in memory); ``rows`` and ``tokens`` stored; ``eos_id``; ``vocabulary``; ``rows_are_complete``; ``has_start``
    (every row begins with ``eos_id``); ``hash`` (SHA-256 over the shards' hashes and these attributes).
    """

    def __init__(self, folder: Path | None, record: dict[str, Any], remedy: str = "make the corpus again") -> None:
        self.folder = folder
        self._remedy = remedy
        self.rows: int = record["rows"]
        self.tokens: int = record["tokens"]
        self.eos_id: int = record["eos_id"]
        self.vocabulary: int = record["vocabulary"]
        self.rows_are_complete: bool = record["rows_are_complete"]
        self.has_start: bool = record["has_start"]
        self.hash: str = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
        self._files = [(shard["file"], shard["sha256"]) for shard in record["shards"]]
        self._first_row = [0, *accumulate(shard["rows"] for shard in record["shards"])]
        self._first_token = [0, *accumulate(shard["tokens"] for shard in record["shards"])]
        self._opened: list[Shard | None] = [None] * len(self._files)

    @classmethod
    def open(cls, folder: str | Path, remedy: str = "make the corpus again") -> TokenCorpus:
        """Open a finished corpus folder. Raises ``UserError`` if there is none.

        A shard that is missing, or whose bytes are not those that ``corpus.json`` names, raises it when it is mapped; ``remedy`` is what both advise.
        """
        from collapse_lib.experiment.shapes import Corpus

        folder = Path(folder)
        record = read_json(folder / "corpus.json", Corpus, remedy)
        if record is None:
            raise UserError(f"There is no finished corpus in '{folder}' (it has no corpus.json); {remedy}.")
        return cls(folder, record, remedy)

    @classmethod
    def in_memory(cls, rows: Rows, eos_id: int, vocabulary: int, rows_are_complete: bool, has_start: bool = True) -> TokenCorpus:
        """A corpus of one shard that lies in no file, for text that need not be kept; rows and errors are those of ``CorpusWriter.write_shard``."""
        _check_vocabulary(vocabulary)
        shard = _shard_of(rows, eos_id if has_start else None, vocabulary)
        described = {"file": None, "rows": len(shard.offsets) - 1, "tokens": len(shard.values), "sha256": _digest(shard)}
        corpus = cls(None, _record([described], eos_id, vocabulary, rows_are_complete, has_start))
        corpus._opened = [shard]
        return corpus

    @property
    def real_tokens(self) -> int:
        """Tokens that a model or an author wrote: all but the start tokens that incomplete rows were given."""
        return self.tokens - self._given

    def row(self, index: int) -> np.ndarray:
        """uint16[tokens of the row], a view; its first token is the start token if ``has_start``."""
        if not 0 <= index < self.rows:
            raise IndexError(f"row {index} of a corpus of {self.rows}")
        number = bisect_right(self._first_row, index) - 1
        offsets, values = self._shard(number)
        local = index - self._first_row[number]
        return values[offsets[local] : offsets[local + 1]]

    def row_is_complete(self, index: int) -> bool:
        """Whether the row is a whole story."""
        return self.rows_are_complete

    def iter_rows(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Rows ``start`` to ``stop`` in order, as ``row`` gives them."""
        return map(self.row, range(start, self.rows if stop is None else min(stop, self.rows)))

    def row_lengths(self) -> np.ndarray:
        """int64[rows]: tokens of each row, its start token included if ``has_start``."""
        return np.concatenate([np.empty(0, np.int64), *(np.diff(shard.offsets) for shard in self.shards())])

    def shards(self) -> Iterator[Shard]:
        """Each shard's rows end to end and where they begin, without a copy."""
        return map(self._shard, range(len(self._files)))

    def stream(self, start: int, stop: int) -> np.ndarray:
        """Tokens ``start`` to ``stop`` of all rows end to end, uint16[stop - start]; a view where they lie in one shard."""
        pieces = [self._shard(number).values[low:high] for number, low, high in self._pieces(start, stop)]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.uint16), *pieces])

    def given_starts(self, start: int, stop: int) -> np.ndarray:
        """bool[stop - start]: True where the stream has a start token that a row was given; all False if rows are complete."""
        mask = np.zeros(stop - start, bool)
        if self._given:
            for number, low, high in self._pieces(start, stop):
                row_starts = self._shard(number).offsets[:-1]
                first, last = np.searchsorted(row_starts, (low, high))
                mask[row_starts[first:last] + (self._first_token[number] - start)] = True
        return mask

    def token_counts(self, chunk: int = 1 << 20) -> np.ndarray:
        """int64[vocabulary]: how often each token occurs among the real tokens, counted ``chunk`` tokens at a time."""
        counts = np.zeros(self.vocabulary, np.int64)
        for _, values in self.shards():
            for start in range(0, len(values), chunk):
                counts += np.bincount(values[start : start + chunk], minlength=self.vocabulary)
        counts[self.eos_id] -= self._given
        return counts

    @property
    def has_given_starts(self) -> bool:
        """Whether rows begin with tokens that nobody wrote."""
        return self.has_start and not self.rows_are_complete

    @property
    def _given(self) -> int:
        return self.rows * self.has_given_starts

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(shard, first, last) positions inside the shards that make up a slice of the stream."""
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start} to {stop} of a corpus of {self.tokens}")
        number = bisect_right(self._first_token, start) - 1
        while start < stop:
            origin, end = self._first_token[number], self._first_token[number + 1]
            yield number, start - origin, min(stop, end) - origin
            start, number = min(stop, end), number + 1

    def _shard(self, number: int) -> Shard:
        shard = self._opened[number]
        if shard is None:
            file, recorded = self._files[number]
            path = self.folder / file
            if not path.is_file() or sha256(path) != recorded or (shard := _read_shard(path)) is None:
                raise UserError(f"'{path}' is missing or damaged; {self._remedy}.")
            self._opened[number] = shard
        return shard


class CorpusWriter:
    """Writes a corpus shard by shard; each shard appears under its name only when it is whole, ``corpus.json`` only at ``finish``.

    Shards that an interrupted writer left in the folder are kept: ``has_shard`` tells which, so that the work can go on from
    there. ``origin`` says what decides the rows; a shard of another origin, or of another place in the corpus, is none of it.
    Several processes may write different shards; one of them, when all are done, calls ``finish``.
    """

    def __init__(self, folder: str | Path, eos_id: int, vocabulary: int, rows_are_complete: bool, has_start: bool = True, origin: str = "") -> None:
        _check_vocabulary(vocabulary)  # before anyone samples a shard
        self.folder = Path(folder)
        self.eos_id, self.vocabulary = eos_id, vocabulary
        self.rows_are_complete, self.has_start, self.origin = rows_are_complete, has_start, origin
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "corpus.json").unlink(missing_ok=True)  # while shards change, nothing may pass for finished

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        for leftover in self.folder.glob(f".*.{os.getpid()}.tmp"):
            leftover.unlink()

    def has_shard(self, index: int, rows: int | None = None) -> bool:
        """Whether shard ``index`` is there, as a writer of this origin wrote it, and has as many ``rows`` if that is given."""
        shard = _read_shard(self.folder / _shard_name(index), self._marks(index))
        return shard is not None and rows in (None, len(shard.offsets) - 1)

    def write_shard(self, index: int, rows: Rows) -> None:
        """Write rows as shard ``index``: an integer array [rows, tokens], or one integer array a row.

        Rows include their start token if ``has_start``. Raises ``ValueError`` for no rows, an empty row, a row without its start
        token or a token id outside the vocabulary.
        """
        import pyarrow as pa

        shard = _shard_of(rows, self.eos_id if self.has_start else None, self.vocabulary)
        column = pa.ListArray.from_arrays(pa.array(shard.offsets), pa.array(shard.values))
        schema = pa.schema([("input_ids", column.type)], metadata=self._marks(index) | {DIGEST: _digest(shard).encode()})
        batch = pa.record_batch([column], schema=schema)
        path = self.folder / _shard_name(index)
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with naming(path):
            with beside.open("wb") as file:
                with pa.ipc.new_stream(file, batch.schema) as stream:
                    stream.write_batch(batch)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)

    def finish(self, shards: int, rows: int | None = None) -> TokenCorpus:
        """Record shards ``0 .. shards - 1`` as the whole corpus and open it; other shards in the folder are deleted.

        Raises ``FileNotFoundError`` if one of them is missing or damaged, and ``ValueError`` if they have not ``rows`` rows together.
        """
        names = [_shard_name(index) for index in range(shards)]
        for leftover in {*self.folder.glob("shard-*.arrow"), *self.folder.glob(".shard-*.tmp")} - {self.folder / name for name in names}:
            leftover.unlink()
        found = []
        for index, name in enumerate(names):
            shard = _read_shard(self.folder / name, self._marks(index))
            if shard is None:
                raise FileNotFoundError(f"{self.folder / name} is missing or damaged")
            found.append({"file": name, "rows": len(shard.offsets) - 1, "tokens": len(shard.values), "sha256": sha256(self.folder / name)})
        record = _record(found, self.eos_id, self.vocabulary, self.rows_are_complete, self.has_start)
        if rows not in (None, record["rows"]):
            raise ValueError(f"the shards in {self.folder} have {record['rows']} rows, not {rows}")
        write_json(self.folder / "corpus.json", record)
        return TokenCorpus.open(self.folder)

    def _marks(self, index: int) -> dict[bytes, bytes]:
        """What the schema of shard ``index`` has beside its hash."""
        return {ORIGIN: f"{self.origin} {index}".encode()} if self.origin else {}


def build_initial_corpus(protocol: Protocol, tokenizer: Tokenizer, folder: str | Path, seed: int) -> dict[str, TokenCorpus]:
    """Generation 0: tokenise the stories into the corpora ``folder/train``, ``folder/holdout`` and ``folder/validation``.

    The hold-out is a share ``training.holdout`` of the train stories, chosen by ``seed``, on which generation 1 finds the number of
    epochs (section 5.1.2). Stories stream through: memory does not grow with the corpus. Raises ``UserError`` as
    ``read_stories`` does, and when there are too few stories to hold one out.
    """
    folder, settings = Path(folder), protocol.corpus
    parts = {part: _StoryShards(folder / part, tokenizer) for part in ("train", "holdout", "validation")}
    for index, row in enumerate(_tokenised(read_stories(settings, "train", seed), tokenizer, settings.stories, "Training stories")):
        parts["holdout" if held_out(seed, "holdout", index, protocol.training.holdout) else "train"].add(row)
    if not parts["holdout"].rows:
        raise one_story_only(settings.source)
    if not parts["train"].rows:
        raise all_held_out(protocol.training.holdout, parts["holdout"].rows)
    for row in _tokenised(read_stories(settings, "validation", seed), tokenizer, settings.validation_stories, "Validation stories"):
        parts["validation"].add(row)
    return {part: shards.finish() for part, shards in parts.items()}


def write_stories(stories: Iterator[str], tokenizer: Tokenizer, folder: str | Path, tokens: int) -> TokenCorpus:
    """A corpus of the first of these stories, the fewest that have ``tokens`` tokens together."""
    shards, stored = _StoryShards(Path(folder), tokenizer), 0
    for row in _tokenised(stories, tokenizer, None, "Stories"):
        shards.add(row)
        stored += len(row)
        if stored >= tokens:
            break
    return shards.finish()


class _StoryShards:
    """Collects the rows of an initial corpus until they fill a shard."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.rows = 0
        self._writer = CorpusWriter(folder, tokenizer.eos_id, tokenizer.vocabulary, rows_are_complete=True)
        self._shards = self._waiting_tokens = 0
        self._waiting: list[np.ndarray] = []

    def add(self, row: np.ndarray) -> None:
        self.rows += 1
        self._waiting.append(row)
        self._waiting_tokens += len(row)
        if self._waiting_tokens >= SHARD_TOKENS:
            self._write()

    def finish(self) -> TokenCorpus:
        if self._waiting:
            self._write()
        return self._writer.finish(self._shards, self.rows)

    def _write(self) -> None:
        with self._writer as writer:
            writer.write_shard(self._shards, self._waiting)
        self._shards += 1
        self._waiting, self._waiting_tokens = [], 0


def _tokenised(stories: Iterator[str], tokenizer: Tokenizer, total: int | None, description: str) -> Iterator[np.ndarray]:
    """Rows uint16[1 + tokens of the story], each with its start token."""
    with progress(total, "story", description) as bar:
        while batch := list(islice(stories, STORIES_AT_ONCE)):
            for ids in tokenizer.encode_batch(batch):
                yield np.array([tokenizer.eos_id, *ids], np.uint16)
            bar.update(len(batch))


def _check_vocabulary(vocabulary: int) -> None:
    if vocabulary > LARGEST_VOCABULARY:
        raise UserError(f"A vocabulary of {vocabulary} does not fit 16 bits; {LARGEST_VOCABULARY} tokens are the most.")


def _shard_of(rows: Rows, start: int | None, vocabulary: int) -> Shard:
    """Rows end to end; ``ValueError`` where they are no shard of a corpus whose rows begin with ``start`` (None: with anything)."""
    if len(rows) == 0:
        raise ValueError("the shard has no rows")
    if isinstance(rows, np.ndarray) and rows.ndim == 2:
        lengths, values = np.full(rows.shape[0], rows.shape[1]), rows.reshape(-1)
    else:
        lengths, values = np.fromiter(map(len, rows), np.int64, len(rows)), np.concatenate(rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if offsets[-1] >= 2**31:
        raise ValueError(f"the shard has {offsets[-1]} tokens; a shard holds fewer than 2^31")
    if not lengths.all():
        raise ValueError("the shard has an empty row")
    if values.min() < 0 or values.max() >= vocabulary:
        raise ValueError(f"the shard has token ids {values.min()} to {values.max()}, outside a vocabulary of {vocabulary}")
    if start is not None and (values[offsets[:-1]] != start).any():
        raise ValueError(f"the shard has a row that does not begin with token {start}")
    return Shard(offsets.astype(np.int32), values.astype(np.uint16, copy=False))


def _record(shards: list[dict[str, Any]], eos_id: int, vocabulary: int, rows_are_complete: bool, has_start: bool) -> dict[str, Any]:
    """What ``corpus.json`` holds."""
    return {
        "rows": sum(shard["rows"] for shard in shards),
        "tokens": sum(shard["tokens"] for shard in shards),
        "eos_id": eos_id,
        "vocabulary": vocabulary,
        "rows_are_complete": rows_are_complete,
        "has_start": has_start,
        "shards": shards,
    }


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}.arrow"


def _read_shard(path: Path, marks: dict[bytes, bytes] | None = None) -> Shard | None:
    """A shard's arrays, backed by the file; None if it is missing, not whole or, where ``marks`` are given, not as it was written with these."""
    import pyarrow as pa

    try:
        # The mapping outlives the file object that is closed here, so that a thousand shards do not hold a thousand descriptors.
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_stream(file)
            column = reader.read_next_batch().column("input_ids")
            recorded = dict(reader.schema.metadata or {})
        shard = Shard(column.offsets.to_numpy(), column.values.to_numpy())
    except (OSError, pa.ArrowException, StopIteration, KeyError, AttributeError):
        return None
    if marks is None:
        return shard
    is_as_written = recorded == marks | {DIGEST: _digest(shard).encode()} and path.read_bytes().endswith(END_OF_STREAM)
    return shard if is_as_written else None


def _digest(shard: Shard) -> str:
    """SHA-256 of a shard's rows; it stands in the file itself, for a corpus that is not finished has no other record of it."""
    digest = hashlib.sha256(shard.offsets)
    digest.update(shard.values)
    return digest.hexdigest()
