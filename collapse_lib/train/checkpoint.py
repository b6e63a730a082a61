"""A training's checkpoint: written as a whole, verified when it is opened, and restored to the bit."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import naming

if TYPE_CHECKING:
    from accelerate import Accelerator

DIGEST_BYTES = 32  # of SHA-256; torch's reader takes no notice of what follows its archive


@dataclass
class Position:
    """How far a training has come, and what it has to show for it; all that a checkpoint holds besides model and optimizer."""

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
class Checkpoint:
    """One file with everything a training needs to go on, replaced as a whole: torch's archive, and its SHA-256 after it.

    In one file the two cannot part; the archive's own checksums, which torch does not look at, cover less than all of it.
    """

    path: Path
    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    identity: dict[str, Any]  # what decides the training's outcome, to refuse another training's checkpoint

    def save(self, position: Position) -> None:
        """Replace the file; every process waits until the main one has written it."""
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
                with beside.open("w+b") as file:
                    torch.save(content, file)
                    file.seek(0)
                    file.write(hashlib.file_digest(file, "sha256").digest())  # which has read to the end
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(self.path)
        self.accelerator.wait_for_everyone()

    def load(self) -> Position:
        """Restore model, optimizer and loss scale, and return the position; the start of the training where there is no whole file.

        A damaged file is no more than a lost one: a warning names it, and the training runs again from its start, to the same end. Raises
        ``UserError`` for the whole checkpoint of another training, which may be wanted.
        """
        content = self._content()
        if content is None:
            return Position()
        ours, theirs = json.loads(json.dumps(self.identity)), json.loads(content["identity"])
        if other := [name for name in ours if ours[name] != theirs.get(name)]:
            raise UserError(f"The checkpoint {self.path} belongs to a training with another {' and '.join(other)}; delete it to start anew.")
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        return Position(**content["position"])

    def _content(self) -> dict[str, Any] | None:
        """What was saved; None where nothing was, or where the file is not what was written."""
        try:
            with naming(self.path):
                data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(memoryview(data)[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
            warnings.warn(f"The checkpoint {self.path} is damaged or was cut off; this training starts anew.", stacklevel=2)
            return None
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
