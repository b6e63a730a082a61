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

import math
from functools import cached_property
from itertools import accumulate
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
        self._parent = np.concatenate([[0], nodes // vocabulary])  # the root's is the root
        self._order = np.zeros(len(nodes) + 1, np.int8)
        for _ in range(k):
            self._order[1:] = self._order[self._parent[1:]] + 1
        self._first = np.searchsorted(edges, np.arange(len(nodes) + 2) * vocabulary)  # edge of each node, and the end
        self._until = np.concatenate([[0], np.cumsum(counts)])  # occurrences before each edge
        self._types = np.diff(self._first)
        self._occurrences = np.diff(self._until[self._first])

    @classmethod
    def fit(cls, corpus: TokenCorpus, k: int) -> NGram:
        """Count a corpus. Raises ``UserError`` for a negative ``k`` and for a corpus without a token that anybody wrote."""
        if k < 0:
            raise UserError(f"An n-gram model cannot have a context of {k} tokens; 0, 1, 2 and so on are allowed.")
        past, tokens = windows(corpus, k)
        if not len(tokens):
            raise UserError("An n-gram model cannot be made from a corpus whose rows hold their start token and nothing else.")
        vocabulary, node, known = corpus.vocabulary, np.zeros(len(tokens), np.int64), 1
        levels = []
        for older in past:
            keys, place = np.unique(node * vocabulary + older, return_inverse=True)
            levels.append(keys)
            node, known = place + known, known + len(keys)
        nodes = np.concatenate([np.empty(0, np.int64), *levels])
        parent = np.concatenate([[0], nodes // vocabulary])
        counted = [np.unique(node * vocabulary + tokens, return_counts=True)]
        for _ in range(k):  # the counts of shorter contexts are sums of these
            edges, counts = counted[-1]
            node, token = np.divmod(edges, vocabulary)
            edges, place = np.unique(parent[node] * vocabulary + token, return_inverse=True)
            counted.append((edges, np.bincount(place, counts).astype(np.int64)))
        edges, counts = map(np.concatenate, zip(*reversed(counted), strict=True))
        return cls(k, vocabulary, corpus.eos_id, corpus.rows_are_complete, nodes, edges, counts)

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
        contexts = np.asarray(contexts, np.int64)
        node = self._descend(_without_other_stories(contexts.T[::-1][: self.k], self.eos_id), len(contexts))
        rows = np.arange(len(node))
        if not smoothed:
            return self._add_counts(np.zeros((len(node), self.vocabulary)), rows, node) / self._occurrences[node][:, None]
        laws = np.full((len(node), self.vocabulary), 1 / self.vocabulary)
        path = np.stack(list(accumulate(range(self.k), lambda at, _: self._parent[at], initial=node)))  # [k + 1, contexts], up to the root
        for level in range(self.k + 1):
            rows = np.flatnonzero(self._order[node] >= level)
            at = path[self._order[node[rows]] - level, rows]
            laws[rows] *= self._types[at][:, None]
            self._add_counts(laws, rows, at)
            laws[rows] /= (self._occurrences[at] + self._types[at])[:, None]
        return laws

    def next_token_losses(self, corpus: TokenCorpus) -> Floats:
        """``-log P(token)`` in nats, float64[tokens], of every token that ``windows`` gives, by Witten and Bell's law."""
        past, tokens = windows(corpus, self.k)
        node = self._descend(past, len(tokens))
        probability, left = np.ones(len(tokens)), np.arange(len(tokens))
        while len(left):  # up the tree, to the longest context that the token was seen behind
            edge, seen = _find(self.edges, node[left] * self.vocabulary + tokens[left])
            probability[left[seen]] *= self._smoothed[edge[seen]]
            left = left[~seen]
            at = node[left]
            probability[left] *= self._types[at] / (self._occurrences[at] + self._types[at]) * np.where(at == 0, 1 / self.vocabulary, 1)
            node[left] = self._parent[at]
            left = left[at > 0]
        return -np.log(probability)

    def row_losses(self, corpus: TokenCorpus) -> Floats:
        """``next_token_losses`` added up row by row, float64[rows]; of whole stories with the ``<|endoftext|>`` that ends them."""
        until = np.concatenate([[0.0], np.cumsum(self.next_token_losses(corpus))])
        return np.diff(until[np.concatenate([[0], np.cumsum(row_tokens(corpus))])])

    def visits(self, corpus: TokenCorpus) -> Ints:
        """How many tokens of a text each node, the longest seen part of their contexts, comes before: [nodes], as in ``entropies``."""
        past, tokens = windows(corpus, self.k)
        return np.bincount(self._descend(past, len(tokens)), minlength=len(self.nodes) + 1)

    @cached_property
    def entropies(self) -> Floats:
        """Entropy in nats of the law that is sampled at each node, [nodes]."""
        weighted = np.concatenate([[0.0], np.cumsum(self.counts * np.log(self.counts))])
        return np.maximum(0, np.log(self._occurrences) - np.diff(weighted[self._first]) / self._occurrences)

    def sample_rows(self, rows: range, seed: int, length: int | None = None) -> list[NDArray[np.uint16]]:
        """Rows of a corpus, each with its start token; row r depends on (model, seed, r) alone.

        With ``length``, so many sampled tokens a row, behind an ``<|endoftext|>`` the next story; else a row is one story, without the
        ``<|endoftext|>`` that ended it. Where a context was not seen (at the end of a cut-off row only) the longest seen part of it stands in for it.
        Raises ``UserError`` for rows without tokens, and if stories are asked for that may never end.
        """
        if length is not None and length < 1:
            raise UserError(f"Sampled rows cannot have {length} tokens; one is the fewest.")
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
        ends = self.counts[np.searchsorted(self.edges, self.eos_id)] if self.ends else 1  # the root's edges come first
        expected = length or self._occurrences[0] / ends
        while tokens > 0:
            more = self.sample_rows(range(len(rows), len(rows) + math.ceil(tokens / expected)), seed, length)
            until = np.cumsum([len(row) - bool(length) for row in more])
            rows += more[: int(np.searchsorted(until, tokens)) + 1]
            tokens -= int(until[-1])
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

    def _descend(self, past: Ints, count: int) -> Ints:
        """The node of the longest seen part of each context, [count]; ``past`` [tokens, count] has the newest token first."""
        node = np.zeros(count, np.int64)
        going = np.arange(count)
        for older in past:
            child, seen = _find(self.nodes, node[going] * self.vocabulary + older[going])
            going = going[seen]
            node[going] = child[seen] + 1
        return node

    def _add_counts(self, laws: Floats, rows: Ints, nodes: Ints) -> Floats:
        """``laws`` with the counts of ``nodes`` added to these ``rows``, in place."""
        types = self._types[nodes]
        edge = np.arange(types.sum()) + np.repeat(self._first[nodes] - np.cumsum(types) + types, types)
        laws[np.repeat(rows, types), self._token[edge]] += self.counts[edge]
        return laws

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
        added = np.where(node == 0, self._token, np.concatenate([[0], self.nodes % self.vocabulary])[node])
        for level in range(self.k):
            edges = np.flatnonzero(self._order[node] == level)
            shorter = behind[self._parent_edge[edges]]
            child, seen = _find(self.nodes, shorter * self.vocabulary + added[edges])
            behind[edges] = np.where(seen & (self._order[shorter] == level), child + 1, shorter)
        longest = self._order[node] == self.k
        behind[longest] = behind[self._parent_edge[longest]]
        return behind.astype(np.int32)

    @cached_property
    def _smoothed(self) -> Floats:
        """Witten and Bell's probability of each edge."""
        node = self.edges // self.vocabulary
        types, total = self._types[node], self._occurrences[node] + self._types[node]
        probability = np.full(len(self.edges), 1 / self.vocabulary)
        for level in range(self.k + 1):
            edges = np.flatnonzero(self._order[node] == level)
            probability[edges] = (self.counts[edges] + types[edges] * probability[self._parent_edge[edges]]) / total[edges]
        return probability


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
