"""Attention for the 1M model's heads, which are 4 wide, on a CPU.

torch's fused CPU attention is made for heads of 64; on heads of 4 it takes four fifths of the 1M model's training. Products with so short an inner
or outer side run well only in one orientation: the long side, positions, must lie contiguous. So queries, keys and values are transposed once, and
every product below is written so that it runs along positions. Queries are taken ``QUERIES`` at a time, ``HEADS`` heads together, so that their
scores stay in a core's cache, and keys that none of them may see are left out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

NARROW = 16  # heads narrower than this gain
QUERIES, HEADS = 64, 16


def narrow_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention without scaling, each query seeing the last ``window`` keys, its own included.

    ``q``, ``k``, ``v`` and the result are [B, N, T, D]. Differentiable once.
    """
    shape = q.shape
    q, k, v = (x.transpose(2, 3).reshape(-1, shape[3], shape[2]) for x in (q, k, v))  # [B * N, D, T] each
    return _NarrowAttention.apply(q, k, v, window).view(*shape[:2], shape[3], shape[2]).transpose(2, 3)


class _NarrowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        y = torch.empty_like(q)
        probabilities = []
        for heads, queries, keys in _pieces(*q.shape[::2], window):
            scores = q[heads, :, queries].transpose(1, 2) @ k[heads, :, keys]  # [heads, queries, keys]
            p = torch.softmax(scores.add_(_bias(queries.start, queries.stop, keys.start, window, q.device)), -1)
            y[heads, :, queries] = v[heads, :, keys] @ p.transpose(1, 2)
            if any(ctx.needs_input_grad):
                probabilities.append(p)
        ctx.save_for_backward(q, k, v, y, *probabilities)
        ctx.window = window
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, *probabilities = ctx.saved_tensors
        dy = dy.contiguous()
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        mean = (dy * y).sum(1)[:, :, None]  # [B * N, T, 1]: the mean over keys, by their probabilities, of what d(scores) starts from
        for (heads, queries, keys), p in zip(_pieces(*q.shape[::2], ctx.window), probabilities, strict=True):
            dv[heads, :, keys] += dy[heads, :, queries] @ p
            ds = dy[heads, :, queries].transpose(1, 2) @ v[heads, :, keys]  # [heads, queries, keys]
            ds.sub_(mean[heads, queries]).mul_(p)
            dq[heads, :, queries] = k[heads, :, keys] @ ds.transpose(1, 2)
            dk[heads, :, keys] += q[heads, :, queries] @ ds
        return dq, dk, dv, None


def _pieces(heads: int, length: int, window: int) -> Iterator[tuple[slice, slice, slice]]:
    """Which heads, queries and keys are worked on together."""
    for first_head in range(0, heads, HEADS):
        for first in range(0, length, QUERIES):
            last = min(first + QUERIES, length)
            yield slice(first_head, first_head + HEADS), slice(first, last), slice(max(0, first - window + 1), last)


@functools.lru_cache(maxsize=64)
def _bias(first: int, last: int, first_key: int, window: int, device: torch.device) -> Tensor:
    """[queries, keys]: 0 where a query sees a key, -inf elsewhere."""
    with torch.inference_mode(False):
        query = torch.arange(first, last, device=device)[:, None]
        key = torch.arange(first_key, last, device=device)
        return torch.zeros(last - first, last - first_key, device=device).masked_fill_((key > query) | (key <= query - window), -math.inf)
