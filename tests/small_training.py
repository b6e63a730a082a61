"""A training of a few dozen steps that takes a second: a model, corpora and interruptions, for tests and for processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import collapse_lib
from collapse_lib.experiment.protocol import TrainingSettings
from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig
from collapse_lib.text.corpus import CorpusWriter, TokenCorpus
from collapse_lib.train.loop import train

VOCABULARY, EOS = 32, 31
CONFIG = GPTNeoConfig(VOCABULARY, num_layers=2, hidden_size=16, num_heads=4, window_size=4, max_position_embeddings=16, eos_token_id=EOS)


def settings(**changes) -> TrainingSettings:
    return TrainingSettings(**{"block_size": 8, "batch_size": 16, "epochs": 2, "learning_rate": 2e-3, **changes})


def write(folder: Path, *shards, complete: bool = True, has_start: bool = True) -> TokenCorpus:
    with CorpusWriter(folder, EOS, VOCABULARY, complete, has_start) as writer:
        for index, rows in enumerate(shards):
            writer.write_shard(index, [np.array([EOS, *row] if has_start else row) for row in rows])
        return writer.finish(len(shards))


def random_rows(count: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, EOS, (count, length))


def new_model(seed: int = 1) -> GPTNeo:
    return GPTNeo(replace(CONFIG, initializer_range=0.2), seed)


def weights(model: GPTNeo) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


class Interrupted(Exception):
    pass


@contextmanager
def interrupted_after(steps: int):
    """Fail inside the optimizer step number ``steps`` from here on, whichever optimizer takes it."""
    taken = 0

    def count(*_):
        nonlocal taken
        taken += 1
        if taken == steps:
            raise Interrupted

    handle = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        handle.remove()


def plain(result) -> dict:
    """A result without what a clock decides."""
    return {name: value for name, value in asdict(result).items() if name not in ("seconds", "tokens_per_second")}


def start(role: str, corpus: TokenCorpus, folder: Path, **environment: str) -> subprocess.Popen:
    """This file as a program of its own, in one of the roles of ``_child``."""
    environment = {**os.environ, "PYTHONPATH": str(Path(collapse_lib.__file__).parents[1]), **environment}
    return subprocess.Popen([sys.executable, __file__, role, str(corpus.folder), str(folder)], env=environment)


def _child(role: str, corpus_folder: str, folder: str) -> None:
    corpus = TokenCorpus.open(corpus_folder)
    if role == "kill":
        steps = iter(range(1, 6))
        register_optimizer_step_post_hook(lambda *_: next(steps) == 5 and os.kill(os.getpid(), signal.SIGKILL))
        train(new_model(), corpus, settings(checkpoint_every=2), seed=5, checkpoint_folder=Path(folder), device="cpu")
        return
    model = new_model(seed=1 + int(os.environ["RANK"]))  # the first process's weights must win
    chosen = settings(batch_size=22, epochs="early_stopping", max_epochs=2)
    result = train(model, corpus, chosen, seed=5, checkpoint_folder=Path(folder), device="cpu", holdout=corpus)
    if os.environ["RANK"] == "0":
        torch.save({"weights": model.state_dict(), "result": plain(result)}, Path(folder) / "result.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _child(*sys.argv[1:])
