"""How a token is drawn, on a CPU and on a GPU: its random number, temperature, top-k and top-p, the draw itself, and the end of a text.

Every (row, token) has one uniform number from a Philox generator keyed by (seed, row), and the token is the inverse of the model's cumulative
distribution at it. So a row is the same whichever rows are sampled beside it, in whichever batch, shard or process.

Shapes in the comments: B sequences, H hidden, V vocabulary (Vp: padded to whole tiles).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from collapse_lib.model.loss import product

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import SamplingSettings

TILE = 64  # ids summed together in the inverse CDF: about the square root of the vocabularies in use
SMALL_VOCABULARY = 8192  # up to which all logits of a step are few enough to be held
CHUNK_LOGITS = 2**18  # logits of a chunk, 1 MiB: what a core has of cache
SAFE = (1e-20, 1e30)  # sums of exp(logit) in which fp32 loses nothing to its range
CHECK_EVERY = 32  # steps from one look at whether every row has ended, and update of the progress bar, to the next: a look makes the host wait


def row_uniforms(seed: int, rows: Sequence[int], count: int) -> np.ndarray:
    """[len(rows), count] float64 in [0, 1): each row's own stream."""
    stream = np.random.Philox(key=0)
    generator, state = np.random.Generator(stream), stream.state
    numbers = np.empty((len(rows), count))
    for row, row_numbers in zip(rows, numbers, strict=True):  # setting the key takes a third of the time that a new generator would
        state["state"]["key"][:] = seed, row
        stream.state = state
        generator.random(out=row_numbers)
    return numbers


def end_of_text(tokens: Tensor, ended: Tensor, sampled: Tensor, eos: int) -> Tensor:
    """Where rows stop at the end of a story: a row ends with the first '<|endoftext|>' that it samples, and from then on has nothing else.

    Args:
        tokens: [B] int64, the tokens of one position.
        ended: [B] bool, which rows have ended before; updated in place.
        sampled: [B] bool, which of the tokens were sampled: an end inside a prompt ends nothing.

    Returns:
        [B] int64.
    """
    tokens = tokens.masked_fill(ended, eos)
    ended |= (tokens == eos) & sampled
    return tokens


def is_restricted(settings: SamplingSettings) -> bool:
    """Whether anything but the model's own distribution is sampled."""
    return settings.temperature != 1 or settings.top_k is not None or settings.top_p not in (None, 1)


def restrict(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Logits [B, V] of the distribution to sample from: tempered, then only the ``top_k`` likeliest ids, then the likeliest that reach ``top_p``."""
    if temperature != 1:
        # The largest is taken off, and stays 0 however small the temperature; below fp32's normal numbers, its reciprocal would be infinite.
        logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, torch.finfo(torch.float32).tiny)
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -math.inf)
    if top_p is not None and top_p < 1:
        ordered, ids = logits.sort(descending=True, stable=True)
        p = ordered.softmax(-1, dtype=torch.float64)
        beyond = p.cumsum(-1) - p >= top_p  # the likelier ids already reach top_p; never true of the likeliest
        logits = logits.masked_fill(beyond.scatter(-1, ids, beyond), -math.inf)
    return logits


def inverse_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """The id at which the cumulative distribution passes ``uniform``: an exact sample of softmax(logits), never an id of probability zero.

    Args:
        logits: [B, Vp] fp32, Vp a multiple of ``TILE``.
        uniform: [B] float64 in [0, 1).

    Returns:
        [B] int64.

    A running sum in fp32 cannot tell apart values closer than 6e-8 near its end, where an id of a 50,257-token vocabulary often has less. So the
    sum runs over tiles in fp64, and then inside the one tile that is hit, where what rounding took from the tile's mass is spread over its ids.
    """
    p = torch.softmax(logits, -1).view(len(logits), -1, TILE)  # [B, tiles, TILE]
    return invert_tiles(p.sum(-1), lambda tile: p.gather(1, tile[:, :, None].expand(-1, -1, TILE))[:, 0], uniform)


def invert_tiles(mass: Tensor, inside: Callable[[Tensor], Tensor], uniform: Tensor) -> Tensor:
    """The id of each row, [B] int64, from the masses of its tiles, [B, tiles], and a function from tiles [B, 1] to what lies inside, [B, TILE].

    Both may be scaled, each row of each by a factor of its own.
    """
    edges = mass.cumsum(-1, dtype=torch.float64)  # [B, tiles]
    target = uniform[:, None] * edges[:, -1:]  # [B, 1]; below the last edge even when rounded, as uniform <= 1 - 2^-53
    tile = torch.searchsorted(edges, target, right=True)  # first edge above the target, hence a tile with mass
    mass = mass.gather(-1, tile).double()  # [B, 1]
    share = (target - (edges.gather(-1, tile) - mass)) / mass  # [B, 1], where inside the tile: in [0, 1) up to rounding
    sums = inside(tile).cumsum(-1, dtype=torch.float64)  # [B, TILE]
    offset = torch.searchsorted(sums, sums[:, -1:] * share.clamp(0, 1 - 2**-53), right=True)
    return (tile * TILE + offset)[:, 0]


class TiledHead:
    """The output matrix, cut so that sampling never holds all logits of a step.

    A step over a vocabulary of 50,257 makes 20 MB of logits for 100 rows, and softmax would pass over them four times. Here each chunk of ids is
    turned into the masses of its tiles while it is in the cache, and the logits of the one tile that is hit are computed again.

    Products run in the dtype of ``head``, and logits are what they give: in bf16, rounded to it. Exponentials and their sums are fp32.
    """

    def __init__(self, head: Tensor):
        vocabulary, hidden = head.shape
        self.vocabulary = vocabulary
        self.rows = F.pad(head, (0, 0, 0, -vocabulary % TILE))  # [Vp, H]
        self.tiles = self.rows.view(-1, TILE, hidden)  # [tiles, TILE, H]

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, Vp] fp32; the ids that fill up the last tile are no tokens and get -inf."""
        logits = product(hidden.to(self.rows.dtype), self.rows.T)
        logits[:, self.vocabulary :] = -math.inf
        return logits

    def sample(self, hidden: Tensor, uniform: Tensor) -> Tensor:
        """What ``inverse_cdf(self.logits(hidden), uniform)`` gives, up to rounding: [B] int64 from [B, H] and [B]."""
        if self.vocabulary <= SMALL_VOCABULARY:
            return inverse_cdf(self.logits(hidden), uniform)
        mass, shift = self._masses(hidden)

        def inside(tile: Tensor) -> Tensor:
            exact = hidden.to(self.rows.dtype).to(hidden.dtype)
            logits = hidden.new_empty(len(hidden), TILE)
            for row, hit in enumerate(tile[:, 0].tolist()):  # a copy of each row's tile, for one product of all, would take ten times as long
                torch.mv(self.tiles[hit].to(hidden.dtype), exact[row], out=logits[row])
            logits = logits.to(self.rows.dtype)  # what the masses were made of; products of bf16 are exact in fp32
            ids = tile * TILE + torch.arange(TILE, device=tile.device)
            return torch.where(ids < self.vocabulary, torch.exp(logits - shift), 0)

        return invert_tiles(mass, inside, uniform)

    def _masses(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The tiles' sums of exp(logit - shift), [B, tiles], and the shifts of the rows, [B, 1].

        A shift costs two more passes over the logits, and exp of a usual logit fits into fp32 as it is. So only rows whose sum leaves the safe
        range are done again, shifted by their largest logit; what becomes of a row never depends on the others.
        """
        mass = self._sums(hidden, None)
        total = mass.sum(-1, keepdim=True)  # [B, 1]
        shift = torch.zeros_like(total)
        if not (safe := (total > SAFE[0]) & (total < SAFE[1])).all():
            largest = torch.stack([logits.amax(-1, keepdim=True) for logits in self._chunks(hidden)]).amax(0)
            shift = torch.where(safe, shift, largest)
            mass = torch.where(safe, mass, self._sums(hidden, largest))
        return mass, shift

    def _sums(self, hidden: Tensor, shift: Tensor | None) -> Tensor:
        sums = [(logits if shift is None else logits.sub_(shift)).exp_().view(len(hidden), -1, TILE).sum(-1) for logits in self._chunks(hidden)]
        return torch.cat(sums, -1)

    def _chunks(self, hidden: Tensor) -> Iterator[Tensor]:
        """The logits, [B, ids of a chunk], of one chunk after the other; the space of a chunk is used again for the next."""
        size = max(1, CHUNK_LOGITS // (len(hidden) * TILE)) * TILE  # ids of a chunk
        space = hidden.new_empty(len(hidden), size)
        hidden = hidden.to(self.rows.dtype)
        for first in range(0, len(self.rows), size):
            rows = self.rows[first : first + size]
            logits = product(hidden, rows.T, space if len(rows) == size else None)
            if first + len(rows) > self.vocabulary:
                logits[:, self.vocabulary - first :] = -math.inf
            yield logits
