"""T22: an n-gram model, unsmoothed, trained on stories it wrote itself. Its N_x is random, and contexts vanish.

A corpus is R whole stories. A **context** is the last k tokens, and context 0 the edge of a story, before its first token and after its last; the
**flow**, [contexts, contexts], counts how often context y came after context x (so the token that followed x is y's last, and N_{x;v} = flow[x, y]).
As many transitions enter a context as leave it. The model copies: at context x it picks one of x's N_x occurrences at random and writes what followed
there. R independent stories of it, each to its end, are the next corpus. Several chains are [chains, contexts, contexts].

1. E[N'_{x;v} | corpus] = N_{x;v}: every (k + 1)-gram is neutral, its count a martingale. For a walk's expected visits V solve V_y = R [start at y] +
   sum_x V_x p(y | x), of which the corpus' own counts are a solution, and the only one, since from every context of a corpus of whole stories its
   edge is reached.
2. In the end R copies of *one* story are left, almost surely; a (k + 1)-gram survives with a probability of at most N_{x;v} / R. For a martingale of
   non-negative integers is constant from some generation on. While two stories are possible, two with different counts are (cut out a loop of one
   that has one; if none has, take the two ways on from a context), each may be written R times, and such a corpus cannot repeat for ever. In the last
   one no context occurs twice in a story, so N_x is 0 or R, and E[lim N] <= N (Fatou), with equality where no context can occur twice, since then N
   <= R.
3. A context is gone from the next corpus with probability (1 - h_x)^R exactly, where h_x = N_x / (R g_x) is the probability of a story with x in it
   and g_x >= 1 the expected number of x in such a story. So at least (1 - N_x / R)^R, about e^-m for m occurrences, and more if they come in clumps.
4. Where a context cannot occur twice in one story, N'_x is binomial (R, N_x / R) and the N'_{x;v} are multinomial: they drift in a population of R
   *stories*. It is lost by generation n with q_n^m (``proof.extinction``), and E[N_x^2 H_x] falls by exactly 1 - 1/R a generation, H_x being the
   heterozygosity of what follows.

No closed form was found for E[H_x | x is still there], nor for several generations of contexts that recur: simulation alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapse_lib.experiment.errors import UserError
from collapse_lib.theory.proof import Array, Generator

Flow = NDArray[np.int64]


def story_flow(stories: Sequence[Sequence[str]], order: int) -> tuple[Flow, list[tuple[str, ...]]]:
    """The flow of ``stories`` (each its tokens) between contexts of up to ``order`` tokens, and the contexts' tokens; the edge, (), comes first."""
    names: dict[tuple[str, ...], int] = {(): 0}
    pairs = []
    for story in stories:
        places = [0]
        for end in range(1, len(story) + 1):
            places.append(names.setdefault(tuple(story[max(0, end - order) : end]), len(names)))
        pairs += zip(places, [*places[1:], 0], strict=True)
    flow = np.zeros((len(names), len(names)), np.int64)
    np.add.at(flow, tuple(np.transpose(pairs)), 1)
    return flow, list(names)


def rewrite(flow: ArrayLike, rng: Generator) -> Flow:
    """The flow of the next corpus, for every chain of ``flow`` [..., contexts, contexts]; R is how many transitions leave context 0."""
    flow = np.asarray(flow, np.int64)
    if not np.array_equal(flow.sum(axis=-1), flow.sum(axis=-2)):
        raise UserError("A flow of whole stories enters every context as often as it leaves it.")
    size = flow.shape[-1]
    counts = flow.sum(axis=-1).ravel()  # of chain c's context x at c * size + x
    followers = np.repeat(np.tile(np.arange(size), len(counts)), flow.ravel())
    first = np.cumsum(counts) - counts
    edges = np.arange(0, len(counts), size)
    walkers, transitions = np.repeat(edges, counts[edges]), []
    while len(walkers):
        following = followers[first[walkers] + (rng.random(len(walkers)) * counts[walkers]).astype(np.int64)]
        transitions.append(walkers * size + following)
        going_on = following > 0
        walkers = (walkers - walkers % size + following)[going_on]
    return np.bincount(np.concatenate(transitions), minlength=flow.size).reshape(flow.shape)


def rewrite_often(flow: ArrayLike, generations: int, chains: int, rng: Generator) -> Flow:
    """The flows of many chains, [generations + 1, chains, contexts, contexts], row 0 the initial corpus ``flow`` [contexts, contexts]."""
    history = [np.tile(np.asarray(flow, np.int64), (chains, 1, 1))]
    for _ in range(generations):
        history.append(rewrite(history[-1], rng))
    return np.stack(history)


def visits(flow: ArrayLike) -> tuple[Array, Array]:
    """How often each context is expected in a story, and in a story that has it (g_x), [contexts] each; the edge counts once."""
    flow = np.asarray(flow, float)
    leaving = flow / np.maximum(flow.sum(axis=1, keepdims=True), 1)
    inner = np.linalg.inv(np.eye(len(flow) - 1) - leaving[1:, 1:])
    return np.append(1.0, leaving[0, 1:] @ inner), np.append(1.0, np.diag(inner))


def vanishing(flow: ArrayLike) -> Array:
    """The probability that a context is not in the next corpus, [contexts]: (1 - N_x / (R g_x))^R."""
    everywhere, where_present = visits(flow)
    return np.maximum(1 - everywhere / where_present, 0.0) ** np.asarray(flow)[0].sum()


def successors_heterozygosity(flow: ArrayLike) -> Array:
    """H_x = 1 - sum_v (N_{x;v} / N_x)^2 along the last axis; 0 for a context that is gone."""
    flow = np.asarray(flow, float)
    counts = np.maximum(flow.sum(axis=-1), 1)
    return np.where(flow.any(axis=-1), 1 - np.square(flow / counts[..., None]).sum(axis=-1), 0.0)
