"""What goes first is rare: losses by true probability, word types by their count at the start, and what stories are still told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from collapse_lib.experiment.errors import UserError
from collapse_lib.metrics.estimates import Metric, measured, ratio_of_sums, share

if TYPE_CHECKING:
    from collapse_lib.text.tokenizer import Tokenizer

Array = NDArray[np.float64]
PROBABILITY_EDGES = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.99, 1.0)  # above 0.99 lies what the grammar all but fixes: most of a text


# Loss by the true probability of the next token.


def true_losses(
    story: Sequence[int],
    tokenizer: Tokenizer,
    log_probability: Callable[[str], float],
    log_prefix_probabilities: Callable[[str], Sequence[float]],
) -> Array:
    """-ln q of each token of a ``story`` (ids without '<|endoftext|>') and of its end, float64 [tokens + 1]; they add up to ``-log_probability``.

    q is the true probability that the text goes on with the token's characters. The two methods are those of ``StoryGrammar``, which has no
    characters beyond ASCII; a story with other ones is outside the language, and is refused as such.
    """
    ids = list(map(int, story))
    text = tokenizer.decode(ids)
    ends = np.cumsum([len(piece) for piece in tokenizer.decode_batch([[token] for token in ids])])
    beginnings = log_prefix_probabilities(text)
    masses = [0.0, *(beginnings[end] for end in ends), log_probability(text)]
    if not text.isascii() or not np.isfinite(masses).all():
        raise UserError("A validation story is outside the grammar; true probabilities are those of stories that it wrote.")
    return -np.diff(masses)


def loss_by_probability(losses: Sequence[Array], true: Sequence[Array], edges: Sequence[float] = PROBABILITY_EDGES) -> list[dict[str, Any]]:
    """The model's ``losses`` of tokens, one array a story, in bins of their ``true`` probability q (``true_losses``), rare ones first.

    A bin ``low < q <= high`` with a token in it has ``loss`` and ``floor`` (means of -ln p and -ln q, metrics in nats a token), ``excess``
    (of their differences) and ``excess_of_story``, the bin's part of the excess loss of a story: these add up to it. Errors are over stories.
    """
    if [len(story) for story in losses] != [len(story) for story in true]:
        raise UserError("Losses and true probabilities are of different tokens; both need a value for each token of each story and for its end.")
    lengths = np.array([len(story) for story in losses])
    story, p, q = np.repeat(np.arange(len(lengths)), lengths), np.concatenate(losses), np.concatenate(true)
    number = np.searchsorted(edges, np.minimum(np.exp(-q), 1.0), side="left") - 1
    rows = []
    for index, (low, high) in enumerate(pairwise(edges)):
        here = number == index
        if not here.any():
            continue
        tokens, loss, floor = (np.bincount(story[here], weights, len(lengths)) for weights in (None, p[here], q[here]))
        of = f"tokens whose true probability is above {low:g} and at most {high:g}"
        rows.append(
            {
                "low": low,
                "high": high,
                "loss": measured(ratio_of_sums(loss, tokens), "nats", f"mean loss of {of}", tokens=int(tokens.sum())),
                "floor": measured(ratio_of_sums(floor, tokens), "nats", f"mean of -ln of the true probability of {of}"),
                "excess": measured(ratio_of_sums(loss - floor, tokens), "nats", f"mean loss above the floor of {of}"),
                "excess_of_story": measured(ratio_of_sums(loss - floor, np.ones(len(lengths))), "nats", f"excess loss of a story at {of}"),
            }
        )
    return rows


# Word types by their count in the initial corpus.


def extinction_probability(sizes: Sequence[float]) -> float:
    """The probability that the descendants of one of ``sizes[0]`` words are gone in a corpus of ``sizes[-1]``, each drawn from the one before.

    A Wright-Fisher chain in its Poisson limit of many words: each word has Poisson many copies, sizes[k] / sizes[k - 1] on average, and
    q = f_1(f_2(... f_n(0))) with f_k(s) = exp(sizes[k] / sizes[k - 1] (s - 1)). Of equal sizes this is ``theory.proof.extinction``.
    """
    q = 0.0
    for before, after in reversed(list(pairwise(sizes))):
        q = float(np.exp(after / before * (q - 1)))
    return q


def count_bins(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bin of each count m >= 1: 0 for 1, 1 for 2, 2 for 3 to 4, 3 for 5 to 8, and so on by powers of two."""
    return np.ceil(np.log2(counts)).astype(np.int64)


def word_survival(initial: Mapping[str, int], now: Mapping[str, int], sizes: Sequence[float]) -> list[dict[str, Any]]:
    """Which words of the initial corpus occur in the corpus of generation n, by their count m at first.

    ``initial`` and ``now`` are words with their counts; ``sizes`` [n + 1] the words of the corpora of generations 0 to n. Returns for each bin of
    ``count_bins`` with a word in it ``first`` and ``last`` count, ``survived``, a metric with its number of ``types``, and ``predicted``:
    1 - q^m, averaged over its words, where sampling is the only cause of loss (each count model at one context; q is ``extinction_probability``). The
    error takes words as draws: they are nearly independent, but of one chain, and it says nothing of others.
    """
    words = sorted(word for word, count in initial.items() if count > 0)  # a mean is the same to the last digit in one order only
    if not words:
        raise UserError("The initial corpus has no words; survival needs the words of the corpus and their counts.")
    counts = np.array([initial[word] for word in words])
    alive = np.array([now.get(word, 0) > 0 for word in words])
    predicted, bins = 1 - extinction_probability(sizes) ** counts.astype(float), count_bins(counts)
    rows = []
    for number in np.unique(bins):
        here = bins == number
        first, last = (1 if number == 0 else 2 ** (int(number) - 1) + 1), 2 ** int(number)
        definition = f"share of word types with a count of {first} to {last} in the initial corpus that are still written"
        survived = measured(share(alive[here]), "1", definition, types=int(here.sum()))
        rows.append({"first": first, "last": last, "survived": survived, "predicted": float(predicted[here].mean())})
    return rows


# Plots, names and endings.


def still_told(stories: Sequence[str], tells: Callable[[str], Hashable | None], true: Mapping[Any, float], what: str) -> dict[str, Metric]:
    """Which kinds (plots, names, endings) the ``stories`` tell: ``tells`` gives the kind of a story, or None where it cannot be told.

    ``true`` has the true probability of each kind, ``what`` their name in the plural. Returns the number of kinds told, beside the number that as
    many legal stories are expected to tell, the entropy of the kinds (plug-in) and of the true law, and the share of stories that tell none.
    Kinds outside ``true`` count as none. Errors are over stories; that of the number of kinds is the jackknife's, from those told once.
    """
    if not stories:
        raise UserError(f"There is no story that could tell of {what}; at least one is needed.")
    kinds = [kind if kind in true else None for kind in map(tells, stories)]
    told = Counter(kind for kind in kinds if kind is not None)
    number, once, probabilities = len(stories), sum(count == 1 for count in told.values()), np.array(list(true.values()))
    jackknife = float(np.sqrt((number - 1) / number * once * (1 - once / number))) if number > 1 else None
    surprise = [-np.log(told[kind] / told.total()) for kind in kinds if kind is not None]
    entropy = ratio_of_sums(surprise, np.ones(len(surprise))) if surprise else (0.0, None)
    return {
        "told": measured((len(told), jackknife), what, f"different {what} told in the sample", stories=number),
        "told_expected": measured(
            (float((1 - (1 - probabilities) ** number).sum()), None), what, f"{what} that as many true stories are expected to tell"
        ),
        "told_entropy": measured(entropy, "nats", f"entropy of the {what} of stories that tell one (plug-in)", stories=told.total()),
        "true_entropy": measured((float(-(probabilities * np.log(probabilities)).sum()), None), "nats", f"entropy of the true law of {what}"),
        "untold": measured(share([kind is None for kind in kinds]), "1", f"share of stories that tell none of the {what}"),
    }
