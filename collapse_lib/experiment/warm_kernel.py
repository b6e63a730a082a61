"""One warm Jupyter kernel for many notebooks.

Starting a kernel and importing torch takes longer than most steps of a small run. So papermill here executes notebook after notebook in
the same kernel, each in an emptied namespace with its count at one: what a cell can see is what its own notebook defined.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines

ENGINE = "warm-kernel"
SECONDS_BETWEEN_LOOKS = 5.0  # at whether a kernel that does not answer is alive
BETWEEN_SAVES = timedelta(seconds=5)


@contextmanager
def warm_kernel() -> Iterator[AsyncKernelManager]:
    """A kernel for ``execute_notebook(engine_name=ENGINE, km=...)``; it starts with the first notebook and ends with the block."""
    manager = AsyncKernelManager(kernel_name="python3")
    try:
        yield manager
    finally:
        run_sync(_end)(manager)


class WarmKernelEngine(NBClientEngine):
    """Papermill's engine on a kernel that is already there."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, *, km: AsyncKernelManager, start_timeout: int = 60, **options: Any) -> Any:
        if km.has_kernel:
            run_sync(_empty)(km)
        client = PapermillNotebookClient(nb_man, km=km, kernel_name=kernel_name, startup_timeout=start_timeout, timeout=None, **options)
        try:
            with _saved_now_and_then(nb_man):
                return client.execute()
        finally:
            if client.kc:  # the kernel stays, this notebook's connection to it does not
                client.kc.stop_channels()


@contextmanager
def _saved_now_and_then(nb_man: NotebookExecutionManager) -> Iterator[None]:
    """Papermill writes the whole notebook before and after every cell, half the time of one with many figures. It still does when it ends, however
    it ends.
    """
    save = nb_man.save

    def save_if_due(**options: Any) -> None:
        if nb_man.now() - nb_man.last_save_time >= BETWEEN_SAVES:
            save(**options)

    nb_man.save = save_if_due
    try:
        yield
    finally:
        nb_man.save = save


async def _end(manager: AsyncKernelManager) -> None:
    # An interrupted notebook leaves tasks behind that would complain of the kernel's death.
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    if manager.has_kernel:
        await manager.shutdown_kernel(now=True)


async def _empty(manager: AsyncKernelManager) -> None:
    """Wait for as long as the kernel lives: on a busy machine, or one that was asleep, an answer may take minutes."""
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=None)
        asked = client.execute("%reset -f\nget_ipython().execution_count = 1", silent=True, store_history=False)
        while (reply := await _next_reply(client)) is None or reply["parent_header"].get("msg_id") != asked:
            if not await manager.is_alive():
                raise DeadKernelError("Kernel died")
    finally:
        client.stop_channels()


async def _next_reply(client: AsyncKernelClient) -> dict[str, Any] | None:
    try:
        return await client.get_shell_msg(timeout=SECONDS_BETWEEN_LOOKS)
    except queue.Empty:
        return None


papermill_engines.register(ENGINE, WarmKernelEngine)
