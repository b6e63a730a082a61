"""A generation of an n-gram model, counted, scored and sampled, against dictionaries of counters."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from collapse_lib.cost.bench import OURS, Bench, Setup, Side, Work, check
from collapse_lib.cost.timing import timed

if TYPE_CHECKING:
    from collapse_lib.studies.ngram_chains import GrammarWords
    from collapse_lib.text.corpus import TokenCorpus

TOKENS = {"demo": 20_000, "1m": 200_000, "3.7m": 20_000, "33m": 1_000_000}  # a generation
CONTEXT = 3
SEED = 1

Context = tuple[int, ...]
Outcome = tuple[str, int, float]  # a hash of the sampled text, its tokens, the loss on held-out stories


def workload(setup: Setup) -> str:
    return f"one generation of {TOKENS[setup.config]:,} words of the grammar with contexts of {CONTEXT}: counted, 200 stories scored, a text sampled"


def make_input(setup: Setup) -> None:
    """Nothing: both sides make the same stories."""


def sides(setup: Setup) -> list[Side]:
    return [Side(OURS, ours), Side("dictionaries of counters", dictionaries)]


def ours(setup: Setup) -> Callable[[], Work]:
    from collapse_lib.model.ngram import NGram

    source = _source(setup)

    def generation() -> Outcome:
        model = NGram.fit(source.initial, CONTEXT)
        loss = float(model.next_token_losses(source.held_out).mean())
        return _outcome(list(model.sample_corpus(source.tokens, SEED).iter_rows()), loss)

    return _rounds(source, generation)


def dictionaries(setup: Setup) -> Callable[[], Work]:
    source = _source(setup)

    def generation() -> Outcome:
        counts = _counted(source.initial)
        vocabulary, losses = source.initial.vocabulary, []

        @cache
        def probability(context: Context, token: int) -> float:
            lower = probability(context[1:], token) if context else 1 / vocabulary
            seen = counts.get(context)
            return (seen[token] + len(seen) * lower) / (seen.total() + len(seen)) if seen else lower

        for tokens in _padded(source.held_out):
            losses += [-math.log(probability(tuple(tokens[at - CONTEXT : at]), tokens[at])) for at in range(CONTEXT, len(tokens))]
        return _outcome(_sampled(counts, source), sum(losses) / len(losses))

    return _rounds(source, generation)


def checks(setup: Setup, ours: Outcome, theirs: Outcome) -> list[dict[str, Any]]:
    """The same text to the last word, from the same uniform numbers, and the same loss."""
    (text, tokens, loss), (other_text, other_tokens, other_loss) = ours, theirs
    return [
        check("the sampled texts, word by word", text == other_text),
        check(f"their tokens: {tokens:,} and {other_tokens:,}", tokens == other_tokens),
        check(f"losses of {loss:.9f} and {other_loss:.9f} nats a token", abs(loss - other_loss) < 1e-9),
    ]


def _source(setup: Setup) -> GrammarWords:
    from collapse_lib.studies.ngram_chains import GrammarWords

    source = GrammarWords(tokens=TOKENS[setup.config])
    assert source.initial.rows and source.held_out.rows  # made before the clock starts
    return source


def _rounds(source: GrammarWords, generation: Callable[[], Outcome]) -> Callable[[], Work]:
    def work() -> Work:
        outcome, seconds = timed(generation)
        return Work(source.initial.tokens, seconds, outcome)

    return work


def _outcome(rows: list[np.ndarray], loss: float) -> Outcome:
    text = np.concatenate(rows)
    return hashlib.sha256(text.astype(np.uint16).tobytes()).hexdigest(), len(text), loss


def _padded(corpus: TokenCorpus) -> list[list[int]]:
    end = corpus.eos_id
    return [[end] * (CONTEXT - 1) + row.tolist() + [end] for row in corpus.iter_rows()]


def _counted(corpus: TokenCorpus) -> dict[Context, Counter[int]]:
    counts: dict[Context, Counter[int]] = defaultdict(Counter)
    for tokens in _padded(corpus):
        for at in range(CONTEXT, len(tokens)):
            for length in range(CONTEXT + 1):
                counts[tuple(tokens[at - length : at])][tokens[at]] += 1
    return counts


def _sampled(counts: dict[Context, Counter[int]], source: GrammarWords) -> list[np.ndarray]:
    """Stories of ``source.tokens`` tokens, each token the inverse of the cumulative counts at a uniform number of its row's stream."""
    end, missing, rows = source.initial.eos_id, source.tokens, []

    @cache
    def cumulative(context: Context) -> tuple[list[int], list[int]]:
        tokens = sorted(counts[context])
        return tokens, list(accumulate(counts[context][token] for token in tokens))

    while missing > 0:
        uniform = np.random.Generator(np.random.Philox(key=[SEED, len(rows)])).random
        row, context = [end], (end,) * CONTEXT
        while True:
            tokens, until = cumulative(context)
            token = tokens[bisect_right(until, int(uniform() * until[-1]))]
            if token == end:
                break
            row.append(token)
            context = (*context[1:], token)
        rows.append(np.array(row))
        missing -= len(row)
    return rows


BENCH = Bench(workload, sides, checks, make_input=make_input)
