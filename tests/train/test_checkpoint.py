"""An interrupted training ends as an unbroken one, whatever became of its checkpoint."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from small_training import Interrupted, assert_same, interrupted_after, new_model, plain, random_rows, settings, start, weights, write
from torch import nn

from collapse_lib.experiment.errors import UserError
from collapse_lib.train.checkpoint import Checkpoint, Position
from collapse_lib.train.loop import train


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resuming_ends_bit_for_bit_as_if_unbroken(tmp_path, corpus, precision):
    holdout = write(tmp_path / "holdout", random_rows(20, 13, seed=9), complete=False)
    chosen = settings(epochs="early_stopping", max_epochs=3, checkpoint_every=3, precision=precision)  # 7 steps an epoch, two checkpoints in it

    def run(folder: str):
        model = new_model()
        result = train(model, corpus, chosen, seed=5, checkpoint_folder=tmp_path / folder, device="cpu", holdout=holdout)
        return weights(model), plain(result)

    unbroken, expected = run("unbroken")
    assert expected["epochs_tried"] > 1 and expected["steps"] % 7 == 0
    # before the first checkpoint, on one, after one, at an epoch's last step, after its end; the last one breaks twice
    for breaks in ([2], [3], [5], [7], [8], [14], [4, 3]):
        folder = f"after-{breaks}"
        for steps in breaks:
            with interrupted_after(steps), pytest.raises(Interrupted):
                run(folder)
        resumed, result = run(folder)
        assert_same(resumed, unbroken)
        assert result == expected
    finished, result = run("unbroken")  # a finished training has nothing left to do
    assert_same(finished, unbroken)
    assert result == expected


def test_resuming_after_sigkill(tmp_path, corpus):
    def run(folder: Path) -> dict[str, torch.Tensor]:
        model = new_model()
        train(model, corpus, settings(checkpoint_every=2), seed=5, checkpoint_folder=folder, device="cpu")
        return weights(model)

    assert start("kill", corpus, tmp_path / "killed").wait(120) == -signal.SIGKILL
    assert torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["position"]["step"] == 4
    assert_same(run(tmp_path / "killed"), run(tmp_path / "unbroken"))


def test_the_checkpoint_of_another_training_is_refused(tmp_path, corpus):
    def run(seed: int, **changes):
        return train(new_model(), corpus, settings(**changes), seed=seed, checkpoint_folder=tmp_path / "k", device="cpu")

    run(1)
    with pytest.raises(UserError, match=r"checkpoint\.pt belongs to a training with another seed and settings; delete it"):
        run(2, learning_rate=1e-3)
    run(1, checkpoint_every=7)  # how often one is written decides nothing
    next(tmp_path.rglob("checkpoint.pt")).unlink()
    run(2, learning_rate=1e-3)


DAMAGES = {
    "empty": lambda whole: b"",
    "one byte": lambda whole: whole[:1],
    "less than its hash": lambda whole: whole[:20],
    "half": lambda whole: whole[: len(whole) // 2],
    "all but the last byte": lambda whole: whole[:-1],
    "a byte more": lambda whole: whole + b"\0",
    "a bit of the first weights": lambda whole: flipped(whole, len(whole) // 5),
    "a bit in the middle": lambda whole: flipped(whole, len(whole) // 2),
    "a bit of the archive's directory": lambda whole: flipped(whole, len(whole) - 100),
    "a bit of its hash": lambda whole: flipped(whole, len(whole) - 1),
    "nothing but zeros": lambda whole: bytes(len(whole)),
    "another file": lambda whole: json.dumps({"epoch": 7}).encode(),
}


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_as_good_as_none(tmp_path, corpus, damage):
    """Named in a warning, and ignored: the training runs again from its start, and ends with the same numbers bit for bit."""

    def run(folder: str):
        model = new_model()
        result = train(model, corpus, settings(checkpoint_every=3), seed=5, checkpoint_folder=tmp_path / folder, device="cpu")
        return weights(model), plain(result)

    unbroken, expected = run("unbroken")
    with interrupted_after(5), pytest.raises(Interrupted):
        run("broken")
    file = tmp_path / "broken" / "checkpoint.pt"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    with pytest.warns(UserWarning, match=r"checkpoint\.pt is damaged or was cut off; this training starts anew"):
        resumed, result = run("broken")
    assert_same(resumed, unbroken)
    assert result == expected
    assert torch.load(file, weights_only=True)["position"]["epoch"] == 2  # a whole one lies there again


def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed(tmp_path):
    """Also where it would change nothing that is read, as in the archive's padding."""
    model = nn.Linear(3, 2)
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", Accelerator(cpu=True), model, torch.optim.AdamW(model.parameters()), {"seed": 1})
    checkpoint.save(Position(epoch=1))
    whole = checkpoint.path.read_bytes()
    assert checkpoint.load() == Position(epoch=1)
    for at in range(0, len(whole), 11):
        checkpoint.path.write_bytes(flipped(whole, at))
        with pytest.warns(UserWarning, match="is damaged"):
            assert checkpoint.load() == Position(), at
