"""One generation's training against transformers' model under its ``Trainer``, with the paper's settings on the same blocks in the same order."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collapse_lib.cost.bench import IN_BF16, OURS, Bench, Needs, Setup, Side, Work, best_batch, check
from collapse_lib.model.weightless import without_weights

if TYPE_CHECKING:
    from collapse_lib.text.corpus import TokenCorpus

# (sequences of an optimizer step, steps of a round): the paper's 320 would take minutes a step on a CPU. The first step also pays for AdamW's memory.
STEPS = {
    "cpu": {"demo": (16, 60), "1m": (16, 2), "3.7m": (16, 20), "33m": (8, 2)},
    "cuda": {"demo": (16, 60), "1m": (320, 4), "3.7m": (16, 60), "33m": (320, 2)},
}
USUAL_BATCH = {"cpu": 8, "cuda": 32}  # of one forward pass: the Trainer's default, and the released code's
BATCHES = {"cpu": (2, 4, 8, 16), "cuda": (16, 32, 64)}  # among which the Trainer's best is looked for
SEED = 1


def workload(setup: Setup) -> str:
    sequences, steps = _steps(setup)
    settings = _settings(setup)
    return f"{steps} optimizer steps on {sequences} sequences of {settings.block_size} tokens, AdamW, {settings.precision}"


def corpus(setup: Setup) -> TokenCorpus:
    from collapse_lib.text.corpus import TokenCorpus

    sequences, steps = _steps(setup)
    vocabulary, block = setup.model_config.vocab_size, _settings(setup).block_size
    ranks = np.arange(1, vocabulary)
    shares_of_ids = 1 / ranks / (1 / ranks).sum()  # Zipf's law, about what text has
    # One stream, or a row for each block: whole ones, so that neither side spends time on padding.
    rows, blocks = (1, sequences * steps) if _settings(setup).layout == "contiguous" else (sequences * steps, 1)
    tokens = np.random.default_rng(0).choice(vocabulary - 1, size=(rows, blocks * block + 1), p=shares_of_ids).astype(np.uint16)
    tokens[:, 0] = vocabulary - 1  # every row of a corpus begins with the start token
    return TokenCorpus.in_memory(list(tokens), vocabulary - 1, vocabulary, rows_are_complete=True)


def sides(setup: Setup) -> list[Side]:
    sequences, _ = _steps(setup)
    usual = min(USUAL_BATCH[setup.device], sequences)
    best = tuple(batch for batch in BATCHES[setup.device] if sequences % batch == 0)
    in_bf16 = [
        Side(OURS + IN_BF16, ours, {"precision": "bf16"}),
        Side("transformers' Trainer, its best batch" + IN_BF16, trainer, {"batches": best, "precision": "bf16"}),
    ]
    return [
        Side(OURS, ours),
        Side(f"transformers' Trainer, {usual} sequences a pass", trainer, {"batches": (usual,)}),
        Side("transformers' Trainer, its best batch", trainer, {"batches": best}),
        *(in_bf16 if setup.has_bf16 else []),
    ]


def ours(setup: Setup, precision: str | None = None) -> Callable[[], Work]:
    from collapse_lib.train.loop import train

    data, settings = corpus(setup), _settings(setup, precision)

    def work() -> Work:
        with tempfile.TemporaryDirectory() as checkpoint:
            arguments = {"seed": SEED, "checkpoint_folder": Path(checkpoint), "device": setup.device, "epochs": 1}
            result = train(setup.our_model(), data, settings, **arguments)
        losses = [loss for _, loss in result.loss_curve]
        return Work(result.tokens_seen, result.seconds, {"losses": losses, "batch": "its own size", "precision": settings.precision})

    return work


def trainer(setup: Setup, batches: tuple[int, ...], precision: str | None = None) -> Callable[[], Work]:
    import time

    import torch
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from collapse_lib.train.blocks import Blocks, epoch_batches

    settings = _settings(setup, precision)
    blocks = Blocks(corpus(setup), settings)
    order = np.concatenate(epoch_batches(len(blocks), settings, SEED, epoch=0))
    windows = [blocks.read(np.array([number])) for number in order]
    data = [{"input_ids": np.append(inputs[0], targets[0, -1]), "labels": np.append(inputs[0], targets[0, -1])} for inputs, targets in windows]

    class InOrder(Trainer):
        def _get_train_sampler(self, *arguments: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    class Clock(TrainerCallback):
        losses: list[float]

        def on_train_begin(self, *arguments: Any, **more: Any) -> None:
            self.losses, self.began = [], time.perf_counter()

        def on_log(self, arguments: Any, state: Any, control: Any, logs: dict[str, float], **more: Any) -> None:
            if "loss" in logs:
                self.losses.append(logs["loss"])

        def on_train_end(self, *arguments: Any, **more: Any) -> None:
            self.seconds = time.perf_counter() - self.began

    def fit(batch: int, rows: list[dict[str, np.ndarray]]) -> Clock:
        clock = Clock()
        arguments = TrainingArguments(
            output_dir=str(setup.folder / "trainer"),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=settings.batch_size // batch,
            num_train_epochs=1,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.schedule,
            adam_beta1=settings.betas[0],
            adam_beta2=settings.betas[1],
            adam_epsilon=settings.epsilon,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            fp16=settings.precision == "fp16",
            bf16=settings.precision == "bf16",
            use_cpu=setup.device == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        training = InOrder(model=setup.their_model(), args=arguments, train_dataset=rows, callbacks=[clock])
        training.pop_callback(PrinterCallback)
        training.train()
        if setup.device != "cpu":
            torch.cuda.synchronize()
        return clock

    best = best_batch(batches, lambda batch: fit(batch, data[: settings.batch_size]).seconds)

    def work() -> Work:
        clock = fit(best, data)
        return Work(len(data) * settings.block_size, clock.seconds, {"losses": clock.losses, "batch": best, "precision": settings.precision})

    return work


def checks(setup: Setup, ours: Any, theirs: Any) -> list[dict[str, Any]]:
    """The same losses, step by step."""
    mine, other = np.array(ours["losses"]), np.array(theirs["losses"])
    apart = float(np.abs(mine / other - 1).max()) if len(mine) == len(other) else float("inf")
    steps = f"losses of {len(other)} steps ({other[0]:.3f} to {other[-1]:.3f})"
    tolerance = 2e-3 if theirs["precision"] == "fp32" else 2e-2
    return [check(f"{steps}, largest relative difference {apart:.1e}, with batches of {theirs['batch']}", apart < tolerance)]


def needs(setup: Setup) -> Needs:
    """FLOP of a token forward and backward, in the mean over a block."""
    settings = _settings(setup)
    flops = map(without_weights(setup.model_config).flops_per_token, range(1, settings.block_size + 1))
    return Needs(3 * sum(flops) / settings.block_size, settings.precision)


def _steps(setup: Setup) -> tuple[int, int]:
    return STEPS[setup.device][setup.config]


def _settings(setup: Setup, precision: str | None = None) -> Any:
    precision = precision or ("fp32" if setup.device == "cpu" else setup.settings("training").precision)
    return setup.settings("training", batch_size=_steps(setup)[0], precision=precision, checkpoint_every=10**9)


BENCH = Bench(workload, sides, checks, needs)
