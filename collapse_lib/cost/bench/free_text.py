"""Entropy and non-words of a sampled corpus against spaCy run over the text of every sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from collapse_lib.cost.bench import CONFIGS, OURS, Bench, Setup, Side, Work, check
from collapse_lib.cost.timing import timed

ROWS, LENGTH = 10_000, 600  # a shard of the paper's corpus
BROKEN = 0.02  # share of tokens replaced by chance, so that there are non-words to find


def workload(setup: Setup) -> str:
    return f"{ROWS:,} sequences of {LENGTH} tokens: stories with {BROKEN:.0%} of the tokens out of place, learned vocabulary of {_vocabulary(setup)}"


def make_input(setup: Setup) -> None:
    from collapse_lib.text import tokenizer as tokenization
    from collapse_lib.text.corpus import CorpusWriter
    from collapse_lib.text.grammar import StoryGrammar

    grammar = StoryGrammar()
    stories = [grammar.sample(1, index).text for index in range(6000)]
    tokenizer = tokenization.learn(iter(stories[:1500]), _vocabulary(setup))
    tokenizer.save(setup.folder / "tokenizer")
    stream = np.concatenate([np.append(np.array(ids), tokenizer.eos_id) for ids in tokenizer.encode_batch(stories)])
    random = np.random.default_rng(0)
    rows = np.resize(stream, (ROWS, LENGTH)).astype(np.uint16)  # goes round where the stories do not suffice
    broken = random.random(rows.shape) < BROKEN
    rows[broken] = random.choice(stream, broken.sum())  # as frequent as they are in stories: a model's slips are mostly of that kind
    with CorpusWriter(setup.folder / "corpus", tokenizer.eos_id, tokenizer.vocabulary, rows_are_complete=False, has_start=False) as writer:
        writer.write_shard(0, rows)
        writer.finish(1)


def sides(setup: Setup) -> list[Side]:
    return [Side(OURS, ours), Side("spaCy's tokeniser over every text", spacy_over_every_text)]


def ours(setup: Setup) -> Callable[[], Work]:
    from collapse_lib.metrics.entropy import entropy
    from collapse_lib.metrics.words import corpus_words, lexicon
    from collapse_lib.text import tokenizer as tokenization
    from collapse_lib.text.corpus import TokenCorpus

    tokenizer = tokenization.load(setup.folder / "tokenizer")
    corpus = TokenCorpus.open(setup.folder / "corpus")
    known = lexicon()

    def measure() -> tuple[float, int, int, int]:
        words, _ = corpus_words(corpus, tokenizer)
        return entropy(corpus.token_counts()), *_counts(words, known)

    def work() -> Work:
        outcome, seconds = timed(measure)
        return Work(corpus.tokens, seconds, outcome)

    return work


def spacy_over_every_text(setup: Setup) -> Callable[[], Work]:
    import spacy

    from collapse_lib.metrics.entropy import entropy
    from collapse_lib.metrics.words import as_word, lexicon
    from collapse_lib.text import tokenizer as tokenization
    from collapse_lib.text.corpus import TokenCorpus

    tokenizer = tokenization.load(setup.folder / "tokenizer")
    corpus = TokenCorpus.open(setup.folder / "corpus")
    known = lexicon()
    pieces = spacy.blank("en").tokenizer
    starts_word = [tokenizer.decode([token])[:1].isspace() for token in range(tokenizer.vocabulary)]

    def texts() -> Any:
        """The stories of each row; of a row's last, cut-off story, all but its last, possibly cut-off word."""
        for row in corpus.iter_rows():
            ends = np.flatnonzero(row == corpus.eos_id)
            for part in np.split(row, ends + 1):
                whole = len(part) and part[-1] == corpus.eos_id
                ids = part[:-1].tolist() if whole else part.tolist()
                if not whole:
                    while ids and not starts_word[ids[-1]]:
                        ids.pop()
                    ids = ids[:-1]
                yield tokenizer.decode(ids)

    def measure() -> tuple[float, int, int, int]:
        tokens: Counter[int] = Counter()
        words: Counter[str] = Counter()
        for row in corpus.iter_rows():
            tokens.update(row.tolist())
        for document in pieces.pipe(texts()):
            words.update(word for piece in document if (word := as_word(piece.text)))
        return entropy(np.array(list(tokens.values()))), *_counts(words, known)

    def work() -> Work:
        outcome, seconds = timed(measure)
        return Work(corpus.tokens, seconds, outcome)

    return work


def checks(setup: Setup, ours: Any, theirs: Any) -> list[dict[str, Any]]:
    """The same counts, to the last word."""
    return [
        check(f"entropy {ours[0]:.9f} and {theirs[0]:.9f} nats", abs(ours[0] - theirs[0]) < 1e-9),
        check(f"words, non-words and their types: {ours[1:]} and {theirs[1:]}", ours[1:] == theirs[1:]),
    ]


def _counts(words: Counter[str], known: frozenset[str]) -> tuple[int, int, int]:
    unknown = [count for word, count in words.items() if word not in known]
    return words.total(), sum(unknown), len(unknown)


def _vocabulary(setup: Setup) -> int:
    from collapse_lib.experiment.protocol import load_preset

    return load_preset(CONFIGS[setup.config]).tokenizer.vocabulary


BENCH = Bench(workload, sides, checks, make_input=make_input)
