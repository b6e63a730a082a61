"""The dtype of matrix products: what a protocol's ``training.precision`` comes to on a device.

Weights, optimizer moments, attention on a CPU, LayerNorm, softmax and sums are fp32 whatever it is.

Of the steps, ``train``, ``sample`` and ``perplexity`` ask for it, which take nearly all of a generation's time, and ``compose`` where it has a model
write, as ``sample`` does. The others stay fp32 whatever a protocol says: ``alpha``, ``exact``, ``texture``, ``continuations``, ``completions``,
``classification`` and the likelihoods by which ``compose`` selects. They read or write little, so there is little to gain. Most of them subtract
losses or divide small probabilities, and bf16 keeps eight bits of a logit: its rounding would be measured with the model. And in fp32 their
numbers can be compared between runs of any precision, and between CPUs with units for bf16 and without.
"""

from __future__ import annotations

import functools
import warnings

import torch

from collapse_lib.experiment.machine import bf16_units

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # by training.precision


def product_dtype(precision: str, device: str | torch.device) -> torch.dtype:
    """What training, sampling and scoring multiply in.

    A GPU does what ``precision`` says. A CPU multiplies in bf16 if that is asked for and it has units for it, else in fp32; where bf16 is refused
    for want of units, a warning says so, once a process.
    """
    if torch.device(device).type != "cpu":
        return DTYPES[precision]
    if precision != "bf16":
        return torch.float32
    if not bf16_units():
        _say_fp32()
        return torch.float32
    return torch.bfloat16


def explicit_dtype(precision: str, device: str | torch.device) -> torch.dtype:
    """What ``GPTNeo.multiplying_in`` and ``rounded`` are to take for training and scoring: fp32 on a GPU, which trains in autocast's dtype."""
    return product_dtype(precision, device) if torch.device(device).type == "cpu" else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as a protocol calls it: "fp32", "bf16" or "fp16"."""
    return next(name for name, value in DTYPES.items() if value == dtype)


@functools.cache
def _say_fp32() -> None:
    warnings.warn(
        "training.precision is bf16, for which this CPU has no units (avx512_bf16, amx_bf16 or Arm's bf16): products will run in fp32.", stacklevel=4
    )
