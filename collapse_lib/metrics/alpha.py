"""The errors of section 2 measured on real models: alpha, the weight of the initial corpus, and what is left of it.

The paper's proof is about the next token at one context x. Two kinds of context can be looked at:

- *counted* ones: beginnings of stories so frequent that the initial corpus itself says what follows them. A context is the whole story so far,
  so N_x is the number of stories that begin with it and N_{x;v} how often v comes next: exact counts, from which p_0 = N_{x;v} / N_x;
- *positions* of validation stories, where no count exists: there generations can be compared with each other only.

With Remark 1's smallest error, ln(1 + alpha*[n] / y[n-1]) = D_inf(p_{n-1} || p_n) (``theory.divergence``), so that all of equation (3) follows from
the divergences between neighbours. D_inf is a maximum over the vocabulary and is ruled by tokens that neither model means to write; its
``smoothed_divergence`` leaves a stated mass of probability out of account.

Distributions are float64 logarithms [contexts, vocabulary] from fp32 logits. Corpora are streamed; the vocabulary times some contexts fits in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from collapse_lib.experiment.errors import UserError
from collapse_lib.metrics.padding import longest_first, padded
from collapse_lib.theory.proof import entropy, total_variation

if TYPE_CHECKING:
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import TokenCorpus

Array = NDArray[np.float64]
Heads = tuple[np.ndarray, np.ndarray]  # stories' first tokens [stories, length], and how many of them are known [stories]

ROWS_AT_ONCE = 1 << 15  # of a corpus, while counting
BATCH_TOKENS = 8192  # of a forward pass
VALUES_AT_ONCE = 1 << 22  # float64 values of one array of distributions
ATTAINING = 3  # tokens of largest p_{n-1} / p_n that are kept of each context


# Contexts and their counts.


def story_heads(corpus: TokenCorpus, length: int) -> Iterator[Heads]:
    """The first ``length`` tokens of every story of a corpus, some thousand rows at a time; after a story's end stands '<|endoftext|>'.

    Stories begin after each '<|endoftext|>' and where a row begins without one. In incomplete rows the last story's end is unknown: how
    many tokens *are* known, the '<|endoftext|>' that ends the story included, is the second array.
    """
    for first in range(0, corpus.rows, ROWS_AT_ONCE):
        rows = list(corpus.iter_rows(first, first + ROWS_AT_ONCE))
        values, ends = np.concatenate(rows), np.cumsum([len(row) for row in rows])
        bare = np.flatnonzero(values[np.append(0, ends[:-1])] != corpus.eos_id)  # rows without a start token
        marks = np.flatnonzero(values == corpus.eos_id)
        starts = np.concatenate([marks + 1, np.append(0, ends[:-1])[bare]])
        stops = np.concatenate([ends[np.searchsorted(ends, marks, side="right")], ends[bare]])
        known = stops - starts + (1 if corpus.rows_are_complete else 0)
        starts, stops, known = starts[known > 0], stops[known > 0], known[known > 0]
        indices = starts[:, None] + np.arange(length)
        heads = np.where(indices < stops[:, None], values[np.minimum(indices, len(values) - 1)], values.dtype.type(corpus.eos_id))
        yield heads, np.minimum(known, length)


def frequent_prefixes(corpus: TokenCorpus, most: int, longest: int, minimum_count: int) -> list[tuple[int, ...]]:
    """Story beginnings of up to ``longest`` tokens with which at least ``minimum_count`` stories begin, the most frequent first.

    The empty one comes first: every story begins with it. The most frequent beginning of each length is always among them, the rest
    is filled with the most frequent of any length, up to ``most`` in all. ``corpus`` is one of complete rows.
    """
    parts = list(story_heads(corpus, longest + 1))
    heads, known = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    alive, groups = np.arange(len(heads)), np.zeros(len(heads), np.int64)
    candidates: list[tuple[int, tuple[int, ...]]] = []
    leaders: list[tuple[int, tuple[int, ...]]] = [(len(heads), ())]
    for length in range(1, longest + 1):
        tokens = heads[alive, length - 1].astype(np.int64)
        going_on = (tokens != corpus.eos_id) & (known[alive] > length)
        alive, keys = alive[going_on], (groups * corpus.vocabulary + tokens)[going_on]
        _, sample, groups, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        frequent = np.flatnonzero(counts >= minimum_count)
        if not frequent.size:
            break
        level = [(int(counts[group]), tuple(heads[alive[sample[group]], :length].tolist())) for group in frequent]
        level.sort(key=_order)
        leaders.append(level[0])
        candidates += level[1 : most + 1]
        is_frequent = counts[groups] >= minimum_count
        alive, groups = alive[is_frequent], np.searchsorted(frequent, groups[is_frequent])
    chosen = (leaders + sorted(candidates, key=_order))[:most]
    return [prefix for _, prefix in sorted(chosen, key=_order)]


def _order(counted: tuple[int, tuple[int, ...]]) -> tuple[int, int, tuple[int, ...]]:
    count, prefix = counted
    return -count, len(prefix), prefix


def next_token_counts(heads: Iterable[Heads], prefixes: Sequence[tuple[int, ...]], vocabulary: int, eos_id: int) -> NDArray[np.int64]:
    """N_{x;v} [prefixes, vocabulary]: how many of the stories begin with prefix x and go on with token v (or end: '<|endoftext|>')."""
    nodes: dict[tuple[int, ...], int] = {(): 0}
    for prefix in prefixes:
        for length in range(1, len(prefix) + 1):
            nodes.setdefault(prefix[:length], len(nodes))
    steps = sorted((nodes[prefix[:-1]] * vocabulary + prefix[-1], node) for prefix, node in nodes.items() if prefix)
    edges, targets = np.array([key for key, _ in steps] + [-1], np.int64), np.array([node for _, node in steps] + [-1], np.int64)
    edges[-1] = np.iinfo(np.int64).max  # so that every search ends inside the array
    context = np.full(len(nodes), -1, np.int64)
    context[[nodes[prefix] for prefix in prefixes]] = np.arange(len(prefixes))
    counts = np.zeros(len(prefixes) * vocabulary, np.int64)
    for tokens, known in heads:
        at, alive = np.zeros(len(tokens), np.int64), np.arange(len(tokens))
        for depth in range(min(tokens.shape[1], max(map(len, prefixes), default=0) + 1)):
            going_on = known[alive] > depth
            alive, at = alive[going_on], at[going_on]
            following = tokens[alive, depth].astype(np.int64)
            here = context[at] >= 0
            seen, often = np.unique(context[at[here]] * vocabulary + following[here], return_counts=True)
            counts[seen] += often
            keys = at * vocabulary + following
            edge = np.searchsorted(edges, keys)
            going_on = (edges[edge] == keys) & (following != eos_id)
            alive, at = alive[going_on], targets[edge[going_on]]
    return counts.reshape(len(prefixes), vocabulary)


def sampled_positions(corpus: TokenCorpus, count: int, max_context: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Contexts drawn from all positions of the stories (complete rows): at most ``count`` different ones, and which story each is in.

    A context is its story so far, the start token included, of which the last ``max_context`` tokens are kept.
    """
    lengths = np.array([len(row) for row in corpus.iter_rows()])
    ends = np.cumsum(lengths)
    positions = np.sort(np.random.default_rng(seed).choice(ends[-1], min(count, ends[-1]), replace=False))
    stories = np.searchsorted(ends, positions, side="right")
    within = positions - (ends - lengths)[stories]
    return [corpus.row(story)[max(0, position + 1 - max_context) : position + 1] for story, position in zip(stories, within, strict=True)], stories


# What the models say there.


@torch.no_grad()
def last_hidden(model: GPTNeo, contexts: Sequence[np.ndarray]) -> torch.Tensor:
    """[contexts, H]: the model's hidden state at the end of each context, on the model's device."""
    longest = max(map(len, contexts))
    if longest > model.config.max_position_embeddings:
        raise UserError(f"A context has {longest} tokens, but the model has only {model.config.max_position_embeddings} positions.")
    device, lengths = model.head.device, np.array([len(context) for context in contexts])
    hidden = torch.empty(len(contexts), model.config.hidden_size, device=device)
    for batch in longest_first(lengths, BATCH_TOKENS):
        states = model(torch.from_numpy(padded([contexts[index] for index in batch])).to(device))
        last = torch.from_numpy(lengths[batch] - 1).to(device)
        hidden[torch.from_numpy(batch).to(device)] = states[torch.arange(len(batch), device=device), last].float()
    return hidden


@torch.no_grad()
def log_distributions(model: GPTNeo, hidden: torch.Tensor) -> Array:
    """ln p [rows, vocabulary] of the token that follows hidden states [rows, H]: the softmax of the model's fp32 logits, taken in float64."""
    return torch.log_softmax(model.logits(hidden).double(), -1).cpu().numpy()


def distributions_by_piece(models: Sequence[GPTNeo], contexts: Sequence[np.ndarray]) -> Iterator[list[Array]]:
    """Several models' ``log_distributions`` at the same contexts, so many contexts at a time that the arrays stay small."""
    hidden = [last_hidden(model, contexts) for model in models]
    for rows in _pieces(len(contexts), models[0].config.vocab_size):
        yield [log_distributions(model, states[rows]) for model, states in zip(models, hidden, strict=True)]


def log_frequencies(counts: ArrayLike) -> Array:
    """ln p_0 [contexts, vocabulary] from N_{x;v}: minus infinity for what never follows; not a number for a context that never came up."""
    counts = np.asarray(counts, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(counts) - np.log(counts.sum(axis=-1, keepdims=True))


# Distances. Arrays of logarithms [contexts, vocabulary]; results [contexts].


def log_divergence(log_p: Array, log_q: Array) -> Array:
    """D_inf(p || q) = ln max_i p_i / q_i in nats, from logarithms: ``theory.divergence`` where probabilities would underflow."""
    return np.max(log_p - log_q, axis=-1, where=log_p > -np.inf, initial=-np.inf)


def log_relative_entropy(log_p: Array, log_q: Array) -> Array:
    """KL(p || q) in nats, from logarithms; q must be positive where p is."""
    ratio = np.subtract(log_p, log_q, where=log_p > -np.inf, out=np.zeros_like(log_p))
    return (np.exp(log_p) * ratio).sum(axis=-1)


def smoothed_divergence(log_p: Array, log_q: Array, epsilons: Sequence[float]) -> Array:
    """[epsilons, contexts]: the smallest ln l for which sum_i (p_i - l q_i)_+ <= epsilon; epsilon = 0 gives D_inf.

    l q then covers p but for a mass epsilon. The sum is the maximum over sets of tokens of P(set) - l Q(set), attained by the tokens
    of largest p_i / q_i; so l is the largest (P_k - epsilon) / Q_k over the first k tokens in that order. At least ln(1 - epsilon).
    """
    if not len(epsilons):
        return np.empty((0, len(log_p)))
    with np.errstate(invalid="ignore"):
        order = np.argsort(log_q - log_p, axis=-1, kind="stable")
    p = np.cumsum(np.take_along_axis(np.exp(log_p), order, axis=-1), axis=-1)
    q = np.cumsum(np.take_along_axis(np.exp(log_q), order, axis=-1), axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([np.log(np.max(np.maximum(p - epsilon, 0.0) / q, axis=-1, where=p > epsilon, initial=0.0)) for epsilon in epsilons])


def jensen_shannon(log_p: Array, log_q: Array) -> Array:
    """The Jensen-Shannon divergence in nats, from 0 (equal) to ln 2 (nothing in common): the symmetric one, finite for any two."""
    log_mean = np.logaddexp(log_p, log_q) - np.log(2)
    return (log_relative_entropy(log_p, log_mean) + log_relative_entropy(log_q, log_mean)) / 2


# What drawing N tokens from p does by itself: section 4's genetic drift, in closed form at one context.


def expected_drift(p: ArrayLike, tokens: ArrayLike) -> Array:
    """E TV(p, c), c being the frequencies of ``tokens`` [contexts] draws from p [contexts, vocabulary]; exact. Not a number without draws.

    De Moivre's mean absolute deviation of a binomial count: E |X - N p| = 2 m C(N, m) p^m (1 - p)^(N - m + 1) with m = floor(N p) + 1.
    """
    from scipy.special import gammaln, xlog1py, xlogy

    p, n = np.asarray(p, float), _draws(tokens)
    m = np.minimum(np.floor(n * p) + 1, n)
    log_ways = gammaln(n + 1) - gammaln(m) - gammaln(n - m + 1)  # ln m C(N, m)
    deviation = 2 * np.exp(log_ways + xlogy(m, p) + xlog1py(n - m + 1, -p))
    return (deviation / n).sum(axis=-1) / 2


def expected_surprise(p: ArrayLike, tokens: ArrayLike) -> Array:
    """E KL(c || p) in nats for the same frequencies c: what the plug-in entropy of ``tokens`` draws loses, near (K - 1) / 2N for many draws.

    Not a number without draws: no frequencies are no distribution, and lose neither nothing nor everything.

    Size-biasing a binomial count gives sum_v p_v E ln((1 + X_v) / N p_v) with X_v ~ Binomial(N - 1, p_v), which is evaluated as a Poisson
    variable corrected to the binomial's variance: the sum is off by less than 1% at 30 draws, and by less still at more.
    """
    p, n = np.asarray(p, float), _draws(tokens)
    return (p * (1 - p) * _size_biased(n * p)).sum(axis=-1)


def _draws(tokens: ArrayLike) -> Array:
    """[contexts, 1]: how many draws, or not a number where there were none."""
    tokens = np.asarray(tokens, float)[..., None]
    return np.where(tokens > 0, tokens, np.nan)


def _size_biased(mean: Array) -> Array:
    """E ln((1 + K) / mean) for K ~ Poisson(mean), 0 where the mean is: by the sum, read off a table; by its expansion beyond 100."""
    grid, values = _size_biased_table()
    inner = np.clip(mean, grid[0], grid[-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        sums = np.interp(np.log(inner), np.log(grid), values) - np.log(mean)
        expectations = np.where(mean > grid[-1], 1 / (2 * mean) + 1 / (12 * mean**2), sums)
    return np.where(mean == 0, 0.0, expectations)


@functools.cache
def _size_biased_table() -> tuple[Array, Array]:
    """Means from 1e-6 to 100, and E ln(1 + K) for each."""
    from scipy.special import gammaln

    grid, k = np.geomspace(1e-6, 100, 4000), np.arange(250)
    weights = np.exp(k * np.log(grid)[:, None] - grid[:, None] - gammaln(k + 1))
    return grid, weights @ np.log1p(k)


# One generation, measured.


def distances(log_p: Array, log_q: Array, smoothing: Sequence[float], prefix: str = "") -> dict[str, Array]:
    """How q differs from the p it replaced, [contexts] each: ``divergence``, ``divergence_<epsilon>``, ``kl``, ``tv`` (after ``prefix``)."""
    measures = {"divergence": log_divergence(log_p, log_q)}
    measures |= {f"divergence_{epsilon:g}": value for epsilon, value in zip(smoothing, smoothed_divergence(log_p, log_q, smoothing), strict=True)}
    measures |= {"kl": log_relative_entropy(log_p, log_q), "tv": total_variation(np.exp(log_p), np.exp(log_q))}
    return {prefix + name: value for name, value in measures.items()}


def measure_counted(
    model: GPTNeo,
    previous: GPTNeo | None,
    contexts: Sequence[np.ndarray],
    counts: NDArray[np.int64],
    learned: NDArray[np.int64],
    smoothing: Sequence[float],
    truth: NDArray[np.int64] | None = None,
) -> dict[str, np.ndarray]:
    """Everything about generation n at counted contexts, whose ``counts`` [contexts, vocabulary] in the initial corpus make p_0.

    Args:
        model, previous: generation n and n - 1; None for the previous one means that n is 1 and p_{n-1} is p_0.
        learned: the same counts in the corpus that generation n learned from.
        smoothing: the epsilons of ``smoothed_divergence``.
        truth: the same counts in a large sample of the language itself, where one can be had.

    Returns:
        Arrays whose first axis is the contexts. ``distances(p_{n-1}, p_n)``; ``distances(p_0, p_n)`` as ``initial_*``; ``entropy`` of p_n;
        ``counts`` and ``learned_counts`` (N_x in both corpora); ``attaining*``, the tokens of largest p_{n-1} / p_n [contexts, 3] with their
        probabilities before and after, the first one's rank in p_{n-1} (1 = likeliest) and whether it never follows x in the initial corpus.
        From generation 2 on ``drift_tv`` and ``drift_kl``, what drawing ``learned_counts`` tokens from p_{n-1} changes by itself (expected),
        ``text_tv`` = TV(p_{n-1}, c) of the drawn frequencies c and ``fit_tv`` = TV(c, p_n); not a number where x did not come up.
        With ``truth``: ``truth_tv``, ``truth_kl`` of p_n,
        ``truth_initial_tv`` of p_0, ``truth_noise_tv`` that the sample's own size explains.
    """
    vocabulary = model.config.vocab_size
    hidden = last_hidden(model, contexts), previous and last_hidden(previous, contexts)
    parts = []
    for rows in _pieces(len(contexts), vocabulary):
        log_now, log_initial = log_distributions(model, hidden[0][rows]), log_frequencies(counts[rows])
        log_before = log_initial if previous is None else log_distributions(previous, hidden[1][rows])
        measures = distances(log_before, log_now, smoothing) | distances(log_initial, log_now, smoothing, "initial_")
        measures |= {"entropy": entropy(np.exp(log_now)), "counts": counts[rows].sum(axis=1), "learned_counts": learned[rows].sum(axis=1)}
        measures |= _attaining(log_before, log_now, counts[rows])
        if previous is not None:
            before, draws = np.exp(log_before), measures["learned_counts"]
            text = learned[rows] / _draws(draws)
            measures |= {"drift_tv": expected_drift(before, draws), "drift_kl": expected_surprise(before, draws)}
            measures |= {"text_tv": total_variation(before, text), "fit_tv": total_variation(text, np.exp(log_now))}
        if truth is not None:
            law, sample = log_frequencies(truth[rows]), truth[rows].sum(axis=1)
            measures |= distances(law, log_now, (), "truth_") | {"truth_initial_tv": total_variation(np.exp(law), np.exp(log_initial))}
            measures["truth_noise_tv"] = expected_drift(np.exp(law), sample)
        parts.append(measures)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def measure_positions(
    model: GPTNeo, previous: GPTNeo | None, first: GPTNeo | None, contexts: Sequence[np.ndarray], smoothing: Sequence[float]
) -> dict[str, Array]:
    """What can be said of generation n at contexts without counts, [contexts] each.

    ``entropy`` of p_n and, from generation 2 on, ``distances(p_{n-1}, p_n)`` and as ``first_*`` ``distances(p_1, p_n)``.
    """
    models = [each for each in (model, previous, first) if each is not None]
    parts = []
    for log_now, *others in distributions_by_piece(models, contexts):
        measures = {"entropy": entropy(np.exp(log_now))}
        for prefix, other in zip(("", "first_"), others, strict=False):
            measures |= distances(other, log_now, smoothing, prefix)
        parts.append(measures)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _attaining(log_before: Array, log_now: Array, counts: NDArray[np.int64]) -> dict[str, np.ndarray]:
    ratio = np.where(log_before > -np.inf, log_before - log_now, -np.inf)
    tokens = np.argsort(-ratio, axis=-1, kind="stable")[:, :ATTAINING]
    top = tokens[:, :1]
    return {
        "attaining": tokens,
        "attaining_before": np.exp(np.take_along_axis(log_before, tokens, -1)),
        "attaining_now": np.exp(np.take_along_axis(log_now, tokens, -1)),
        "attaining_rank": 1 + (log_before > np.take_along_axis(log_before, top, -1)).sum(axis=-1),
        "attaining_unseen": np.take_along_axis(counts, top, -1)[:, 0] == 0,
    }


def _pieces(contexts: int, vocabulary: int) -> list[slice]:
    rows = max(1, VALUES_AT_ONCE // vocabulary)
    return [slice(start, start + rows) for start in range(0, contexts, rows)]
