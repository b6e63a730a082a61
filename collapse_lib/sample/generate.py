"""Sampling from a model: the corpus of the next generation (section 5.1.2), and continuations of prompts (section 5.3).

A row depends on the model, the settings, the seed and its number alone. On a CPU (``cpu``) that holds bit for bit whatever the batch in fp32. In
bf16, and on a GPU (``gpu``), the kernels change with the batch size, so there batches are always padded to the full size, and the sample is the
same, bit for bit, for one batch size (and, on a CPU, one number of threads that share it); for another it differs where rounding moves a cumulative
probability across a uniform.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.parallel import side_by_side
from collapse_lib.experiment.processes import ALONE, Group
from collapse_lib.sample import cpu
from collapse_lib.sample.draw import row_uniforms
from collapse_lib.sample.gpu import StaticDecoder

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import SamplingSettings
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import CorpusWriter

Decode = Callable[..., Tensor]  # ``cpu.decode``, but for its model and settings


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
        settings: length, temperature, truncation, start, what follows '<|endoftext|>', context and overflow.
        rows: which rows of the corpus; row r depends on (model, settings, seed, r) alone.
        seed: of this generation's sampling.
        batch_size: rows decoded at once; ``settings.batch_size`` when not given.
        progress: anything with ``update(tokens)``.
        dtype: of matrix products, as ``precision.product_dtype`` chooses it; the weights' own when not given. On a GPU it is also that of keys and
            values, and logits are excepted; on a CPU logits are rounded to it.

    Returns:
        [len(rows), length] uint16, sampled tokens only; after the first '<|endoftext|>' they are '<|endoftext|>' if ``after_eos`` is "pad".
    """
    model = _rounded(model, dtype)
    return _sample_rows(_decoder(model, settings, dtype), model, settings, rows, seed, batch_size, progress)


def _sample_rows(
    decoder: Decode, model: GPTNeo, settings: SamplingSettings, rows: range, seed: int, batch_size: int | None, progress: Any
) -> np.ndarray:
    device = model.head.device
    eos = model.config.eos_token_id

    def decode(batch: tuple[range, int]) -> Tensor:
        rows, width = batch
        uniforms = np.zeros((settings.length, width))
        uniforms[:, : len(rows)] = row_uniforms(seed, rows, settings.length).T
        given = torch.full((1 if settings.start == "endoftext" else 0, width), eos, device=device)  # [given tokens, B]
        lengths = torch.full((width,), len(given), device=device)
        tokens = decoder(given, lengths, torch.from_numpy(uniforms).to(device), settings.after_eos == "pad", progress, len(rows))
        return tokens[len(given) :, : len(rows)].T.to(torch.int32)

    with side_by_side(device) as (workers, run):  # fetched together: while a GPU works on a batch, the host draws the uniforms of the next
        parts = list(run(decode, batches(rows, batch_size or settings.batch_size, workers, device, model.products is not None)))
    return np.concatenate([np.empty((0, settings.length), np.uint16), *(part.cpu().numpy().astype(np.uint16) for part in parts)])


def sample_corpus(
    model: GPTNeo, settings: SamplingSettings, seed: int, writer: CorpusWriter, dtype: torch.dtype | None = None, group: Group = ALONE
) -> dict[str, float]:
    """Write a generation's corpus, shard by shard; shards that the writer already has are not sampled again. ``dtype``: see ``sample_rows``.

    Every process of ``group`` writes some of the missing shards, and the main one ends the corpus.

    Returns:
        "sequences", "tokens" and "stories" ('<|endoftext|>' tokens) of the whole corpus, and of what was sampled by this call "seconds"
        and "tokens_per_second" (0 if every shard was there). Nothing in a process that is not the main one.
    """
    eos = model.config.eos_token_id
    rows = range(settings.sequences)
    shards = [rows[first : first + settings.shard_sequences] for first in rows[:: settings.shard_sequences]]
    missing = group.agree([index for index, shard in enumerate(shards) if not writer.has_shard(index, len(shard))] if group.is_main else [])
    tokens = settings.sequences * settings.length
    tokens_to_sample = sum(len(shards[index]) for index in missing) * settings.length
    started = time.perf_counter()
    model = _rounded(model, dtype)
    decoder = _decoder(model, settings, dtype)
    with group.progress(tokens, "token", "sampling", initial=tokens - tokens_to_sample) as bar:
        for index in missing[group.rank :: group.size]:
            sampled = _sample_rows(decoder, model, settings, shards[index], seed, None, bar)
            writer.write_shard(index, _stored_rows(sampled, settings, eos))
    if not group.is_main:
        return {}
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
    group: Group = ALONE,
) -> list[list[np.ndarray]]:
    """Sample continuations of prompts, of any lengths.

    Args:
        prompts: token ids, each at least one, taken as they are: a prompt meant as a story's beginning starts with '<|endoftext|>'.
        settings: temperature, truncation, context, overflow and batch size; start, length and what follows '<|endoftext|>' do not matter here.
        max_new_tokens: most tokens to sample for a prompt.
        samples_per_prompt: continuations of each prompt; sample s of prompt i has the randomness of row i * samples_per_prompt + s.
        stop_at_eos: end a continuation at '<|endoftext|>', which is then left out.
        dtype: see ``sample_rows``.
        group: processes that share the batches; each returns everything.

    Returns:
        For each prompt its continuations, uint16 arrays of at most ``max_new_tokens`` tokens.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise UserError("A prompt has no token; give each at least one, '<|endoftext|>' for an empty beginning.")
    device, eos = model.head.device, model.config.eos_token_id
    # Rows of like length together, so that few steps of a batch go by with some rows still reading and others already done.
    order = sorted(range(len(prompts) * samples_per_prompt), key=lambda row: (len(prompts[row // samples_per_prompt]), row))
    model = _rounded(model, dtype)
    decoder = _decoder(model, settings, dtype)

    def decode(batch: tuple[Sequence[int], int]) -> dict[int, np.ndarray]:
        rows, width = batch
        completed = {}
        texts = [prompts[row // samples_per_prompt] for row in rows]
        lengths = np.full(width, len(texts[0]))
        lengths[: len(rows)] = [len(text) for text in texts]
        given = np.full((lengths.max(), width), eos)
        uniforms = np.zeros((lengths.max() + max_new_tokens - lengths.min(), width))
        own = row_uniforms(seed, rows, max_new_tokens)
        for column, (text, uniform) in enumerate(zip(texts, own, strict=True)):
            given[: len(text), column] = text
            first = len(text) - lengths.min()
            uniforms[first : first + max_new_tokens, column] = uniform
        inputs = [torch.from_numpy(array).to(device) for array in (given, lengths, uniforms)]
        tokens = decoder(*inputs, stop_at_eos, None, len(rows)).cpu().numpy()
        for column, (row, text) in enumerate(zip(rows, texts, strict=True)):
            new = tokens[len(text) : len(text) + max_new_tokens, column].astype(np.uint16)
            ends = np.flatnonzero(new == eos) if stop_at_eos else ()
            completed[row] = new[: ends[0]] if len(ends) else new
        return completed

    with side_by_side(device) as (workers, run):
        parts = group.spread(batches(order, settings.batch_size, workers, device, model.products is not None), partial(run, decode))
        completions = {row: tokens for part in parts for row, tokens in part.items()}
    return [[completions[prompt * samples_per_prompt + sample] for sample in range(samples_per_prompt)] for prompt in range(len(prompts))]


def _rounded(model: GPTNeo, dtype: torch.dtype | None) -> GPTNeo:
    """The model whose products are in ``dtype``; a GPU's decoder makes its own copies."""
    return model.rounded(dtype) if dtype is not None and model.head.device.type == "cpu" else model


def _decoder(model: GPTNeo, settings: SamplingSettings, dtype: torch.dtype | None) -> Decode:
    """The decoding loop for the model's device."""
    if model.head.device.type == "cpu":
        return partial(cpu.decode, model, settings)
    return StaticDecoder(model, settings, dtype).decode


def batches(rows: Sequence[int], batch_size: int, workers: int, device: torch.device, fixed: bool = False) -> list[tuple[Sequence[int], int]]:
    """Split rows into batches, each with the number of rows that it is padded to; together the workers hold at most ``batch_size`` at once.

    ``fixed``: pad all to the largest, as is always done on a GPU.
    """
    if device.type != "cpu":
        return [(rows[first : first + batch_size], batch_size) for first in range(0, len(rows), batch_size)]
    most = math.ceil(batch_size / workers)
    count = math.ceil(math.ceil(len(rows) / most) / workers) * workers  # as many for every worker, and then of equal size
    size = max(1, math.ceil(len(rows) / max(1, count)))
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    return [(part, math.ceil((most if fixed else len(part)) / cpu.GRANULE) * cpu.GRANULE) for part in parts]


def _stored_rows(sampled: np.ndarray, settings: SamplingSettings, eos: int) -> np.ndarray | list[np.ndarray]:
    """Rows as the corpus stores them: after their start token if there is one, without padding."""
    start = [eos] if settings.start == "endoftext" else []
    rows = np.insert(sampled, [0] * len(start), eos, axis=1) if start else sampled
    if settings.after_eos == "continue":
        return rows
    lengths = np.where((sampled == eos).any(1), (sampled == eos).argmax(1) + 1, sampled.shape[1]) + len(start)
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]
