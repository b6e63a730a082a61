"""Where stories come from: the embedded grammar, local files, or the dataset hub; one story at a time, never a whole corpus in memory."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from collapse_lib.experiment.errors import UserError, first_line

if TYPE_CHECKING:
    import datasets

    from collapse_lib.experiment.protocol import CorpusSettings

Split = Literal["train", "validation"]
Stories = Callable[[], Iterator[str]]  # called again, it starts again

SEPARATOR = "<|endoftext|>"
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
LONGEST_STORY = 1_000_000  # characters; longer means that a separator or a line end is missing
CARVED_SHARE = 0.05  # of a source that has no validation stories of its own
BATCH = 1024  # stories read from a columnar source at once


def read_stories(settings: CorpusSettings, split: Split = "train", seed: int = 0) -> Iterator[str]:
    """The stories of one split in a fixed order, cut off after ``settings.stories`` or ``settings.validation_stories``.

    Validation stories come from ``settings.validation_source`` if given, else from the source's own validation split (of a hub
    data set, or files named ``validation*`` in a folder), else 5% of the source, chosen by ``seed``, are carved out of it.
    The grammar has no end: its two splits are two streams of stories seeded differently. Of the train split ``settings.skip`` stories are
    passed over first.

    Raises ``UserError`` for a source that is missing or unreadable (at once) or has a bad or too few stories (on reaching them).
    """
    limit = settings.stories if split == "train" else settings.validation_stories
    if split == "validation" and settings.validation_source is not None:
        splits = _open(settings.validation_source, settings, seed)
        stories = _at_least(1, splits.get("validation") or splits["train"], settings.validation_source)
    else:
        splits = _open(settings.source, settings, seed)
        if "train" not in splits:
            raise UserError(f"'{settings.source}' holds validation files only; a corpus needs files to train on.")
        if "validation" in splits:
            stories = _at_least(2 if split == "train" else 1, splits[split], settings.source)
        elif settings.validation_source is not None:
            stories = _at_least(2, splits["train"], settings.source)
        else:
            stories = _carved(_at_least(2, splits["train"], settings.source), split, seed)
    if split == "train" and settings.skip:
        stories = _behind(settings.skip, stories, settings.source)
    return islice(stories, limit)


def one_story_only(source: str) -> UserError:
    """What is said where a source leaves no story to hold out."""
    return UserError(f"'{source}' gives one training story only; two are the fewest, one of them to hold out.")


def all_held_out(share: float, stories: int) -> UserError:
    """What is said where the hold-out leaves no story to train on."""
    return UserError(f"training.holdout = {share} holds out all {stories} training stories; give more stories or a smaller share.")


def held_out(seed: int, purpose: str, index: int, share: float) -> bool:
    """Whether item ``index`` belongs to a held-out ``share`` (0..1) of a sequence whose length is not known yet.

    Depends on the three alone. The second item always does, so that a sequence of two or more has one; the other side may be left without.
    """
    return index == 1 or _derived(seed, f"{purpose}/{index}") < share * 2**32


def _carved(stories: Iterator[str], split: Split, seed: int) -> Iterator[str]:
    wanted = split == "validation"
    return (story for index, story in enumerate(stories) if held_out(seed, "validation", index, CARVED_SHARE) == wanted)


def _behind(skip: int, stories: Iterator[str], source: str) -> Iterator[str]:
    """The stories behind the first ``skip``; two are the fewest of a corpus."""
    first = list(islice(stories, skip, skip + 2))
    if len(first) < 2:
        raise UserError(f"corpus.skip is {skip}, but '{source}' has no two training stories behind as many.")
    return chain(first, stories)


def _derived(seed: int, purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=4).digest(), "big")


def _at_least(fewest: int, stories: Stories, source: str) -> Iterator[str]:
    found = 0
    for story in stories():
        if len(story) > LONGEST_STORY:
            raise _oversized(source)
        if not story.isascii():
            try:
                story.encode()
            except UnicodeEncodeError:  # JSON can spell half a surrogate pair
                raise UserError(f"Story {found + 1} of '{source}' holds half a surrogate pair, which no text encoding allows.") from None
        if story.strip():
            found += 1
            yield story
    if found < fewest:
        held = "one story only" if found else "no story"
        raise UserError(f"'{source}' holds {held}; a corpus needs at least {fewest} (in a .txt file a line '{SEPARATOR}' ends a story).")


def _oversized(source: str | Path) -> UserError:
    return UserError(
        f"A story in '{source}' is longer than {LONGEST_STORY:,} characters; end each story with '{SEPARATOR}' in .txt, with a line end in .jsonl."
    )


# --- what a source name stands for -------------------------------------------------------------------------------------


def _open(source: str, settings: CorpusSettings, seed: int) -> dict[str, Stories]:
    """The splits a source has: 'train', 'validation' or both."""
    if source == "grammar":
        return {"train": partial(_grammar, settings, "train", seed), "validation": partial(_grammar, settings, "validation", seed)}
    path = Path(source).expanduser()
    if path.is_file():
        return {"train": partial(_read_files, [path], settings.text_field)}
    if path.is_dir():
        return {split: partial(_read_files, files, settings.text_field) for split, files in _folder(path).items()}
    if not is_on_hub(source):
        raise UserError(f"There is no file or folder '{source}'.")
    return _hub(source, settings.text_field)


def is_on_hub(source: str) -> bool:
    """Whether a source is nothing on this machine and may be the name of a data set on the hub."""
    missing = source != "grammar" and not Path(source).expanduser().exists() and not source.endswith(SUFFIXES)
    return missing and re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source) is not None


def _grammar(settings: CorpusSettings, split: Split, seed: int) -> Iterator[str]:
    from collapse_lib.text.grammar import StoryGrammar

    field = "stories" if split == "train" else "validation_stories"
    count = getattr(settings, field)
    if count is None:
        raise UserError(f"corpus.{field} is null, but the grammar has no end: give a number of stories.")
    return StoryGrammar(settings.grammar).stories(_derived(seed, split), count + (settings.skip if split == "train" else 0))


def _folder(folder: Path) -> dict[str, list[Path]]:
    files = sorted(path for path in folder.rglob("*") if path.name.endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file())
    if not files:
        raise UserError(f"Folder '{folder}' holds no story file ({', '.join(SUFFIXES)}).")
    named = {split: _named(files, split) for split in ("train", "validation")}
    if not named["train"]:
        named["train"] = [path for path in files if not path.name.startswith("validation")]
    return {split: paths for split, paths in named.items() if paths}


def _named(files: list[Path], split: str) -> list[Path]:
    # 'validation.jsonl.gz' or 'validation-00000-of-00004.parquet' is the split; a 'validation_exact.jsonl.gz' beside it is
    # another version of the same stories, and counts only where it is alone.
    starting = [path for path in files if path.name.startswith(split)]
    return [path for path in starting if re.fullmatch(rf"{split}([-_.]?\d.*)?", path.name.partition(".")[0])] or starting


def load_from_hub(*name: str, otherwise: Callable[[str], str]) -> datasets.DatasetDict:
    """The data set that ``datasets.load_dataset(*name)`` finds: on the hub or, when that cannot be reached, in the local cache.

    Raises ``UserError`` with the sentence that ``otherwise`` makes of the first line of the reason.
    """
    import datasets
    from huggingface_hub import HfApi

    reason: Exception | None = None
    try:
        HfApi().dataset_info(name[0], timeout=10)
    except Exception as error:
        # Then straight to the local cache: `datasets` itself would first retry for half a minute.
        reason, datasets.config.HF_HUB_OFFLINE = error, True
    try:
        return datasets.load_dataset(*name)
    except Exception as error:  # network, name and format failures share no base class
        raise UserError(otherwise(_sizes(error) or first_line(reason or error))) from None


def _sizes(error: Exception) -> str | None:
    """In words, how the splits differ from what a data set's card declares, where that is what is wrong: the error says it in Python's."""
    from datasets.utils.info_utils import NonMatchingSplitsSizesError

    if not isinstance(error, NonMatchingSplitsSizesError):
        return None
    # The declared and the found one of each split in turn.
    sizes = re.findall(r"SplitInfo\(name='([^']*)',.*?num_examples=(\d+)", str(error))
    pairs = zip(sizes[::2], sizes[1::2], strict=True)
    differ = [f"{int(there):,} rows of '{split}' where its card declares {int(said):,}" for (split, said), (_, there) in pairs]
    return f"it holds {' and '.join(differ)}"


def _hub(name: str, field: str) -> dict[str, Stories]:
    found = load_from_hub(
        name,
        otherwise=lambda reason: (
            f"'{name}' is no local file or folder and could not be fetched from the dataset hub ({reason}); "
            "give local data with --set corpus.source=FILE_OR_FOLDER and --set tokenizer.source=FOLDER (or learn)."
        ),
    )
    if "train" not in found and "validation" not in found:
        raise UserError(f"Data set '{name}' has splits {', '.join(found)}; it needs 'train' or 'validation'.")
    return {split: partial(_read_dataset, found[split], name, field) for split in ("train", "validation") if split in found}


def _read_dataset(rows: Any, name: str, field: str) -> Iterator[str]:
    if field not in rows.column_names:
        raise _no_column(name, field, rows.column_names)
    for batch in rows.select_columns(field).iter(BATCH):
        yield from _texts(batch[field], name, field)


# --- files -------------------------------------------------------------------------------------------------------------


def _read_files(paths: list[Path], field: str) -> Iterator[str]:
    for path in paths:
        try:
            if path.name.endswith(".txt"):
                yield from _read_text(path)
            elif path.name.endswith((".jsonl", ".jsonl.gz")):
                yield from _read_json_lines(path, field)
            elif path.name.endswith(".parquet"):
                yield from _read_parquet(path, field)
            else:
                raise UserError(f"'{path}' is none of the story files that can be read ({', '.join(SUFFIXES)}).")
        except UnicodeDecodeError as error:
            raise UserError(f"'{path}' is not UTF-8 text (byte 0x{error.object[error.start]:02x} does not fit); convert it first.") from None
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise UserError(f"'{path}' is damaged or not gzip-compressed.") from None
        except OSError as error:
            raise UserError(f"'{path}' cannot be read: {error.strerror or error}.") from None


def _read_text(path: Path) -> Iterator[str]:
    rest = ""
    with path.open(encoding="utf-8-sig") as file:
        while chunk := file.read(1 << 20):
            _refuse_nul(path, chunk)
            *stories, rest = (rest + chunk).split(SEPARATOR)
            yield from (story.strip() for story in stories)
            if len(rest) > 2 * LONGEST_STORY:
                raise _oversized(path)
    yield rest.strip()


def _refuse_nul(path: Path, text: str) -> None:
    """UTF-16 without a byte-order mark passes for UTF-8 text: every other byte of it is NUL, which no story holds."""
    if "\0" in text:
        raise UserError(f"'{path}' holds NUL bytes, as UTF-16 does; convert it to UTF-8 first.")


def _read_json_lines(path: Path, field: str) -> Iterator[str]:
    longest_line = 6 * LONGEST_STORY + (1 << 20)  # JSON may spell a character in six; the other fields get a mebibyte
    open_file = gzip.open if path.suffix == ".gz" else open
    with open_file(path, "rt", encoding="utf-8-sig") as file:
        for number, line in enumerate(iter(lambda: file.readline(longest_line), ""), start=1):
            if len(line) == longest_line:
                raise _oversized(path)
            _refuse_nul(path, line)
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                raise UserError(f"Line {number} of '{path}' is not valid JSON.") from None
            if not isinstance(record, dict):
                raise UserError(f"Line {number} of '{path}' is not a JSON object with a key '{field}'.")
            if field not in record:
                raise _no_column(f"{path}, line {number}", field, list(record))
            yield from _texts([record[field]], f"{path}, line {number}", field)


def _read_parquet(path: Path, field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                raise _no_column(path, field, columns)
            for batch in file.iter_batches(BATCH, columns=[field]):
                yield from _texts(batch.column(0).to_pylist(), path, field)
    except pa.ArrowException:
        raise UserError(f"'{path}' is not a Parquet file, or is damaged.") from None


def _texts(values: list[Any], where: str | Path, field: str) -> Iterator[str]:
    for value in values:
        if not isinstance(value, str):
            raise UserError(f"Field '{field}' of '{where}' holds {type(value).__name__}, not text; name the stories' field with corpus.text_field.")
        yield value


def _no_column(where: str | Path, field: str, columns: list[str]) -> UserError:
    there = ", ".join(repr(column) for column in columns[:12]) or "none"
    return UserError(f"'{where}' has no field '{field}' (there: {there}); name the stories' field with corpus.text_field.")
