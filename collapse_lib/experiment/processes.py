"""Several processes that share the work of one step: what each knows of the others, and how they are started and watched.

They find one another by the variables that ``torchrun`` sets, so that it can start them too, on several machines. Work is shared in whole batches
whose composition does not depend on the number of processes: what comes out is the same, bit for bit.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from numbers import Integral
from typing import IO, Any, TypeVar

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.machine import choose_device
from collapse_lib.experiment.paths import runs_root
from collapse_lib.experiment.progress import progress

Item, Result = TypeVar("Item"), TypeVar("Result")

PATIENCE_VARIABLE = "COLLAPSE_PATIENCE"
PATIENCE = 1800.0  # seconds without progress after which processes are taken to hang; torch waits as long for a message
GRACE = 2.0  # seconds for the others to end by themselves when one has: the first to end is seldom the one to blame
INTERVAL = 0.3  # seconds between the messages about progress


@dataclass(frozen=True)
class Group:
    """The processes that share some work, as one of them sees it; ``ALONE`` is a process by itself.

    ``store`` is torch's, for small values that all may read and change.
    """

    rank: int = 0
    size: int = 1
    store: Any = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that locks, records and reports."""
        return self.rank == 0

    def agree(self, value: Any) -> Any:
        """The main process's value, for all of them."""
        if self.size == 1:
            return value
        from torch.distributed import broadcast_object_list

        values = [value]
        broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.size > 1:
            from torch.distributed import barrier

            barrier()

    def spread(self, items: Sequence[Item], work: Callable[[Sequence[Item]], Iterable[Result]]) -> Iterator[Result]:
        """What ``work`` makes of each item, in the order of the items, for every process: each works on every ``size``-th item only."""
        own = work(items[self.rank :: self.size])
        if self.size == 1:
            yield from own
            return
        from torch.distributed import all_gather_object

        parts: list[Any] = [None] * self.size
        all_gather_object(parts, list(own))
        for index in range(len(items)):
            yield parts[index % self.size][index // self.size]

    @contextmanager
    def progress(self, total: int, unit: str, description: str, initial: int = 0) -> Iterator[Any]:
        """One bar (``progress.progress``) for what all processes do; the main one shows it, and all leave the block together."""
        if self.size == 1:
            with progress(total, unit, description, initial) as bar:
                yield bar
            return
        number = self.store.add(f"bars of {self.rank}", 1)
        with progress(total, unit, description, initial) if self.is_main else nullcontext() as bar:
            shared = _SharedBar(self, f"bar {number}", bar, initial)
            yield shared
            shared.finish()


ALONE = Group()


class _SharedBar:
    """Adds up what all processes have done, and has the main one's bar show it."""

    def __init__(self, group: Group, name: str, bar: Any, initial: int) -> None:
        self.group, self.name, self.bar, self.initial = group, name, bar, initial
        self.waiting, self.sent = 0, time.monotonic()
        self.lock = threading.Lock()  # threads of a process share its bar

    def update(self, count: int) -> None:
        with self.lock:
            self.waiting += count
            if time.monotonic() - self.sent > INTERVAL:
                self._send()

    def finish(self) -> None:
        with self.lock:
            self._send()
        left = self.group.store.add(f"{self.name} left", 1)
        while left < self.group.size:  # not torch's barrier, which loses patience after half an hour
            time.sleep(INTERVAL)
            left = self.group.store.add(f"{self.name} left", 0)
            self._send()

    def _send(self) -> None:
        done = self.group.store.add(self.name, self.waiting)
        self.waiting, self.sent = 0, time.monotonic()
        if self.bar is not None:
            self.bar.update(self.initial + done - self.bar.n)


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """Join the other processes that were started with this one, each on a GPU of its own if ``device`` is "cuda"."""
    import torch
    from torch import distributed

    store, rank, size = next(distributed.rendezvous("env://"))
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    try:
        yield Group(rank, size, store)
    finally:
        distributed.destroy_process_group()


def process_count(processes: int, device: str = "auto") -> int:
    """How many processes are asked for; 0 asks for one a GPU (one where there is none). ``UserError`` for what cannot be had."""
    if not isinstance(processes, Integral) or processes < 0:
        raise UserError(f"The number of processes is a whole number, 0 for one a GPU, and not {processes!r}.")
    if processes == 1:
        return 1
    if choose_device(device) == "cpu":
        return max(1, processes)
    import torch

    if processes > (gpus := torch.cuda.device_count()):
        raise UserError(f"{processes} processes were asked for, but this machine has {gpus} GPUs; ask for as many at most, or for 0: one each.")
    return processes or gpus


def launch(module: str, arguments: Sequence[str], size: int, what: str) -> None:
    """Have ``size`` processes execute ``module``, and wait until all have ended well; what the first one prints appears here.

    None of them outlives this call, or this process. Raises ``UserError`` for what they report as one, and when one is killed or none gets on for
    half an hour (``COLLAPSE_PATIENCE`` seconds); ``RuntimeError`` for any other end. ``what`` is done is named there.
    """
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # what earlier steps of this kernel no longer need, one of the processes will
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # here, so that no two ask for one port
    shared = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # as torchrun says that the store is its own
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // size)),
        "COLLAPSE_RUNS": str(runs_root()),
    }
    command = [sys.executable, "-m", module, *arguments, "--end-with-input"]
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(command, shared, rank, size)) for rank in range(size)]
        _watch(workers, what)
        if failed := [worker for worker in workers if worker.process.returncode]:
            _explain(failed, size, what)


class _Worker:
    """One of the processes; it ends with the block."""

    def __init__(self, command: list[str], shared: dict[str, str], rank: int, size: int) -> None:
        self.rank = rank
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process; a pipe would have to be read meanwhile
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if rank else subprocess.PIPE,
            stderr=self.errors,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,  # an interruption comes to us alone, and we end them
        )

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        with self.process, self.errors:
            pass

    def said(self) -> str:
        """What it wrote to standard error."""
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace").strip()


def _watch(workers: list[_Worker], what: str) -> None:
    """Wait until all have ended, or one has ended badly and the others had their time to; pass on what the first one prints."""
    output, heard, deadline = workers[0].process.stdout, time.monotonic(), float("inf")
    while None in (ends := [worker.process.poll() for worker in workers]) and time.monotonic() < deadline:
        if any(ends):
            deadline = min(deadline, time.monotonic() + GRACE)
        readable = select.select([output] if output else [], [], [], 0.1)[0]
        if readable and (text := os.read(output.fileno(), 65536)):
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()
            heard = time.monotonic()
        elif readable:
            output = None
        if time.monotonic() - heard > (patience := float(os.environ.get(PATIENCE_VARIABLE, PATIENCE))):
            hung = f"The {len(workers)} processes of step {what} hung: none got on for {patience:.0f} s"
            raise UserError(f"{hung}; they were ended, and the same command goes on from there.")


def _explain(failed: list[_Worker], size: int, what: str) -> None:
    """Raise what the one to blame has come to: who was refused something says it, who was killed cannot, and the rest miss the others."""

    def innocence(worker: _Worker) -> int:
        return 0 if worker.process.returncode == 2 else 1 if worker.process.returncode < 0 else 2

    to_blame = min(failed, key=innocence)
    status, said = to_blame.process.returncode, to_blame.said()
    if status == 2 and said:
        raise UserError(said.splitlines()[-1])
    which = f"Process {to_blame.rank + 1} of {size} of step {what}"
    if status < 0:
        raise UserError(f"{which} was killed by signal {-status} (out of memory, perhaps); the same command goes on from there.")
    print(said, file=sys.stderr)
    raise RuntimeError(f"{which} ended with status {status}: {(said.splitlines() or ['it said nothing'])[-1]}")


def end_with_parent() -> None:
    """Have this process of a pool end with the one that started it, however that ends: while there is no work, it would wait for it for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


def end_with_input(patience: float) -> None:
    """Have this process interrupted when its standard input ends, and ended by force ``patience`` seconds later.

    Whoever started it holds the other end, and lets go of it by dying, too.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it

    def watch() -> None:
        while os.read(0, 1024):  # not sys.stdin, whose lock this thread would hold when the interpreter ends
            pass
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(patience)
        os._exit(130)

    threading.Thread(target=watch, daemon=True).start()
