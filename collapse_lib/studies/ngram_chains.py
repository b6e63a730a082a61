"""Whole chains of n-gram models in one call: seconds a chain, so that there can be a hundred of each kind.

Generation n learns from what its regime gives it (``collapse_lib.experiment.regimes``), is scored on held-out stories, writes a text of its own
and is measured on that. All measured texts have N tokens, so that samples are of equal size.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import chain as chain_of
from itertools import count, product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.processes import end_with_parent
from collapse_lib.experiment.regimes import FRESH, Part, Regime, compose
from collapse_lib.metrics.entropy import entropy
from collapse_lib.metrics.repetition import Repeats, distinct_ngrams
from collapse_lib.metrics.row_blocks import row_blocks
from collapse_lib.model.ngram import NGram, row_tokens
from collapse_lib.text.corpus import TokenCorpus
from collapse_lib.text.grammar import StoryGrammar
from collapse_lib.text.words import learn_words
from collapse_lib.theory.proof import extinction

if TYPE_CHECKING:
    from pandas import DataFrame

    from collapse_lib.text.tokenizer import Tokenizer

SIGNS_STORIES = 2000  # which hold every sign that stories are written with
FRESH_STORIES = 1 << 32  # indices of stories kept for each fresh text, and as many for the other two

Measures = dict[str, float]


@dataclass(frozen=True)
class Corpora:
    """An initial corpus D and held-out stories, and no real text beyond them."""

    initial: TokenCorpus
    held_out: TokenCorpus
    name: str = "these corpora"
    endless = False

    def fresh(self, number: int, tokens: int) -> TokenCorpus:
        raise UserError(f"'{self.name}' has an end, and no fresh text can be had from it.")

    def scores(self, corpus: TokenCorpus) -> NDArray[np.float64]:
        raise UserError(f"The law of '{self.name}' is not known; let regime 'select' go by the likelihood under generation 1.")


@dataclass(frozen=True)
class GrammarWords:
    """As ``Corpora``, stories of the grammar with their words as tokens: ``tokens`` in the initial corpus, and fresh text without an end.

    Raises ``UserError`` for a grammar that there is not and for fewer than one token or held-out story.
    """

    grammar: str = "standard"
    tokens: int = 20_000
    held_out_stories: int = 200
    seed: int = 1
    endless = True

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.held_out_stories < 1:
            raise UserError(f"{self.tokens} tokens and {self.held_out_stories} held-out stories were asked for; one of each is the fewest.")
        StoryGrammar(self.grammar)  # raises if there is none

    def __getstate__(self) -> dict[str, Any]:
        """For the processes of ``chains``: all but the grammar, whose memory of what it has worked out cannot be sent."""
        return {name: value for name, value in self.__dict__.items() if name != "_stories"}

    @property
    def name(self) -> str:
        return f"grammar {self.grammar}"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Of all words that a story can hold, with and without a space and a capital letter."""
        words = self._stories.word_types()
        forms = (space + form for word in words for form in (word, word[0].upper() + word[1:]) for space in ("", " "))
        return learn_words(chain_of(self._stories.stories(self.seed, SIGNS_STORIES), forms))

    @cached_property
    def held_out(self) -> TokenCorpus:
        """The first stories of the stream."""
        return self._corpus([self._row(index) for index in range(self.held_out_stories)])

    @cached_property
    def initial(self) -> TokenCorpus:
        """The stories that follow."""
        return self._corpus_of(self.held_out_stories, self.tokens)

    def fresh(self, number: int, tokens: int) -> TokenCorpus:
        """Real text of so many tokens whose stories are in no other text; ``number`` >= 0 says which."""
        return self._corpus_of(FRESH_STORIES * (1 + number), tokens)

    def scores(self, corpus: TokenCorpus) -> NDArray[np.float64]:
        """``StoryGrammar.grade`` a token, [rows]: the mean log-probability of a token by the exact law, and less for what is no story of it."""
        texts = self.tokenizer.decode_batch([row[1:] for row in corpus.iter_rows()])
        grades = {text: self._stories.grade(text) for text in set(texts)}  # selected texts repeat themselves
        return np.array([grades[text] for text in texts]) / row_tokens(corpus)

    @cached_property
    def _stories(self) -> StoryGrammar:
        return StoryGrammar(self.grammar)

    def _row(self, index: int) -> NDArray[np.uint16]:
        return np.array([self.tokenizer.eos_id, *self.tokenizer.encode(self._stories.story(self.seed, index))], np.uint16)

    def _corpus_of(self, start: int, tokens: int) -> TokenCorpus:
        """The fewest stories from index ``start`` on that hold ``tokens`` tokens."""
        rows: list[NDArray[np.uint16]] = []
        for row in map(self._row, count(start)):
            rows.append(row)
            tokens -= len(row)
            if tokens <= 0:
                break
        return self._corpus(rows)

    def _corpus(self, rows: list[NDArray[np.uint16]]) -> TokenCorpus:
        return TokenCorpus.in_memory(rows, self.tokenizer.eos_id, self.tokenizer.vocabulary, rows_are_complete=True)


Source = Corpora | GrammarWords


def measures(model: NGram, text: TokenCorpus, initial: TokenCorpus, held_out: TokenCorpus | None) -> Measures:
    """What a generation is like: ``text`` is what ``model`` wrote, or, for generation 0 and without ``held_out``, what it learned from.

    ===========================  =======================================================================================================
    ``tokens``, ``types``        of the text
    ``entropy``                  of its tokens' frequencies, nats
    ``conditional_entropy``      of the law that the model samples from, mean over the contexts of the text, nats
    ``context_information``      the difference of the two: how much of a token its context decides, nats
    ``distinct_pairs``           share of different ones among the pairs of neighbours in rows
    ``repeated``                 share of tokens that are equal to the one before them in their row
    ``contexts``                 different contexts of k tokens
    ``loss``, ``row_loss``       of the held-out stories by Witten and Bell's law, nats a token and a row
    ``survived_m``               share still in the text of the types with m to 2m - 1 occurrences in the initial corpus, m = 1, 2, 4, ...
    ===========================  =======================================================================================================
    """
    counts, visits, repeats, pairs = text.token_counts(), model.visits(text), Repeats(), np.zeros(2)
    for tokens, first in row_blocks(text):
        repeats.add(tokens, first)
        pairs += distinct_ngrams(tokens, first, 2)
    unigram, conditional = entropy(counts), float(visits @ model.entropies / visits.sum())
    losses = np.full(1, np.nan) if held_out is None else model.row_losses(held_out)
    scored = 1 if held_out is None else row_tokens(held_out).sum()
    return {
        "tokens": text.real_tokens,
        "types": int((counts > 0).sum()),
        "entropy": unigram,
        "conditional_entropy": conditional,
        "context_information": unigram - conditional,
        "distinct_pairs": pairs[0] / max(pairs[1], 1),
        "repeated": repeats.repeated / max(repeats.followers, 1),
        "contexts": int((visits > 0).sum()),
        "loss": losses.sum() / scored,
        "row_loss": losses.mean(),
    } | survival(initial.token_counts(), counts > 0)


def story_and_measures(tokenizer: Tokenizer, model: NGram, text: TokenCorpus, *others: TokenCorpus | None) -> dict[str, float | str]:
    """``measures`` with the first ``story`` of the text; for ``chain``, with the tokenizer given beforehand."""
    return {"story": tokenizer.decode(text.row(0)[int(text.has_start) :])} | measures(model, text, *others)


def survival(initial: NDArray[np.int64], survived: NDArray) -> Measures:
    """Of the types with m to 2m - 1 occurrences ``initial`` [vocabulary], the share that ``survived`` [vocabulary], or is expected to: ``survived_m``
    for m = 1, 2, 4, ..."""
    octave = np.where(initial > 0, np.frexp(initial)[1], 0)  # 1 for m = 1, 2 for 2 and 3, 3 for 4 to 7
    types, left = np.bincount(octave), np.bincount(octave, survived)
    return {f"survived_{1 << (number - 1)}": left[number] / types[number] for number in range(1, len(types)) if types[number]}


def survival_law(initial: NDArray[np.int64], generations: int) -> DataFrame:
    """What ``survival`` is expected to be for k = 0 under ``replace``, a row a generation: a type of count m is lost with q_n^m (T12)."""
    from pandas import DataFrame

    return DataFrame({"generation": n} | survival(initial, 1 - q**initial) for n, q in enumerate(extinction(generations)))


def chain(
    source: Source,
    k: int,
    generations: int,
    regime: Regime | None = None,
    seed: int = 0,
    tokens: int | None = None,
    length: int | None = None,
    measure: Callable[[NGram, TokenCorpus, TokenCorpus, TokenCorpus | None], Measures] = measures,
) -> DataFrame:
    """One chain of n-gram models with contexts of ``k`` tokens: a row a generation, with ``generation`` and what ``measure`` returns.

    Args:
        regime: ``replace`` if not given.
        seed: of everything but the source.
        tokens: N; as many as the initial corpus has if not given.
        length: sampled tokens a row where the initial corpus has cut-off rows; None where it has whole stories.

    Row 0 is the initial corpus. Raises ``UserError`` for what there is not, and for what a regime cannot do with the source.
    """
    from pandas import DataFrame

    return DataFrame(_generations(source, k, generations, regime or Regime(), seed, tokens, length, measure))


def chains(
    source: Source, k: int, generations: int, regimes: Sequence[Regime], seeds: Sequence[int], workers: int | None = None, **more: object
) -> DataFrame:
    """A ``chain`` of every regime and seed, side by side in ``workers`` processes (the cores, if not given), with columns for what tells them apart.

    ``more`` are further arguments of ``chain``. A chain does not depend on the others, nor on the number of workers.
    """
    from pandas import concat

    wanted = list(product(regimes, seeds))
    one = partial(_named_chain, source, k, generations, more)
    workers = min(workers or os.cpu_count() or 1, len(wanted))
    if workers < 2:
        return concat(map(one, wanted), ignore_index=True)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        return concat(pool.map(one, wanted), ignore_index=True)


def _named_chain(source: Source, k: int, generations: int, more: dict, wanted: tuple[Regime, int]) -> DataFrame:
    regime, seed = wanted
    return chain(source, k, generations, regime, seed, **more).assign(
        k=k, seed=seed, **{f"regime_{key}": value for key, value in asdict(regime).items()}
    )


def _generations(
    source: Source, k: int, generations: int, regime: Regime, seed: int, tokens: int | None, length: int | None, measure: Callable[..., Measures]
) -> Iterator[Measures]:
    regime.check_source(source.name, source.endless)
    initial = source.initial
    if (length is None) != initial.rows_are_complete:
        raise UserError("Sampled rows need a length if those of the initial corpus were cut off, and have none if they are whole stories.")
    tokens = initial.real_tokens if tokens is None else tokens
    if generations < 1 or tokens < 1:
        raise UserError(f"A chain of {generations} generations with {tokens} tokens each cannot be made; one of each is the fewest.")
    texts, lengths, scores, first = [initial], [row_tokens(initial)], None, None
    for generation in range(1, generations + 1):
        parts = compose(regime, generation, lengths, tokens, seed, scores)
        model = NGram.fit(_joined(parts, texts, partial(source.fresh, seed << 16 | generation)), k)
        if generation == 1:
            first = model
            yield {"generation": 0} | measure(model, initial, initial, None)
        own = model.sample_corpus(regime.tokens_to_sample(tokens), _seed(seed, generation, "own"), length)
        yield {"generation": generation} | measure(model, _beginning(own, tokens), initial, source.held_out)
        if regime.writer(generation) != generation:
            own = first.sample_corpus(tokens, _seed(seed, generation, "first"), length)
        if regime.needs_scores:
            scores = source.scores(own) if regime.verifier == "grammar" else -first.row_losses(own) / row_tokens(own)
        texts.append(own)
        lengths.append(row_tokens(own))


def _joined(parts: list[Part], texts: list[TokenCorpus], fresh: Callable[[int], TokenCorpus]) -> TokenCorpus:
    """The corpus of one generation."""
    corpora = [fresh(part.tokens) if part.text == FRESH else texts[part.text] for part in parts]
    if len(parts) == 1 and len(parts[0].rows) in (0, corpora[0].rows):  # all of one text
        return corpora[0]
    rows = [
        row for part, corpus in zip(parts, corpora, strict=True) for row in (corpus.iter_rows() if part.text == FRESH else map(corpus.row, part.rows))
    ]
    return _like(texts[0], rows)


def _beginning(corpus: TokenCorpus, tokens: int) -> TokenCorpus:
    """The fewest rows from the first on that hold ``tokens`` tokens."""
    rows = int(np.searchsorted(np.cumsum(row_tokens(corpus)), tokens)) + 1
    return corpus if rows >= corpus.rows else _like(corpus, list(corpus.iter_rows(0, rows)))


def _like(corpus: TokenCorpus, rows: list[NDArray[np.uint16]]) -> TokenCorpus:
    return TokenCorpus.in_memory(rows, corpus.eos_id, corpus.vocabulary, corpus.rows_are_complete, corpus.has_start)


def _seed(seed: int, generation: int, purpose: str) -> int:
    return int(np.random.SeedSequence((seed, generation, *purpose.encode())).generate_state(1, np.uint64)[0])
