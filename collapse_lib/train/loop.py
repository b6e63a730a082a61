"""One generation's pre-training (section 5.1.2): a fixed corpus, AdamW at the paper's constant rate or a falling one, an exact effective batch.

The work goes through ``accelerate``, so the same call trains on one CPU, on one GPU, or on every process that ``accelerate launch``
or ``torchrun`` has started. An interrupted training continues from its last checkpoint and, on the same machine, ends with the
same weights bit for bit: on a GPU, torch is held to deterministic kernels and refuses an operation that has none. Among several
GPUs, gradients are added by NCCL, whose order of summation nobody promises.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.limits import share_of_batch
from collapse_lib.experiment.parallel import side_by_side
from collapse_lib.experiment.progress import progress
from collapse_lib.model.loss import IGNORED
from collapse_lib.model.precision import explicit_dtype
from collapse_lib.train.blocks import EMPTY, Blocks, epoch_batches
from collapse_lib.train.checkpoint import Checkpoint, Position
from collapse_lib.train.devices import deterministic, make_accelerator

if TYPE_CHECKING:
    from accelerate import Accelerator

    from collapse_lib.experiment.protocol import TrainingSettings
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.view import Selection, Union

CPU_TOKENS = 4096  # tokens of a forward pass on a CPU: more of them no longer fit its caches
STEPS_BETWEEN_READINGS = 16  # steps between reading losses back: a GPU would stand still at every reading
CURVE_POINTS = 400
FINAL_STEPS = 50
SKIPPED = "their gradients are beyond fp16; set training.precision=fp32 or bf16, or lower training.learning_rate."
SKIPS_AT_START, SKIPPED_SHARE = 16, 0.1  # steps that fp16 may skip: from 2^16, its scale is halved to 1 in 16 of them; later, one in ten


@dataclass(frozen=True)
class TrainingResult:
    """What came out of a training; the model itself holds the weights.

    ``epochs``, ``steps``, ``skipped_steps`` and ``tokens_seen`` (targets, not given tokens or padding) describe the weights that were kept;
    ``steps`` were taken, the skipped ones had gradients beyond fp16 and changed nothing, and ``tokens_seen`` counts the targets of both.
    ``epochs_tried`` is how far early stopping looked. Losses are in nats per token: ``loss_curve`` has at most 400 points
    ``[step, mean loss since the point before]`` over all epochs tried, ``final_loss`` is the mean over the last 50 steps kept,
    ``holdout_losses`` has one value an epoch if the epochs were found by early stopping. ``tokens_per_second`` counts targets
    over the ``seconds`` spent in training steps, all attempts of an interrupted training together.
    """

    epochs: int
    epochs_tried: int
    steps: int
    skipped_steps: int
    tokens_seen: int
    final_loss: float
    loss_curve: list[list[float]]
    holdout_losses: list[float]
    seconds: float
    tokens_per_second: float


def train(
    model: GPTNeo,
    corpus: TokenCorpus | Selection | Union,
    settings: TrainingSettings,
    *,
    seed: int,
    checkpoint_folder: Path,
    device: str = "auto",
    holdout: TokenCorpus | None = None,
    epochs: int | None = None,
    epoch_share: float = 1.0,
) -> TrainingResult:
    """Train ``model`` in place on ``corpus``; go on from the checkpoint in ``checkpoint_folder`` if there is one.

    ``epochs`` overrides ``settings.epochs`` (the count found in generation 1 is reused in the later ones, section 5.1.2). With
    early stopping the loss on ``holdout`` is taken after each epoch; the first epoch that does not lower it ends the training, and
    the weights of the epoch before are kept. ``epoch_share`` is how much of the corpus an epoch reads, drawn anew for each.
    ``seed`` decides the order of the blocks, nothing else. A damaged checkpoint is named in a
    warning, and the training starts anew. The checkpoint stays: delete the folder once the model is saved.

    Raises ``UserError`` for a device, precision or batch that cannot be had, a corpus without a block, a checkpoint of another
    training, a loss that is no longer finite, and too many steps skipped in fp16.
    """
    epochs = settings.epochs if epochs is None else epochs
    stopping = epochs == "early_stopping"
    if stopping and holdout is None:
        raise UserError("training.epochs is early_stopping, which needs a hold-out corpus; give one, or a number of epochs.")
    limit = settings.max_epochs if stopping else int(epochs)
    accelerator = make_accelerator(device, settings.precision)
    micro = micro_batch_size(settings, model, accelerator.device, accelerator.num_processes)
    blocks = Blocks(corpus, settings)
    held_out = Blocks(holdout, settings, "hold-out") if stopping else None

    products = explicit_dtype(settings.precision, accelerator.device)
    model.to(accelerator.device).train()
    optimizer = adamw(model, settings)
    identity = {
        "seed": seed,
        "epochs": epochs,
        "epoch_share": epoch_share,
        "corpus": corpus.hash,
        "holdout": holdout.hash if stopping else None,
        "model": asdict(model.config),
        "products": str(products),
        "settings": json.loads(json.dumps({name: value for name, value in vars(settings).items() if name != "checkpoint_every"})),
    }
    checkpoint = Checkpoint(Path(checkpoint_folder) / "checkpoint.pt", accelerator, model, optimizer, identity)
    position = checkpoint.load()

    with deterministic(accelerator.device), model.multiplying_in(products), side_by_side(accelerator.device) as (_, run):
        trainer = _Trainer(settings, seed, limit, epoch_share, micro, blocks, *accelerator.prepare(_Loss(model), optimizer), accelerator, run)
        while position.epoch < limit and not (stopping and position.has_stopped()):
            trainer.run_epoch(position, checkpoint)
            if held_out is not None:
                position.holdout_losses.append(trainer.mean_loss(held_out))
                if not position.has_stopped():
                    position.best = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
            checkpoint.save(position)

    epochs_kept = int(np.argmin(position.holdout_losses)) + 1 if stopping else position.epoch
    if stopping:
        model.load_state_dict(position.best)
    model.eval()
    steps = len(position.losses) // position.epoch * epochs_kept
    skipped = sum(position.skipped[:epochs_kept])
    if skipped == steps:
        raise UserError(f"Not one of the {steps} training steps was taken: {SKIPPED}")
    return TrainingResult(
        epochs=epochs_kept,
        epochs_tried=position.epoch,
        steps=steps - skipped,
        skipped_steps=skipped,
        tokens_seen=position.targets // position.epoch * epochs_kept,  # each epoch has the same targets
        final_loss=float(np.mean(position.losses[max(0, steps - FINAL_STEPS) : steps])),
        loss_curve=thinned(position.losses),
        holdout_losses=position.holdout_losses,
        seconds=position.seconds,
        tokens_per_second=position.targets / position.seconds,
    )


def adamw(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and embeddings, and none on biases and LayerNorm."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.epsilon, fused=True)


def micro_batch_size(settings: TrainingSettings, model: GPTNeo, device: torch.device, processes: int) -> int:
    """Sequences of one forward pass on one device, such that micro x accumulation x processes is exactly ``settings.batch_size``.

    Raises ``UserError`` where no accumulation gives that product.
    """
    share = share_of_batch(settings.batch_size, settings.micro_batch_size, processes)
    if settings.micro_batch_size:
        return settings.micro_batch_size
    tokens, parts = CPU_TOKENS, torch.get_num_threads()  # on a CPU, work for every core
    if device.type == "cuda":
        parts = 1
        # What backward needs of each layer: about 34 vectors of the hidden size and two rows of attention, 4 bytes a value. A quarter of
        # the device's whole memory (not of what is free now, so that a resumed training cuts its batches alike) leaves room for the rest.
        shape = model.config
        bytes_per_token = shape.num_layers * (34 * shape.hidden_size + 2 * shape.num_heads * settings.block_size) * 4
        tokens = torch.cuda.get_device_properties(device).total_memory // 4 // bytes_per_token
    fitting = max(1, tokens // settings.block_size)
    return max(size for size in range(1, min(max(1, share // parts), fitting) + 1) if share % size == 0)


def thinned(losses: list[float], points: int = CURVE_POINTS) -> list[list[float]]:
    """At most ``points`` pairs ``[step, mean loss of the steps since the pair before]``, steps counted from 1."""
    parts = np.array_split(np.arange(len(losses)), min(points, len(losses))) if losses else []
    return [[int(part[-1]) + 1, float(np.mean([losses[i] for i in part]))] for part in parts]


class _Loss(nn.Module):
    """The model's summed loss as a ``forward``, which is what ``accelerate`` wraps for mixed precision and for processes."""

    def __init__(self, model: GPTNeo) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(inputs, targets)[0]


@dataclass(frozen=True)
class _Trainer:
    """What every step of a training needs."""

    settings: TrainingSettings
    seed: int
    limit: int  # most epochs
    epoch_share: float  # of the blocks, what an epoch reads
    micro: int  # sequences of a forward pass
    blocks: Blocks
    loss_module: nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    run: Callable[..., Iterator[Any]]  # ``map``, or on a CPU one that works side by side

    def run_epoch(self, position: Position, checkpoint: Checkpoint) -> None:
        """Train from the position to the end of its epoch, which then counts as finished."""
        batches = epoch_batches(len(self.blocks), self.settings, self.seed, position.epoch, self.epoch_share)
        pending: list[Tensor] = []  # losses of the last steps, still on the device
        mark = time.perf_counter()
        with self._bar(position) as bar:
            for batch in batches[position.step :]:
                self._set_rate((position.epoch + position.step / len(batches)) / self.limit)
                loss, targets = self.take_step(batch)
                pending.append(loss)
                position.targets += targets
                position.step += 1
                bar.update(len(batch) * self.blocks.block_size)
                finished = position.step == len(batches)
                due = position.step % self.settings.checkpoint_every == 0 and not finished
                if due or finished or len(pending) == STEPS_BETWEEN_READINGS:
                    # Read before anything is saved, so that no checkpoint holds a training that has gone astray.
                    position.losses.extend(self._read(pending, len(position.losses)))
                    pending.clear()
                    skipped = self._skipped(len(position.losses))
                    bar.set_postfix_str(f"loss {position.losses[-1]:.3f}", refresh=False)
                    now = time.perf_counter()
                    position.seconds += now - mark
                    mark = now
                if due:
                    checkpoint.save(position)
                    mark = time.perf_counter()
        position.epoch += 1
        position.step = 0
        position.skipped.append(skipped - sum(position.skipped))

    def _set_rate(self, done: float) -> None:
        """The learning rate of the next step, ``done`` being the share of all steps that are behind it."""
        if self.settings.schedule == "linear":
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * (1 - done)

    def take_step(self, batch: np.ndarray) -> tuple[Tensor, int]:
        """One optimizer step on the blocks of an effective batch; this process's part of their mean loss, and all their targets."""
        accelerator, processes = self.accelerator, self.accelerator.num_processes
        if processes > 1:
            batch = np.append(batch, np.full(-len(batch) % processes, EMPTY))  # equal shares, so that all synchronise equally often
        inputs, targets = self.blocks.read(batch[accelerator.process_index :: processes])
        count = int((targets != IGNORED).sum())
        if processes > 1:
            count = int(accelerator.reduce(torch.tensor(count, device=accelerator.device), "sum"))
        inputs, targets = self._to_device(inputs), self._to_device(targets)
        parts = [slice(start, start + self.micro) for start in range(0, len(inputs), self.micro)]
        alone = accelerator.device.type == "cpu" and processes == 1 and accelerator.scaler is None  # accelerate's backward would scale the loss
        accumulate = self._accumulate_side_by_side if alone else self._accumulate
        loss = accumulate([(inputs[rows], targets[rows]) for rows in parts], max(1, count))
        if self.settings.max_grad_norm is not None:
            accelerator.clip_grad_norm_(self.loss_module.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, count

    def _accumulate(self, parts: list[tuple[Tensor, Tensor]], count: int) -> Tensor:
        """Add the gradient of the mean loss over ``count`` targets, one forward pass after the other; returns this process's part of the loss."""
        accelerator = self.accelerator
        loss = torch.zeros((), device=accelerator.device)
        for number, (inputs, targets) in enumerate(parts, 1):
            with accelerator.no_sync(self.loss_module) if number < len(parts) else nullcontext():
                part = self.loss_module(inputs, targets) / count
                accelerator.backward(part * accelerator.num_processes)  # the processes' gradients are averaged, and their sum is wanted
            loss += part.detach()
        return loss

    def _accumulate_side_by_side(self, parts: list[tuple[Tensor, Tensor]], count: int) -> Tensor:
        """The same on a CPU, the forward passes on a core each; their gradients are added in order, so that no race decides the rounding."""
        parameters = list(self.loss_module.parameters())

        def gradient(part: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
            loss = self.loss_module(*part) / count
            return loss.detach(), torch.autograd.grad(loss, parameters)

        losses, gradients = zip(*self.run(gradient, parts), strict=True)
        for parameter, *parts in zip(parameters, *gradients, strict=True):
            parameter.grad = functools.reduce(Tensor.add_, parts)
        return sum(losses)

    @torch.no_grad()
    def mean_loss(self, blocks: Blocks) -> float:
        """Mean loss in nats per target over all blocks, every process taking its share."""
        accelerator = self.accelerator
        total = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
        mine = np.arange(accelerator.process_index, len(blocks), accelerator.num_processes)
        for start in range(0, len(mine), self.micro):
            inputs, targets = blocks.read(mine[start : start + self.micro])
            total[0] += self.loss_module(self._to_device(inputs), self._to_device(targets))
            total[1] += int((targets != IGNORED).sum())
        loss_sum, count = accelerator.reduce(total, "sum").tolist()
        loss = loss_sum / max(1.0, count)
        if not math.isfinite(loss):
            raise UserError(f"The hold-out loss became {loss}; lower training.learning_rate.")
        return loss

    def _read(self, pending: list[Tensor], steps_before: int) -> list[float]:
        losses = self.accelerator.reduce(torch.stack(pending), "sum").tolist()
        for step, loss in enumerate(losses, steps_before + 1):
            if not math.isfinite(loss):
                raise UserError(f"The training loss became {loss} at step {step}; lower training.learning_rate or set training.precision=fp32.")
        return losses

    def _skipped(self, steps: int) -> int:
        """How many of all ``steps`` so far were skipped because gradients overflowed; the optimizer's own counter leaves them out."""
        if self.accelerator.scaler is None:
            return 0
        skipped = steps - int(next(iter(self.optimizer.state.values()))["step"])
        if skipped > max(SKIPS_AT_START, SKIPPED_SHARE * steps):
            raise UserError(f"{skipped} of the first {steps} training steps were skipped: {SKIPPED}")
        return skipped

    def _bar(self, position: Position) -> Any:
        if not self.accelerator.is_main_process:
            from tqdm import tqdm

            return tqdm(disable=True)
        tokens = self.blocks.block_size
        done = position.step * self.settings.batch_size * tokens
        return progress(round(self.epoch_share * len(self.blocks)) * tokens, "token", f"epoch {position.epoch + 1} of {self.limit}", initial=done)

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.accelerator.device, non_blocking=True) if self.accelerator.device.type == "cuda" else tensor
