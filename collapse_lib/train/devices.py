"""Where a training runs, and the kernels that it may use there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.limits import check_precision

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(device: str, precision: str) -> Accelerator:
    """The ``Accelerator`` for a device ("auto", "cpu" or "cuda") and a ``training.precision``; ``UserError`` where they cannot be had together."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UserError("The device is cuda, but torch finds no GPU here; choose cpu or auto.")
    on_cpu = device == "cpu" or not has_cuda
    check_precision(precision, "cpu" if on_cpu else "cuda")
    # accelerate remembers device and precision for the whole process; a notebook may train a second time with others.
    AcceleratorState._reset_state(reset_partial_state=True)
    # On a CPU, products run in bf16 without autocast: see ``precision``.
    return Accelerator(cpu=on_cpu, mixed_precision="no" if on_cpu or precision == "fp32" else precision)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Kernels that add in a fixed order, without which a GPU does not repeat itself bit for bit; a CPU does anyway.

    Not torch's ``warn_only``: with it, attention keeps the backward pass whose order of summation is left to chance, and says so.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filling
