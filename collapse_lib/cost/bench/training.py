"""One generation's training against transformers' model under its ``Trainer``, with the paper's settings on the same blocks in the same order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from collapse_lib.cost.bench import OURS, Setup, Side, Work, check, limits, shares
from collapse_lib.cost.bench.sampling import config_model, make_input  # noqa: F401 - the same model is the input

if TYPE_CHECKING:
    from collapse_lib.text.corpus import TokenCorpus

UNIT = "tokens"
# (sequences of an optimizer step, steps of a round): the paper's 320 would take minutes a step on a CPU. The first step also pays for AdamW's memory.
STEPS = {"cpu": {"demo": (8, 30), "1m": (16, 2), "33m": (8, 2)}, "cuda": {"demo": (8, 30), "1m": (320, 4), "33m": (320, 2)}}
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
    tokens = np.random.default_rng(0).choice(vocabulary - 1, size=sequences * steps * block + 1, p=shares_of_ids).astype(np.uint16)
    tokens[0] = vocabulary - 1  # every row of a corpus begins with the start token
    return TokenCorpus.in_memory([tokens], vocabulary - 1, vocabulary, rows_are_complete=True)


def sides(setup: Setup) -> list[Side]:
    sequences, _ = _steps(setup)
    usual = min(USUAL_BATCH[setup.device], sequences)
    best = tuple(batch for batch in BATCHES[setup.device] if sequences % batch == 0)
    return [
        Side(OURS, ours),
        Side(f"transformers' Trainer, {usual} sequences a pass", trainer, {"batches": (usual,)}),
        Side("transformers' Trainer, its best batch", trainer, {"batches": best}),
    ]


def ours(setup: Setup) -> Callable[[], Work]:
    import shutil

    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.train.loop import train

    data = corpus(setup)

    def work() -> Work:
        model = GPTNeo.from_pretrained(setup.model_folder)
        place = setup.folder / "checkpoint"
        result = train(model, data, _settings(setup), seed=SEED, checkpoint_folder=place, device=setup.device, epochs=1)
        shutil.rmtree(place)
        return Work(result.tokens_seen, result.seconds, {"losses": [loss for _, loss in result.loss_curve]})

    return work


def trainer(setup: Setup, batches: tuple[int, ...]) -> Callable[[], Work]:
    import time

    import torch
    from torch.utils.data import SequentialSampler
    from transformers import GPTNeoForCausalLM, Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    from collapse_lib.train.blocks import Blocks, epoch_batches

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    settings = _settings(setup)
    blocks = Blocks(corpus(setup), settings)
    order = np.concatenate(epoch_batches(len(blocks), settings, SEED, epoch=0))
    windows = [blocks.read(np.array([number])) for number in order]
    data = [{"input_ids": np.append(shown[0], target[0, -1]), "labels": np.append(shown[0], target[0, -1])} for shown, target in windows]

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
        model = GPTNeoForCausalLM.from_pretrained(setup.model_folder)
        clock = Clock()
        arguments = TrainingArguments(
            output_dir=str(setup.folder / "trainer"),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=settings.batch_size // batch,
            num_train_epochs=1,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant",
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
        training = InOrder(model=model, args=arguments, train_dataset=rows, callbacks=[clock])
        training.pop_callback(_printer())
        training.train()
        if setup.device != "cpu":
            torch.cuda.synchronize()
        return clock

    best = batches[0]
    if len(batches) > 1:
        best = min(batches, key=lambda batch: fit(batch, data[: settings.batch_size]).seconds)

    def work() -> Work:
        clock = fit(best, data)
        return Work(len(data) * settings.block_size, clock.seconds, {"losses": clock.losses, "batch": best})

    return work


def _printer() -> type:
    from transformers import PrinterCallback

    return PrinterCallback


def checks(setup: Setup, outcomes: dict[str, Any]) -> list[dict[str, Any]]:
    """The same losses, step by step."""
    mine = np.array(outcomes[OURS]["losses"])
    tolerance = 2e-3 if _settings(setup).precision == "fp32" else 2e-2
    found = []
    for name, outcome in outcomes.items():
        if name == OURS:
            continue
        theirs = np.array(outcome["losses"])
        apart = float(np.abs(mine / theirs - 1).max()) if len(mine) == len(theirs) else float("inf")
        steps = f"losses of {len(theirs)} steps ({theirs[0]:.3f} to {theirs[-1]:.3f})"
        found.append(check(f"{steps}, largest relative difference {apart:.1e} ({name}, batch {outcome['batch']})", apart < tolerance))
    return found


def floors(setup: Setup, rate: float) -> list[dict[str, Any]]:
    block = _settings(setup).block_size
    flops = 3 * sum(map(config_model(setup).flops_per_token, range(1, block + 1))) / block
    return shares(limits(setup, flops, 1.0, _settings(setup).precision)[:1], rate)


def _steps(setup: Setup) -> tuple[int, int]:
    return STEPS[setup.device][setup.config]


def _settings(setup: Setup) -> Any:
    precision = "fp32" if setup.device == "cpu" else setup.settings("training").precision
    return setup.settings("training", batch_size=_steps(setup)[0], precision=precision, checkpoint_every=10**9)
