"""Token corpora: what is written comes back, from any slice; nothing half-written passes for finished; the initial corpus is the stories."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.text.corpus import CorpusWriter, TokenCorpus, build_initial_corpus

EOS = 3
VOCABULARY = 60


def ragged(rng: np.random.Generator, rows: int, has_start: bool = True) -> list[np.ndarray]:
    made = [rng.integers(0, VOCABULARY, rng.integers(1, 9)) for _ in range(rows)]
    for row in made if has_start else []:
        row[0] = EOS
    return made


def write(folder: Path, shards: list, rows_are_complete: bool = False, has_start: bool = True) -> TokenCorpus:
    with CorpusWriter(folder, EOS, VOCABULARY, rows_are_complete, has_start) as writer:
        for index, rows in enumerate(shards):
            writer.write_shard(index, rows)
        return writer.finish(len(shards))


@pytest.fixture(scope="module")
def shards() -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return [ragged(rng, rows) for rows in (5, 1, 40, 7)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, shards) -> TokenCorpus:
    return write(tmp_path_factory.mktemp("corpus"), shards)


@pytest.fixture(scope="module")
def flat(shards) -> np.ndarray:
    return np.concatenate([row for rows in shards for row in rows])


@pytest.fixture(scope="module")
def starts(shards) -> np.ndarray:
    return np.concatenate([np.arange(len(row)) == 0 for rows in shards for row in rows])


def test_rows_and_shards_come_back(corpus, shards, flat):
    rows = [row for part in shards for row in part]
    assert (corpus.rows, corpus.tokens, corpus.real_tokens) == (53, len(flat), len(flat) - 53)
    assert (corpus.eos_id, corpus.vocabulary, corpus.rows_are_complete, corpus.has_start) == (EOS, VOCABULARY, False, True)
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(corpus.iter_rows(), rows, strict=True))
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(corpus.iter_rows(4, 48), rows[4:48], strict=True))
    assert np.array_equal(np.concatenate([shard.values for shard in corpus.shards()]), flat)
    assert corpus.row(52).dtype == np.uint16
    for index in (-1, 53):
        with pytest.raises(IndexError):
            corpus.row(index)


@pytest.mark.parametrize("complete", [True, False])
def test_a_corpus_in_memory_is_like_one_of_a_single_shard(tmp_path, shards, complete):
    (kept, loose) = write(tmp_path, shards[2:3], complete), TokenCorpus.in_memory(shards[2], EOS, VOCABULARY, complete)
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(loose.iter_rows(), kept.iter_rows(), strict=True))
    assert np.array_equal(loose.stream(3, kept.tokens), kept.stream(3, kept.tokens))
    assert np.array_equal(loose.given_starts(0, kept.tokens), kept.given_starts(0, kept.tokens))
    assert np.array_equal(loose.token_counts(), kept.token_counts())
    assert (loose.rows, loose.tokens, loose.real_tokens, loose.has_start) == (kept.rows, kept.tokens, kept.real_tokens, kept.has_start)
    assert loose.hash != TokenCorpus.in_memory(shards[2][1:], EOS, VOCABULARY, complete).hash
    with pytest.raises(ValueError, match="outside a vocabulary of 3"):
        TokenCorpus.in_memory(shards[2], EOS, 3, complete)
    with pytest.raises(UserError, match="70000 does not fit 16 bits"):
        TokenCorpus.in_memory(shards[2], EOS, 70000, complete)


@given(ends=st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_any_slice_of_the_stream_and_its_given_starts(corpus, flat, starts, ends):
    low, high = sorted(round(end * len(flat)) for end in ends)
    found = corpus.stream(low, high)
    assert found.dtype == np.uint16 and np.array_equal(found, flat[low:high])
    assert np.array_equal(corpus.given_starts(low, high), starts[low:high])


def test_slices_outside_the_stream_are_refused(corpus):
    for low, high in [(-1, 2), (3, 2), (0, corpus.tokens + 1)]:
        with pytest.raises(IndexError):
            corpus.stream(low, high)


@pytest.mark.parametrize(("rows_are_complete", "has_start"), [(False, True), (True, True), (False, False)])
def test_counts_are_of_real_tokens(tmp_path, rows_are_complete, has_start):
    rows = ragged(np.random.default_rng(1), 300, has_start)
    corpus = write(tmp_path, [rows[:200], rows[200:]], rows_are_complete, has_start)
    given = has_start and not rows_are_complete
    expected = np.bincount(np.concatenate([row[1:] if given else row for row in rows]), minlength=VOCABULARY)
    assert np.array_equal(corpus.token_counts(), expected)
    assert np.array_equal(corpus.token_counts(chunk=7), expected)
    assert corpus.real_tokens == expected.sum()
    assert corpus.given_starts(0, corpus.tokens).sum() == (300 if given else 0)


def test_an_array_and_its_rows_are_stored_alike(tmp_path):
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, (100, 600))
    tokens[:, 0] = EOS
    one, other = write(tmp_path / "a", [tokens]), write(tmp_path / "b", [list(tokens.astype(np.uint16))])
    assert one.hash == other.hash
    assert np.array_equal(one.stream(0, one.tokens).reshape(100, 600), tokens)
    assert sum(path.stat().st_size for path in one.folder.iterdir()) <= 2.2 * one.tokens


def test_the_hash_follows_the_content(tmp_path, shards, corpus):
    changed = [[row.copy() for row in rows] for rows in shards]
    changed[0][0][-1] = (changed[0][0][-1] + 1) % VOCABULARY
    assert write(tmp_path / "same", shards).hash == corpus.hash
    assert write(tmp_path / "order", shards[::-1]).hash != corpus.hash
    assert write(tmp_path / "kind", shards, rows_are_complete=True).hash != corpus.hash
    assert write(tmp_path / "token", changed).hash != corpus.hash


def test_token_values_are_mapped_not_copied(corpus):
    values = next(corpus.shards()).values
    view = corpus.stream(0, 5)
    assert np.shares_memory(values, view) and np.shares_memory(values, corpus.row(0))
    assert not values.flags.writeable
    assert "shard-00000.arrow" in Path("/proc/self/maps").read_text()


def test_datasets_opens_the_shards(corpus, shards, tmp_path):
    import datasets

    found = datasets.load_dataset("arrow", data_files=str(corpus.folder / "shard-*.arrow"), split="train", cache_dir=str(tmp_path))
    assert [list(row) for row in found["input_ids"]] == [row.tolist() for rows in shards for row in rows]


def test_bad_rows_are_refused(tmp_path):
    writer = CorpusWriter(tmp_path, EOS, VOCABULARY, rows_are_complete=True)
    for rows, complaint in [
        ([np.array([EOS, 1]), np.array([], int)], "empty row"),
        (np.array([[EOS, VOCABULARY]]), "outside a vocabulary of 60"),
        (np.array([[EOS, -1]]), "outside a vocabulary of 60"),
        ([np.array([EOS, 1]), np.array([1, EOS])], "does not begin with token 3"),
        ([], "no rows"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            writer.write_shard(0, rows)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="70000 does not fit 16 bits"):
        CorpusWriter(tmp_path, EOS, 70_000, rows_are_complete=True)


def test_only_finish_makes_a_corpus(tmp_path, shards):
    with CorpusWriter(tmp_path, EOS, VOCABULARY, rows_are_complete=False) as writer:
        writer.write_shard(0, shards[0])
        assert writer.has_shard(0) and not writer.has_shard(1)
        with pytest.raises(UserError, match="There is no finished corpus"):
            TokenCorpus.open(tmp_path)
        with pytest.raises(FileNotFoundError, match="shard-00001"):
            writer.finish(2)
        with pytest.raises(UserError, match="There is no finished corpus"):
            TokenCorpus.open(tmp_path)
        writer.write_shard(1, shards[1])
        assert writer.finish(2).rows == 6
    CorpusWriter(tmp_path, EOS, VOCABULARY, rows_are_complete=False)
    with pytest.raises(UserError, match="There is no finished corpus"):  # it is being written again
        TokenCorpus.open(tmp_path)


def test_a_corpus_of_another_number_of_rows_is_never_finished(tmp_path, shards):
    with CorpusWriter(tmp_path, EOS, VOCABULARY, rows_are_complete=False) as writer:
        writer.write_shard(0, shards[0])
        assert writer.has_shard(0, len(shards[0])) and not writer.has_shard(0, len(shards[0]) + 1)
        with pytest.raises(ValueError, match=f"have {len(shards[0])} rows, not 50"):
            writer.finish(1, 50)
        assert not (tmp_path / "corpus.json").exists()


def test_a_later_writer_goes_on_from_whole_shards(tmp_path, shards, corpus):
    with CorpusWriter(tmp_path, EOS, VOCABULARY, rows_are_complete=False) as writer:
        for index in (0, 2, 3):
            writer.write_shard(index, shards[index])
    cut = tmp_path / "shard-00002.arrow"
    cut.write_bytes(cut.read_bytes()[:-100])
    (tmp_path / ".shard-00001.arrow.1.tmp").write_bytes(b"left by a killed process")
    (tmp_path / "shard-00009.arrow").write_bytes(b"left by a longer run")
    with CorpusWriter(tmp_path, EOS, VOCABULARY, rows_are_complete=False) as writer:
        assert [writer.has_shard(index) for index in range(4)] == [True, False, False, True]
        for index in (1, 2):
            writer.write_shard(index, shards[index])
        assert writer.finish(4).hash == corpus.hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.json", *(f"shard-0000{index}.arrow" for index in range(4))]


def test_a_shard_of_another_origin_or_place_is_none_of_the_corpus(tmp_path, shards):
    def writer(folder: str, origin: str) -> CorpusWriter:
        return CorpusWriter(tmp_path / folder, EOS, VOCABULARY, rows_are_complete=False, origin=origin)

    for folder, origin in (("own", "this model"), ("other", "that model")):
        for index in range(2):
            writer(folder, origin).write_shard(index, shards[0])
    assert [writer("own", "this model").has_shard(index) for index in range(2)] == [True, True]
    shutil.copy(tmp_path / "other" / "shard-00000.arrow", tmp_path / "own" / "shard-00000.arrow")
    shutil.copy(tmp_path / "other" / "shard-00000.arrow", tmp_path / "other" / "shard-00001.arrow")
    assert [writer("own", "this model").has_shard(index) for index in range(2)] == [False, True]
    assert [writer("other", "that model").has_shard(index) for index in range(2)] == [True, False]
    assert [writer("own", "").has_shard(index) for index in range(2)] == [False, False]
    with pytest.raises(FileNotFoundError, match=r"shard-00000\.arrow is missing or damaged"):
        writer("own", "this model").finish(2)


KILLED = """
import sys, numpy as np
from collapse_lib.text.corpus import CorpusWriter
rows = np.arange(200_000).reshape(1000, 200) % 60
writer = CorpusWriter(sys.argv[1], 0, 60, rows_are_complete=False, has_start=False)
for index in range(1000):
    writer.write_shard(index, rows)
"""


def test_a_shard_is_whole_whenever_it_is_there_even_after_a_kill(tmp_path):
    watcher = CorpusWriter(tmp_path, 0, 60, rows_are_complete=False, has_start=False)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)]) as process:
        try:
            seen = 0
            while seen < 40 and process.poll() is None:
                if (tmp_path / f"shard-{seen:05d}.arrow").exists():
                    assert watcher.has_shard(seen)  # looked at in the moment it appears
                    seen += 1
        finally:
            process.send_signal(signal.SIGKILL)
    assert seen == 40
    with pytest.raises(UserError):
        TokenCorpus.open(tmp_path)
    shards = len(list(tmp_path.glob("shard-*.arrow")))
    assert shards >= seen and all(watcher.has_shard(index) for index in range(shards))
    assert watcher.finish(shards).rows == 1000 * shards
    assert len(list(tmp_path.iterdir())) == shards + 1


def test_a_shard_lost_later_is_named(tmp_path, shards):
    corpus = write(tmp_path, shards)
    (tmp_path / "shard-00001.arrow").unlink()
    assert len(corpus.row(0)) == len(shards[0][0])
    with pytest.raises(UserError, match=r"shard-00001\.arrow' is missing or damaged"):
        corpus.row(5)


def test_opening_many_shards_is_quick_and_holds_no_files_open(tmp_path):
    import resource

    rows = np.full((2, 3), EOS)
    corpus = write(tmp_path, [rows] * 300)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        corpus = TokenCorpus.open(tmp_path)
        assert len(corpus.stream(0, corpus.tokens)) == corpus.tokens == 1800
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- the initial corpus ------------------------------------------------------------------------------------------------


def protocol(**corpus_fields) -> Protocol:
    return Protocol.from_fields({"corpus": corpus_fields, "training": {"holdout": 0.2}})


def texts(corpus: TokenCorpus, tokenizer) -> list[str]:
    return [tokenizer.decode(row[1:]) for row in corpus.iter_rows()]


@pytest.fixture
def source(tmp_path, stories) -> str:
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in [*stories, "Literally <|endoftext|> here."]))
    return str(path)


def test_the_initial_corpus_is_the_stories(tmp_path, source, stories, tokenizer):
    parts = build_initial_corpus(protocol(source=source), tokenizer, tmp_path / "corpus", seed=5)
    found = {part: texts(corpus, tokenizer) for part, corpus in parts.items()}
    assert sorted(chain(*found.values())) == sorted([*stories, "Literally <|endoftext|> here."])
    assert 5 <= len(found["holdout"]) <= 40 and 1 <= len(found["validation"]) <= 20
    for part, corpus in parts.items():
        assert TokenCorpus.open(tmp_path / "corpus" / part).hash == corpus.hash
        assert corpus.rows_are_complete and corpus.has_start and corpus.real_tokens == corpus.tokens
        assert corpus.token_counts()[tokenizer.eos_id] == corpus.rows
        assert all(row[0] == tokenizer.eos_id for row in corpus.iter_rows())


def test_the_initial_corpus_depends_on_the_seed_alone(tmp_path, source, tokenizer):
    hashes = [
        [part.hash for part in build_initial_corpus(protocol(source=source), tokenizer, tmp_path / name, seed).values()]
        for name, seed in [("a", 1), ("b", 1), ("a", 2)]
    ]
    assert hashes[0] == hashes[1]
    assert all(one != other for one, other in zip(hashes[0], hashes[2], strict=True))


def test_shards_fill_up_in_order(tmp_path, source, stories, tokenizer, monkeypatch):
    monkeypatch.setattr("collapse_lib.text.corpus.SHARD_TOKENS", 200)
    monkeypatch.setattr("collapse_lib.text.corpus.STORIES_AT_ONCE", 7)
    parts = build_initial_corpus(protocol(source=source, validation_source=source), tokenizer, tmp_path / "corpus", seed=5)
    assert len(list((tmp_path / "corpus" / "train").glob("*.arrow"))) > 5
    assert texts(parts["validation"], tokenizer)[:100] == stories
    kept = set(texts(parts["train"], tokenizer))
    assert texts(parts["train"], tokenizer) == [story for story in [*stories, "Literally <|endoftext|> here."] if story in kept]


def test_the_limits_count_stories(tmp_path, source, tokenizer):
    parts = build_initial_corpus(protocol(source=source, stories=10, validation_stories=1), tokenizer, tmp_path / "corpus", seed=5)
    assert parts["train"].rows + parts["holdout"].rows == 10
    assert parts["holdout"].rows >= 1 and parts["validation"].rows == 1


def test_too_few_stories_leave_nothing_finished(tmp_path, tokenizer):
    (tmp_path / "two.txt").write_text("One.<|endoftext|>Two.")
    with pytest.raises(UserError, match="gives one training story only; two are the fewest"):
        build_initial_corpus(protocol(source=str(tmp_path / "two.txt")), tokenizer, tmp_path / "corpus", seed=1)
    assert not list((tmp_path / "corpus").rglob("corpus.json"))


def test_a_hold_out_that_takes_everything_is_refused(tmp_path, source, tokenizer):
    settings = Protocol.from_fields({"corpus": {"source": source, "stories": 9}, "training": {"holdout": 1 - 1e-9}})
    with pytest.raises(UserError, match=r"training.holdout = 0.999999999 holds out all 9 training stories; give more stories or a smaller share"):
        build_initial_corpus(settings, tokenizer, tmp_path / "corpus", seed=1)


def test_the_grammar_fills_an_initial_corpus(tmp_path, tokenizer):
    parts = build_initial_corpus(protocol(source="grammar", stories=40, validation_stories=9), tokenizer, tmp_path, seed=1)
    assert parts["train"].rows + parts["holdout"].rows == 40 and parts["validation"].rows == 9


def test_real_stories_survive_the_real_tokenizer(tmp_path, real_data):
    from collapse_lib.text import tokenizer as tokenization
    from collapse_lib.text.sources import read_stories

    gpt2 = tokenization.load(real_data / "tokenizer")
    settings = protocol(source=str(real_data / "tinystories"), stories=300, validation_stories=50)
    parts = build_initial_corpus(settings, gpt2, tmp_path, seed=1)
    assert texts(parts["validation"], gpt2) == list(read_stories(settings.corpus, "validation", 1))
    assert parts["train"].rows + parts["holdout"].rows == 300
    assert parts["train"].tokens / parts["train"].rows == pytest.approx(200, abs=40)
    assert sum(path.stat().st_size for path in parts["train"].folder.iterdir()) <= 2.2 * parts["train"].tokens
