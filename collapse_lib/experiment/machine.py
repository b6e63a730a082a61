"""The machine that does the work: which device, what it is called, and the versions of what runs on it."""

from __future__ import annotations

import os
import platform
import re
import shutil
from functools import cache
from pathlib import Path

from collapse_lib.experiment.errors import UserError


def choose_device(device: str = "auto") -> str:
    """``auto`` takes a GPU if there is one; raises ``UserError`` for a device that is not here."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UserError(f"There is no device '{device}'; choose auto, cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("Device 'cuda' was asked for, but torch finds no GPU here; use --device cpu or auto.")
    return device


def versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("collapse-lib", "torch", "numpy", "accelerate", "tokenizers", "spacy", "wordfreq"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: str) -> str:
    """A device as a reader knows it: the GPU's product name, or the processor's with its threads."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        model = None
    return f"{model.group(1) if model else platform.processor() or platform.machine()}, {os.cpu_count()} threads"


@cache
def compiles_triton() -> bool:
    """Whether kernels in Triton can be had for a GPU: it comes with torch where torch was built for GPUs, and needs a C compiler."""
    from importlib.util import find_spec

    return find_spec("triton") is not None and bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


def bf16_units() -> list[str]:
    """The flags of the processor's units for products in bf16; empty where it has none, or does not say."""
    try:
        flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return []
    return sorted({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.group(1).split())) if flags else []
