"""Tasks: what is read, what is refused and in which words, and that the grammar's own tasks give nothing away."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.protocol import ClassificationSettings, TaskName
from collapse_lib.text.grammar import StoryGrammar
from collapse_lib.text.tasks import TASKS, Rows, origins, read_tasks

GOOD = [{"sentence": f"It is film number {number}.", "label": number % 2} for number in range(8)]


def write(folder: Path, rows: list, split: str = "train", suffix: str = ".jsonl.gz") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if suffix == ".parquet":
        import pandas

        pandas.DataFrame(rows).to_parquet(folder / f"{split}{suffix}")
    elif suffix == ".jsonl":
        (folder / f"{split}{suffix}").write_text(text, encoding="utf-8")
    else:
        (folder / f"{split}{suffix}").write_bytes(gzip.compress(text.encode()))


def sst2(tmp_path: Path, train: list = GOOD, test: list | None = GOOD, suffix: str = ".jsonl.gz"):
    write(tmp_path / "glue" / "sst2", train, "train", suffix)
    if test is not None:
        write(tmp_path / "glue" / "sst2", test, "validation", suffix)
    return ClassificationSettings(tasks=("sst2",), data=str(tmp_path))


def test_the_protocol_names_exactly_the_tasks_there_are():
    assert get_args(TaskName) == tuple(TASKS)
    assert all(task.name == name and len(task.columns) in (1, 2) and bool(task.hub) == bool(task.folder) for name, task in TASKS.items())


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl", ".parquet"])
def test_local_files_are_read_as_they_are(tmp_path, suffix):
    odd = [*GOOD, {"sentence": "2024-01-01", "label": 1}, {"sentence": "12", "label": 0}]
    (data,) = read_tasks(sst2(tmp_path, odd, suffix=suffix))
    assert data.train.texts == [(row["sentence"],) for row in odd]
    assert data.train.labels.tolist() == [row["label"] for row in odd] and len(data.test) == 8


def test_rte_is_read_in_its_public_form(tmp_path):
    rows = [
        {"sentence1": "A cat sat.", "sentence2": "A cat sat down.", "label": 0, "idx": 0},
        {"sentence1": "A.", "sentence2": "B.", "label": 1, "idx": 1},
    ]
    for split in ("train", "validation"):
        write(tmp_path / "glue" / "rte", rows, split)
    (data,) = read_tasks(ClassificationSettings(tasks=("rte",), data=str(tmp_path)))
    assert data.train.texts[0] == ("A cat sat.", "A cat sat down.") and data.task.labels == ("entailment", "not entailment")


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (GOOD, None, r"^Task 'sst2' has no validation split: .* holds train\.jsonl\.gz, not validation\.jsonl\.gz \(or \.jsonl, \.parquet\)\.$"),
        ([], GOOD, r"^Task 'sst2' has no rows in its train split\.$"),
        ([{"text": "a", "label": 1}], GOOD, r"no column 'sentence' in its train split \(there: text, label\)"),
        ([{"sentence": "a"}], GOOD, r"no column 'label'"),
        ([*GOOD, {"sentence": "a", "label": 2}], GOOD, r"has the labels 0, 1, 2 in its train split; it must have 0 \(negative\), 1 \(positive\)\.$"),
        (GOOD, [{"sentence": "a", "label": -1}], r"has the labels -1 in its validation split"),
        ([{"sentence": "a", "label": "positive"}], GOOD, r"has the labels 'positive' in its train split"),
        ([{"sentence": "a", "label": 0}], GOOD, r"has the labels 0 in its train split; it must have 0 \(negative\), 1"),
        ([*GOOD, {"sentence": "  ", "label": 1}], GOOD, r"empty row 9 in its train split"),
        (GOOD, [*GOOD, {"sentence": None, "label": 1}], r"no text in column 'sentence' of row 9 of its validation split"),
    ],
)
def test_the_usual_mistakes_are_named_in_a_sentence(tmp_path, train, test, message):
    with pytest.raises(UserError, match=message):
        read_tasks(sst2(tmp_path, train, test))


def test_one_empty_text_of_a_pair_is_allowed_and_two_are_not(tmp_path):
    rows = [{"question1": "Why?", "question2": "", "label": 0}, {"question1": "How?", "question2": "How?", "label": 1}]
    settings = ClassificationSettings(tasks=("qqp",), data=str(tmp_path))
    for split in ("train", "validation"):
        write(tmp_path / "glue" / "qqp", rows, split)
    assert len(read_tasks(settings)[0].train) == 2
    write(tmp_path / "glue" / "qqp", [*rows, {"question1": "", "question2": " ", "label": 0}], "train")
    with pytest.raises(UserError, match="empty row 3"):
        read_tasks(settings)


def test_a_missing_folder_is_refused_with_those_there_are(tmp_path):
    sst2(tmp_path)
    with pytest.raises(UserError, match=r"no folder '.*glue/cola' for task 'cola' \(tasks that have one in '.*': sst2\)"):
        read_tasks(ClassificationSettings(tasks=("sst2", "cola"), data=str(tmp_path)))


# The ids are given: gzip writes the time into its header, and pytest-xdist's processes must agree on every test's name.
@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(b'{"sentence": "a"'), gzip.compress(b"[1, 2]\n3")[:-9]],
    ids=["not gzip", "cut JSON", "cut gzip"],
)
def test_damaged_files_are_refused(tmp_path, content):
    settings = sst2(tmp_path)
    (tmp_path / "glue" / "sst2" / "train.jsonl.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.jsonl\.gz' cannot be read as jsonl\.gz"):
        read_tasks(settings)


def test_limits_keep_the_balance_the_order_and_the_choice():
    rows = Rows([(str(number),) for number in range(1000)], (np.arange(1000) % 4 == 0).astype(np.int64))
    kept = rows.limited(100)
    assert len(kept) == 100 and kept.labels.sum() == 25 and len(set(kept.texts)) == 100
    numbers = [int(text) for (text,) in kept.texts]
    assert numbers == sorted(numbers) and [rows.labels[number] for number in numbers] == kept.labels.tolist()
    assert kept.texts == rows.limited(100).texts and numbers != list(range(100))
    other = rows.limited(100, draw=1)
    assert other.labels.sum() == 25 and len(set(other.texts) & set(kept.texts)) < 30 and other.texts == rows.limited(100, draw=1).texts
    assert rows.limited(None) is rows and rows.limited(5000) is rows


@pytest.fixture(scope="module")
def grammar():
    return {data.task.name: data for data in read_tasks(ClassificationSettings(tasks=("grammar_fits", "grammar_happy")))}


def test_the_grammar_tasks_are_balanced_disjoint_and_always_the_same(grammar):
    for name, data in grammar.items():
        assert data.train.labels.mean() == data.test.labels.mean() == 0.5
        bodies = [body for rows in (data.train, data.test) for body, _ in rows.texts]
        assert len(set(bodies)) == len(bodies)  # no story twice, neither within a part nor in both
        assert data.hash == read_tasks(ClassificationSettings(tasks=(name,)))[0].hash
        assert abs(data.train.labels[:200].mean() - 0.5) < 0.15  # mixed, not one class behind the other


def test_the_labels_of_the_grammar_are_true(grammar):
    language = StoryGrammar()
    for name, expected in (("grammar_fits", lambda label: bool(label)), ("grammar_happy", lambda label: True)):
        rows = grammar[name].test.limited(12)
        for (body, ending), label in zip(rows.texts, rows.labels, strict=True):
            assert (language.log_probability(body + ending) > float("-inf")) == expected(label)


def test_the_small_grammar_has_tasks_of_its_own():
    language = StoryGrammar("small")
    for name in ("grammar_fits", "grammar_happy"):
        (data,) = read_tasks(ClassificationSettings(tasks=(name,), grammar="small"))
        assert data.train.labels.mean() == data.test.labels.mean() == 0.5
        assert not set(data.train.texts) & set(data.test.texts)
        rows = data.test.limited(60)
        for (body, ending), label in zip(rows.texts, rows.labels, strict=True):
            told = language.read(body + ending).ending
            if name == "grammar_happy":
                assert ("-happy-" in told) == bool(label)
            else:
                assert (language.log_probability(body + ending) > float("-inf")) == bool(label)


def test_an_ending_alone_does_not_say_whether_it_fits(grammar):
    rows = grammar["grammar_fits"].train
    firsts = [
        Counter(" ".join(ending.split()[:1]) for (_, ending), label in zip(rows.texts, rows.labels, strict=True) if label == side) for side in (0, 1)
    ]
    words = {word for word in firsts[0] | firsts[1] if firsts[0][word] + firsts[1][word] > 100}
    assert words and all(abs(firsts[0][word] - firsts[1][word]) < 5 * (firsts[0][word] + firsts[1][word]) ** 0.5 for word in words)


def test_no_single_word_solves_a_grammar_task(grammar):
    """And words without their order hardly say whether an ending fits; that a happy ending has happy words is the point of the other task."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    for name, most in (("grammar_fits", 0.65), ("grammar_happy", 1.0)):
        train, test = (grammar[name].train.limited(600), grammar[name].test.limited(400))
        words = CountVectorizer(binary=True)
        seen, new = (words.fit_transform([" ".join(text) for text in train.texts]), words.transform([" ".join(text) for text in test.texts]))
        present = new.toarray()
        single = (present == test.labels[:, None]).mean(0)
        assert max(single.max(), 1 - single.min()) < 0.75
        assert LogisticRegression(max_iter=300).fit(seen, train.labels).score(new, test.labels) <= most


def test_the_real_tasks_can_be_read(real_data):
    names = ("sst2", "cola", "mrpc", "qnli", "qqp", "yelp")
    found = read_tasks(ClassificationSettings(tasks=names, data=str(real_data), train_rows=100, test_rows={"mrpc": 10}))
    assert [len(data.draw(0)) for data in found] == [data.train_rows for data in found] == [100] * 6
    assert len(found[2].test) == 10 and len(found[1].test) == 1043
    with pytest.raises(UserError, match=r"'yelp_full' has no train split"):
        read_tasks(ClassificationSettings(tasks=("yelp_full",), data=str(real_data)))


def test_stars_are_not_sentiment(tmp_path):
    rows = [{"text": "Good food.", "label": label} for label in range(5)]
    for split in ("train", "test"):
        write(tmp_path / "yelp_polarity", rows, split)
    with pytest.raises(UserError, match=r"'yelp' has the labels 0, 1, 2, 3, 4 in its train split"):
        read_tasks(ClassificationSettings(tasks=("yelp",), data=str(tmp_path)))


def test_where_rows_come_from_is_said_with_the_runs_notes():
    names = ("imdb", "yelp", "grammar_fits")
    assert (
        origins(ClassificationSettings(tasks=names))
        == "Where the classification tasks' rows come from: IMDB, Yelp: the dataset hub; Ending fits: the story grammar."
    )
    said = origins(ClassificationSettings(tasks=names, data="somewhere", notes="Yelp's are others."))
    assert "IMDB, Yelp: local files, which were not checked against the public data sets" in said and said.endswith("grammar. Yelp's are others.")


def test_notes_on_rows_decide_nothing():
    """They can be added to a run that is finished."""
    from collapse_lib.experiment.protocol import load_preset

    protocol = load_preset("demo")
    noted = protocol.with_changes({"classification.notes": "a note"})
    assert noted.hash(("classification",)) == protocol.hash(("classification",)) and not protocol.differences(noted)


def test_the_committed_run_says_what_its_yelp_rows_are():
    from collapse_lib.experiment.run import Run

    assert "Yelp are real reviews" in origins(Run.open("tinystories-small").protocol.classification)
