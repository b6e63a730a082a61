"""Sampling from a model: the corpus of the next generation (section 5.1.2), and continuations of prompts (section 5.3).

Every (row, token) has one uniform number, drawn from a Philox generator keyed by (seed, row), and the token is the inverse of the
model's cumulative distribution at it. So a row is the same whichever rows are sampled beside it, in whichever batch, shard or process.

That holds bit for bit only if the arithmetic of a row does not depend on its batch either. Measured for torch's fp32 matrix products on
CPU (MKL, AVX2; inner sizes 64 to 3072, 1 to 600 rows): a row's result is the same in every batch as soon as each thread gets at least 4 rows;
1 to 3 rows take another kernel. Softmax, LayerNorm, GELU and sums along a row never differed; fused attention of a single query does with
more than one thread. Hence the three rules below: batches are padded to a multiple of ``GRANULE`` rows, each batch runs on one thread
(several batches side by side use the cores, and better than one batch on all of them), and a decoding step uses plain matrix products.
On a GPU (``gpu_decoding``) the kernels change with the batch size, so there batches are always padded to the full size, and the sample is the same,
bit for bit, for one batch size; for another it differs where rounding moves a cumulative probability across a uniform.

Shapes in the comments: B sequences, H hidden, N heads, D = H / N, V vocabulary (padded to whole tiles where it says Vp).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.parallel import side_by_side
from collapse_lib.experiment.progress import progress as progress_bar

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import SamplingSettings
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import CorpusWriter

Decode = Callable[..., Tensor]  # ``_decode`` with its model and settings given

GRANULE = 16  # rows; 4 are enough where it was measured, and the padding costs little
SMALL_VOCABULARY = 8192  # up to which all logits of a step are few enough to be held
CHUNK_LOGITS = 2**18  # logits of a chunk, 1 MiB: what a core has of cache
WIDE = 16  # numbers that a core multiplies at once in a small product
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # by training.precision, which sampling on a GPU follows
SAFE = (1e-20, 1e30)  # sums of exp(logit) in which fp32 loses nothing to its range
TILE = 64  # ids summed together in the inverse CDF: about the square root of the vocabularies in use
LOOK_EVERY = 32  # steps between looks at whether every row has ended, and between updates of the progress bar: a look makes the host wait


def sample_rows(
    model: GPTNeo,
    settings: SamplingSettings,
    rows: range,
    seed: int,
    batch_size: int | None = None,
    progress: Any = None,
    dtype: torch.dtype | None = None,
) -> np.ndarray:
    """Sample the rows of a corpus freely, from its start.

    Args:
        model: the weights, on the device to sample on.
        settings: length, temperature, truncation, start, behaviour behind '<|endoftext|>', context and overflow.
        rows: which rows of the corpus; row r depends on (model, settings, seed, r) alone.
        seed: of this generation's sampling.
        batch_size: rows decoded at once; ``settings.batch_size`` when not given.
        progress: anything with ``update(tokens)``.
        dtype: of matrix products, keys and values on a GPU, logits excepted; the weights' own when not given, and always on a CPU.

    Returns:
        [len(rows), length] uint16, sampled tokens only; behind the first '<|endoftext|>' they are '<|endoftext|>' if ``after_eos`` is "pad".
    """
    return _sample_rows(_decoder(model, settings, dtype), model, settings, rows, seed, batch_size, progress)


def _sample_rows(
    decoder: Decode, model: GPTNeo, settings: SamplingSettings, rows: range, seed: int, batch_size: int | None, progress: Any
) -> np.ndarray:
    device = model.head.device
    eos = model.config.eos_token_id

    def decode(batch: tuple[range, int]) -> Tensor:
        rows, width = batch
        uniforms = np.zeros((settings.length, width))
        uniforms[:, : len(rows)] = _uniforms(seed, rows, settings.length).T
        given = torch.full((1 if settings.start == "endoftext" else 0, width), eos, device=device)  # [given tokens, B]
        lengths = torch.full((width,), len(given), device=device)
        tokens = decoder(given, lengths, torch.from_numpy(uniforms).to(device), settings.after_eos == "pad", progress, len(rows))
        return tokens[len(given) :, : len(rows)].T.to(torch.int32)

    with side_by_side(device) as (workers, run):  # fetched together: while a GPU works on a batch, the host draws the uniforms of the next
        parts = list(run(decode, _batches(rows, batch_size or settings.batch_size, workers, device)))
    return np.concatenate([np.empty((0, settings.length), np.uint16), *(part.cpu().numpy().astype(np.uint16) for part in parts)])


def sample_corpus(model: GPTNeo, settings: SamplingSettings, seed: int, writer: CorpusWriter, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Write a generation's corpus, shard by shard; shards that the writer already has are not sampled again. ``dtype``: see ``sample_rows``.

    Returns:
        "sequences", "tokens" and "stories" ('<|endoftext|>' tokens) of the whole corpus, and of what was sampled by this call "seconds"
        and "tokens_per_second" (0 if every shard was there).
    """
    eos = model.config.eos_token_id
    every = range(settings.sequences)
    shards = [every[first : first + settings.shard_sequences] for first in every[:: settings.shard_sequences]]
    missing = [index for index, rows in enumerate(shards) if not writer.has_shard(index, len(rows))]
    tokens = settings.sequences * settings.length
    tokens_to_sample = sum(len(shards[index]) for index in missing) * settings.length
    started = time.perf_counter()
    decoder = _decoder(model, settings, dtype)
    with progress_bar(tokens, "token", "sampling", initial=tokens - tokens_to_sample) as bar:
        for index in missing:
            sampled = _sample_rows(decoder, model, settings, shards[index], seed, None, bar)
            writer.write_shard(index, _stored_rows(sampled, settings, eos))
    seconds = time.perf_counter() - started
    corpus = writer.finish(len(shards), settings.sequences)
    return {
        "sequences": corpus.rows,
        "tokens": corpus.real_tokens,
        "stories": int(corpus.token_counts()[eos]),
        "seconds": seconds,
        "tokens_per_second": tokens_to_sample / seconds if missing else 0.0,
    }


def complete(
    model: GPTNeo,
    prompts: Sequence[np.ndarray],
    settings: SamplingSettings,
    max_new_tokens: int,
    samples_per_prompt: int,
    seed: int,
    stop_at_eos: bool = True,
    dtype: torch.dtype | None = None,
) -> list[list[np.ndarray]]:
    """Sample continuations of prompts, of any lengths.

    Args:
        prompts: token ids, each at least one, taken as they are: a prompt meant as a story's beginning starts with '<|endoftext|>'.
        settings: temperature, truncation, context, overflow and batch size; start, length and what follows '<|endoftext|>' do not matter here.
        max_new_tokens: most tokens to sample for a prompt.
        samples_per_prompt: continuations of each prompt; sample s of prompt i has the randomness of row i * samples_per_prompt + s.
        stop_at_eos: end a continuation at '<|endoftext|>', which is then left out.
        dtype: see ``sample_rows``.

    Returns:
        For each prompt its continuations, uint16 arrays of at most ``max_new_tokens`` tokens.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise UserError("A prompt has no token; give each at least one, '<|endoftext|>' for an empty beginning.")
    device, eos = model.head.device, model.config.eos_token_id
    # Rows of like length together, so that few steps of a batch go by with some rows still reading and others already done.
    order = sorted(range(len(prompts) * samples_per_prompt), key=lambda row: (len(prompts[row // samples_per_prompt]), row))
    found: dict[int, np.ndarray] = {}
    decoder = _decoder(model, settings, dtype)

    def decode(batch: tuple[Sequence[int], int]) -> None:
        rows, width = batch
        texts = [prompts[row // samples_per_prompt] for row in rows]
        lengths = np.full(width, len(texts[0]))
        lengths[: len(rows)] = [len(text) for text in texts]
        given = np.full((lengths.max(), width), eos)
        uniforms = np.zeros((lengths.max() + max_new_tokens - lengths.min(), width))
        own = _uniforms(seed, rows, max_new_tokens)
        for column, (text, uniform) in enumerate(zip(texts, own, strict=True)):
            given[: len(text), column] = text
            first = len(text) - lengths.min()
            uniforms[first : first + max_new_tokens, column] = uniform
        place = [torch.from_numpy(array).to(device) for array in (given, lengths, uniforms)]
        tokens = decoder(*place, stop_at_eos, None, len(rows)).cpu().numpy()
        for column, (row, text) in enumerate(zip(rows, texts, strict=True)):
            new = tokens[len(text) : len(text) + max_new_tokens, column].astype(np.uint16)
            ends = np.flatnonzero(new == eos) if stop_at_eos else ()
            found[row] = new[: ends[0]] if len(ends) else new

    with side_by_side(device) as (workers, run):
        list(run(decode, _batches(order, settings.batch_size, workers, device)))
    return [[found[prompt * samples_per_prompt + sample] for sample in range(samples_per_prompt)] for prompt in range(len(prompts))]


# --- the decoding loop ---------------------------------------------------------------------------------------------------------------


def _decoder(model: GPTNeo, settings: SamplingSettings, dtype: torch.dtype | None) -> Decode:
    """The decoding loop for the model's device."""
    if model.head.device.type == "cpu":
        return partial(_decode, model, settings)
    from collapse_lib.sample.gpu import StaticDecoder

    return StaticDecoder(model, settings, dtype).decode


@torch.inference_mode()
def _decode(
    model: GPTNeo, settings: SamplingSettings, given: Tensor, lengths: Tensor, uniforms: Tensor, stop_at_eos: bool, progress: Any, rows: int
) -> Tensor:
    """Sample behind the given tokens until the uniforms are used up (or, with ``stop_at_eos``, every row has met its '<|endoftext|>').

    Args:
        given: [T, B] int64, of which the first lengths[b] are given to row b. No given token at all: the released code's masked start.
        lengths: [B] int64.
        uniforms: [steps, B] float64; the first belongs to the position behind the shortest row.
        rows: of the B, the first ones, that are no padding; the others have ended before they begin.

    Returns:
        [shortest + steps, B] int64, the given tokens included, '<|endoftext|>' behind a row's end.
    """
    width, eos = given.shape[1], model.config.eos_token_id
    shortest = int(lengths.min())
    total = shortest + len(uniforms)
    ragged = shortest < len(given)
    tokens = torch.full((total, width), eos, device=given.device)  # time first: a step reads and writes whole rows
    tokens[: len(given)] = given
    ended = torch.arange(width, device=given.device) >= rows
    cache = _Cache(model, settings, width, max(1, total - 1))  # the last token is never read
    head = TiledHead(model.head)
    restricted = is_restricted(settings)
    for position in range(total):
        # The hidden state behind position - 1 predicts the token at position.
        hidden = cache.advance(tokens, position - 1) if position else _masked_zero(model, width)  # [B, H]
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
            new = torch.where(ended, eos, new)
            ended |= (new == eos) & (position >= lengths)
        tokens[position] = new
        steps = position - shortest + 1
        if steps % LOOK_EVERY == 0 or position == total - 1:
            if progress is not None:
                progress.update(((steps - 1) % LOOK_EVERY + 1) * rows)
            if stop_at_eos and ended.all():
                break
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
    return _invert(p.sum(-1), lambda tile: p.gather(1, tile[:, :, None].expand(-1, -1, TILE))[:, 0], uniform)


def _invert(mass: Tensor, inside: Callable[[Tensor], Tensor], uniform: Tensor) -> Tensor:
    """The id of each row, [B] int64, from the masses of its tiles, [B, tiles], and a function from tiles [B, 1] to what lies inside, [B, TILE].

    Both may be scaled, each row of each by a factor of its own.
    """
    edges = mass.cumsum(-1, dtype=torch.float64)  # [B, tiles]
    target = uniform[:, None] * edges[:, -1:]  # [B, 1]; below the last edge even when rounded, as uniform <= 1 - 2^-53
    tile = torch.searchsorted(edges, target, right=True)  # first edge above the target, hence a tile with mass
    mass = mass.gather(-1, tile).double()  # [B, 1]
    share = (target - (edges.gather(-1, tile) - mass)) / mass  # [B, 1], where inside the tile: in [0, 1) up to rounding
    sums = inside(tile).cumsum(-1, dtype=torch.float64)  # [B, TILE]
    found = torch.searchsorted(sums, sums[:, -1:] * share.clamp(0, 1 - 2**-53), right=True)
    return (tile * TILE + found)[:, 0]


class TiledHead:
    """The output matrix, cut so that sampling never holds all logits of a step.

    A step over a vocabulary of 50,257 makes 20 MB of logits for 100 rows, and softmax would pass over them four times. Here each chunk of ids is
    turned into the masses of its tiles while it is in the cache, and the logits of the one tile that is hit are computed again.
    """

    def __init__(self, head: Tensor):
        vocabulary, hidden = head.shape
        self.vocabulary = vocabulary
        self.rows = F.pad(head, (0, 0, 0, -vocabulary % TILE))  # [Vp, H]
        self.tiles = self.rows.view(-1, TILE, hidden)  # [tiles, TILE, H]

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, Vp] fp32; the ids that fill up the last tile are no tokens and get -inf."""
        logits = F.linear(hidden, self.rows)
        logits[:, self.vocabulary :] = -math.inf
        return logits

    def sample(self, hidden: Tensor, uniform: Tensor) -> Tensor:
        """What ``inverse_cdf(self.logits(hidden), uniform)`` gives, up to rounding: [B] int64 from [B, H] and [B]."""
        if self.vocabulary <= SMALL_VOCABULARY:
            return inverse_cdf(self.logits(hidden), uniform)
        mass, shift = self._masses(hidden)

        def inside(tile: Tensor) -> Tensor:
            logits = hidden.new_empty(len(hidden), TILE)
            for row, hit in enumerate(tile[:, 0].tolist()):  # a copy of each row's tile, for one product of all, would take ten times as long
                torch.mv(self.tiles[hit], hidden[row], out=logits[row])
            ids = tile * TILE + torch.arange(TILE, device=tile.device)
            return torch.where(ids < self.vocabulary, torch.exp(logits - shift), 0)

        return _invert(mass, inside, uniform)

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
        for first in range(0, len(self.rows), size):
            rows = self.rows[first : first + size]
            logits = torch.mm(hidden, rows.T, out=space) if len(rows) == size else hidden @ rows.T
            if first + len(rows) > self.vocabulary:
                logits[:, self.vocabulary - first :] = -math.inf
            yield logits


def capacity(model: GPTNeo, settings: SamplingSettings, total: int) -> int:
    """Most tokens in view while ``total`` are read; ``UserError`` if the model has not as many positions."""
    most = total if settings.overflow == "extend" else min(settings.max_context, total)
    limit = model.config.max_position_embeddings
    if most > limit:
        raise UserError(f"Sampling needs {most} positions, more than the model's max_position_embeddings = {limit}.")
    return most


class _Cache:
    """Keys and values of a batch whose rows are all equally long, and the rules for when they no longer fit.

    Keys and values lie as [B, heads, slots, D], so that a step writes one place a head and reads each head in one go. A local layer has only
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
        return self._encode(tokens[position + 1 - max(1, self.capacity // 2) : position + 1].T)

    def _step(self, tokens: Tensor) -> Tensor:
        transformer = self.model.transformer
        x = transformer.wte(tokens) + transformer.wpe.weight[self.filled]  # [B, H]
        for block, qkv, keys, values in zip(transformer.h, self.qkv, self.keys, self.values, strict=True):
            slots = values.shape[2]
            slot, seen = self.filled % slots, min(self.filled + 1, slots)
            q, k, v = F.linear(block.ln_1(x), qkv).view(self.split).unbind(1)  # [B, H] each
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
            kept = torch.arange(max(0, self.filled - slots), self.filled, device=tokens.device)
            for cache, heads in ((keys, k), (values, v)):  # heads: [B, N, T, D]
                together = heads[:, :, kept].unflatten(1, (-1, self.joined)).transpose(2, 3).flatten(3)  # [B, N/J, kept, J*D]
                cache[:, :, kept % slots] = together
        return hidden[:, -1]


def _masked_zero(model: GPTNeo, width: int) -> Tensor:
    """[B, H]: what the released code's first token comes from, namely token 0 at position 1; the sequence then begins at position 0 without it."""
    device = model.head.device
    return model(torch.zeros(width, 1, dtype=torch.int64, device=device), torch.ones(1, dtype=torch.int64, device=device))[:, 0]


# --- rows, batches, workers ----------------------------------------------------------------------------------------------------------


def _uniforms(seed: int, rows: Sequence[int], count: int) -> np.ndarray:
    """[len(rows), count] float64 in [0, 1): each row's own stream."""
    stream = np.random.Philox(key=0)
    generator, state = np.random.Generator(stream), stream.state
    uniforms = np.empty((len(rows), count))
    for row, into in zip(rows, uniforms, strict=True):  # setting the key takes a third of the time that a new generator would
        state["state"]["key"][:] = seed, row
        stream.state = state
        generator.random(out=into)
    return uniforms


def _batches(rows: Sequence[int], batch_size: int, workers: int, device: torch.device) -> list[tuple[Sequence[int], int]]:
    """Split rows into batches, each with the number of rows that it is padded to; together the workers hold at most ``batch_size`` at once."""
    if device.type != "cpu":
        return [(rows[first : first + batch_size], batch_size) for first in range(0, len(rows), batch_size)]
    most = math.ceil(batch_size / workers)
    count = math.ceil(math.ceil(len(rows) / most) / workers) * workers  # as many for every worker, and then of equal size
    size = max(1, math.ceil(len(rows) / max(1, count)))
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    return [(part, math.ceil(len(part) / GRANULE) * GRANULE) for part in parts]


def _stored_rows(sampled: np.ndarray, settings: SamplingSettings, eos: int) -> np.ndarray | list[np.ndarray]:
    """Rows as the corpus keeps them: behind their start token if there is one, without padding."""
    start = [eos] if settings.start == "endoftext" else []
    rows = np.insert(sampled, [0] * len(start), eos, axis=1) if start else sampled
    if settings.after_eos == "continue":
        return rows
    kept = np.where((sampled == eos).any(1), (sampled == eos).argmax(1) + 1, sampled.shape[1]) + len(start)
    return [row[:length] for row, length in zip(rows, kept, strict=True)]
