"""Free-text metrics against slow and obvious ways of counting the same."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapse_lib.metrics import entropy as entropy_module
from collapse_lib.metrics import free_text as free_text_module
from collapse_lib.metrics import repetition
from collapse_lib.metrics import words as words_module
from collapse_lib.metrics.entropy import entropy, padded_metrics
from collapse_lib.metrics.free_text import free_text
from collapse_lib.metrics.repetition import Repeats, distinct_ngrams, frequent_tokens
from collapse_lib.metrics.row_blocks import row_blocks
from collapse_lib.metrics.words import as_word, corpus_word_types, count_words, lexicon
from collapse_lib.text import tokenizer as tokenization
from collapse_lib.text.corpus import CorpusWriter, TokenCorpus

STORIES = [
    "Once upon a time there was a little dog. The dog didn't like Mr. Brown's cat.\n\n“No!” said the dog. “It’s mine,” he'll say.",
    "Lily and Tom went to the park at 5 o'clock. They couldn't see the sun-lit well-known tree... so they went home!\tThe end.",
    "A naïve café owner said:\u00a0hello\u2003there. \u201cHi,\u201d she cried — and the 3rd bird sang tweet-tweet.  ",
]


@pytest.fixture(scope="module")
def tokenizer() -> tokenization.Tokenizer:
    return tokenization.learn(iter(STORIES * 20), 400)


def write(folder: Path, tokenizer: tokenization.Tokenizer, rows: list[list[int]], complete: bool = False, has_start: bool = True) -> TokenCorpus:
    with CorpusWriter(folder, tokenizer.eos_id, tokenizer.vocabulary, rows_are_complete=complete, has_start=has_start) as writer:
        half = (len(rows) + 1) // 2
        writer.write_shard(0, [np.array(row, np.uint16) for row in rows[:half]])
        writer.write_shard(1, [np.array(row, np.uint16) for row in rows[half:]])
        return writer.finish(2)


def block(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows end to end and where each begins, as ``blocks`` gives them."""
    return np.concatenate([np.array(row, np.uint16) for row in rows]), np.concatenate([np.arange(len(row)) == 0 for row in rows])


def values(metrics: dict) -> dict[str, float]:
    return {name: metric["value"] for name, metric in metrics.items()}


def words_of(texts: Iterable[str]) -> Counter[str]:
    """What the metric should find: spaCy run over every whole text."""
    return Counter(word for text in texts for piece in whole_text_pieces()(text) if (word := as_word(piece.text)))


@lru_cache
def whole_text_pieces():
    import spacy

    return spacy.blank("en").tokenizer


def test_entropy_of_known_distributions():
    assert entropy(np.full(8, 5)) == pytest.approx(math.log(8), abs=1e-12)
    assert entropy(np.array([3, 1, 0])) == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4), abs=1e-12)
    assert entropy(np.array([0, 7, 0])) == 0.0 and math.copysign(1, entropy(np.array([0, 7, 0]))) == 1
    assert entropy(np.zeros(3, int)) == 0.0


def test_miller_madow_removes_most_of_the_bias():
    random_counts = np.random.default_rng(0).multinomial(2000, np.full(300, 1 / 300), size=50)
    plain = np.mean([entropy_module.entropy_metrics(counts)["entropy"]["value"] for counts in random_counts])
    corrected = np.mean([entropy_module.entropy_metrics(counts)["entropy_miller_madow"]["value"] for counts in random_counts])
    assert math.log(300) - plain > 0.05
    assert abs(math.log(300) - corrected) < 0.01


@pytest.mark.parametrize(
    ("piece", "word"),
    [("Dog", "dog"), ("n’t", "n't"), ("Mr.", "mr"), ("U.S.", "us"), ("spot-", "spot"), ("o'clock", "o'clock"), ("cafe\u0301", "café"), ("z", "z")],
)
def test_what_is_a_word(piece, word):
    assert as_word(piece) == word


@pytest.mark.parametrize("piece", ["5", "3rd", "...", "-", "'", "", " ", "\n", "caf�", 'said,"No', "_"])
def test_what_is_no_word(piece):
    assert as_word(piece) is None


def test_lexicon_knows_contractions_names_and_few_single_letters():
    assert {"dog", "n't", "'s", "'ll", "o'clock", "mr", "mrs", "dr", "lily", "a", "i", "o"} <= lexicon()
    assert not {"e", "z", "s", "zipzopp", "", "squ-"} & lexicon()
    assert len(lexicon()) > 300_000


def test_words_of_chunks_are_the_words_of_whole_texts():
    chunks = Counter(chunk for text in STORIES for chunk in text.split())
    words, mixed = count_words(chunks)
    assert words == words_of(STORIES)
    assert words["n't"] == 2 and words["'s"] == 2 and words["café"] == 1 and mixed == 1  # "3rd"


# Anything with letters, quotes, signs and exotic white space. The quote before an "s" is left out: there spaCy looks across white space.
TEXTS = st.text(
    st.sampled_from('aAeEoxztT.,!?-…—“”"()/:;59 \n\t\u00a0\u2003\x1c\u200b\u0301é�') | st.characters(codec="utf-8", exclude_characters="'’‘"),
    max_size=60,
)


@given(st.lists(TEXTS, max_size=4))
@settings(max_examples=300, deadline=None)
def test_words_of_chunks_equal_spacy_on_any_text(texts):
    assert count_words(Counter(chunk for text in texts for chunk in text.split()))[0] == words_of(texts)


@given(st.lists(TEXTS, max_size=3), st.data())
@settings(max_examples=100, deadline=None)
def test_segments_of_tokens_are_the_text(tokenizer, texts, data):
    """Counting token runs and decoding each once gives the chunks of the decoded rows; sampled tokens need not be valid UTF-8."""
    rows = [tokenizer.encode(text) for text in texts]
    rows.append(data.draw(st.lists(st.integers(0, tokenizer.vocabulary - 1), max_size=40)))
    rows = [row for row in rows if row]
    if not rows:
        return
    texts = tokenizer.decode_batch([[token] for token in range(tokenizer.vocabulary)])
    segments = words_module._segments(block(rows), words_module._starts_word(texts), tokenizer.eos_id, cut_off=False)
    expected = Counter(chunk for row in rows for story in split_at(row, tokenizer.eos_id) for chunk in tokenizer.decode(story).split())
    assert words_module._chunks(segments, tokenizer) == expected
    ascii_texts = pa.array([text if text.isascii() else None for text in texts], pa.string())
    for segment, text in zip(segments["segment"].to_pylist(), joined_texts(segments, ascii_texts), strict=True):
        decoded = tokenizer.decode(np.frombuffer(segment, np.uint16))
        assert text == decoded if text is not None else not decoded.isascii()


def joined_texts(segments: pa.Table, ascii_texts: pa.Array) -> list[str | None]:
    return [text for batch in segments.to_batches() for text in words_module._joined_texts(batch["segment"], ascii_texts).to_pylist()]


def split_at(row: list[int], eos_id: int) -> list[list[int]]:
    stories: list[list[int]] = [[]]
    for token in row:
        if token == eos_id:
            stories.append([])
        else:
            stories[-1].append(token)
    return stories


def test_complete_rows_count_every_word(tmp_path, tokenizer):
    corpus = write(tmp_path, tokenizer, [[tokenizer.eos_id, *tokenizer.encode(story)] for story in STORIES], complete=True)
    expected = words_of(STORIES)
    metrics, examples = free_text(corpus, tokenizer, set(expected))
    found = values(metrics)
    assert (found["words"], found["word_types"], found["mixed"]) == (expected.total(), len(expected), 1)
    assert found["oov_initial_occurrences"] == found["oov_initial_types"] == found["oov_initial_rate"] == 0
    unknown = {word: count for word, count in expected.items() if word not in lexicon()}
    assert found["oov_lexicon_occurrences"] == sum(unknown.values())
    assert dict(examples["frequent_oov"]) == unknown
    counts = np.bincount(np.concatenate([corpus.row(row) for row in range(corpus.rows)]))
    assert found["entropy"] == pytest.approx(entropy(counts), abs=1e-12)
    assert found["entropy_bits"] == pytest.approx(found["entropy"] / math.log(2))


def test_cut_off_rows_lose_their_last_word_and_stories_inside_are_apart(tmp_path, tokenizer):
    eos = tokenizer.eos_id
    rows = [
        [eos, *tokenizer.encode("the dog blarf"), eos, *tokenizer.encode("went home. A littl")],  # cut inside "little"
        [eos, *tokenizer.encode("the cat"), eos],  # ended just in time: nothing is cut
        [eos, *tokenizer.encode("e z z z z z")],  # the last z may be the beginning of something
    ]
    metrics, examples = free_text(write(tmp_path, tokenizer, rows), tokenizer, {"the", "dog", "went", "home", "z"})
    found = values(metrics)
    # the dog blarf | went home A || the cat || e z z z z ; a word does not run on from "blarf" into the next story
    assert found["words"] == 3 + 3 + 2 + 5
    assert found["oov_lexicon_occurrences"] == 1 + 5 and found["oov_lexicon_types"] == 3
    assert examples["frequent_oov"] == [["z", 4], ["blarf", 1], ["e", 1]]
    assert examples["frequent_oov_initial"] == [["a", 1], ["blarf", 1], ["cat", 1], ["e", 1]]
    assert found["oov_initial_rate"] == pytest.approx(1000 * 4 / 13)
    assert metrics["oov_initial_rate"]["counts"] == {"counted": 4, "words": 13}
    assert metrics["entropy"]["counts"]["tokens"] == sum(map(len, rows)) - 3  # the given start tokens are not counted


def test_rows_without_a_start_token_keep_their_first_word(tmp_path, tokenizer):
    rows = [[*tokenizer.encode("the dog barked loudl")], [*tokenizer.encode("cats"), tokenizer.eos_id]]
    metrics, _ = free_text(write(tmp_path, tokenizer, rows, has_start=False), tokenizer, set())
    assert metrics["words"]["value"] == 4
    assert metrics["entropy"]["counts"]["tokens"] == sum(map(len, rows))


def test_a_corpus_with_no_words_gives_zeros(tmp_path, tokenizer):
    rows = [[tokenizer.eos_id, tokenizer.eos_id, tokenizer.eos_id]] * 2
    metrics, examples = free_text(write(tmp_path, tokenizer, rows), tokenizer, set())
    found = values(metrics)
    assert found["words"] == found["oov_lexicon_rate"] == found["entropy"] == 0
    assert found["repeated"] == 1 and found["longest_repeat"] == 2 and examples["frequent_oov"] == []
    json.dumps([metrics, examples], allow_nan=False)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=5))
def test_repetition_equals_counting_by_hand(rows):
    tokens, first = block(rows)
    for n in range(1, 5):
        grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
        assert distinct_ngrams(tokens, first, n) == (len(set(grams)), len(grams))
    repeats = Repeats()
    repeats.add(tokens, first)
    pairs = [(a, b) for row in rows for a, b in pairwise(row)]
    assert (repeats.repeated, repeats.followers) == (sum(a == b for a, b in pairs), len(pairs))
    assert [int(repeats.counts[token]) for token in range(4)] == [sum(a == b == token for a, b in pairs) for token in range(4)]
    longest = max(len(run) for row in rows for symbol in range(4) for run in "".join("x" if t == symbol else " " for t in row).split() or [""])
    assert repeats.longest == longest


def test_frequent_tokens_make_half_of_the_text():
    assert frequent_tokens(np.array([1, 5, 0, 4])).tolist() == [1]  # 5 of 10
    assert frequent_tokens(np.array([3, 3, 2, 4])).tolist() == [3, 0]
    assert frequent_tokens(np.zeros(3, int)).tolist() == []


def test_ngrams_of_the_largest_ids_do_not_collide():
    rng = np.random.default_rng(0)
    tokens = rng.integers(65_500, 65_536, 5000).astype(np.uint16)
    first = np.zeros(5000, bool)
    first[0] = True
    grams = {tuple(tokens[i : i + 4].tolist()) for i in range(4997)}
    assert distinct_ngrams(tokens, first, 4) == (len(grams), 4997)


def padded_by_hand(rows: list[list[int]], eos: int, length: int) -> tuple[float, float]:
    """Entropy and share of padding: fill every row behind its first end, and count."""
    filled = [row[: row.index(eos) + 1] if eos in row else row for row in rows]
    padding = sum(length - len(row) for row in filled)
    counts = Counter(token for row in filled for token in row + [eos] * (length - len(row)))
    return entropy(np.array(list(counts.values()))), padding / (length * len(rows))


@pytest.mark.parametrize("after_eos", ["continue", "pad"])
@pytest.mark.parametrize("has_start", [True, False])
@pytest.mark.parametrize("end", [0.0, 0.02, 0.2, 1.0])
def test_padding_as_the_released_code_has_it(tmp_path, tokenizer, monkeypatch, after_eos, has_start, end):
    rng, eos, length = np.random.default_rng(3), tokenizer.eos_id, 24
    others = np.delete(np.arange(tokenizer.vocabulary), eos)
    sampled = [np.where(rng.random(length) < end, eos, rng.choice(others, length)).tolist() for _ in range(50)]
    expected = padded_by_hand(sampled, eos, length)
    stored = [row[: row.index(eos) + 1] if after_eos == "pad" and eos in row else row for row in sampled]
    corpus = write(tmp_path, tokenizer, [[eos] * has_start + row for row in stored], has_start=has_start)
    for size in (1 << 20, 30):  # all in one block, and a row or two in each
        monkeypatch.setattr(entropy_module, "row_blocks", lambda corpus, size=size: row_blocks(corpus, size))
        found = padded_metrics(corpus, length)
        assert (found["entropy_padded"]["value"], found["padding_share"]["value"]) == pytest.approx(expected, abs=1e-12)
    assert found["entropy_padded"]["counts"]["positions"] == found["padding_share"]["counts"]["positions"] == 50 * length
    if end == 0:  # nothing ends, so there is nothing to fill
        assert found["padding_share"]["value"] == 0 and found["entropy_padded"]["value"] == pytest.approx(entropy(corpus.token_counts()))


def test_empty_rows_hide_the_entropy_of_the_text(tmp_path, tokenizer):
    """Stories of 200 tokens, an end among them, in rows of 600: a third is text with 200 different tokens, the rest one and the same."""
    story = [*np.delete(np.arange(tokenizer.vocabulary), tokenizer.eos_id)[:199].tolist(), tokenizer.eos_id]
    corpus = write(tmp_path, tokenizer, [story] * 3, has_start=False)
    found = values(padded_metrics(corpus, 600))
    assert found["padding_share"] == pytest.approx(2 / 3)
    assert entropy(corpus.token_counts()) == pytest.approx(math.log(200))
    assert found["entropy_padded"] == pytest.approx(199 / 600 * math.log(600) + 401 / 600 * math.log(600 / 401))  # less than half of it


@pytest.mark.parametrize(("complete", "has_start"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("size", [1, 7, 40, 1000])
def test_blocks_are_whole_rows_over_all_shards(tmp_path, tokenizer, complete, has_start, size):
    """Rows of every length down to a start token alone; a block ends with the row that fills it, whatever shards the rows lie in."""
    rng = np.random.default_rng(size)
    rows = [[tokenizer.eos_id] * has_start + rng.integers(0, 300, rng.integers(1 - has_start, 20)).tolist() for _ in range(60)]
    found = list(row_blocks(write(tmp_path, tokenizer, rows, complete, has_start), size))
    kept = [row[1:] if has_start and not complete else row for row in rows]
    expected, held = [], []
    for row in kept:
        held += [row] if row else []
        if sum(map(len, held)) >= size:
            expected.append(held)
            held = []
    expected += [held] if held else []
    assert len(found) == len(expected)
    for (tokens, first), rows in zip(found, expected, strict=True):
        wanted = block(rows)
        assert np.array_equal(tokens, wanted[0]) and np.array_equal(first, wanted[1])


def test_many_blocks_add_up(tmp_path, tokenizer, monkeypatch):
    """Segments of many blocks, added up whenever a few are there, are those of one."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, tokenizer.vocabulary, 50).tolist() for _ in range(200)]
    corpus = write(tmp_path, tokenizer, rows, has_start=False)
    whole = words_module.corpus_words(corpus, tokenizer)
    monkeypatch.setattr(words_module, "row_blocks", lambda corpus: row_blocks(corpus, 60))
    monkeypatch.setattr(words_module, "BLOCKS_A_CORE", 1)
    monkeypatch.setattr(words_module, "SEGMENTS_HELD", 10)
    monkeypatch.setattr(words_module, "DECODED_TOGETHER", 5)
    assert words_module.corpus_words(corpus, tokenizer) == whole and whole[0].total() > 500


def test_the_size_of_a_block_changes_nothing(tmp_path, tokenizer, monkeypatch):
    rng = random.Random(0)
    rows = [[tokenizer.eos_id, *(rng.randrange(tokenizer.vocabulary) for _ in range(30))] for _ in range(40)]
    corpus = write(tmp_path, tokenizer, rows)
    whole = free_text(corpus, tokenizer, {"dog"})
    for module in (free_text_module, words_module, repetition):
        monkeypatch.setattr(module, "row_blocks", lambda corpus, size=64: row_blocks(corpus, size))
    assert free_text(corpus, tokenizer, {"dog"}) == whole


def test_real_stories(tmp_path, real_data):
    """On real text: the same words as spaCy over whole stories, and hardly any of them unknown."""
    with gzip.open(real_data / "tinystories" / "validation.jsonl.gz", "rt", encoding="utf-8") as file:
        stories = [json.loads(line)["text"] for line in file][:300]
    tokenizer = tokenization.load(real_data / "tokenizer")
    corpus = write(tmp_path, tokenizer, [[tokenizer.eos_id, *tokenizer.encode(story)] for story in stories], complete=True)
    expected = words_of(stories)
    metrics, _ = free_text(corpus, tokenizer, set(expected))
    found = values(metrics)
    assert found["words"] == expected.total() and found["word_types"] == len(expected)
    assert found["oov_initial_occurrences"] == 0 and corpus_word_types(corpus, tokenizer) == set(expected)
    assert found["oov_lexicon_rate"] < 0.5  # most are names and slips of the pen
    assert 5 < found["entropy"] < 6.5


@given(
    st.lists(st.text(alphabet="aBcdDx.,!?\":;)'-Mr3 ", min_size=1, max_size=8), min_size=1, max_size=20),
    st.sampled_from(["", "gonna", "Mr", "cannot", "dont", "ok"]),
)
@settings(max_examples=300, deadline=None)
def test_plain_chunks_are_cut_as_spacy_cuts_them(made_up, special):
    check_plain_words([*made_up, special, f' "{special}.', f"\n{special},", f"{special}!?", "\u212a", None])


def test_every_exception_of_spacys_is_left_to_spacy():
    special = {
        form for rule in words_module._pieces_of_english().rules for form in (rule, f"{rule}.", f'"{rule}', f"{rule}!", f"{rule.rstrip('.')},")
    }
    check_plain_words(sorted(special))


def check_plain_words(texts: list[str | None]) -> None:
    """Those that are taken for plain have the words that spaCy finds, and no mixed pieces; the third text counts three times, and so on."""
    counts = list(range(1, len(texts) + 1))
    words, others = words_module._plain_words(pa.array(texts, pa.string()), pa.array(counts))
    expected: Counter[str] = Counter()
    for text, count, other in zip(texts, counts, others.to_pylist(), strict=True):
        if other:
            continue
        found, mixed = count_words(Counter(text.split()))
        assert found == words_of([text]) and found.total() == 1 and mixed == 0
        expected += Counter({word: count * number for word, number in found.items()})
    assert words == expected


def test_ordinary_texts_are_plain():
    words, others = words_module._plain_words(pa.array([" dog", "Dog.", ' "Yes!"', "\nOnce", " don't", " Mr", " 5"]), pa.array([1, 2, 3, 4, 5, 6, 7]))
    assert words == {"dog": 3, "yes": 3, "once": 4} and others.to_pylist() == [False] * 4 + [True] * 3
