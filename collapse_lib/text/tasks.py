"""Classification tasks (sections 5.4 and 5.5): the paper's eight from the dataset hub or from local files, and two from the story grammar.

A task is one text or a pair of texts a row, and one label. All mistakes in the data are found here, before anything is trained.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from collapse_lib.experiment.errors import UserError
from collapse_lib.text.sources import load_from_hub

if TYPE_CHECKING:
    from pandas import DataFrame

    from collapse_lib.experiment.protocol import ClassificationSettings
    from collapse_lib.text.tokenizer import Tokenizer

SUFFIXES = (".jsonl.gz", ".jsonl", ".parquet")
ROWS_SEED = 1  # of the first draw of the rows that a limit leaves: the same for every run, so that runs answer the same questions
GRAMMAR_SEED = 2**33  # of the first grammar stream of the tasks; the streams of a corpus have 32-bit seeds and never meet it
GRAMMAR_ROWS = {"train": 2000, "test": 1000}  # the grammar has no end; a data set needs one


@dataclass(frozen=True)
class Task:
    """A task and where its rows are.

    ``columns`` hold the text or the two texts, the column ``label`` an index into ``labels``. ``hub`` is a data set's name and, if it has
    several parts, the part's; ``folder`` is where local files lie below ``classification.data``. Both are empty for the grammar's own.
    """

    name: str
    title: str
    question: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    hub: tuple[str, ...] = ()
    folder: str = ""
    test_split: str = "validation"  # GLUE keeps the labels of its test split to itself


SENTIMENT = ("negative", "positive")
PARAPHRASE = ("different", "equivalent")
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("imdb", "IMDB", "is this film review positive?", ("text",), SENTIMENT, ("stanfordnlp/imdb",), "imdb", "test"),
        Task("sst2", "SST-2", "is this phrase of a film review positive?", ("sentence",), SENTIMENT, ("nyu-mll/glue", "sst2"), "glue/sst2"),
        Task("yelp", "Yelp", "is this business review positive?", ("text",), SENTIMENT, ("fancyzhx/yelp_polarity",), "yelp_polarity", "test"),
        Task(
            "yelp_full",
            "Yelp, stars",
            "how many stars did this review give?",
            ("text",),
            ("1 star", "2 stars", "3 stars", "4 stars", "5 stars"),
            ("Yelp/yelp_review_full",),
            "yelp_review_full",
            "test",
        ),
        Task("qqp", "QQP", "do these questions ask the same?", ("question1", "question2"), PARAPHRASE, ("nyu-mll/glue", "qqp"), "glue/qqp"),
        Task(
            "qnli",
            "QNLI",
            "does the sentence answer the question?",
            ("question", "sentence"),
            ("entailment", "not entailment"),
            ("nyu-mll/glue", "qnli"),
            "glue/qnli",
        ),
        Task("mrpc", "MRPC", "do these sentences say the same?", ("sentence1", "sentence2"), PARAPHRASE, ("nyu-mll/glue", "mrpc"), "glue/mrpc"),
        Task(
            "rte",
            "RTE",
            "does the second sentence follow from the first?",
            ("sentence1", "sentence2"),
            ("entailment", "not entailment"),
            ("nyu-mll/glue", "rte"),
            "glue/rte",
        ),
        Task("cola", "CoLA", "is this sentence grammatical?", ("sentence",), ("unacceptable", "acceptable"), ("nyu-mll/glue", "cola"), "glue/cola"),
        Task("grammar_fits", "Ending fits", "does the ending belong to the story?", ("body", "ending"), ("misfit", "fits"), test_split="test"),
        Task("grammar_happy", "Ending happy", "does the story end well?", ("body", "ending"), ("sad", "happy"), test_split="test"),
    )
}


@dataclass(frozen=True)
class Rows:
    """Labelled texts: ``texts`` has a tuple of one or two strings a row, ``labels`` [rows] int64 their classes."""

    texts: list[tuple[str, ...]]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def limited(self, most: int | None, draw: int = 0) -> Rows:
        """At most ``most`` rows, drawn in the proportions of the classes, in their old order; every ``draw`` is another and always the same."""
        if most is None or most >= len(self):
            return self
        shuffled = np.random.default_rng(ROWS_SEED + draw).permutation(len(self))
        by_class = shuffled[np.argsort(self.labels[shuffled], kind="stable")]
        kept = np.sort(by_class[(np.arange(most) * len(self) + len(self) // 2) // most])  # evenly spaced over the classes
        return Rows([self.texts[row] for row in kept], self.labels[kept])


@dataclass(frozen=True)
class TaskData:
    """A task's rows: ``train`` are all that there are, of which a fine-tuning gets ``train_rows``; ``test`` those that all of them are asked."""

    task: Task
    train: Rows
    test: Rows
    train_rows: int

    def draw(self, number: int) -> Rows:
        """The training rows of fine-tuning ``number``: the same for every model, and for each number others where they are limited."""
        return self.train.limited(self.train_rows, number)

    @property
    def hash(self) -> str:
        """SHA-256 of the texts and labels of all rows."""
        parts = [(rows.texts, rows.labels.tolist()) for rows in (self.train, self.test)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_tasks(settings: ClassificationSettings) -> list[TaskData]:
    """The rows of every task of the settings, checked and limited.

    Raises ``UserError`` when a folder, a split or a column is missing, the labels are not the task's, or a row has no text.
    """
    return [_read(TASKS[name], settings) for name in settings.tasks]


def check_files(settings: ClassificationSettings) -> None:
    """Raise ``UserError`` if the local files of a task are not there; nothing is read."""
    for task in (TASKS[name] for name in settings.tasks):
        if task.hub and settings.data is not None:
            _files(task, Path(settings.data).expanduser())


def room_for_pairs(tokenizer: Tokenizer, max_length: int, separator: str) -> int:
    """Tokens that the two texts of a pair may have together; ``UserError`` if the separator leaves less than one for each."""
    between = len(tokenizer.encode(separator))
    if max_length - between < 2:
        raise UserError(
            f"classification.separator takes {between} tokens, which leaves no room for texts in classification.max_length = {max_length}."
        )
    return max_length - between


def _read(task: Task, settings: ClassificationSettings) -> TaskData:
    limits = settings.rows_of(task.name)
    if task.hub:
        frames = _local(task, Path(settings.data).expanduser()) if settings.data is not None else _hub(task)
        train, test = (_checked(task, split, frames[split]) for split in ("train", task.test_split))
    else:
        train, test = (_grammar_rows(task, split, settings.grammar) for split in ("train", "test"))
    if len(found := set(train.labels.tolist())) < len(task.labels):
        raise _wrong_labels(task, "train", sorted(found))
    return TaskData(task, train, test.limited(limits[1]), min(limits[0] or len(train), len(train)))


def origins(settings: ClassificationSettings) -> str:
    """A sentence on where ``read_tasks`` takes the rows of these settings' tasks from, and what the run notes of them; plain text."""
    local = "local files, which were not checked against the public data sets of these names"
    found: dict[str, list[str]] = {}
    for name in settings.tasks:
        place = "the story grammar" if not TASKS[name].hub else "the dataset hub" if settings.data is None else local
        found.setdefault(place, []).append(TASKS[name].title)
    said = "; ".join(f"{', '.join(titles)}: {place}" for place, titles in found.items())
    return f"Where the classification tasks' rows come from: {said}. {settings.notes}".strip()


# --- from files and from the hub ---------------------------------------------------------------------------------------


def _local(task: Task, data: Path) -> dict[str, DataFrame]:
    return {split: _frame(file) for split, file in _files(task, data).items()}


def _files(task: Task, data: Path) -> dict[str, Path]:
    folder = data / task.folder
    if not folder.is_dir():
        there = [name for name, other in TASKS.items() if other.hub and (data / other.folder).is_dir()]
        raise UserError(
            f"There is no folder '{folder}' for task '{task.name}' (tasks that have one in '{data}': {', '.join(there) or 'none'}); "
            "set classification.data to the folder that holds it, or to null for the dataset hub."
        )
    found = {}
    for split in ("train", task.test_split):
        files = [path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").is_file()]
        if not files:
            there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
            raise UserError(
                f"Task '{task.name}' has no {split} split: '{folder}' holds {there}, not {split}{SUFFIXES[0]} (or {', '.join(SUFFIXES[1:])})."
            )
        found[split] = files[0]
    return found


def _frame(path: Path) -> DataFrame:
    import pandas

    try:
        if path.suffix == ".parquet":
            return pandas.read_parquet(path)
        # Nothing but the rows as they are: pandas would make numbers of texts that look like them.
        return pandas.read_json(path, lines=True, dtype=False, convert_axes=False)
    except (ValueError, EOFError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")
        raise UserError(f"'{path}' cannot be read as {path.name.partition('.')[2]} ({reason}).") from None


def _hub(task: Task) -> dict[str, DataFrame]:
    found = load_from_hub(
        *task.hub,
        otherwise=lambda reason: (
            f"Task '{task.name}' could not be fetched from the dataset hub as '{' '.join(task.hub)}' ({reason}); "
            "give local files with --set classification.data=FOLDER, or choose tasks that need none: grammar_fits and grammar_happy."
        ),
    )
    if missing := [split for split in ("train", task.test_split) if split not in found]:
        raise UserError(f"Task '{task.name}' has no {missing[0]} split: '{' '.join(task.hub)}' holds {', '.join(found)}.")
    return {split: found[split].to_pandas() for split in ("train", task.test_split)}


def _checked(task: Task, split: str, frame: DataFrame) -> Rows:
    """The rows of one split, or the ``UserError`` that says what is wrong with them."""
    where = f"Task '{task.name}'"
    if frame.empty:
        raise UserError(f"{where} has no rows in its {split} split.")
    if missing := [column for column in (*task.columns, "label") if column not in frame]:
        raise UserError(f"{where} has no column '{missing[0]}' in its {split} split (there: {', '.join(map(str, frame.columns))}).")
    texts = list(zip(*(frame[column].tolist() for column in task.columns), strict=True))
    for number, row in enumerate(texts, 1):
        if wrong := [column for column, text in zip(task.columns, row, strict=True) if not isinstance(text, str)]:
            raise UserError(f"{where} has no text in column '{wrong[0]}' of row {number} of its {split} split.")
        if not any(text.strip() for text in row):
            raise UserError(f"{where} has an empty row {number} in its {split} split: there is no text to classify.")
    labels = frame["label"].tolist()
    if strange := {label for label in labels if type(label) is not int or not 0 <= label < len(task.labels)}:
        raise _wrong_labels(task, split, sorted({*strange, *labels}, key=str))
    return Rows(texts, np.array(labels, dtype=np.int64))


def _wrong_labels(task: Task, split: str, found: list) -> UserError:
    shown = ", ".join(repr(label) for label in found[:8]) + (", ..." if len(found) > 8 else "")
    wanted = ", ".join(f"{index} ({label})" for index, label in enumerate(task.labels))
    return UserError(f"Task '{task.name}' has the labels {shown} in its {split} split; it must have {wanted}.")


# --- from the story grammar --------------------------------------------------------------------------------------------


@cache  # every classification step of a warm kernel asks for the same ones
def _grammar_rows(task: Task, split: str, variant: str) -> Rows:
    """Balanced rows, from the beginning of a stream of stories of their own."""
    from collapse_lib.text.grammar import PARAGRAPH, StoryGrammar

    grammar = StoryGrammar(variant)
    seed = GRAMMAR_SEED + [(name, part) for name in ("grammar_fits", "grammar_happy") for part in ("train", "test")].index((task.name, split))
    half = GRAMMAR_ROWS[split] // 2
    if task.name == "grammar_happy":
        stories = (grammar.sample(seed, index) for index in count())
        chosen = [(story, int(story.happy)) for story in _first(stories, lambda story: story.happy, Counter({True: half, False: half}))]
    else:
        fitting = [grammar.sample(seed, index) for index in range(half)]
        # The misfits end as often in each plot as the fitting stories do: an ending alone must not give the answer away.
        misfits = (grammar.sample(seed, index, misfit=True) for index in count(half))
        chosen = [(story, 1) for story in fitting]
        chosen += [(story, 0) for story in _first(misfits, lambda story: story.ending_plot, Counter(story.plot for story in fitting))]
    order = np.random.default_rng(seed).permutation(len(chosen))
    # The ending brings the paragraph break along, so that the two together are the text of a corpus's story.
    texts = [(chosen[row][0].body, PARAGRAPH + chosen[row][0].ending) for row in order]
    return Rows(texts, np.array([chosen[row][1] for row in order], dtype=np.int64))


def _first(stories: Iterator, kind, wanted: Counter) -> Iterator:
    """The first stories of a stream that give each kind its wanted number."""
    while wanted.total():
        story = next(stories)
        if wanted[kind(story)]:
            wanted[kind(story)] -= 1
            yield story
