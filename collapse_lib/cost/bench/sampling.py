"""Free sampling against transformers' ``generate``, as the paper's authors and most users call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from collapse_lib.cost.bench import OURS, Setup, Side, Work, check, limits, shares, timed

UNIT = "tokens"
PAPER_BATCH = 200
# On a CPU, sequences are cut to what a round can sample in some seconds; contexts are then shorter than the paper's on both sides.
LENGTH = {"cpu": {"demo": 127, "1m": 40, "33m": 12}, "cuda": {"demo": 127, "1m": 600, "33m": 600}}
GPU_BATCHES = 4  # of ours a round: a corpus has hundreds, which share the recording of a step and draw their uniforms while the GPU works
# Batches among which transformers' best is looked for, and ours on a CPU, where the protocol's would take minutes a round.
BATCHES = {"cpu": (16, 64, PAPER_BATCH, 500, 800), "cuda": (PAPER_BATCH, 500, 1000, 2000)}
OUR_BATCH = {"demo": 512, "1m": 800, "33m": 800}
PROBE = np.random.default_rng(0).integers(0, 2000, (2, 300))  # tokens on which the logits are compared


def workload(setup: Setup) -> str:
    return f"{_length(setup)} tokens behind '<|endoftext|>', pure sampling at temperature 1"


def make_input(setup: Setup) -> None:
    from collapse_lib.model.gpt_neo import GPTNeo

    GPTNeo(setup.model_config, seed=1).save_pretrained(setup.model_folder)


def sides(setup: Setup) -> list[Side]:
    return [
        Side(OURS, ours),
        Side(f"transformers, the paper's batch of {PAPER_BATCH}", transformers, {"batches": (PAPER_BATCH,)}),
        Side("transformers, its best batch", transformers, {"batches": BATCHES[setup.device]}),
    ]


def ours(setup: Setup) -> Callable[[], Work]:
    import torch

    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.sample.draw import DTYPES
    from collapse_lib.sample.generate import sample_rows

    model = GPTNeo.from_pretrained(setup.model_folder).to(setup.device).eval()
    length = _length(setup)
    batch = OUR_BATCH[setup.config] if setup.device == "cpu" else setup.settings("sampling").batch_size
    settings = setup.settings("sampling", length=length, batch_size=batch)
    rows = batch if setup.device == "cpu" else batch * GPU_BATCHES
    dtype = DTYPES[setup.settings("training").precision]
    probe = torch.from_numpy(_probe(setup)).to(setup.device)

    def work() -> Work:
        tokens, seconds = timed(lambda: sample_rows(model, settings, range(rows), seed=1, dtype=dtype), setup.device)
        with torch.no_grad():
            logits = model.logits(model(probe))[:, -1].cpu().numpy()
        return Work(tokens.size, seconds, {"tokens": tokens[:PAPER_BATCH], "logits": logits})

    return work


def transformers(setup: Setup, batches: tuple[int, ...]) -> Callable[[], Work]:
    import torch
    from transformers import GPTNeoForCausalLM
    from transformers.utils import logging

    from collapse_lib.sample.draw import DTYPES

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = GPTNeoForCausalLM.from_pretrained(setup.model_folder).to(setup.device).eval()
    model.generation_config.eos_token_id = None  # sample on behind the end of a story, as we do
    eos = model.config.eos_token_id
    with torch.no_grad():
        logits = model(torch.from_numpy(_probe(setup)).to(setup.device)).logits[:, -1].cpu().numpy()
    if setup.device != "cpu":  # in the precision that ours samples in
        model = model.to(DTYPES[setup.settings("training").precision])

    @torch.no_grad()
    def generate(batch: int, length: int) -> Any:
        start = torch.full((batch, 1), eos, device=setup.device)
        options = {"do_sample": True, "top_k": 0, "max_new_tokens": length, "pad_token_id": eos, "attention_mask": torch.ones_like(start)}
        return model.generate(start, **options)[:, 1:]

    best = batches[0]
    if len(batches) > 1:
        short = max(4, _length(setup) // 4)
        best = min(batches, key=lambda batch: timed(lambda: generate(batch, short), setup.device)[1] / batch)

    def work() -> Work:
        tokens, seconds = timed(lambda: generate(best, _length(setup)), setup.device)
        return Work(tokens.numel(), seconds, {"tokens": tokens[:PAPER_BATCH].cpu().numpy(), "logits": logits, "batch": best})

    return work


def checks(setup: Setup, outcomes: dict[str, Any]) -> list[dict[str, Any]]:
    """Equal logits, and samples that the model finds equally likely."""
    mine = outcomes[OURS]
    loss, error = _surprise(setup, mine["tokens"])
    found = []
    for name, theirs in outcomes.items():
        if name == OURS:
            continue
        apart = float(np.abs(mine["logits"] - theirs["logits"]).max())
        found.append(check(f"logits behind {PROBE.shape[1]} tokens, largest difference {apart:.1e} ({name}, batch {theirs['batch']})", apart < 1e-2))
        other, other_error = _surprise(setup, theirs["tokens"])
        sigma = abs(loss - other) / float(np.hypot(error, other_error))
        found.append(check(f"surprise of the sampled text, {loss:.3f} and {other:.3f} nats a token, {sigma:.1f} standard errors apart", sigma < 4.5))
    return found


def floors(setup: Setup, rate: float) -> list[dict[str, Any]]:
    config, length = setup.model_config, _length(setup)
    contexts = range(1, min(length, setup.settings("sampling").max_context) + 1)
    flops = sum(map(config_model(setup).flops_per_token, contexts)) / len(contexts)
    precision = setup.settings("training").precision
    value = 2 if setup.device != "cpu" and precision != "fp32" else 4
    read = sum(sum(2 * config.hidden_size * keys * value for keys in config.keys_seen(context)) for context in contexts) / len(contexts)
    return shares(limits(setup, flops, read, precision), rate)


def config_model(setup: Setup) -> Any:
    """The model without weights: it knows its own counts."""
    import torch

    from collapse_lib.model.gpt_neo import GPTNeo

    with torch.device("meta"):
        return GPTNeo(setup.model_config, seed=None)


def _surprise(setup: Setup, tokens: np.ndarray) -> tuple[float, float]:
    """Mean loss of sampled tokens under the model in fp32, and its standard error over sequences."""
    import torch
    from torch.nn import functional as F

    from collapse_lib.model.gpt_neo import GPTNeo

    model = GPTNeo.from_pretrained(setup.model_folder).to(setup.device).eval()
    eos = model.config.eos_token_id
    losses = []
    with torch.no_grad():
        for row in tokens[:64].astype(np.int64):  # row by row: all logits of one sequence are held at once
            target = torch.from_numpy(row).to(setup.device)
            shown = torch.cat([target.new_tensor([eos]), target[:-1]])[None]
            losses.append(F.cross_entropy(model.logits(model(shown))[0], target).item())
    return float(np.mean(losses)), float(np.std(losses) / len(losses) ** 0.5)


def _length(setup: Setup) -> int:
    return setup.length or LENGTH[setup.device][setup.config]


def _probe(setup: Setup) -> np.ndarray:
    return PROBE[:, : setup.model_config.max_position_embeddings]
