"""Training: what a step does, early stopping, fp16, processes and devices."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_training import (
    CONFIG,
    EOS,
    VOCABULARY,
    Interrupted,
    assert_same,
    interrupted_after,
    new_model,
    plain,
    random_rows,
    settings,
    start,
    weights,
    write,
)

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.machine import bf16_units
from collapse_lib.model import precision as precision_module
from collapse_lib.model.gpt_neo import GPTNeo
from collapse_lib.train.blocks import Blocks
from collapse_lib.train.devices import deterministic, make_accelerator
from collapse_lib.train.loop import adamw, micro_batch_size, thinned, train

CPU = torch.device("cpu")


# Steps


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_steps_equal_those_of_transformers_and_plain_adamw(tmp_path, corpus, schedule):
    """The batch is the whole corpus, so an epoch is one step, and no order of blocks can hide in the comparison."""
    from transformers import GPTNeoConfig as ReferenceConfig
    from transformers import GPTNeoForCausalLM

    chosen = settings(batch_size=120, micro_batch_size=30, epochs=5, weight_decay=0.1, max_grad_norm=0.3, schedule=schedule)
    model = new_model()
    reference = GPTNeoForCausalLM._from_config(ReferenceConfig(**model.config.to_hf()), attn_implementation="eager")
    reference.load_state_dict({**model.state_dict(), "lm_head.weight": model.head}, strict=False)
    result = train(model, corpus, chosen, seed=3, checkpoint_folder=tmp_path / "checkpoint", device="cpu")

    stream = corpus.stream(0, corpus.tokens).astype(np.int64)
    inputs = torch.from_numpy(np.stack([stream[start : start + 8] for start in range(0, len(stream) - 8, 8)]))
    targets = torch.tensor([[-100 if (i + j + 1) % 14 == 0 else stream[i + j + 1] for j in range(8)] for i in range(0, len(stream) - 8, 8)])
    assert len(inputs) == 104 and result.tokens_seen == 5 * int((targets != -100).sum())
    named = dict(reference.named_parameters())
    plain = [name for name in named if "ln_" in name or name.endswith("bias")]
    groups = [
        {"params": [named[name] for name in plain], "weight_decay": 0.0},
        {"params": [value for name, value in named.items() if name not in plain], "weight_decay": 0.1},
    ]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.95), eps=1e-8, foreach=False, fused=False)
    losses, norms = [], []
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 5 if schedule == "linear" else 1.0)
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(reference(inputs).logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.3)))
        optimizer.step()
        falling.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    assert min(norms) > 0.3  # clipping had work to do
    assert [loss for _, loss in result.loss_curve] == pytest.approx(losses, rel=1e-5)
    theirs, start = reference.state_dict(), weights(new_model())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, theirs[name], atol=2e-5, rtol=0)
        assert (value - start[name]).abs().max() > 2e-3, name  # a hundred times the tolerance


@pytest.mark.parametrize("layout", ["contiguous", "story_per_row"])
def test_accumulation_changes_rounding_only(tmp_path, corpus, layout):
    trained = []
    for micro in (16, 4):
        model = new_model()
        train(model, corpus, settings(micro_batch_size=micro, layout=layout), seed=3, checkpoint_folder=tmp_path / str(micro), device="cpu")
        trained.append(weights(model))
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, atol=1e-4, rtol=0)
        assert not torch.equal(value, new_model().state_dict()[name])


def test_decay_spares_biases_and_layer_norms():
    model = new_model()
    decayed, spared = adamw(model, settings(weight_decay=0.1)).param_groups
    names = {value: name for name, value in model.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert {names[p] for p in spared["params"]} == {name for name in names.values() if "ln_" in name or name.endswith(".bias")}
    assert {names[p] for p in decayed["params"]} >= {"transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.mlp.c_fc.weight"}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    assert (decayed["lr"], decayed["betas"], decayed["eps"]) == (2e-3, (0.9, 0.95), 1e-8)


def test_the_effective_batch_is_exact_or_refused():
    big = settings(batch_size=320, block_size=512)
    for processes in (1, 2, 5):
        micro = micro_batch_size(big, new_model(), CPU, processes)
        assert 320 // processes % micro == 0 and micro * 512 <= 4096
    assert micro_batch_size(settings(batch_size=6, micro_batch_size=3), new_model(), CPU, 2) == 3
    with pytest.raises(UserError, match="cannot be shared evenly by 3 processes"):
        micro_batch_size(big, new_model(), CPU, 3)
    with pytest.raises(UserError, match=r"not a multiple of training.micro_batch_size x processes = 32 x 8"):
        micro_batch_size(settings(batch_size=320, micro_batch_size=32), new_model(), CPU, 8)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_language_that_can_be_learned_is_learned(tmp_path, precision):
    rows = [[(start + 3 * step) % EOS for step in range(16)] for start in range(EOS)] * 4
    chosen = settings(epochs=8, learning_rate=1e-2, precision=precision)
    model = GPTNeo(CONFIG, 1)
    result = train(model, write(tmp_path / "c", rows), chosen, seed=1, checkpoint_folder=tmp_path / "k", device="cpu")
    assert result.loss_curve[0][1] == pytest.approx(np.log(VOCABULARY), rel=0.02)
    assert result.final_loss < 0.8  # a story's first token is one of 31, and one token in 17 is such
    assert result.final_loss == pytest.approx(np.mean([loss for _, loss in result.loss_curve[-50:]]))
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    assert (result.epochs, result.epochs_tried, result.holdout_losses) == (8, 8, [])
    assert result.tokens_per_second == pytest.approx(result.tokens_seen / result.seconds)


def test_bf16_on_a_cpu_trains_as_fp32_does(tmp_path):
    """Held-out losses of bf16 lie within the spread that the seeds of fp32 have; the products are bf16's, and everything kept is fp32."""
    random = np.random.default_rng(0)
    table = random.permuted(np.tile(np.arange(EOS), (EOS, 1)), axis=1)[:, :3]  # each token has three successors

    def rows(count: int) -> list[list[int]]:
        drawn = np.empty((count, 16), dtype=int)
        drawn[:, 0] = random.integers(EOS, size=count)
        for step in range(1, 16):
            drawn[:, step] = table[drawn[:, step - 1], random.choice(3, size=count, p=[0.6, 0.3, 0.1])]
        return drawn.tolist()

    text, held_out = write(tmp_path / "text", rows(300)), write(tmp_path / "holdout", rows(100))

    def loss(seed: int, precision: str) -> float:
        chosen = settings(epochs="early_stopping", max_epochs=4, learning_rate=1e-2, precision=precision)
        folder = tmp_path / f"{precision}-{seed}"
        return train(GPTNeo(CONFIG, seed), text, chosen, seed=seed, checkpoint_folder=folder, device="cpu", holdout=held_out).holdout_losses[-1]

    full, half = (np.array([loss(seed, precision) for seed in range(4)]) for precision in ("fp32", "bf16"))
    assert full.mean() < 2  # of log 32 = 3.5: it has learned
    assert abs(half.mean() - full.mean()) < 2 * full.std(ddof=1)
    if bf16_units():
        assert (half != full).all()


def test_a_cpu_without_units_for_bf16_says_that_it_will_multiply_in_fp32(tmp_path, corpus, monkeypatch):
    def trained(precision: str) -> dict[str, torch.Tensor]:
        model = new_model()
        train(model, corpus, settings(precision=precision), seed=1, checkpoint_folder=tmp_path / precision, device="cpu")
        return weights(model)

    monkeypatch.setattr("collapse_lib.model.precision.bf16_units", lambda: [])
    precision_module._say_fp32.cache_clear()
    with pytest.warns(UserWarning, match=r"bf16, for which this CPU has no units .*: products will run in fp32\."):
        fallen_back = trained("bf16")
    assert_same(fallen_back, trained("fp32"))


def test_what_cannot_be_had_is_refused_in_a_sentence(tmp_path, corpus):
    def attempt(device="cpu", **changes):
        train(new_model(), corpus, settings(**changes), seed=1, checkpoint_folder=tmp_path / "k", device=device)

    with pytest.raises(UserError, match="fp16, which needs a GPU"):
        attempt(precision="fp16")
    with pytest.raises(UserError, match="needs a hold-out corpus"):
        attempt(epochs="early_stopping")
    with pytest.raises(UserError, match=r"loss became (nan|inf) at step \d+; lower training.learning_rate"):
        attempt(learning_rate=1e30, checkpoint_every=1)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch finds no GPU"):
            attempt(device="cuda")


def test_curve_is_thinned_to_means():
    assert thinned([3.0, 1.0]) == [[1, 3.0], [2, 1.0]]
    assert thinned([float(i) for i in range(1, 13)], points=4) == [[3, 2.0], [6, 5.0], [9, 8.0], [12, 11.0]]
    assert len(thinned([1.0] * 9375)) == 400


# Early stopping


def test_early_stopping_keeps_the_epoch_that_did_best_on_the_holdout(tmp_path, corpus):
    """Random text can only be learned by heart, so the hold-out loss must rise before long."""
    holdout = write(tmp_path / "holdout", random_rows(30, 13, seed=9), complete=False)
    chosen = settings(epochs="early_stopping", max_epochs=12, learning_rate=1e-2)
    model = GPTNeo(CONFIG, 1)
    result = train(model, corpus, chosen, seed=1, checkpoint_folder=tmp_path / "k", device="cpu", holdout=holdout)
    losses = result.holdout_losses
    assert result.epochs_tried == len(losses) == result.epochs + 1 < 12
    assert losses[: result.epochs] == sorted(losses[: result.epochs], reverse=True) and losses[-1] > losses[-2]
    inputs, targets = map(torch.from_numpy, Blocks(holdout, chosen).read(np.arange(30 * 14 // 8)))
    loss, count = model.loss(inputs, targets)
    assert (loss / count).item() == pytest.approx(min(losses), rel=1e-5)
    # Later generations train for that many epochs; here the same corpus again, which must give the same weights.
    again = GPTNeo(CONFIG, 1)
    fixed = train(again, corpus, chosen, seed=1, checkpoint_folder=tmp_path / "k2", device="cpu", epochs=result.epochs)
    assert_same(weights(again), weights(model))
    assert (fixed.epochs, fixed.steps, fixed.tokens_seen, fixed.final_loss) == (result.epochs, result.steps, result.tokens_seen, result.final_loss)


def test_early_stopping_ends_at_max_epochs(tmp_path, corpus):
    chosen = settings(epochs="early_stopping", max_epochs=2, learning_rate=1e-3)
    result = train(GPTNeo(CONFIG, 1), corpus, chosen, seed=1, checkpoint_folder=tmp_path / "k", device="cpu", holdout=corpus)
    assert result.epochs == result.epochs_tried == 2


# fp16


@pytest.fixture
def fp16_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    """Sets the first loss scale, and has ``train`` do on a CPU what it does on a GPU in fp16; accelerate by itself refuses to."""

    def scaled_from(scale: float) -> list[torch.amp.GradScaler]:
        scalers = []

        def accelerator(device: str, precision: str):
            made = make_accelerator(device, "fp32")
            scalers.append(torch.amp.GradScaler("cpu", init_scale=scale))
            made.native_amp, made.scaler, made.state._mixed_precision = True, scalers[-1], precision
            return made

        monkeypatch.setattr("collapse_lib.train.loop.make_accelerator", accelerator)
        return scalers

    return scaled_from


def test_fp16_trains_as_fp32_does(tmp_path, corpus, fp16_on_a_cpu):
    def run(precision: str):
        model = new_model()
        return model, train(model, corpus, settings(precision=precision), seed=5, checkpoint_folder=tmp_path / precision, device="cpu")

    full, expected = run("fp32")
    fp16_on_a_cpu(2.0**16)
    half, found = run("fp16")
    assert (found.steps, found.skipped_steps) == (expected.steps, expected.skipped_steps) == (14, 0)
    assert found.final_loss != expected.final_loss  # the products did run in fp16
    assert found.final_loss == pytest.approx(expected.final_loss, rel=2e-3)
    start = weights(new_model())
    for name, value in full.state_dict().items():
        assert (half.state_dict()[name] - value).norm() < 0.1 * (value - start[name]).norm(), name


def test_steps_that_overflow_fp16_are_counted_and_change_nothing(tmp_path, corpus, fp16_on_a_cpu):
    """From too large a scale, until it has been halved often enough; an interrupted training goes on with the scale that it had."""

    def run(folder: str):
        model, scalers = new_model(), fp16_on_a_cpu(2.0**24)
        chosen = settings(precision="fp16", checkpoint_every=3)
        result = train(model, corpus, chosen, seed=5, checkpoint_folder=tmp_path / folder, device="cpu")
        return weights(model), plain(result), scalers[-1].get_scale()

    unbroken, expected, scale = run("unbroken")
    assert expected["skipped_steps"] > 3 and expected["steps"] + expected["skipped_steps"] == 14
    assert scale == 2.0 ** (24 - expected["skipped_steps"])
    taken = torch.load(tmp_path / "unbroken" / "checkpoint.pt", weights_only=True)["optimizer"]["state"][0]["step"]
    assert taken == expected["steps"] and all(value.isfinite().all() for value in unbroken.values())
    for steps in (5, 10):
        with interrupted_after(steps), pytest.raises(Interrupted):
            run(f"after-{steps}")
        resumed, result, again = run(f"after-{steps}")
        assert_same(resumed, unbroken)
        assert (result, again) == (expected, scale)


@pytest.mark.parametrize(
    ("epochs", "said"), [(2, "Not one of the 14 training steps was taken"), (3, "21 of the first 21 training steps were skipped")]
)
def test_a_training_that_skips_its_steps_is_refused(tmp_path, corpus, fp16_on_a_cpu, epochs, said):
    fp16_on_a_cpu(2.0**16)
    model = new_model()
    model.head.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(UserError, match=f"{said}: their gradients are beyond fp16; set training.precision=fp32"):
        train(model, corpus, settings(precision="fp16", epochs=epochs), seed=5, checkpoint_folder=tmp_path / "k", device="cpu")


# Processes and devices


def test_a_gpu_is_held_to_deterministic_kernels(monkeypatch):
    """Not merely warned: with ``warn_only``, attention's backward pass on a GPU adds in any order."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled() == before


def test_two_processes_train_as_one(tmp_path, corpus):
    """104 blocks in batches of 22: the last batch, of 16, and its halves are cut into unequal micro-batches."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    both = [start("distributed", corpus, tmp_path / "two", **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    two = torch.load(tmp_path / "two" / "result.pt", weights_only=True)
    model = new_model()
    chosen = settings(batch_size=22, epochs="early_stopping", max_epochs=2)
    one = train(model, corpus, chosen, seed=5, checkpoint_folder=tmp_path / "one", device="cpu", holdout=corpus)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(two["weights"][name], value, atol=1e-4, rtol=0)
    assert two["result"]["tokens_seen"] == one.tokens_seen
    assert two["result"]["final_loss"] == pytest.approx(one.final_loss, rel=1e-5)
    assert two["result"]["holdout_losses"] == pytest.approx(one.holdout_losses, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_on_a_gpu_resumes_bit_for_bit(tmp_path, corpus, precision):
    def run(folder: str, device: str = "cuda", precision: str = precision):
        model = new_model()
        result = train(model, corpus, settings(precision=precision, checkpoint_every=3), seed=5, checkpoint_folder=tmp_path / folder, device=device)
        return weights(model), plain(result)

    unbroken, expected = run("unbroken")
    with interrupted_after(5), pytest.raises(Interrupted):
        run("broken")
    resumed, result = run("broken")
    assert_same(resumed, unbroken)
    assert result == expected
    assert expected["final_loss"] == pytest.approx(run("cpu", "cpu", "fp32")[1]["final_loss"], rel=1e-4 if precision == "fp32" else 2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("heads", [16, 2])
def test_training_on_a_gpu_repeats_itself_at_full_length(tmp_path, precision, heads):
    """Blocks of 512 beyond a window of 256: the masked attention, whose usual backward pass adds in any order."""
    corpus = write(tmp_path / "corpus", random_rows(200, 513), complete=False)
    config = replace(CONFIG, hidden_size=64, num_heads=heads, window_size=256, max_position_embeddings=512, initializer_range=0.2)

    def run(folder: str):
        model = GPTNeo(config, 1)
        chosen = settings(block_size=512, batch_size=32, precision=precision, checkpoint_every=3)
        train(model, corpus, chosen, seed=5, checkpoint_folder=tmp_path / folder, device="cuda")
        return weights(model)

    unbroken = run("unbroken")
    with interrupted_after(5), pytest.raises(Interrupted):
        run("broken")
    assert_same(run("broken"), unbroken)
    assert_same(run("again"), unbroken)
