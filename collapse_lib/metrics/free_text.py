"""What a generation's free text looks like: entropy (section 5.3.1), non-words (section 5.3.2), repetition (Finding 2).

**What counts as a word.** spaCy's rules for English cut the text into pieces. A piece is a *word* if nothing but letters is left of it
after apostrophes, hyphens and full stops are taken away ("dog", "Mr.", "n't", "o'clock"); words are compared case-folded. Numbers,
punctuation and white space are no words; pieces that mix letters with other signs ("3rd", a broken character) are counted apart and
not judged.

**What counts as out of vocabulary (OOV).** The paper: "when two or more consecutive tokens fail to form a word in the lexicon". Taken
to the letter this leaves out a wrong word that is one token of the model, yet the paper names the single tokens "e" and "z" as the
OOV words that grow in number (section 3.2.2). So we read it as: whatever the tokens *form* in the decoded text, many or one, is OOV
if it is a word by the rule above and not in the lexicon. The paper does not name its lexicon; two are used here:

* ``lexicon``: wordfreq's large English list, and spaCy's pieces of contractions and its abbreviations. Of single letters only a, i
  and o are words. The list comes from the web and knows some misspellings: it is lenient.
* ``initial``: the words of the initial corpus. Strict: a real word that the corpus lacks is OOV.

Levels depend on the lexicon, trends hardly do.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import accumulate, islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from spacy.tokenizer import Tokenizer as SpacyTokenizer

    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.tokenizer import Tokenizer

BLOCK_TOKENS = 1 << 20  # tokens looked at together: large enough for numpy, small enough for any memory
NGRAM_TOKENS = 1_000_000  # the share of distinct n-grams falls with the amount of text, so every generation gives the same amount
BLOCKS_A_CORE = 2  # held while words are counted, each core looking at one
SEGMENTS_HELD = 1 << 20  # runs of tokens kept apart by block before they are added up
DECODED_TOGETHER = 512  # runs of tokens given to the tokeniser at once; from 700 lists on Python would look for garbage each time
JOINED_TOGETHER = 1 << 16  # runs of tokens whose texts are in memory at once
# A text out of which spaCy makes one word and punctuation, unless it knows the word as a contraction or an abbreviation. Nearly all of a corpus is
# like that, and asking spaCy costs fifty times as much as this expression.
PLAIN_TEXT = r'^\s*"?(?P<word>[A-Za-z]+)[.,!?"]*\s*$'
FREQUENT = 20  # OOV words shown as examples

Metric = dict[str, Any]


def free_text(corpus: TokenCorpus, tokenizer: Tokenizer, initial_word_types: set[str]) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Measure a corpus; memory grows with its different words and not with its length.

    ``initial_word_types`` is what ``corpus_word_types`` says of the initial corpus. Returns ``(metrics, examples)`` as a
    step's metrics file holds them: ``metrics[name]`` has ``value``, ``unit``, ``definition`` and, where it is a ratio, its ``counts``; a
    ratio of nothing is 0.
    """
    repeats = Repeats()
    for tokens, first in blocks(corpus):
        repeats.add(tokens, first)
    words, mixed = corpus_words(corpus, tokenizer)
    lexicon_metrics, lexicon_frequent = _oov("lexicon", "wordfreq's large English list", words, lexicon())
    initial_metrics, initial_frequent = _oov("initial", "the words of the initial corpus", words, initial_word_types)
    metrics = {
        **_entropy_metrics(corpus.token_counts()),
        "words": _metric(words.total(), "words", "words of the decoded text; the last, possibly cut word of a cut-off row is left out"),
        "word_types": _metric(len(words), "types", "different words, case-folded"),
        "mixed": _metric(mixed, "pieces", "pieces of letters and other signs together, counted neither as words nor as OOV"),
        **lexicon_metrics,
        **initial_metrics,
        **_distinct_metrics(corpus),
        "repeated": _ratio(repeats.repeated, repeats.followers, "1", "share of tokens that equal the token before them in their row", "tokens"),
        "longest_repeat": _metric(repeats.longest, "tokens", "longest run of one token"),
    }
    examples = {"frequent_oov": lexicon_frequent, "frequent_oov_initial": initial_frequent}
    if repeats.longest > 1:
        examples["longest_repeat_token"] = tokenizer.decode([repeats.token])
    return metrics, examples


def corpus_word_types(corpus: TokenCorpus, tokenizer: Tokenizer) -> set[str]:
    """The different words of a corpus, case-folded."""
    return set(corpus_words(corpus, tokenizer)[0])


# Entropy


def entropy(counts: np.ndarray) -> float:
    """Plug-in entropy in nats of the relative frequencies of ``counts`` (integers, any shape); 0 for no tokens (section 5.3.1)."""
    seen = counts[counts > 0].astype(np.float64)
    if not seen.size:
        return 0.0
    shares = seen / seen.sum()
    return max(0.0, float(-(shares * np.log(shares)).sum()))  # one type alone would give -0.0


def _entropy_metrics(counts: np.ndarray) -> dict[str, Metric]:
    tokens, types = int(counts.sum()), int((counts > 0).sum())
    nats = entropy(counts)
    # The plug-in estimate is too low by about (types - 1) / 2N; nothing at 6e8 tokens, visible in a small run.
    corrected = nats + (types - 1) / (2 * tokens) if tokens else 0.0
    seen = {"tokens": tokens, "types": types}
    return {
        "entropy": _metric(nats, "nats", "-sum p ln p over the relative frequencies p of the tokens (plug-in estimate)", counts=seen),
        "entropy_bits": _metric(nats / float(np.log(2)), "bits", "the same entropy with base-2 logarithms", counts=seen),
        "entropy_miller_madow": _metric(
            corrected, "nats", "plug-in entropy + (token types - 1) / (2 tokens), Miller and Madow's correction", counts=seen
        ),
        "token_types": _metric(types, "types", "different tokens that occur"),
    }


def padded_metrics(corpus: TokenCorpus, row: int) -> dict[str, Metric]:
    """What a sampled corpus would look like if each row were filled with '<|endoftext|>' behind its first one, up to ``row`` tokens.

    So the released code keeps its samples, and entropy counted over them holds the padding. Rows that were cut at their first end and rows in which
    further stories follow it give the same: what is behind an end is not looked at.
    """
    counts, rows = np.zeros(corpus.vocabulary, np.int64), 0
    for tokens, first in blocks(corpus):
        starts = np.flatnonzero(first)
        is_eos = tokens == corpus.eos_id
        before = np.cumsum(is_eos) - is_eos  # ends in the block before each token, and, taken from that, in its row
        kept = before == np.repeat(before[starts], np.diff(starts, append=len(tokens)))
        counts += np.bincount(tokens[kept], minlength=corpus.vocabulary)
        rows += len(starts)
    padding = rows * row - int(counts.sum())
    counts[corpus.eos_id] += padding
    seen = {"positions": rows * row, "types": int((counts > 0).sum())}
    definition = f"entropy if rows were filled with '<|endoftext|>' behind their first, up to {row} tokens, and that counted, as in the released code"
    behind = f"share of a row's {row} positions that lie behind its first '<|endoftext|>'"
    return {
        "entropy_padded": _metric(entropy(counts), "nats", definition, counts=seen),
        "padding_share": _ratio(padding, rows * row, "1", behind, "positions"),
    }


# Words


def corpus_words(corpus: TokenCorpus, tokenizer: Tokenizer) -> tuple[Counter[str], int]:
    """Words of a corpus and the number of mixed pieces; see ``count_words``."""
    import pyarrow as pa

    token_texts = tokenizer.decode_batch([[token] for token in range(tokenizer.vocabulary)])
    segments = _corpus_segments(corpus, _starts_word(token_texts))
    ascii_texts = pa.array([text if text.isascii() else None for text in token_texts], pa.string())
    words: Counter[str] = Counter()
    others = []
    for batch in segments.to_batches(max_chunksize=JOINED_TOGETHER):
        plain_words, is_other = _plain_words(_joined_texts(batch["segment"], ascii_texts), batch["count"])
        words.update(plain_words)
        others.append(batch.filter(is_other))
    other_words, mixed = count_words(_chunks(pa.Table.from_batches(others, segments.schema), tokenizer))
    words.update(other_words)
    return words, mixed


def _starts_word(token_texts: list[str]) -> np.ndarray:
    """``[vocabulary]`` bool: whether a token's text begins with white space."""
    return np.array([text[:1].isspace() for text in token_texts])


def _corpus_segments(corpus: TokenCorpus, starts_word: np.ndarray) -> pa.Table:
    """The segments of all rows (see ``_segments``), counted on all cores."""
    import pyarrow as pa

    count = partial(_segments, starts_word=starts_word, eos_id=corpus.eos_id, cut_off=not corpus.rows_are_complete)
    tables = [pa.table({"segment": pa.array([], pa.large_binary()), "count": pa.array([], pa.int64())})]  # of no rows
    unread = blocks(corpus)
    cores = pa.cpu_count()
    with ThreadPoolExecutor(cores) as pool:  # numpy and Arrow let go of Python's lock
        while some := list(islice(unread, BLOCKS_A_CORE * cores)):
            tables += pool.map(count, some)
            if sum(map(len, tables)) > max(SEGMENTS_HELD, 2 * len(tables[0])):  # growing with what is there, so that little is added up often
                tables = [_added_up(tables)]
    return _added_up(tables)


def _added_up(tables: list[pa.Table]) -> pa.Table:
    import pyarrow as pa

    summed = pa.concat_tables(tables).group_by("segment").aggregate([("count", "sum")])
    return summed.rename_columns(["segment", "count"])


def _segments(block: tuple[np.ndarray, np.ndarray], starts_word: np.ndarray, eos_id: int, cut_off: bool) -> pa.Table:
    """The distinct runs of token ids between one beginning of a word and the next, as their bytes, and how often each occurs.

    Decoding 6e8 tokens takes many minutes; the distinct runs are few, and the text of a row is theirs end to end. ``block`` is one
    of ``blocks``. A row ends the run, and so does EOS, which belongs to none. With ``cut_off`` the last run
    of a row is dropped unless EOS follows it: sampling stopped there, perhaps inside a word.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    tokens, first = block
    is_eos = tokens == eos_id
    begins = starts_word[tokens] | first | is_eos
    begins[1:] |= is_eos[:-1]
    bounds = np.append(np.flatnonzero(begins), len(tokens))
    keep = ~is_eos[bounds[:-1]]
    if cut_off:
        row_ends = np.append(first[1:], True)
        keep &= ~row_ends[bounds[1:] - 1]
    single = np.diff(bounds) == 1  # most words are one token, and numbers are counted faster than bytes
    counts = np.bincount(tokens[bounds[:-1][keep & single]])
    types = np.flatnonzero(counts)
    runs = pc.value_counts(_as_bytes(tokens, bounds).filter(pa.array(keep & ~single)))
    singles = pa.table({"segment": _as_bytes(types.astype(tokens.dtype), np.arange(len(types) + 1)), "count": counts[types]})
    return pa.concat_tables([singles, pa.table({"segment": runs.field("values"), "count": runs.field("counts")})])


def _as_bytes(tokens: np.ndarray, bounds: np.ndarray) -> pa.Array:
    """The tokens between one of ``bounds`` and the next as one value each; the tokens are not copied."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.large_binary(), len(bounds) - 1, [None, pa.py_buffer(bounds * tokens.itemsize), pa.py_buffer(tokens)])


def _joined_texts(segments: pa.Array, ascii_texts: pa.Array) -> pa.Array:
    """The segments' texts; null where a token is not ASCII: such a one may be part of a character, so that decoding is more than joining."""
    import pyarrow as pa
    import pyarrow.compute as pc

    tokens = pa.array(np.frombuffer(b"".join(segments.to_pylist()), np.uint16))
    bounds = np.concatenate([[0], np.cumsum(pc.binary_length(segments).to_numpy() // 2)])
    return pc.binary_join(pa.ListArray.from_arrays(bounds.astype(np.int32), ascii_texts.take(tokens)), "")


def _plain_words(texts: pa.Array, counts: pa.Array) -> tuple[Counter[str], pa.Array]:
    """Words of the texts that are one word with nothing but common punctuation around it, and whether each of ``texts`` is something else."""
    import pyarrow as pa
    import pyarrow.compute as pc

    matches = pc.extract_regex(texts, PLAIN_TEXT)
    found = matches.field("word")  # empty where nothing matches
    exceptions = pa.array({rule.removesuffix(".") for rule in _pieces_of_english().rules}, found.type)
    plain = pc.and_(pc.is_valid(matches), pc.invert(pc.is_in(found, exceptions)))
    table = pa.table({"word": pc.ascii_lower(found.filter(plain)), "count": counts.filter(plain)})
    summed = table.group_by("word").aggregate([("count", "sum")])
    return Counter(dict(zip(summed["word"].to_pylist(), summed["count_sum"].to_pylist(), strict=True))), pc.invert(plain)


def _chunks(segments: pa.Table, tokenizer: Tokenizer) -> Counter[str]:
    """White-space separated chunks of text and how often each occurs."""
    chunks: Counter[str] = Counter()
    for batch in segments.to_batches(max_chunksize=DECODED_TOGETHER):
        found, counts = (column.to_pylist() for column in batch.columns)
        tokens = np.frombuffer(b"".join(found), np.uint16).tolist()
        bounds = accumulate((len(segment) // 2 for segment in found), initial=0)
        texts = tokenizer.decode_batch([tokens[start:stop] for start, stop in pairwise(bounds)])
        for text, count in zip(texts, counts, strict=True):
            for chunk in text.split():
                chunks[chunk] += count
    return chunks


def count_words(chunks: Counter[str]) -> tuple[Counter[str], int]:
    """Words (case-folded) in chunks that occur so often each, and the number of pieces that mix letters with other signs.

    spaCy's tokeniser cuts at white space first and treats each chunk by itself, so that one look at every distinct chunk counts what
    running it over all the text would. (Its matcher for contractions alone looks across white space, and then splits ``' 's`` wrongly.)
    """
    pieces, mixed = _pieces_of_english(), 0
    words: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for piece in pieces(chunk):
            text = piece.text
            if word := as_word(text):
                words[word] += count
            elif any(map(str.isalpha, text)):
                mixed += count
    return words, mixed


def as_word(piece: str) -> str | None:
    """The form under which a piece is looked up, or None if it is no word.

    Case-folded, with straight apostrophes, without full stops and outer hyphens: "Mr." and "spot-" are "mr" and "spot".
    """
    word = unicodedata.normalize("NFC", piece).casefold().translate(_PLAIN).strip("-")
    return word if word.replace("'", "").replace("-", "").isalpha() else None


_PLAIN = str.maketrans({"’": "'", "‘": "'", ".": None})


@lru_cache(maxsize=1)
def _pieces_of_english() -> SpacyTokenizer:
    from spacy.lang.en import English

    return English().tokenizer


@lru_cache(maxsize=1)
def lexicon() -> frozenset[str]:
    """English words: wordfreq's large list, spaCy's pieces of contractions and abbreviations; of single letters only a, i and o."""
    import wordfreq
    from spacy.symbols import ORTH

    special = (as_word(piece[ORTH]) for pieces in _pieces_of_english().rules.values() for piece in pieces)
    words = {*wordfreq.get_frequency_dict("en", wordlist="large"), *filter(None, special)}
    return frozenset(word for word in words if len(word) > 1 or word in "aio")


def _oov(kind: str, source: str, words: Counter[str], known: set[str] | frozenset[str]) -> tuple[dict[str, Metric], list[list]]:
    unknown = {word: count for word, count in words.items() if word not in known}
    occurrences = sum(unknown.values())
    rate = _ratio(occurrences, words.total(), "per 1000 words", f"OOV occurrences per 1000 words ({source})", "words", scale=1000)
    metrics = {
        f"oov_{kind}_occurrences": _metric(occurrences, "words", f"words that are not in {source}"),
        f"oov_{kind}_rate": rate,
        f"oov_{kind}_types": _metric(len(unknown), "types", f"different words that are not in {source}"),
    }
    frequent = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))[:FREQUENT]
    return metrics, [list(item) for item in frequent]


# Repetition


class Repeats:
    """Immediate repetition, added up over blocks of whole rows."""

    repeated = 0  # tokens equal to the one before them in their row
    followers = 0  # tokens that have one before them in their row
    longest = 0  # tokens in the longest run of one token
    token = -1  # which token that was

    def add(self, tokens: np.ndarray, first: np.ndarray) -> None:
        """Take in a block: ``tokens`` [n], and ``first`` [n] marking where rows begin."""
        follows = ~first[1:]
        same = (tokens[1:] == tokens[:-1]) & follows
        self.followers += int(follows.sum())
        self.repeated += int(same.sum())
        changes = np.flatnonzero(np.concatenate(([True], ~same, [True])))  # where runs begin, and the end
        lengths = np.diff(changes)
        place = int(lengths.argmax())
        if lengths[place] > self.longest:
            self.longest, self.token = int(lengths[place]), int(tokens[changes[place]])


def _packed(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """uint64: the ``length`` <= 4 tokens from each start on, 16 bits each and the first lowest. They fit exactly: nothing collides."""
    keys = np.zeros(len(starts), dtype=np.uint64)
    for offset in range(length):
        keys |= tokens[starts + offset].astype(np.uint64) << np.uint64(16 * offset)
    return keys


def distinct_ngrams(tokens: np.ndarray, first: np.ndarray, n: int) -> tuple[int, int]:
    """Numbers of different and of all n-grams (n <= 4) inside the rows of a block of ``blocks``."""
    starts = np.arange(max(len(tokens) - n + 1, 0))
    for offset in range(1, n):
        starts = starts[~first[starts + offset]]
    keys = np.sort(_packed(tokens, starts, n))  # np.unique without counts may hash, which is slower
    return int((keys[1:] != keys[:-1]).sum()) + bool(len(keys)), len(keys)


def _distinct_metrics(corpus: TokenCorpus) -> dict[str, Metric]:
    tokens, first = next(blocks(corpus, NGRAM_TOKENS), (np.empty(0, np.uint16), np.empty(0, bool)))
    sample = f"the first {NGRAM_TOKENS:,} tokens in whole rows" if len(tokens) < corpus.real_tokens else "all rows"
    metrics = {}
    for n in range(1, 5):
        different, total = distinct_ngrams(tokens, first, n)
        metrics[f"distinct_{n}"] = _ratio(different, total, "1", f"share of different {n}-grams among the {n}-grams inside rows ({sample})", "ngrams")
    return metrics


# Reading


def blocks(corpus: TokenCorpus, size: int = BLOCK_TOKENS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Whole rows end to end, about ``size`` tokens at a time: tokens [n] uint16, and whether each is the first of its row [n] bool.

    The start token that a sampled row was given is left out.
    """
    given = int(corpus.has_start and not corpus.rows_are_complete)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    held = 0
    for offsets, values in corpus.shards():
        before = offsets - given * np.arange(len(offsets))  # tokens before each row, start tokens left out
        row, rows = 0, len(offsets) - 1
        while row < rows:
            stop = min(rows, int(np.searchsorted(before, before[row] + size - held)))  # behind the row that fills the block
            parts.append(_rows(values[offsets[row] : offsets[stop]], offsets[row:stop] - offsets[row], given))
            held += int(before[stop] - before[row])
            row = stop
            if held >= size:
                yield _joined(parts)
                parts, held = [], 0
    if held:
        yield _joined(parts)


def _rows(tokens: np.ndarray, starts: np.ndarray, given: int) -> tuple[np.ndarray, np.ndarray]:
    """A block of rows that begin at ``starts``, each without its ``given`` first token (0 or 1)."""
    first = np.zeros(len(tokens) + given, dtype=bool)
    first[starts + given] = True
    if not given:
        return tokens, first
    sampled = np.ones(len(tokens), dtype=bool)
    sampled[starts] = False
    return tokens[sampled], first[:-1][sampled]


def _joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return parts[0] if len(parts) == 1 else tuple(map(np.concatenate, zip(*parts, strict=True)))


def _metric(value: float | int, unit: str, definition: str, **more: Any) -> Metric:
    return {"value": value, "unit": unit, "definition": definition} | more


def _ratio(part: int, whole: int, unit: str, definition: str, of: str, scale: int = 1) -> Metric:
    return _metric(scale * part / max(whole, 1), unit, definition, counts={"counted": part, of: whole})
