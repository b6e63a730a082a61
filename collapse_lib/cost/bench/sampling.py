"""Free sampling against transformers' ``generate``, as the paper's authors and most users call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from collapse_lib.cost.bench import IN_BF16, OURS, Bench, Needs, Setup, Side, Work, best_batch, check
from collapse_lib.cost.timing import timed
from collapse_lib.model.weightless import without_weights

PAPER_BATCH = 200
# On a CPU, sequences are cut to what a round can sample in some seconds; contexts are then shorter than the paper's on both sides.
LENGTH = {"cpu": {"demo": 63, "1m": 40, "3.7m": 63, "33m": 12}, "cuda": {"demo": 63, "1m": 600, "3.7m": 63, "33m": 600}}
GPU_BATCHES = 4  # of ours a round: a corpus has hundreds, which share the recording of a step and draw their uniforms while the GPU works
# Batches among which transformers' best is looked for, and ours on a CPU, where the protocol's would take minutes a round.
BATCHES = {"cpu": (16, 64, PAPER_BATCH, 500, 800), "cuda": (PAPER_BATCH, 500, 1000, 2000)}
OUR_BATCH = {"demo": 512, "1m": 800, "3.7m": 512, "33m": 800}
PROBE_LENGTH = 300  # tokens after which the logits are compared, where the model has as many positions


def workload(setup: Setup) -> str:
    return f"{_length(setup)} tokens after '<|endoftext|>', pure sampling at temperature 1"


def sides(setup: Setup) -> list[Side]:
    best = {"batches": BATCHES[setup.device]}
    in_bf16 = [
        Side(OURS + IN_BF16, ours, {"precision": "bf16"}),
        Side("transformers, its best batch" + IN_BF16, transformers, best | {"precision": "bf16"}),
    ]
    return [
        Side(OURS, ours),
        Side(f"transformers, the paper's batch of {PAPER_BATCH}", transformers, {"batches": (PAPER_BATCH,)}),
        Side("transformers, its best batch", transformers, best),
        *(in_bf16 if setup.has_bf16 else []),
    ]


def ours(setup: Setup, precision: str | None = None) -> Callable[[], Work]:
    import torch

    from collapse_lib.model.precision import explicit_dtype, product_dtype
    from collapse_lib.sample.generate import sample_rows

    model = setup.our_model()
    length = _length(setup)
    batch = OUR_BATCH[setup.config] if setup.device == "cpu" else setup.settings("sampling").batch_size
    settings = setup.settings("sampling", length=length, batch_size=batch)
    rows = batch if setup.device == "cpu" else batch * GPU_BATCHES
    precision = precision or setup.settings("training").precision
    dtype = product_dtype(precision, setup.device)
    probing = model.rounded(explicit_dtype(precision, setup.device))
    probe = torch.from_numpy(_probe(setup)).to(setup.device)

    def work() -> Work:
        tokens, seconds = timed(lambda: sample_rows(model, settings, range(rows), seed=1, dtype=dtype), setup.device)
        with torch.no_grad():
            logits = probing.logits(probing(probe))[:, -1].cpu().numpy()
        return Work(tokens.size, seconds, {"tokens": tokens[:PAPER_BATCH], "logits": logits, "batch": batch, "bf16": dtype == torch.bfloat16})

    return work


def transformers(setup: Setup, batches: tuple[int, ...], precision: str = "fp32") -> Callable[[], Work]:
    import torch

    from collapse_lib.model.precision import DTYPES

    model = setup.their_model()
    model.generation_config.eos_token_id = None  # go on after the end of a story, as we do
    eos = model.config.eos_token_id
    with torch.no_grad():
        logits = model(torch.from_numpy(_probe(setup)).to(setup.device)).logits[:, -1].cpu().numpy()
    if setup.device != "cpu":  # in the precision that ours samples in
        precision = setup.settings("training").precision
    model = model.to(DTYPES[precision])

    @torch.no_grad()
    def generate(batch: int, length: int) -> Any:
        start = torch.full((batch, 1), eos, device=setup.device)
        options = {"do_sample": True, "top_k": 0, "max_new_tokens": length, "pad_token_id": eos, "attention_mask": torch.ones_like(start)}
        return model.generate(start, **options)[:, 1:]

    short = max(4, _length(setup) // 4)
    best = best_batch(batches, lambda batch: timed(lambda: generate(batch, short), setup.device)[1] / batch)

    def work() -> Work:
        tokens, seconds = timed(lambda: generate(best, _length(setup)), setup.device)
        return Work(tokens.numel(), seconds, {"tokens": tokens[:PAPER_BATCH].cpu().numpy(), "logits": logits, "batch": best, "bf16": False})

    return work


def checks(setup: Setup, ours: Any, theirs: Any) -> list[dict[str, Any]]:
    """Equal logits, up to the rounding of bf16 where theirs were multiplied in it, and samples that the model finds equally likely."""
    apart = float(np.abs(ours["logits"] - theirs["logits"]).max())
    (loss, error), (other, other_error) = (_surprise(setup, side["tokens"]) for side in (ours, theirs))
    tolerance = 0.05 * float(np.abs(ours["logits"]).max()) if theirs["bf16"] else 1e-2
    sigma = abs(loss - other) / float(np.hypot(error, other_error))
    return [
        check(f"logits after {_probe(setup).shape[1]} tokens, largest difference {apart:.1e}, with batches of {theirs['batch']}", apart < tolerance),
        check(f"surprise of the sampled text, {loss:.3f} and {other:.3f} nats a token, {sigma:.1f} standard errors apart", sigma < 4.5),
    ]


def needs(setup: Setup) -> Needs:
    """FLOP of a token and the cached keys and values that it reads, in the mean over a sequence."""
    model, precision = without_weights(setup.model_config), setup.settings("training").precision
    contexts = range(1, min(_length(setup), setup.settings("sampling").max_context) + 1)
    value = 4 if setup.device == "cpu" or precision == "fp32" else 2  # bytes
    read = sum(model.kv_bytes_per_token(context, value) for context in contexts)
    return Needs(sum(map(model.flops_per_token, contexts)) / len(contexts), precision, read / len(contexts))


def _surprise(setup: Setup, tokens: np.ndarray) -> tuple[float, float]:
    """Mean loss of sampled tokens under the model in fp32, and its standard error over sequences."""
    import torch
    from torch.nn import functional as F

    model = setup.our_model()
    eos, losses = model.config.eos_token_id, []
    with torch.no_grad():
        for row in tokens[:64].astype(np.int64):  # row by row: all logits of one sequence are held at once
            target = torch.from_numpy(row).to(setup.device)
            inputs = torch.cat([target.new_tensor([eos]), target[:-1]])[None]
            losses.append(F.cross_entropy(model.logits(model(inputs))[0], target).item())
    return float(np.mean(losses)), float(np.std(losses) / len(losses) ** 0.5)


def _length(setup: Setup) -> int:
    return setup.length or LENGTH[setup.device][setup.config]


def _probe(setup: Setup) -> np.ndarray:
    """Random tokens that the configuration's model knows, (2, at most ``PROBE_LENGTH``)."""
    length = min(PROBE_LENGTH, setup.model_config.max_position_embeddings)
    return np.random.default_rng(0).integers(0, setup.model_config.vocab_size, (2, length))


BENCH = Bench(workload, sides, checks, needs)
