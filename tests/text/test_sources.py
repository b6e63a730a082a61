"""Where stories come from: every form of source gives the same stories, splits are disjoint, bad input is refused in one sentence."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.protocol import CorpusSettings
from collapse_lib.text.sources import LONGEST_STORY, SEPARATOR, held_out, load_from_hub, read_stories


def write_stories(path: Path, stories: list[str], field: str = "text") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({field: story, "n": n}) + "\n" for n, story in enumerate(stories))
    if path.name.endswith(".txt"):
        path.write_text(f"\n{SEPARATOR}\n".join(stories), encoding="utf-8")
    elif path.name.endswith(".jsonl"):
        path.write_text(lines, encoding="utf-8")
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        pq.write_table(pa.table({"n": range(len(stories)), field: stories}), path)
    return str(path)


def read(source: Path | str, split: str = "train", seed: int = 1, **fields) -> list[str]:
    return list(read_stories(CorpusSettings(source=str(source), **fields), split, seed))


@pytest.mark.parametrize("name", ["s.txt", "s.jsonl", "s.jsonl.gz", "s.parquet", "folder/s.parquet"])
def test_every_form_gives_the_same_stories_in_order(stories, tmp_path, name):
    write_stories(tmp_path / name, stories)
    source = tmp_path / Path(name).parts[0]
    own = write_stories(tmp_path / "validation" / "v.txt", ["A story for validation."])
    assert read(source, validation_source=own) == stories
    assert read(source, stories=7, validation_source=own) == stories[:7]
    assert read(source, "validation", validation_source=own) == ["A story for validation."]


def test_text_files_split_anywhere_and_keep_what_is_inside_a_story(tmp_path):
    long = ["ä" * 700_000, "b\nb\n\nb", "c" * 700_000]  # the separator falls on both sides of the reader's blocks
    (tmp_path / "s.txt").write_bytes(b"\xef\xbb\xbf" + f"\r\n{SEPARATOR}\r\n \n{SEPARATOR}".join(long).encode() + b"\n")
    assert read(tmp_path / "s.txt", validation_source=str(tmp_path / "s.txt")) == long


def test_a_separator_inside_a_json_story_is_text(tmp_path):
    source = write_stories(tmp_path / "s.jsonl", [f"a {SEPARATOR} b", "c"])
    assert read(source, validation_source=source) == [f"a {SEPARATOR} b", "c"]


def test_the_carved_out_validation_stories_and_the_rest_are_the_whole(tmp_path):
    stories = [f"Story number {n}." for n in range(4000)]
    source = write_stories(tmp_path / "s.jsonl", stories)
    train, validation = read(source), read(source, "validation")
    assert sorted(train + validation) == sorted(stories)
    assert train == [story for story in stories if story not in set(validation)]
    assert len(validation) == pytest.approx(200, abs=60)  # more than four standard deviations
    assert validation == read(source, "validation")
    assert validation != read(source, "validation", seed=2)
    assert read(source, "validation", validation_stories=5) == validation[:5]


@pytest.mark.parametrize("count", [2, 3, 10])
def test_small_sources_have_both_splits(tmp_path, count):
    source = write_stories(tmp_path / "s.txt", [f"Story {n}." for n in range(count)])
    for seed in range(20):
        assert len(read(source, seed=seed)) + len(read(source, "validation", seed=seed)) == count


def test_held_out_depends_on_seed_purpose_and_share():
    def chosen(*arguments):
        return [index for index in range(2000) if held_out(*arguments[:2], index, arguments[2])]

    assert chosen(1, "a", 0.3) == chosen(1, "a", 0.3)
    assert len({tuple(chosen(*which)) for which in [(1, "a", 0.3), (2, "a", 0.3), (1, "b", 0.3), (1, "a", 0.4)]}) == 4
    assert len(chosen(1, "a", 0.3)) == pytest.approx(600, abs=90)


def test_a_folders_named_files_are_its_splits(tmp_path):
    write_stories(tmp_path / "data" / "train-00000-of-00002.parquet", ["one", "two"])
    write_stories(tmp_path / "data" / "train-00001-of-00002.parquet", ["three"])
    write_stories(tmp_path / "data" / "validation-00000-of-00001.parquet", ["four"])
    write_stories(tmp_path / "data" / "validation_exact.jsonl", ["five"])
    write_stories(tmp_path / ".cache" / ".train.txt", ["six"])
    assert read(tmp_path) == ["one", "two", "three"]
    assert read(tmp_path, "validation") == ["four"]
    assert read(tmp_path, "validation", validation_source=str(tmp_path / "data" / "validation_exact.jsonl")) == ["five"]


def test_a_folder_as_validation_source_gives_its_validation_files(tmp_path):
    write_stories(tmp_path / "v" / "train.txt", ["one", "two"])
    write_stories(tmp_path / "v" / "validation.txt", ["three"])
    write_stories(tmp_path / "w" / "any.txt", ["four", "five"])
    source = write_stories(tmp_path / "s.txt", ["six", "seven"])
    assert read(source, "validation", validation_source=str(tmp_path / "v")) == ["three"]
    assert read(source, "validation", validation_source=str(tmp_path / "w")) == ["four", "five"]


def test_the_grammars_splits_are_different_streams():
    fields = {"source": "grammar", "stories": 50, "validation_stories": 20}
    train, validation = read(**fields), read(split="validation", **fields)
    assert (len(train), len(validation)) == (50, 20)
    assert read(**fields | {"stories": 10}) == train[:10]
    assert not set(train) & set(validation)
    assert read(seed=2, **fields) != train
    assert read(**fields | {"grammar": "twin"}) != train
    with pytest.raises(UserError, match=r"corpus\.validation_stories is null, but the grammar has no end"):
        read(source="grammar", split="validation", stories=5)


BAD = {
    "empty.txt": (b"", "holds no story"),
    "blank.txt": (f"\n{SEPARATOR}\n \n".encode(), "holds no story"),
    "one.txt": (b"A single story.", "holds one story only; a corpus needs at least 2"),
    "latin1.txt": ("café".encode("latin1"), "is not UTF-8 text .byte 0xe9"),
    "latin1.jsonl": ('{"text": "café"}\n'.encode("latin1"), "is not UTF-8 text"),
    "huge.txt": (b"a" * (LONGEST_STORY + 1), "is longer than 1,000,000 characters"),
    "endless.txt": (b"a" * 4 * LONGEST_STORY, "is longer than 1,000,000 characters"),
    "endless.jsonl": (b'{"text": "' + b"a" * 9 * LONGEST_STORY, "is longer than 1,000,000 characters"),
    "broken.jsonl": (b'{"text": "a"}\n\n{"text": \n', "Line 3 of .* is not valid JSON"),
    "list.jsonl": (b"[1]\n", "Line 1 of .* is not a JSON object with a key 'text'"),
    "column.jsonl": (b'{"story": "a", "id": 1}\n', r"line 1' has no field 'text' \(there: 'story', 'id'\)"),
    "number.jsonl": (b'{"text": 1}\n', "Field 'text' of .* holds int, not text"),
    "surrogate.jsonl": (b'{"text": "a \\ud800 b"}\n', "half a surrogate pair"),
    "plain.jsonl.gz": (b'{"text": "a"}\n', "is damaged or not gzip"),
    "cut.jsonl.gz": (gzip.compress(os.urandom(9999))[:5000], "is damaged or not gzip|is not UTF-8"),
    "text.parquet": (b"text", "is not a Parquet file"),
    "stories.csv": (b"a,b", "is none of the story files that can be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_sentence(tmp_path, name):
    content, complaint = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint) as refusal:
        read(tmp_path / name)
    assert name in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_wrong_parquet_column_is_refused(tmp_path):
    source = write_stories(tmp_path / "s.parquet", ["a", "b"], field="story")
    with pytest.raises(UserError, match=r"has no field 'text' \(there: 'n', 'story'\); name the stories' field with corpus.text_field"):
        read(source)
    with pytest.raises(UserError, match=r"Field 'n' of .* holds int, not text"):
        read(source, text_field="n")
    assert read(source, text_field="story", validation_source=source) == ["a", "b"]


def test_missing_sources_are_refused_at_once(tmp_path):
    (tmp_path / "nothing").mkdir()
    write_stories(tmp_path / "half" / "validation.txt", ["a", "b"])
    for source, complaint in {
        tmp_path / "missing.txt": "There is no file or folder",
        tmp_path / "missing": "There is no file or folder",
        tmp_path / "nothing": "holds no story file",
        tmp_path / "half": "holds validation files only",
    }.items():
        with pytest.raises(UserError, match=complaint):
            read_stories(CorpusSettings(source=str(source)))


READ_HUB = """
import json, sys
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.protocol import CorpusSettings
from collapse_lib.text.sources import read_stories
from collapse_lib.text.tokenizer import load
try:
    if sys.argv[1] == "tokenizer":
        load("nobody/tales")
    print(json.dumps([list(read_stories(CorpusSettings(source="nobody/tales"), split)) for split in ("train", "validation")]))
except UserError as error:
    print(json.dumps(str(error)))
"""


def read_without_network(what: str, cache: Path):
    # Port 9 of this machine refuses connections, whatever network the machine has.
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(cache)}
    done = subprocess.run([sys.executable, "-c", READ_HUB, what], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", ["corpus", "tokenizer"])
def test_an_unreachable_hub_is_named_with_what_to_do(tmp_path, what):
    message = read_without_network(what, tmp_path)
    assert "'nobody/tales' is no local" in message and "could not be fetched" in message
    assert f"--set {what}.source=" in message and "\n" not in message


def test_splits_of_other_sizes_than_declared_are_told_in_words(monkeypatch):
    import datasets
    from datasets.utils.info_utils import NonMatchingSplitsSizesError
    from huggingface_hub import HfApi

    def load(*name):
        pairs = [{"expected": datasets.SplitInfo(part, 1, said), "recorded": datasets.SplitInfo(part, 1, there)} for part, said, there in SIZES]
        raise NonMatchingSplitsSizesError(str(pairs))

    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError) as raised:
        load_from_hub("nobody/tales", otherwise=lambda reason: f"No ({reason}).")
    said = "12 rows of 'train' where its card declares 2,119,719 and 3 rows of 'validation' where its card declares 4"
    assert str(raised.value) == f"No (it holds {said})."


SIZES = [("train", 2_119_719, 12), ("validation", 4, 3)]


def test_a_hub_dataset_in_the_cache_is_read_without_network(tmp_path, stories):
    import datasets

    files = {
        "train": write_stories(tmp_path / "t.parquet", stories[:60]),
        "validation": write_stories(tmp_path / "v.parquet", stories[60:]),
    }
    cache = tmp_path / "home" / "datasets"
    built = datasets.load_dataset("parquet", data_files=files, cache_dir=str(cache))
    place = Path(built["train"].cache_files[0]["filename"]).parent
    # What `datasets` leaves behind after fetching 'nobody/tales' from the hub.
    target = cache / "nobody___tales" / "default" / "0.0.0" / place.name
    target.parent.mkdir(parents=True)
    place.rename(target)
    info = json.loads((target / "dataset_info.json").read_text())
    info |= {"dataset_name": "tales", "config_name": "default"}
    (target / "dataset_info.json").write_text(json.dumps(info))
    for path in target.glob("parquet-*.arrow"):
        path.rename(path.with_name(path.name.replace("parquet-", "tales-")))
    assert read_without_network("corpus", tmp_path / "home") == [stories[:60], stories[60:]]


def test_real_tinystories(real_data):
    folder = real_data / "tinystories"
    assert len(read(folder)) == 11_528
    assert len(read(folder, "validation")) == 780
    assert len(read(folder, "validation", validation_source=str(folder / "validation_exact.jsonl.gz"))) == 198
    first = read(folder, stories=5)
    assert len(first) == 5 and first[0].startswith("One day, a little girl named Lily found a needle")
