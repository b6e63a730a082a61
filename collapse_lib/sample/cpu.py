"""Decoding on a CPU, one thread a batch; it also says what decoding on a GPU has to compute.

A row is the same in every batch only if its arithmetic does not depend on the batch either. Measured for torch's fp32 matrix products on
CPU (MKL, AVX2; inner sizes 64 to 3072, 1 to 600 rows): a row's result is the same in every batch as soon as each thread gets at least 4 rows;
1 to 3 rows take another kernel. Softmax, LayerNorm, GELU and sums along a row never differed; fused attention of a single query does with
more than one thread. Hence three rules: batches are padded to a multiple of ``GRANULE`` rows, each batch runs on one thread
(several batches side by side use the cores, and better than one batch on all of them), and a decoding step uses plain matrix products. In bf16
(oneDNN, AMX) up to 32 rows take another kernel than more, and an inner size of 3072 a third one: there a row is the same in batches of equal size.

Shapes in the comments: B sequences, H hidden, N heads, D = H / N, J heads multiplied together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from collapse_lib.model.gpt_neo import linear
from collapse_lib.sample.context import capacity, hop_length, masked_zero_state
from collapse_lib.sample.draw import CHECK_EVERY, TiledHead, end_of_text, inverse_cdf, is_restricted, restrict

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import SamplingSettings
    from collapse_lib.model.gpt_neo import GPTNeo

GRANULE = 16  # rows; 4 are enough where it was measured, and the padding costs little
WIDE = 16  # numbers that a core multiplies at once in a small product


@torch.inference_mode()
def decode(
    model: GPTNeo, settings: SamplingSettings, given: Tensor, lengths: Tensor, uniforms: Tensor, stop_at_eos: bool, progress: Any, rows: int
) -> Tensor:
    """Sample after the given tokens until the uniforms are used up (or, with ``stop_at_eos``, every row has met its '<|endoftext|>').

    Products run in the dtype that the model was ``rounded`` to; keys, values and attention are fp32.

    Args:
        given: [T, B] int64, of which the first lengths[b] are given to row b. No given token at all: the released code's masked start.
        lengths: [B] int64.
        uniforms: [steps, B] float64; the first belongs to the position after the shortest row.
        rows: how many of the B rows are real; those after them are padding and have ended before they begin.

    Returns:
        [shortest + steps, B] int64, the given tokens included, '<|endoftext|>' after a row's end.
    """
    width, eos = given.shape[1], model.config.eos_token_id
    shortest = int(lengths.min())
    total = shortest + len(uniforms)
    ragged = shortest < len(given)
    tokens = torch.full((total, width), eos, device=given.device)  # time first: a step reads and writes whole rows
    tokens[: len(given)] = given
    ended = torch.arange(width, device=given.device) >= rows
    cache = Cache(model, settings, width, max(1, total - 1))  # the last token is never read
    head = TiledHead(model.output_matrix)
    restricted = is_restricted(settings)
    for position in range(total):
        # The hidden state at position - 1 predicts the token at position.
        hidden = cache.advance(tokens, position - 1) if position else masked_zero_state(model, width)  # [B, H]
        if position < shortest:
            continue
        uniform = uniforms[position - shortest]
        if restricted:
            new = inverse_cdf(restrict(head.logits(hidden), settings.temperature, settings.top_k, settings.top_p), uniform)  # [B]
        else:
            new = head.sample(hidden, uniform)
        if ragged and position < len(given):
            new = torch.where(position < lengths, given[position], new)
        if stop_at_eos:
            new = end_of_text(new, ended, position >= lengths, eos)
        tokens[position] = new
        steps = position - shortest + 1
        if steps % CHECK_EVERY == 0 or position == total - 1:
            if progress is not None:
                progress.update(((steps - 1) % CHECK_EVERY + 1) * rows)
            if stop_at_eos and ended.all():
                break
    return tokens


class Cache:
    """Keys and values of a batch whose rows are all equally long, and the rules for when they no longer fit.

    Keys and values lie as [B, heads, slots, D], so that a step writes one slot a head and reads each head in one go. A local layer has only
    ``window_size`` slots, used in turn: attention does not care in which order it meets its keys.

    The 1M model's heads are 4 wide, and products of a matrix and so short a vector spend their time starting. On a CPU as many heads as make up
    ``WIDE`` lie side by side and are multiplied together, each query with zeros where the other heads are: more arithmetic in less time.
    """

    def __init__(self, model: GPTNeo, settings: SamplingSettings, width: int, total: int):
        config = model.config
        self.model, self.overflow, self.filled = model, settings.overflow, 0
        self.capacity = capacity(model, settings, total)
        self.split = (width, 3, config.hidden_size)
        joined = max(1, WIDE // config.head_dim) if model.head.device.type == "cpu" else 1
        self.joined = math.gcd(joined, config.num_heads)  # J, heads multiplied together
        groups = (width, config.num_heads // self.joined)
        self.wide = (*groups, self.joined * config.head_dim)  # the shape of a step's keys, [B, N/J, J*D]
        self.narrow = (*groups, self.joined, self.joined, config.head_dim)
        self.own = torch.eye(self.joined, device=model.head.device)[:, :, None]  # [J, J, 1]
        self.keys, self.values = (
            [model.head.new_empty(*groups, slots, self.wide[-1]) for slots in config.keys_seen(self.capacity)] for _ in range(2)
        )
        attentions = [block.attn.attention for block in model.transformer.h]
        self.qkv = [torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]) for a in attentions]  # [3H, H]: one product instead of three

    def advance(self, tokens: Tensor, position: int) -> Tensor:
        """Take in tokens[position] (of [T, B]) and return its final hidden state [B, H]."""
        if self.filled < self.capacity:
            return self._step(tokens[position])
        if self.overflow == "slide":  # every token in view has moved by one position, so all of them are new
            return self.model(tokens[position + 1 - self.capacity : position + 1].T)[:, -1]
        return self._encode(tokens[position + 1 - hop_length(self.capacity) : position + 1].T)

    def _step(self, tokens: Tensor) -> Tensor:
        transformer = self.model.transformer
        x = transformer.wte(tokens) + transformer.wpe.weight[self.filled]  # [B, H]
        for block, qkv, keys, values in zip(transformer.h, self.qkv, self.keys, self.values, strict=True):
            slots = values.shape[2]
            slot, seen = self.filled % slots, min(self.filled + 1, slots)
            q, k, v = linear(block.ln_1(x), qkv, None, qkv.dtype).to(x.dtype).view(self.split).unbind(1)  # [B, H] each
            keys[:, :, slot] = k.view(self.wide)
            values[:, :, slot] = v.view(self.wide)
            scores = self._alone(q) @ keys[:, :, :seen].transpose(2, 3)  # [B, N/J, J, seen]; GPT-Neo does not scale
            y = self._together(torch.softmax(scores, -1) @ values[:, :, :seen])  # [B, H]
            x = x + block.attn.attention.out_proj(y)
            x = x + block.mlp(block.ln_2(x))
        self.filled += 1
        return transformer.ln_f(x)

    def _alone(self, q: Tensor) -> Tensor:
        """Queries [B, H] as [B, N/J, J, J*D], zero but for each head's own D."""
        if self.joined == 1:
            return q.view(self.wide)[:, :, None]
        return (q.view(*self.narrow[:2], 1, *self.narrow[3:]) * self.own).view(*self.wide[:2], self.joined, -1)

    def _together(self, y: Tensor) -> Tensor:
        """[B, H] from [B, N/J, J, J*D], of which each head wants its own D."""
        if self.joined > 1:
            y = y.view(self.narrow).diagonal(dim1=2, dim2=3).transpose(2, 3)
        return y.reshape(len(y), -1)

    def _encode(self, tokens: Tensor) -> Tensor:
        """Start anew from tokens [B, T] at positions 0 .. T-1."""
        fresh: list[tuple[Tensor, Tensor]] = []
        hidden = self.model(tokens, keys_values=fresh)
        self.filled = tokens.shape[1]
        for (k, v), keys, values in zip(fresh, self.keys, self.values, strict=True):
            slots = values.shape[2]
            latest = torch.arange(max(0, self.filled - slots), self.filled, device=tokens.device)
            for cache, heads in ((keys, k), (values, v)):  # heads: [B, N, T, D]
                together = heads[:, :, latest].unflatten(1, (-1, self.joined)).transpose(2, 3).flatten(3)  # [B, N/J, latest, J*D]
                cache[:, :, latest % slots] = together
        return hidden[:, -1]
