"""A language model that counts: the next token after the last k tokens, as often as the text had it.

It *samples* from the counts as they are, so that nothing but chance comes between a text and the next one: at every context x this is the system
of the paper's section 2, with no error and its own N_x, and the genetic drift of its section 4. It *scores* with Witten and Bell's interpolation
(1991, method C), for without smoothing a held-out text has an infinite loss:

    P(t | c) = (N_{c;t} + T_c P(t | c')) / (N_c + T_c)

with N_c occurrences of context c, T_c different tokens after it, and c' the context without its oldest token; behind the empty context stands the
uniform law. A context that was never seen has the law of c'.

The context of a token is made of the k tokens before it in its row, but for what stands before the last ``<|endoftext|>``, in the place of
which there is ``<|endoftext|>`` again: no story, and no row, sees the one before it.

Contexts are the nodes of a tree whose root is the empty context and in which a step down adds an *older* token. Nodes are numbered by length and
then by ``parent * vocabulary + token``; edges, which are a node and a token that followed it, by ``node * vocabulary + token``. So both are sorted
arrays of integers, found by bisection, of any k.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapse_lib.experiment.errors import UserError, first_line
from collapse_lib.text.corpus import TokenCorpus

STEPS_AT_ONCE = 64  # uniform numbers a row that are drawn together; a multiple of Philox's four
ROWS_AT_ONCE = 4096  # sampled side by side

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class NGram:
    """Counts of the tokens behind every context of up to ``k`` tokens; made by ``fit`` or ``load``.

    Attributes: ``k``; ``vocabulary``; ``eos_id``; ``ends`` (whether it learned from whole stories, so that every sampled one ends);
    ``nodes`` int64[contexts of 1 to k tokens], ``edges`` int64[E] and ``counts`` int64[E], as the module says.
    """

    def __init__(self, k: int, vocabulary: int, eos_id: int, ends: bool, nodes: Ints, edges: Ints, counts: Ints) -> None:
        self.k, self.vocabulary, self.eos_id, self.ends = k, vocabulary, eos_id, ends
        self.nodes, self.edges, self.counts = nodes, edges, counts
        self._parent = np.concatenate([[0], nodes // vocabulary])
        self._order = np.concatenate([[0], np.zeros(len(nodes), np.int8)]).astype(np.int8)
        self._first = np.searchsorted(edges // vocabulary, np.arange(len(nodes) + 2))  # edge of each node, and the end
        self._until = np.concatenate([[0], np.cumsum(counts)])  # occurrences before each edge
        self._types = np.diff(self._first)
        self._occurrences = np.diff(self._until[self._first])
        for start, stop in self._levels():
            self._order[start:stop] = self._order[self._parent[start]] + 1

    @classmethod
    def fit(cls, corpus: TokenCorpus, k: int) -> NGram:
        """Count a corpus. Raises ``UserError`` for a negative ``k`` and for a corpus without a token that anybody wrote."""
        if k < 0:
            raise UserError(f"An n-gram model cannot have a context of {k} tokens; 0, 1, 2 and so on are allowed.")
        past, tokens = windows(corpus, k)
        if not len(tokens):
            raise UserError("An n-gram model cannot be made from a corpus whose rows hold their start token and nothing else.")
        at = np.zeros(len(tokens), np.int64)  # the node of each token's context
        nodes = [np.empty(0, np.int64)]
        known = 0
        for older in past:
            keys, at = np.unique(at * corpus.vocabulary + older, return_inverse=True)
            nodes.append(keys)
            at += known + 1
            known += len(keys)
        edges, counts = np.unique(at * corpus.vocabulary + tokens, return_counts=True)
        levels = [(edges, counts)]
        parent = np.concatenate([[0], np.concatenate(nodes) // corpus.vocabulary])
        for _ in range(k):
            edges, merged = np.unique(parent[edges // corpus.vocabulary] * corpus.vocabulary + edges % corpus.vocabulary, return_inverse=True)
            counts = np.bincount(merged, counts).astype(np.int64)
            levels.append((edges, counts))
        edges, counts = (np.concatenate(parts) for parts in zip(*reversed(levels), strict=True))
        return cls(k, corpus.vocabulary, corpus.eos_id, corpus.rows_are_complete, np.concatenate(nodes), edges, counts)

    @property
    def contexts(self) -> int:
        """Different contexts of k tokens."""
        return int((self._order == self.k).sum())

    def num_parameters(self) -> int:
        """Different pairs of a context of k tokens and the token behind it: the counts that it samples from."""
        return int(self._types[self._order == self.k].sum())

    def law(self, contexts: ArrayLike, smoothed: bool = True) -> Floats:
        """Next-token laws, [contexts, vocabulary], for contexts of as many tokens each, [contexts, tokens], the newest token last.

        Of more than k tokens the last k are looked at; fewer have the law of the shorter context. With ``smoothed`` it is the law that scores, else
        the one that samples.
        """
        past = _without_other_stories(np.asarray(contexts, np.int64).T[::-1][: self.k], self.eos_id)
        node = self._descend(past, np.shape(contexts)[0])
        if not smoothed:
            laws = np.zeros((len(node), self.vocabulary))
            self._add_counts(laws, node, np.arange(len(node)))
            return laws / self._occurrences[node][:, None]
        laws = np.full((len(node), self.vocabulary), 1 / self.vocabulary)
        for order in range(self.k + 1):
            rows = np.flatnonzero(self._order[node] >= order)
            ancestor = node[rows]
            while len(above := np.flatnonzero(self._order[ancestor] > order)):
                ancestor[above] = self._parent[ancestor[above]]
            types, total = self._types[ancestor], self._occurrences[ancestor]
            laws[rows] *= types[:, None]
            self._add_counts(laws, ancestor, rows)
            laws[rows] /= (total + types)[:, None]
        return laws

    def next_token_losses(self, corpus: TokenCorpus) -> Floats:
        """``-log P(token)`` in nats, float64[tokens], of every token that ``windows`` gives, by Witten and Bell's law."""
        past, tokens = windows(corpus, self.k)
        node = self._descend(past, len(tokens))
        losses = np.empty(len(tokens))
        left, factor = np.arange(len(tokens)), np.ones(len(tokens))
        for order in range(self.k, -1, -1):
            here = self._order[node] == order
            edge, seen = _find(self.edges, node * self.vocabulary + tokens)
            hit, miss = here & seen, here & ~seen
            losses[left[hit]] = -np.log(factor[hit] * self._smoothed[edge[hit]])
            types = self._types[node[miss]]
            factor[miss] *= types / (types + self._occurrences[node[miss]])
            node[miss] = self._parent[node[miss]]
            if order == 0:
                losses[left[miss]] = -np.log(factor[miss] / self.vocabulary)
            left, factor, node, tokens = left[~hit], factor[~hit], node[~hit], tokens[~hit]
        return losses

    def row_losses(self, corpus: TokenCorpus) -> Floats:
        """``next_token_losses`` added up row by row, float64[rows]; of whole stories with the ``<|endoftext|>`` that ends them."""
        until = np.concatenate([[0.0], np.cumsum(self.next_token_losses(corpus))])
        return np.diff(until[np.concatenate([[0], np.cumsum(row_tokens(corpus))])])

    def conditional_entropy(self, corpus: TokenCorpus) -> float:
        """Entropy in nats of the law that it samples from, a mean over the contexts of a text's tokens."""
        past, tokens = windows(corpus, self.k)
        return float(self._entropies[self._descend(past, len(tokens))].mean())

    def sample_rows(self, rows: range, seed: int, length: int | None = None) -> list[NDArray[np.uint16]]:
        """Rows of a corpus, each with its start token; row r depends on (model, seed, r) alone.

        With ``length``, so many sampled tokens a row, behind an ``<|endoftext|>`` the next story; else a row is one story, without the
        ``<|endoftext|>`` that ended it. Where a context was not seen (at the end of a cut-off row only) the longest seen part of it stands in for it.
        Raises ``UserError`` if stories are asked for that may never end.
        """
        if length is None and not self.ends:
            raise UserError("A model that learned from cut-off rows may write a story without an end; give the length of a row.")
        starts = range(rows.start, rows.stop, ROWS_AT_ONCE)
        return [row for start in starts for row in self._walk(np.arange(start, min(start + ROWS_AT_ONCE, rows.stop)), seed, length)]

    def sample_corpus(self, tokens: int, seed: int, length: int | None = None) -> TokenCorpus:
        """As many of the rows that ``sample_rows`` gives as it takes to have ``tokens`` tokens, in memory.

        What ends a story counts as its token, a start token that a cut-off row was given does not. Whole stories are a few tokens too many; to end
        with the story that reaches the number leaves the expected share of every story as it is (Wald's identity).
        """
        rows: list[NDArray[np.uint16]] = []
        mean = length or self._occurrences[0] / self.counts[np.searchsorted(self.edges, self.eos_id)] if self.ends or length else None
        missing = tokens
        while missing > 0:
            more = self.sample_rows(range(len(rows), len(rows) + int(missing / mean) + 1), seed, length)
            until = np.cumsum([len(row) - bool(length) for row in more])
            rows += more[: int(np.searchsorted(until, missing)) + 1]
            missing -= int(until[-1])
        return TokenCorpus.in_memory(rows, self.eos_id, self.vocabulary, rows_are_complete=length is None)

    def save(self, file: str | Path) -> None:
        """Write the model as one safetensors file."""
        from safetensors.numpy import save_file

        about = {name: str(int(getattr(self, name))) for name in ("k", "vocabulary", "eos_id", "ends")}
        save_file({"nodes": self.nodes, "edges": self.edges, "counts": self.counts}, Path(file), metadata=about)

    @classmethod
    def load(cls, file: str | Path) -> NGram:
        """Read what ``save`` wrote. Raises ``UserError`` if there is no such file or it is something else."""
        from safetensors import SafetensorError, safe_open

        if not Path(file).is_file():
            raise UserError(f"There is no n-gram model in '{file}'.")
        try:
            with safe_open(file, "numpy") as stored:
                about = stored.metadata() or {}
                k, vocabulary, eos_id, ends = (int(about[name]) for name in ("k", "vocabulary", "eos_id", "ends"))
                return cls(k, vocabulary, eos_id, bool(ends), *(stored.get_tensor(name) for name in ("nodes", "edges", "counts")))
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"'{file}' is no n-gram model ({first_line(error)}); restore it, or have the model made again.") from None

    def _levels(self) -> Iterator[tuple[int, int]]:
        """First and last node of each length from 1 on, [first, last)."""
        start, stop = 0, 1
        while stop <= len(self.nodes):
            start, stop = stop, int(np.searchsorted(self.nodes, stop * self.vocabulary)) + 1
            yield start, stop

    def _descend(self, past: Ints, count: int) -> Ints:
        """The node of the longest seen part of each context, [count]; ``past`` [tokens, count] has the newest token first."""
        node = np.zeros(count, np.int64)
        going = np.arange(count)
        for older in past:
            child, seen = _find(self.nodes, node[going] * self.vocabulary + older[going])
            going = going[seen]
            node[going] = child[seen] + 1
        return node

    def _add_counts(self, laws: Floats, nodes: Ints, rows: Ints) -> None:
        """Add the counts of ``nodes`` to those ``rows`` of ``laws``."""
        types = self._types[nodes]
        edge = np.arange(types.sum()) + np.repeat(self._first[nodes] - np.cumsum(types) + types, types)
        laws[np.repeat(rows, types), self.edges[edge] % self.vocabulary] += self.counts[edge]

    def _walk(self, rows: Ints, seed: int, length: int | None) -> list[NDArray[np.uint16]]:
        state = np.full(len(rows), self._start)
        going, column = np.arange(len(rows)), np.arange(len(rows))  # rows that go on, and where their uniform numbers stand
        lengths = np.full(len(rows), length or 0)
        written = [np.full((1, len(rows)), self.eos_id, np.uint16)]
        step = 0
        while len(going) if length is None else step < length:
            if step % STEPS_AT_ONCE == 0:
                uniforms, column = _uniforms(seed, rows[going], step), np.arange(len(going))
                written.append(np.empty((STEPS_AT_ONCE, len(rows)), np.uint16))
            here = state[going]
            draw = (uniforms[step % STEPS_AT_ONCE, column] * self._occurrences[here]).astype(np.int64)
            edge = self._edge_of_occurrence[self._until[self._first[here]] + draw]
            token = self._token[edge]
            written[-1][step % STEPS_AT_ONCE, going] = token
            state[going] = self._next[edge]
            step += 1
            if length is None and (ended := token == self.eos_id).any():
                lengths[going[ended]] = step - 1
                going, column = going[~ended], column[~ended]
        table = np.concatenate(written).T
        return [row[: 1 + length].copy() for row, length in zip(table, lengths.tolist(), strict=True)]

    @cached_property
    def _start(self) -> int:
        """The node at which a story begins."""
        return int(self._descend(np.full((self.k, 1), self.eos_id), 1)[0])

    @cached_property
    def _token(self) -> NDArray[np.uint16]:
        return (self.edges % self.vocabulary).astype(np.uint16)

    @cached_property
    def _edge_of_occurrence(self) -> NDArray[np.int32]:
        return np.repeat(np.arange(len(self.edges), dtype=np.int32), self.counts)

    @cached_property
    def _parent_edge(self) -> Ints:
        """The edge of the same token at each edge's parent node (the root's are their own)."""
        node = self.edges // self.vocabulary
        return np.searchsorted(self.edges, self.edges + (self._parent[node] - node) * self.vocabulary)

    @cached_property
    def _next(self) -> NDArray[np.int32]:
        """The node of the longest seen context behind each edge.

        The context behind (c, t) is the one behind (c', t), with the oldest token of c added to it if that is still a seen context.
        """
        behind = np.zeros(len(self.edges), np.int64)
        node = self.edges // self.vocabulary
        order = self._order[node]
        oldest = np.concatenate([[0], self.nodes % self.vocabulary])
        for level in range(self.k + 1):
            edges = np.flatnonzero(order == level)
            if level == 0:
                child, seen = _find(self.nodes, self.edges[edges]) if self.k else (edges, np.zeros(len(edges), bool))
                behind[edges[seen]] = child[seen] + 1
                continue
            shorter = behind[self._parent_edge[edges]]
            child, seen = _find(self.nodes, shorter * self.vocabulary + oldest[node[edges]])
            seen &= (self._order[shorter] == level) & (level < self.k)
            behind[edges] = np.where(seen, child + 1, shorter)
        behind[self._token == self.eos_id] = self._start
        return behind.astype(np.int32)

    @cached_property
    def _smoothed(self) -> Floats:
        """Witten and Bell's probability of each edge."""
        node = self.edges // self.vocabulary
        order, types = self._order[node], self._types[node]
        probability = np.full(len(self.edges), 1 / self.vocabulary)
        for level in range(self.k + 1):
            edges = np.flatnonzero(order == level)
            lower = probability[self._parent_edge[edges]] if level else probability[edges]
            probability[edges] = (self.counts[edges] + types[edges] * lower) / (self._occurrences[node[edges]] + types[edges])
        return probability

    @cached_property
    def _entropies(self) -> Floats:
        """Entropy of the counts at each node."""
        weighted = np.concatenate([[0.0], np.cumsum(self.counts * np.log(self.counts))])
        return np.maximum(0, np.log(self._occurrences) - np.diff(weighted[self._first]) / self._occurrences)


def windows(corpus: TokenCorpus, k: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """The tokens of a corpus that a model predicts, [n] in the order of the rows, and the ``k`` tokens before each, [k, n], the newest first.

    The ``<|endoftext|>`` that ends a whole story is one of them, a start token that a row was given is not.
    """
    stream = corpus.stream(0, corpus.tokens)
    offsets = np.concatenate([[0], np.cumsum(corpus.row_lengths())])
    if not corpus.has_start:
        stream = np.insert(stream, offsets[:-1], corpus.eos_id)
        offsets = offsets + np.arange(len(offsets))
    stream = np.append(stream, np.uint16(corpus.eos_id))
    written = np.ones(len(stream), bool)
    written[0 if corpus.rows_are_complete else offsets] = False
    places = np.flatnonzero(written)
    past = np.stack([stream[np.maximum(places - back, 0)] for back in range(1, k + 1)]) if k else np.empty((0, len(places)), np.uint16)
    return _without_other_stories(past, corpus.eos_id), stream[places]


def row_tokens(corpus: TokenCorpus) -> Ints:
    """How many of the tokens of ``windows`` each row has, [rows]."""
    return corpus.row_lengths() + int(corpus.rows_are_complete) - int(corpus.has_start)


def _without_other_stories(past: np.ndarray, eos_id: int) -> np.ndarray:
    """Contexts [tokens, n], newest first, in which everything older than an ``eos_id`` is ``eos_id``."""
    return np.where(np.logical_or.accumulate(past == eos_id, axis=0), eos_id, past).astype(past.dtype)


def _find(keys: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where ``wanted`` values stand in sorted ``keys``, and whether they do."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return place, keys[place] == wanted


def _uniforms(seed: int, rows: Ints, step: int) -> Floats:
    """Numbers ``step`` to ``step + STEPS_AT_ONCE`` of the Philox streams keyed by (seed, row), [STEPS_AT_ONCE, rows]."""
    stream = np.random.Philox(key=0)
    generator, state = np.random.Generator(stream), stream.state
    numbers = np.empty((len(rows), STEPS_AT_ONCE))
    for number, row in enumerate(rows.tolist()):
        state["state"]["key"][:] = seed, row
        state["state"]["counter"][:] = step // 4, 0, 0, 0  # four numbers a count
        stream.state = state
        generator.random(out=numbers[number])
    return np.ascontiguousarray(numbers.T)
