"""Work side by side on the cores of a CPU.

The matrices of a small model are too small to share among threads: two threads on one product spend their time waiting for each other. Two
products on one thread each do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def side_by_side(device: torch.device) -> Iterator[tuple[int, Any]]:
    """Yield (workers, map): on a CPU as many calls at once as torch has threads, each on one thread; elsewhere one after the other."""
    threads = torch.get_num_threads()
    if device.type != "cpu":
        yield 1, map
        return
    try:
        torch.set_num_threads(1)  # the caller's own small operations included
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield threads, pool.map
    finally:
        torch.set_num_threads(threads)
