"""Decoding on a GPU, where a step is so short that starting its operations from Python would take longer than running them.

Every buffer therefore keeps its shape and address, and what changes from token to token (the position, the slot to write, the uniforms, which rows
have ended) is read and advanced in device memory. So one CUDA graph serves every position of every batch of one size: the host does no
more than replay it, and never waits for a token. Only a full context, once in hundreds of tokens, is encoded afresh outside the graph.

Matrix products, keys and values are in ``dtype``; the residual stream, LayerNorm, softmax and logits in fp32, as under autocast in training.

Shapes in the comments: B rows, H hidden, N heads, D = H / N, V vocabulary.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from collapse_lib.experiment.machine import compiles_triton
from collapse_lib.sample.context import capacity, masked_zero_state, tokens_in_view
from collapse_lib.sample.draw import CHECK_EVERY, TILE, TiledHead, end_of_text, inverse_cdf, invert_tiles, is_restricted, restrict

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import SamplingSettings
    from collapse_lib.model.gpt_neo import GPTNeo

ENCODED_AT_ONCE = 2**16  # tokens of a re-encoding; the 33M model then needs about 2 GiB for it


class Plain:
    """What the kernels of ``sample.triton_kernels`` compute, by torch's own operations: for a machine without Triton, and to test against."""

    @staticmethod
    def add_norm(x: Tensor, delta: Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> Tensor:
        x += delta
        return norm(x).to(dtype)

    @staticmethod
    def attend(qkv: Tensor, keys: Tensor, values: Tensor, filled: Tensor) -> Tensor:
        rows, heads, slots, width = keys.shape
        q, k, v = qkv.view(rows, 3, heads, 1, width).unbind(1)  # [B, N, 1, D]
        keys.index_copy_(2, filled % slots, k)
        values.index_copy_(2, filled % slots, v)
        scores = q.float() @ keys.float().transpose(2, 3)  # [B, N, 1, slots]
        scores.masked_fill_(torch.arange(slots, device=keys.device) > filled, -torch.inf)
        return (torch.softmax(scores, -1) @ values.float()).to(qkv.dtype).view(rows, -1)

    @staticmethod
    def log_masses(hidden: Tensor, head: Tensor, vocabulary: int) -> Tensor:
        logits = F.linear(hidden.float(), head.float())
        logits[:, vocabulary:] = -torch.inf
        return logits.view(len(logits), -1, TILE).logsumexp(-1)

    @staticmethod
    def choose(log_mass: Tensor, hidden: Tensor, head: Tensor, vocabulary: int, uniforms: Tensor, position: Tensor) -> Tensor:
        def inside(tile: Tensor) -> Tensor:  # [B, TILE] from [B, 1]
            ids = tile * TILE + torch.arange(TILE, device=tile.device)
            logits = (head[ids].float() @ hidden.float()[:, :, None])[:, :, 0]
            return torch.softmax(logits.masked_fill(ids >= vocabulary, -torch.inf), -1)

        return invert_tiles(torch.softmax(log_mass, -1), inside, uniforms.index_select(0, position)[0])


class StaticDecoder:
    """Decodes batch after batch of one model; what it is to compute is ``cpu.decode``'s to say.

    It holds copies of the weights in ``dtype``, made now: a model that changes needs a new decoder.
    """

    def __init__(self, model: GPTNeo, settings: SamplingSettings, dtype: torch.dtype | None = None):
        self.model, self.settings = model, settings
        self.dtype = dtype or model.head.dtype
        self.device = model.head.device
        on_gpu = self.device.type == "cuda"
        self.kernels: Any = Plain
        if on_gpu and compiles_triton():
            from collapse_lib.sample import triton_kernels as kernels

            self.kernels = kernels
        elif on_gpu:
            warnings.warn("Sampling runs at a fraction of the GPU's speed: Triton or the C compiler that it needs is missing.", stacklevel=2)
        self.restricted = is_restricted(settings)
        self.uses_graph = on_gpu and not self.restricted  # sorting may make the host wait, which a graph cannot
        # Logits that are sorted are needed all at once, and are then made in fp32.
        self.hidden_dtype = torch.float32 if self.restricted else self.dtype
        self.head = TiledHead(model.head.detach().to(self.hidden_dtype))
        self.layers = [_Layer(block, self.dtype) for block in model.transformer.h]
        self.shape: tuple[int, int, bool, bool] | None = None

    @torch.inference_mode()
    def decode(self, given: Tensor, lengths: Tensor, uniforms: Tensor, stop_at_eos: bool, progress: Any, rows: int) -> Tensor:
        """``cpu.decode``; what it returns is overwritten by the next call."""
        shortest = int(lengths.min())
        total = shortest + len(uniforms)
        self._allocate(given.shape[1], total, shortest < len(given), stop_at_eos)
        self.tokens.fill_(self.model.config.eos_token_id)
        self.tokens[: len(given)] = given
        self.uniforms[shortest:] = uniforms
        self.lengths.copy_(lengths)
        torch.ge(self.row, rows, out=self.ended)
        self.position.fill_(shortest)
        filled = 0  # the host's own copy of self.filled
        for position in range(shortest, total):
            if shortest < position and filled < self.capacity:
                self.graph.replay() if self.uses_graph else self._step()
                filled += 1
            else:
                filled = tokens_in_view(position, self.capacity, self.settings.overflow)
                self._emit(self._encode(position, filled))
                self.position += 1
            steps = position - shortest + 1
            if steps % CHECK_EVERY == 0 or position == total - 1:
                if progress is not None:
                    progress.update(((steps - 1) % CHECK_EVERY + 1) * rows)
                if stop_at_eos and self.ended.all():
                    break
        return self.tokens

    def _allocate(self, width: int, total: int, ragged: bool, stop_at_eos: bool) -> None:
        """Make the buffers of a batch and record its step, unless those of the last batch will do."""
        if self.shape == (width, total, ragged, stop_at_eos):
            return
        self.shape = width, total, ragged, stop_at_eos
        self.ragged, self.stop_at_eos = ragged, stop_at_eos
        self.graph = self.cache = None  # freed first: two caches might not fit
        config = self.model.config
        self.capacity = capacity(self.model, self.settings, max(1, total - 1))  # the last token is never read

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        # A local layer's slots are used in turn. Zeros, since a masked slot's weight of 0 would not silence a NaN that happened to lie there.
        self.cache = [
            [zeros(width, config.num_heads, slots, config.head_dim, dtype=self.dtype) for _ in range(2)] for slots in config.keys_seen(self.capacity)
        ]
        self.tokens = zeros(total, width)
        self.uniforms = zeros(total, width, dtype=torch.float64)
        self.lengths, self.latest = zeros(width), zeros(width)  # given tokens of the rows, and the tokens sampled last
        self.ended = zeros(width, dtype=torch.bool)
        self.row = torch.arange(width, device=self.device)
        self.counters = zeros(2)
        self.position, self.filled = self.counters.split(1)  # the token to sample next; how many are in the cache
        if self.uses_graph:
            self.graph = self._record()

    def _record(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # kernels are compiled and libraries start up at the first call, which a graph must not record
            for _ in range(3):
                self.counters.zero_()
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph

    # --- one step: everything below up to _encode is recorded, and must neither wait for the device nor make a shape depend on data ---

    def _step(self) -> None:
        """Take in the latest tokens, sample the next."""
        self._emit(self._advance())
        self.counters += 1

    def _advance(self) -> Tensor:
        """Final hidden states [B, H] at the latest tokens."""
        transformer, kernels = self.model.transformer, self.kernels
        x = transformer.wte(self.latest)  # [B, H] fp32, the residual stream; every part adds to it when the next begins
        delta = transformer.wpe(self.filled).expand_as(x)
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            qkv = F.linear(kernels.add_norm(x, delta, layer.ln_1, self.dtype), layer.qkv)  # [B, 3H]
            delta = F.linear(kernels.attend(qkv, keys, values, self.filled), *layer.out)
            inner = F.linear(kernels.add_norm(x, delta, layer.ln_2, self.dtype), *layer.fc)  # [B, 4H]
            delta = F.linear(F.gelu(inner, approximate="tanh"), *layer.proj)
        return kernels.add_norm(x, delta, transformer.ln_f, self.hidden_dtype)

    def _emit(self, hidden: Tensor) -> None:
        """Sample the tokens at ``position`` from hidden states [B, H]."""
        if self.restricted:
            settings = self.settings
            logits = restrict(self.head.logits(hidden), settings.temperature, settings.top_k, settings.top_p)
            new = inverse_cdf(logits, self.uniforms.index_select(0, self.position)[0])
        else:
            head, vocabulary = self.head.rows, self.head.vocabulary
            log_mass = self.kernels.log_masses(hidden, head, vocabulary)
            new = self.kernels.choose(log_mass, hidden, head, vocabulary, self.uniforms, self.position)  # [B]
        if self.ragged:
            new = torch.where(self.position < self.lengths, self.tokens.index_select(0, self.position)[0], new)
        if self.stop_at_eos:
            new = end_of_text(new, self.ended, self.position >= self.lengths, self.model.config.eos_token_id)
        self.tokens.index_copy_(0, self.position, new[None])
        self.latest.copy_(new)

    # --- a context encoded at once ----------------------------------------------------------------------------------------------------

    def _encode(self, position: int, length: int) -> Tensor:
        """Fill the cache from the ``length`` tokens before ``position``, and return the final hidden states [B, H] at the last of them."""
        self.filled.fill_(length)
        width = self.tokens.shape[1]
        hidden = torch.empty(width, self.model.config.hidden_size, dtype=self.hidden_dtype, device=self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if length == 0:
                return masked_zero_state(self.model, width).to(self.hidden_dtype)
            size = min(width, max(1, ENCODED_AT_ONCE // length))
            for first in range(0, width, size):
                first = min(first, width - size)  # parts of one size, or rounding would depend on where in the batch a row is
                part = slice(first, first + size)
                fresh: list[tuple[Tensor, Tensor]] = []
                hidden[part] = self.model(self.tokens[position - length : position, part].T, keys_values=fresh)[:, -1]
                for encoded, caches in zip(fresh, self.cache, strict=True):
                    slots = caches[0].shape[2]
                    latest = torch.arange(max(0, length - slots), length, device=self.device)
                    for heads, cache in zip(encoded, caches, strict=True):  # heads: [rows, N, T, D]
                        cache[part, :, latest % slots] = heads[:, :, latest].to(self.dtype)
        return hidden


class _Layer:
    """A block's weights as a step uses them: matrices in one dtype, and q, k and v as one product."""

    def __init__(self, block: nn.Module, dtype: torch.dtype):
        attention = block.attn.attention
        self.ln_1, self.ln_2 = block.ln_1, block.ln_2
        self.qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).detach().to(dtype)  # [3H, H]
        self.out, self.fc, self.proj = (
            (linear.weight.detach().to(dtype), linear.bias.detach().to(dtype)) for linear in (attention.out_proj, block.mlp.c_fc, block.mlp.c_proj)
        )
