"""Words of a generation's text, and those that are none (section 5.3.2).

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
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import accumulate, islice, pairwise
from typing import TYPE_CHECKING

import numpy as np

from collapse_lib.metrics.metric import Metric, metric, ratio
from collapse_lib.metrics.row_blocks import row_blocks

if TYPE_CHECKING:
    import pyarrow as pa
    from spacy.tokenizer import Tokenizer as SpacyTokenizer

    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.tokenizer import Tokenizer

BLOCKS_A_CORE = 2  # held while words are counted, each core looking at one
SEGMENTS_HELD = 1 << 20  # runs of tokens kept apart by block before they are added up
DECODED_TOGETHER = 512  # runs of tokens given to the tokeniser at once; from 700 lists on Python would look for garbage each time
JOINED_TOGETHER = 1 << 16  # runs of tokens whose texts are in memory at once
# A text out of which spaCy makes one word and punctuation, unless it knows the word as a contraction or an abbreviation. Nearly all of a corpus is
# like that, and asking spaCy costs fifty times as much as this expression.
PLAIN_TEXT = r'^\s*"?(?P<word>[A-Za-z]+)[.,!?"]*\s*$'
FREQUENT = 20  # OOV words shown as examples


def corpus_word_types(corpus: TokenCorpus, tokenizer: Tokenizer) -> set[str]:
    """The different words of a corpus, case-folded."""
    return set(corpus_words(corpus, tokenizer)[0])


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
    unread = row_blocks(corpus)
    cores = pa.cpu_count()
    with ThreadPoolExecutor(cores) as pool:  # numpy and Arrow let go of Python's lock
        while some_blocks := list(islice(unread, BLOCKS_A_CORE * cores)):
            tables += pool.map(count, some_blocks)
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
    of ``row_blocks``. A row ends the run, and so does EOS, which belongs to none. With ``cut_off`` the last run
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
    matched_words = matches.field("word")  # empty where nothing matches
    exceptions = pa.array({rule.removesuffix(".") for rule in _pieces_of_english().rules}, matched_words.type)
    plain = pc.and_(pc.is_valid(matches), pc.invert(pc.is_in(matched_words, exceptions)))
    table = pa.table({"word": pc.ascii_lower(matched_words.filter(plain)), "count": counts.filter(plain)})
    summed = table.group_by("word").aggregate([("count", "sum")])
    return Counter(dict(zip(summed["word"].to_pylist(), summed["count_sum"].to_pylist(), strict=True))), pc.invert(plain)


def _chunks(segments: pa.Table, tokenizer: Tokenizer) -> Counter[str]:
    """White-space separated chunks of text and how often each occurs."""
    chunks: Counter[str] = Counter()
    for batch in segments.to_batches(max_chunksize=DECODED_TOGETHER):
        runs, counts = (column.to_pylist() for column in batch.columns)
        tokens = np.frombuffer(b"".join(runs), np.uint16).tolist()
        bounds = accumulate((len(segment) // 2 for segment in runs), initial=0)
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


def oov_metrics(kind: str, source: str, words: Counter[str], known: set[str] | frozenset[str]) -> tuple[dict[str, Metric], list[list]]:
    unknown = {word: count for word, count in words.items() if word not in known}
    occurrences = sum(unknown.values())
    rate = ratio(occurrences, words.total(), "per 1000 words", f"OOV words, those not {source}, per 1000 words", "words", scale=1000)
    metrics = {
        f"oov_{kind}_occurrences": metric(occurrences, "words", f"words that are not {source}"),
        f"oov_{kind}_rate": rate,
        f"oov_{kind}_types": metric(len(unknown), "types", f"distinct words that are not {source}"),
    }
    frequent = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))[:FREQUENT]
    return metrics, [list(item) for item in frequent]
