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
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import naming
from collapse_lib.experiment.parallel import side_by_side
from collapse_lib.experiment.progress import progress
from collapse_lib.model.gpt_neo import IGNORED

if TYPE_CHECKING:
    from accelerate import Accelerator

    from collapse_lib.experiment.protocol import TrainingSettings
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import TokenCorpus

EMPTY = -1  # a block number that stands for no block: fills up the processes' shares of the last batch of an epoch
REPEATED_SEED = 42  # the released code's data seed, the same for each generation
CPU_TOKENS = 4096  # tokens of a forward pass on a CPU: more of them no longer fit its caches
LOSSES_KEPT_BACK = 16  # steps between reading losses back: a GPU would stand still at every reading
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


class Blocks:
    """A token corpus as numbered training sequences of at most ``block_size`` inputs, each with its targets.

    "contiguous": block ``b`` is the stream's window of ``block_size + 1`` tokens from ``b * block_size`` on, so neighbours share
    one token and every token but the stream's first is a target once; a tail shorter than a block is left out. "story_per_row":
    a row cut to ``block_size + 1`` tokens; a complete row gets the end token that closes its story, and what pads a shorter row
    is no target. Given start tokens are never targets. Raises ``UserError`` when the corpus has not one block.
    """

    def __init__(self, corpus: TokenCorpus, settings: TrainingSettings, name: str = "training") -> None:
        self.corpus = corpus
        self.block_size = settings.block_size
        self.contiguous = settings.layout == "contiguous"
        self.ignored_token = None if settings.eos_is_target else corpus.eos_id
        self.has_given = self.contiguous and corpus.has_start and not corpus.rows_are_complete
        self.count = max(0, corpus.tokens - 1) // self.block_size if self.contiguous else corpus.rows
        if not self.count:
            raise UserError(
                f"The {name} corpus has {corpus.tokens} tokens, less than one block of training.block_size + 1 = {self.block_size + 1};"
                " give more text or a smaller training.block_size."
            )

    def __len__(self) -> int:
        return self.count

    def read(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of some blocks, both int64 ``[blocks, tokens]``; no target is ``-100``, ``EMPTY`` gives none at all."""
        inputs, targets = self._windows(numbers) if self.contiguous else self._stories(numbers)
        if self.ignored_token is not None:
            targets[targets == self.ignored_token] = IGNORED
        return inputs, targets

    def _windows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        windows = np.full((len(numbers), self.block_size + 1), self.corpus.eos_id, dtype=np.int64)
        targets = np.full((len(numbers), self.block_size), IGNORED, dtype=np.int64)
        for window, target, number in zip(windows, targets, numbers.tolist(), strict=True):
            if number == EMPTY:
                continue
            start = number * self.block_size
            window[:] = self.corpus.stream(start, start + self.block_size + 1)
            target[:] = window[1:]
            if self.has_given:
                target[self.corpus.given_starts(start + 1, start + self.block_size + 1)] = IGNORED
        return windows[:, :-1], targets

    def _stories(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        longest = self.block_size + 1
        rows = [self._story(number)[:longest] for number in numbers.tolist()]
        # As wide as the longest of these rows: padding up to block_size would cost time and change nothing.
        width = max(2, max(map(len, rows)))
        tokens = np.full((len(rows), width), self.corpus.eos_id, dtype=np.int64)
        targets = np.full((len(rows), width - 1), IGNORED, dtype=np.int64)
        for row, padded, target in zip(rows, tokens, targets, strict=True):
            padded[: len(row)] = row
            target[: max(0, len(row) - 1)] = row[1:]
        return tokens[:, :-1], targets

    def _story(self, number: int) -> np.ndarray:
        if number == EMPTY:
            return np.empty(0, dtype=np.uint16)
        row = self.corpus.row(number)
        return np.append(row, np.uint16(self.corpus.eos_id)) if self.corpus.rows_are_complete else row


def train(
    model: GPTNeo,
    corpus: TokenCorpus,
    settings: TrainingSettings,
    *,
    seed: int,
    checkpoint_folder: Path,
    device: str = "auto",
    holdout: TokenCorpus | None = None,
    epochs: int | None = None,
) -> TrainingResult:
    """Train ``model`` in place on ``corpus``; go on from the checkpoint in ``checkpoint_folder`` if there is one.

    ``epochs`` overrides ``settings.epochs`` (the count found in generation 1 is reused in the later ones, section 5.1.2). With
    early stopping the loss on ``holdout`` is taken after each epoch; the first epoch that does not lower it ends the training, and
    the weights of the epoch before are kept. ``seed`` decides the order of the blocks, nothing else. The checkpoint stays: delete
    the folder once the model is saved.

    Raises ``UserError`` for a device, precision or batch that cannot be had, a corpus without a block, a checkpoint of another
    training, a loss that is no longer finite, and too many steps skipped in fp16.
    """
    wanted = settings.epochs if epochs is None else epochs
    stopping = wanted == "early_stopping"
    if stopping and holdout is None:
        raise UserError("training.epochs is early_stopping, which needs a hold-out corpus; give one, or a number of epochs.")
    limit = settings.max_epochs if stopping else int(wanted)
    accelerator = _accelerator(device, settings.precision)
    micro = micro_batch_size(settings, model, accelerator.device, accelerator.num_processes)
    blocks = Blocks(corpus, settings)
    held_out = Blocks(holdout, settings, "hold-out") if stopping else None

    model.to(accelerator.device).train()
    optimizer = adamw(model, settings)
    identity = {
        "seed": seed,
        "epochs": wanted,
        "corpus": corpus.hash,
        "holdout": holdout.hash if stopping else None,
        "model": asdict(model.config),
        "settings": json.loads(json.dumps({name: value for name, value in vars(settings).items() if name != "checkpoint_every"})),
    }
    checkpoint = _Checkpoint(Path(checkpoint_folder) / "checkpoint.pt", accelerator, model, optimizer, identity)
    position = checkpoint.load()

    with deterministic(accelerator.device), side_by_side(accelerator.device) as (_, run):
        trainer = _Trainer(settings, seed, limit, micro, blocks, *accelerator.prepare(_Loss(model), optimizer), accelerator, run)
        while position.epoch < limit and not (stopping and position.has_stopped()):
            trainer.run_epoch(position, checkpoint)
            if held_out is not None:
                position.holdout_losses.append(trainer.mean_loss(held_out))
                if not position.has_stopped():
                    position.best = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
            checkpoint.save(position)

    kept = int(np.argmin(position.holdout_losses)) + 1 if stopping else position.epoch
    if stopping:
        model.load_state_dict(position.best)
    model.eval()
    steps = len(position.losses) // position.epoch * kept
    skipped = sum(position.skipped[:kept])
    if skipped == steps:
        raise UserError(f"Not one of the {steps} training steps was taken: {SKIPPED}")
    return TrainingResult(
        epochs=kept,
        epochs_tried=position.epoch,
        steps=steps - skipped,
        skipped_steps=skipped,
        tokens_seen=position.targets // position.epoch * kept,  # each epoch has the same targets
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
    share, rest = divmod(settings.batch_size, processes)
    if rest:
        raise UserError(
            f"training.batch_size = {settings.batch_size} cannot be shared evenly by {processes} processes; use a number of them that divides it."
        )
    if settings.micro_batch_size:
        if share % settings.micro_batch_size:
            raise UserError(
                f"training.batch_size = {settings.batch_size} is not a multiple of training.micro_batch_size x processes"
                f" = {settings.micro_batch_size} x {processes}; choose a micro-batch size that divides {share}."
            )
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


@dataclass
class _Position:
    """Where a training is, and what it has to show so far; all that a checkpoint holds besides model and optimizer."""

    epoch: int = 0  # epochs finished
    step: int = 0  # steps done in the epoch under way
    targets: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # mean loss per target of every step
    skipped: list[int] = field(default_factory=list)  # steps of each finished epoch that fp16 skipped
    holdout_losses: list[float] = field(default_factory=list)
    best: dict[str, Tensor] | None = None  # weights of the epoch with the lowest hold-out loss

    def has_stopped(self) -> bool:
        """Whether the last epoch failed to improve on those before it."""
        return len(self.holdout_losses) > 1 and not self.holdout_losses[-1] < min(self.holdout_losses[:-1])


@dataclass(frozen=True)
class _Checkpoint:
    """One file with everything a training needs to go on, replaced as a whole."""

    path: Path
    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    identity: dict[str, Any]  # what decides the training's outcome, to refuse another training's checkpoint

    def save(self, position: _Position) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            content = {
                "identity": json.dumps(self.identity, sort_keys=True),
                "position": vars(position),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_suffix(".tmp")
            with naming(self.path):
                with beside.open("wb") as file:
                    torch.save(content, file)
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(self.path)
        self.accelerator.wait_for_everyone()

    def load(self) -> _Position:
        if not self.path.exists():
            return _Position()
        damages = (RuntimeError, OSError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError)  # torch's answers to a broken file
        with self.path.open("rb") as file:  # which can be opened, at least
            try:
                content = torch.load(file, map_location="cpu", weights_only=True)
                theirs = json.loads(content["identity"])
            except damages:
                raise UserError(f"The checkpoint {self.path} is damaged or was cut off; delete it to start this training anew.") from None
        mine = json.loads(json.dumps(self.identity))
        other = [name for name in mine if mine[name] != theirs[name]]
        if other:
            raise UserError(f"The checkpoint {self.path} belongs to a training with another {' and '.join(other)}; delete it to start anew.")
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        return _Position(**content["position"])


@dataclass(frozen=True)
class _Trainer:
    """What every step of a training needs."""

    settings: TrainingSettings
    seed: int
    limit: int  # most epochs
    micro: int  # sequences of a forward pass
    blocks: Blocks
    loss_module: nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    run: Callable[..., Iterator[Any]]  # ``map``, or on a CPU one that works side by side

    def run_epoch(self, position: _Position, checkpoint: _Checkpoint) -> None:
        """Train from the position to the end of its epoch, which then counts as finished."""
        batches = epoch_batches(len(self.blocks), self.settings, self.seed, position.epoch)
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
                if due or finished or len(pending) == LOSSES_KEPT_BACK:
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
        for parameter, *found in zip(parameters, *gradients, strict=True):
            parameter.grad = functools.reduce(Tensor.add_, found)
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

    def _bar(self, position: _Position) -> Any:
        if not self.accelerator.is_main_process:
            from tqdm import tqdm

            return tqdm(disable=True)
        tokens = self.blocks.block_size
        done = position.step * self.settings.batch_size * tokens
        return progress(len(self.blocks) * tokens, "token", f"epoch {position.epoch + 1} of {self.limit}", initial=done)

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.accelerator.device, non_blocking=True) if self.accelerator.device.type == "cuda" else tensor


def epoch_batches(blocks: int, settings: TrainingSettings, seed: int, epoch: int) -> list[np.ndarray]:
    """The block numbers of every effective batch of an epoch; the last may be smaller, so that a small corpus is learned whole."""
    entropy = (REPEATED_SEED if settings.data_order == "repeated" else seed, epoch)
    order = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).permutation(blocks)
    return [order[start : start + settings.batch_size] for start in range(0, blocks, settings.batch_size)]


def _accelerator(device: str, precision: str) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UserError("The device is cuda, but torch finds no GPU here; choose cpu or auto.")
    on_cpu = device == "cpu" or not has_cuda
    if on_cpu and precision == "fp16":
        raise UserError("training.precision is fp16, which needs a GPU; on a CPU choose --set training.precision=fp32 or bf16.")
    # accelerate remembers device and precision for the whole process; a notebook may train a second time with others.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=on_cpu, mixed_precision="no" if precision == "fp32" else precision)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Kernels that add in a fixed order, without which a GPU does not repeat itself bit for bit; a CPU does anyway.

    Not torch's ``warn_only``: with it, attention keeps the backward pass whose order of summation is left to chance, and says so.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filling
