"""Seconds and memory of a piece of work, for ``collapse plan`` and ``collapse bench`` alike."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def timed(work: Callable[[], Any], device: str = "cpu") -> tuple[Any, float]:
    """What ``work`` returns and the seconds it took, with a GPU's queue emptied before and after."""
    import torch

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    wait()
    began = time.perf_counter()
    result = work()
    wait()
    return result, time.perf_counter() - began


def repeated(work: Callable[[], Any], device: str, seconds: float) -> list[float]:
    """The seconds of each call of ``work``, called once to warm up and then until ``seconds`` have passed."""
    work()
    times: list[float] = []
    while sum(times) < seconds:
        times.append(timed(work, device)[1])
    return times


def peak_memory() -> int:
    """Most bytes of RAM that this process has held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
