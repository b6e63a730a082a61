"""Triton kernels of a decoding step on a GPU; ``gpu.Plain`` says in torch what each computes, and tests hold them together.

A decoding step reads every cached key and value once and does little with them, so what counts is that they are read once, in long runs,
with nothing written in between: torch's own operations would write scores, probabilities and logits out and read them again. Whatever changes
from step to step is read from device memory, so that a CUDA graph can repeat a launch at every position.

Products accumulate in fp32 and fp32 products are not rounded to tf32. No sum depends on how many rows there are, and none on the order in
which programs run. Shapes in the comments: B rows, H hidden, N heads, D = H / N, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

TILE = tl.constexpr(64)  # ids of a tile; draw.TILE


def add_norm(x: Tensor, delta: Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> Tensor:
    """``x += delta`` for x [B, H] fp32 and delta [B, H] (its rows may be one and the same), and the LayerNorm of the sum in ``dtype``."""
    rows, hidden = x.shape
    out = torch.empty_like(x, dtype=dtype)
    block = triton.next_power_of_2(hidden)
    _add_norm[(rows,)](x, delta, delta.stride(0), norm.weight, norm.bias, out, norm.eps, hidden, block, num_warps=max(1, min(4, block // 256)))
    return out


def attend(qkv: Tensor, keys: Tensor, values: Tensor, filled: Tensor) -> Tensor:
    """Store a token's keys and values, and attend from it to all that are stored: [B, H] from qkv [B, 3H].

    Args:
        keys, values: [B, N, slots, D], contiguous; the token's own slot is ``filled`` mod slots.
        filled: [1] int64, tokens before this one; of them the last ``slots - 1`` are attended to.
    """
    rows, heads, slots, width = keys.shape
    out = torch.empty(rows, heads * width, dtype=qkv.dtype, device=qkv.device)
    padded = triton.next_power_of_2(width)
    warps = 4 if padded > 16 else 1
    # 32 numbers of a key and of a value a thread: enough loads in flight to keep memory busy, few enough for the registers.
    _attend[(rows, heads)](qkv, keys, values, filled, out, slots, heads, width, padded, warps * 1024 // padded, num_warps=warps)
    return out


def log_masses(hidden: Tensor, head: Tensor, vocabulary: int) -> Tensor:
    """log of the sum of e^logit over the ids of each tile, fp32 [B, tiles], for hidden [B, H] and head [tiles * TILE, H] of one dtype."""
    rows, width = hidden.shape
    tiles = len(head) // TILE.value
    out = torch.empty(rows, tiles, device=hidden.device)
    half = hidden.dtype != torch.float32
    block = 128 if half else 64  # fp32 operands take twice the shared memory, and no tensor core
    inner = min(64 if half else 32, max(16, triton.next_power_of_2(width)))
    grid = (triton.cdiv(rows, block), triton.cdiv(tiles * TILE.value, block))  # programs that share ids run one after the other
    _log_masses[grid](hidden, head, out, rows, tiles, vocabulary, width, block, block, inner, num_warps=8 if half else 4, num_stages=3 if half else 2)
    return out


def choose(log_mass: Tensor, hidden: Tensor, head: Tensor, vocabulary: int, uniforms: Tensor, position: Tensor) -> Tensor:
    """The ids at which the cumulative distributions pass ``uniforms[position]``, [B] int64; see ``draw.inverse_cdf``.

    Args:
        log_mass: [B, tiles] of ``log_masses``.
        uniforms: [T, B] float64 in [0, 1).
        position: [1] int64.
    """
    rows, width = hidden.shape
    tiles = log_mass.shape[1]
    out = torch.empty(rows, dtype=torch.int64, device=hidden.device)
    inner = min(64, triton.next_power_of_2(width))
    _choose[(rows,)](log_mass, hidden, head, uniforms, position, out, tiles, vocabulary, width, triton.next_power_of_2(tiles), inner, num_warps=4)
    return out


@triton.jit
def _add_norm(x, delta, delta_stride, weight, bias, out, eps, H: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    real = at < H
    total = tl.load(x + row * H + at, mask=real, other=0.0) + tl.load(delta + row * delta_stride + at, mask=real, other=0.0).to(tl.float32)
    tl.store(x + row * H + at, total, mask=real)
    centred = tl.where(real, total - tl.sum(total, 0) / H, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, 0) / H + eps)
    normed = normed * tl.load(weight + at, mask=real, other=0.0) + tl.load(bias + at, mask=real, other=0.0)
    tl.store(out + row * H + at, normed.to(out.dtype.element_ty), mask=real)


@triton.jit
def _attend(qkv, keys, values, filled, out, slots, N: tl.constexpr, D: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    """One program a row and head. Each of BLOCK lanes runs a softmax of its own over every BLOCK-th slot: lanes meet only at the end."""
    row, head = tl.program_id(0), tl.program_id(1)
    at = tl.arange(0, PADDED)
    real = at < D
    mine = qkv + row * (3 * N * D) + head * D + at
    q = tl.load(mine, mask=real, other=0.0).to(tl.float32)
    k = tl.load(mine + N * D, mask=real, other=0.0)
    v = tl.load(mine + 2 * N * D, mask=real, other=0.0)
    before = tl.load(filled).to(tl.int32)
    slot = before % slots
    first = (row * N + head).to(tl.int64) * slots * D  # in elements; beyond 2^31 for large batches
    keys += first
    values += first
    tl.store(keys + slot * D + at, k, mask=real)
    tl.store(values + slot * D + at, v, mask=real)

    # The token's own key opens lane 0; its slot is skipped below, since what was just stored need not be visible yet.
    lane = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.float32) + tl.sum(q * k.to(tl.float32), 0)  # GPT-Neo does not scale
    mass = tl.where(lane == 0, 1.0, 0.0)  # sum of e^(score - largest)
    total = mass[:, None] * v.to(tl.float32)[None, :]  # [BLOCK, PADDED], values weighted by the same
    for start in range(0, tl.minimum(before, slots), BLOCK):
        where = start + lane
        seen = (where < before) & (where < slots) & (where != slot)
        offset = where[:, None] * D + at[None, :]
        wanted = seen[:, None] & real[None, :]
        key = tl.load(keys + offset, mask=wanted, other=0.0).to(tl.float32)
        value = tl.load(values + offset, mask=wanted, other=0.0).to(tl.float32)
        rise = tl.where(seen, tl.sum(key * q[None, :], 1) - largest, 0.0)
        small = tl.exp(-tl.abs(rise))  # one of the two factors below is always 1
        old = tl.where(rise > 0, small, 1.0)
        new = tl.where(seen, tl.where(rise > 0, 1.0, small), 0.0)
        largest += tl.maximum(rise, 0.0)
        mass = mass * old + new
        total = total * old[:, None] + new[:, None] * value
    weight = tl.exp(largest - tl.max(largest, 0))
    y = tl.sum(total * weight[:, None], 0) / tl.sum(mass * weight, 0)
    tl.store(out + row * (N * D) + head * D + at, y.to(out.dtype.element_ty), mask=real)


@triton.jit
def _log_masses(hidden, head, out, rows, tiles, vocabulary, H: tl.constexpr, ROWS: tl.constexpr, IDS: tl.constexpr, INNER: tl.constexpr):
    """A matrix product of ROWS hidden states with IDS ids of which only the tiles' logarithmic masses are written."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    id = tl.program_id(1) * IDS + tl.arange(0, IDS)
    at = tl.arange(0, INNER)
    # Behind the last row and the last id the last ones are read again, and what comes of them is not used: masks, and offsets worked out anew in
    # every turn, take registers that the compiler does not have (255 of them and 184 bytes spilled, at H = 768 in half precision).
    h_at = hidden + tl.minimum(row, rows - 1)[:, None] * H + at[None, :]
    w_at = head + tl.minimum(id, vocabulary - 1)[None, :] * H + at[:, None]
    logits = tl.zeros([ROWS, IDS], tl.float32)
    for start in range(0, H, INNER):
        if H % INNER == 0:
            h, w = tl.load(h_at), tl.load(w_at)
        else:
            h = tl.load(h_at, mask=(start + at < H)[None, :], other=0.0)
            w = tl.load(w_at, mask=(start + at < H)[:, None], other=0.0)
        logits = tl.dot(h, w, logits, input_precision="ieee")
        h_at += INNER
        w_at += INNER
    logits = tl.where((id < vocabulary)[None, :], logits, -3e38)  # e^ of it is 0; finite, as the tile behind the last has nothing else
    logits = tl.reshape(logits, [ROWS, IDS // TILE, TILE])
    largest = tl.max(logits, 2)
    log_mass = largest + tl.log(tl.sum(tl.exp(logits - largest[:, :, None]), 2))  # [ROWS, IDS / TILE]
    tile = tl.program_id(1) * (IDS // TILE) + tl.arange(0, IDS // TILE)
    tl.store(out + row[:, None] * tiles + tile[None, :], log_mass, mask=(row < rows)[:, None] & (tile < tiles)[None, :])


@triton.jit
def _choose(log_mass, hidden, head, uniforms, position, out, tiles, vocabulary, H: tl.constexpr, TILES: tl.constexpr, INNER: tl.constexpr):
    """One program a row: find the tile, compute its logits again, find the id."""
    row = tl.program_id(0)
    share = tl.load(uniforms + tl.load(position) * tl.num_programs(0) + row)
    tile = tl.arange(0, TILES)
    logs = tl.load(log_mass + row * tiles + tile, mask=tile < tiles, other=-float("inf"))
    hit, share = _invert(tl.exp(logs - tl.max(logs, 0)), share, tile, TILES)

    id = hit * TILE + tl.arange(0, TILE)
    products = tl.zeros([TILE, INNER], tl.float32)
    for start in range(0, H, INNER):
        at = start + tl.arange(0, INNER)
        h = tl.load(hidden + row * H + at, mask=at < H, other=0.0).to(tl.float32)
        w = tl.load(head + id[:, None] * H + at[None, :], mask=(id < vocabulary)[:, None] & (at < H)[None, :], other=0.0)
        products += w.to(tl.float32) * h[None, :]
    logits = tl.where(id < vocabulary, tl.sum(products, 1), -float("inf"))
    inside, share = _invert(tl.exp(logits - tl.max(logits, 0)), share, tl.arange(0, TILE), TILE)
    tl.store(out + row, (hit * TILE + inside).to(tl.int64))


@triton.jit
def _invert(mass, share, index, COUNT: tl.constexpr):
    """Which of COUNT masses the ``share`` of their sum falls in, and at what share of that one. fp64, for draw.inverse_cdf's reason.

    It never names a mass of zero, although a parallel running sum need not be monotonous to the last bit and ``share`` may be rounded to 1.
    """
    mass = mass.to(tl.float64)
    edges = tl.cumsum(mass, 0)
    target = share * tl.sum(mass, 0)
    possible = mass > 0
    hit = tl.min(tl.where(possible & (edges > target), index, COUNT), 0)
    hit = tl.minimum(hit, tl.max(tl.where(possible, index, 0), 0))
    own = tl.sum(tl.where(index == hit, mass, 0.0), 0)
    below = tl.sum(tl.where(index == hit, edges, 0.0), 0) - own
    return hit, (target - below) / own
