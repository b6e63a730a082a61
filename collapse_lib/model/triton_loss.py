"""The training head's pass over its logits on a GPU, as one Triton kernel; ``loss.plain_probabilities`` says in torch what it computes.

By torch's own operations it is eight passes over a gigabyte of fp32 logits a chunk: largest, difference, exponential, sum, product, each read and
most of them written. Here every row is read twice, the second time mostly from the cache, and written once, in half precision.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # logits of a row that a program holds at once


def probabilities(logits: Tensor, vocabulary: int, factors: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """``loss.plain_probabilities``."""
    rows, width = logits.shape
    log_z = torch.empty(rows, device=logits.device)
    out = logits if factors is None else torch.empty(rows, width, dtype=dtype, device=logits.device)
    block = min(BLOCK, triton.next_power_of_2(width))
    keep = factors is not None
    if rows:
        _probabilities[(rows,)](logits, log_z, out, factors if keep else log_z, vocabulary, width, block, keep, num_warps=8)
    return log_z, out if keep else None


@triton.jit
def _probabilities(logits, log_z, out, factors, V: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, KEEP: tl.constexpr):
    """One program a row: its largest logit and the sum of exponentials relative to it, then what they are divided by that sum."""
    row = tl.program_id(0)
    first = row.to(tl.int64) * WIDTH
    at = tl.arange(0, BLOCK)
    mass = tl.zeros([BLOCK], tl.float32)
    largest = tl.sum(mass, 0) - float("inf")  # a number of the kernel's, which a loop may change
    for start in range(0, V, BLOCK):
        x = tl.load(logits + first + start + at, mask=start + at < V, other=-float("inf"))
        above = tl.maximum(largest, tl.max(x, 0))
        mass = mass * tl.exp(largest - above) + tl.exp(x - above)
        largest = above
    log_mass = largest + tl.log(tl.sum(mass, 0))
    tl.store(log_z + row, log_mass)
    if KEEP:
        factor = tl.load(factors + row)
        for start in range(0, WIDTH, BLOCK):
            id = start + at
            x = tl.load(logits + first + id, mask=id < V, other=-float("inf"))
            tl.store(out + first + id, (tl.exp(x - log_mass) * factor).to(out.dtype.element_ty), mask=id < WIDTH)
