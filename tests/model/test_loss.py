"""The chunked losses against plain cross entropy."""

from __future__ import annotations

import importlib.util
import math
import os
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig  # noqa: E402
from collapse_lib.model.loss import (  # noqa: E402
    ALIGNED,
    IGNORED,
    LIFT,
    LOSS_CHUNK_LOGITS,
    next_token_losses,
    plain_probabilities,
    summed_cross_entropy,
)


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton")
    from collapse_lib.model import triton_loss

    return triton_loss


def some_tokens(vocabulary: int, rows: int, length: int) -> torch.Tensor:
    return torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("chunk_rows", [1, 7, 64, 1000, None])
@pytest.mark.parametrize("ignored", ["none", "some", "all"])
@pytest.mark.parametrize("cached", [2**18, 1000])  # all ids at once; chunks of ids, of which fewer rows could have longer ones
@pytest.mark.filterwarnings("error")
def test_chunked_loss_is_cross_entropy(chunk_rows: int | None, ignored: str, cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collapse_lib.model.loss.CACHED_LOGITS", cached)
    model = GPTNeo(GPTNeoConfig(200, 1, 16, 2, max_position_embeddings=32, initializer_range=0.5), seed=1)
    tokens, targets = some_tokens(model.config.vocab_size, 3, 31), some_tokens(model.config.vocab_size, 3, 31).roll(1, 0)
    if ignored != "none":
        targets[:, 5 if ignored == "some" else 0 :: 3 if ignored == "some" else 1] = IGNORED
    total, count = model.loss(tokens, targets, chunk_rows)
    (3 * total).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    expected = F.cross_entropy(model.logits(model(tokens)).flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    (3 * expected).backward()
    assert count == (targets != IGNORED).sum()
    torch.testing.assert_close(total, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-4, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(model.loss(tokens, targets, chunk_rows)[0], expected)


def test_loss_of_an_all_but_impossible_target_is_finite() -> None:
    """Its probability underflows; the loss must not become infinite."""
    model = GPTNeo(GPTNeoConfig(8, 1, 8, 1, max_position_embeddings=8), seed=1)
    with torch.no_grad():
        model.head.copy_(torch.eye(8) * 300)
        model.transformer.ln_f.weight.fill_(1)
    tokens = torch.arange(8)[None]
    for target in range(8):
        targets = torch.full_like(tokens, target)
        total, _ = model.loss(tokens, targets)
        expected = F.cross_entropy(model.logits(model(tokens))[0], targets[0], reduction="sum")
        assert expected > 1000
        torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_under_autocast_is_fp32(dtype: torch.dtype) -> None:
    model = GPTNeo(GPTNeoConfig(500, 2, 32, 4, max_position_embeddings=64, initializer_range=0.2), seed=1)
    tokens = some_tokens(model.config.vocab_size, 4, 64)
    total, count = model.loss(tokens[:, :-1], tokens[:, 1:])
    total.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    with torch.autocast("cpu", dtype=dtype):
        low, _ = model.loss(tokens[:, :-1], tokens[:, 1:])
    low.backward()
    assert low.dtype == torch.float32
    assert low != total  # the products did run in half precision
    torch.testing.assert_close(low / count, total / count, rtol=5e-3, atol=0)
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert F.cosine_similarity(parameter.grad.flatten(), expected[name].flatten(), dim=0) > 0.99, name


@pytest.mark.parametrize("heads", [4, 16])  # 16: narrow attention
def test_products_in_bf16_are_near_those_in_fp32(heads: int) -> None:
    """Losses within 0.5%, gradients in the same direction, both fp32; the model that is rounded to score is the one that was trained."""
    model = GPTNeo(GPTNeoConfig(500, 2, 64, heads, window_size=20, max_position_embeddings=64, initializer_range=0.1), seed=1)
    tokens = some_tokens(model.config.vocab_size, 4, 64)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def gradients() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        total, _ = model.loss(inputs, targets)
        total.backward()
        return total.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    total, expected = gradients()
    with model.multiplying_in(torch.bfloat16):
        low, found = gradients()
    assert model.products is None and low.dtype == torch.float32 and low != total
    torch.testing.assert_close(low, total, rtol=5e-3, atol=0)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert F.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0) > 0.99, name
    rounded = model.rounded(torch.bfloat16)
    with torch.no_grad():
        torch.testing.assert_close(rounded.loss(inputs, targets)[0], low, rtol=1e-4, atol=0)
        scored = next_token_losses(rounded(inputs).flatten(0, 1), rounded.output_matrix, targets.flatten())
    torch.testing.assert_close(scored.sum(), low, rtol=1e-4, atol=0)
    assert rounded.head is model.head or rounded.head.data_ptr() == model.head.data_ptr()  # nothing but what is multiplied was copied


@pytest.mark.parametrize("rows", [5, 300])
@pytest.mark.parametrize("cached", [2000, 2**18])
def test_the_heads_loss_in_bf16_by_chunks(rows: int, cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the plain cross entropy of the same rounded matrices: logits are rounded, so losses to 1e-2 and gradients to 2%."""
    monkeypatch.setattr("collapse_lib.model.loss.CACHED_LOGITS", cached)
    hidden, head, targets = head_case(rows, 1, 4, torch.bfloat16)
    targets[::3] = IGNORED
    hidden.requires_grad_(), head.requires_grad_()
    loss = summed_cross_entropy(hidden, head, targets, products=torch.bfloat16)
    found = torch.autograd.grad(loss, (hidden, head))
    plain = F.cross_entropy(hidden @ head.T, targets, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(loss, plain, rtol=1e-3, atol=1e-2)
    for gradient, expected in zip(found, torch.autograd.grad(plain, (hidden, head)), strict=True):
        assert (gradient - expected).norm() < 2e-2 * expected.norm()


def head_case(rows: int, gain: float, spread: float, dtype: torch.dtype) -> list[torch.Tensor]:
    """Hidden states, a head and targets, exact in ``dtype``, of ids with very unequal probabilities."""
    random = torch.Generator().manual_seed(3)
    hidden, head = torch.randn(rows, 16, generator=random) * gain, torch.randn(600, 16, generator=random) * 0.02
    hidden[:, 0], head[:, 0] = 1, torch.linspace(-spread, spread, 600)
    return [hidden.to(dtype).float(), head.to(dtype).float(), torch.full((rows,), 7)]


def head_gradients(case: list[torch.Tensor], dtype: torch.dtype, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the mean loss for hidden states and head, with products in ``dtype`` and the loss scaled as a GradScaler does."""
    hidden, head = (value.clone().requires_grad_() for value in case[:2])
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = summed_cross_entropy(hidden, head, case[2]) / len(hidden)
    (loss * scale).backward()
    assert hidden.grad.dtype == head.grad.dtype == torch.float32
    return hidden.grad / scale, head.grad / scale


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("gain", [1.0, 1e-3])
def test_the_heads_gradient_in_half_precision_reaches_rare_ids(dtype: torch.dtype, tolerance: float, gain: float) -> None:
    """Down to probabilities of 3e-9, far below what fp16 holds, and whatever the loss scale, row by row."""
    case = head_case(200, gain, 8, dtype)
    assert (case[0] @ case[1].T).softmax(-1).amin() < 1e-8
    for scale in (1.0, 2.0**16):
        for found, expected in zip(head_gradients(case, dtype, scale), head_gradients(case, torch.float32), strict=True):
            assert ((found - expected).norm(dim=1) <= tolerance * expected.norm(dim=1)).all()


def test_the_heads_gradient_in_fp16_does_not_overflow() -> None:
    """A common id, many rows: the sum over them is beyond fp16, and no loss scale could mend that."""
    case = head_case(9000, 1, 10, torch.float16)
    case[0][:, 1], case[1][-1, 0] = 10, 30
    found, expected = head_gradients(case, torch.float16), head_gradients(case, torch.float32)
    assert expected[1].abs().max() * 9000 > 65504  # summed, as it is before the mean is taken
    for half, full in zip(found, expected, strict=True):
        assert (half - full).norm() < 2e-3 * full.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_reserves_no_space_for_fp32_logits(dtype: torch.dtype) -> None:
    class Reservations(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.empty.memory_format and (kwargs or {}).get("dtype") in (None, torch.float32):
                self.largest = max(self.largest, math.prod(args[0]))
            return function(*args, **(kwargs or {}))

    for used, logits in ((dtype, False), (torch.float32, True)):
        with Reservations() as seen:
            head_gradients(head_case(200, 1, 1, dtype), used)
        assert (seen.largest >= 200 * 600) == logits


def test_no_row_has_no_loss() -> None:
    model = GPTNeo(GPTNeoConfig(20, 1, 8, 2, max_position_embeddings=8), seed=1)
    none = torch.empty(0, 5, dtype=torch.int64)
    total, count = model.loss(none, none)
    total.backward()
    assert total == count == 0 and not model.head.grad.any()
    assert next_token_losses(torch.empty(0, 8), model.head, none.flatten()).shape == (0,)


@pytest.mark.parametrize("vocabulary", [7, 64, 1000])
@pytest.mark.parametrize("rows", [1, 5, 300])
def test_losses_without_all_logits(vocabulary: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the chunks of ids and rows, the losses are those of the plain cross entropy."""
    random = torch.Generator().manual_seed(rows)
    hidden, head = torch.randn(rows, 12, generator=random) * 4, torch.randn(vocabulary, 12, generator=random)
    targets = torch.randint(vocabulary, (rows,), generator=random)
    expected = F.cross_entropy(hidden @ head.T, targets, reduction="none")
    for cached, held in ((1, 64), (2000, 700), (2**18, 2**23)):
        monkeypatch.setattr("collapse_lib.model.loss.CACHED_LOGITS", cached)
        monkeypatch.setitem(LOSS_CHUNK_LOGITS, "cpu", held)
        torch.testing.assert_close(next_token_losses(hidden, head, targets), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("vocabulary", "width", "block"), [(5, 64, 4096), (600, 640, 256), (512, 512, 256), (1000, 1024, 256), (50257, 50304, 4096)])
def test_the_heads_kernel_computes_what_torch_does(vocabulary, width, block, dtype, kernels, monkeypatch) -> None:
    """Compiled on a GPU, else interpreted: logits far apart and hardly apart, blocks that end before, at and behind the vocabulary, no rows."""
    monkeypatch.setattr(kernels, "BLOCK", block)
    random = torch.Generator().manual_seed(vocabulary)
    for rows, spread in ((3, 8.0), (2, 1e-3), (1, 300.0), (0, 1.0)):
        logits = torch.randn(rows, width, generator=random) * spread
        logits[:, vocabulary:] = torch.inf  # nothing there may be read
        factors = torch.tensor([LIFT, 0.0, 1.0])[:rows]  # a row without a target has 0
        logits, factors = logits.to(DEVICE), factors.to(DEVICE)
        expected_z, expected_p = plain_probabilities(logits, vocabulary, factors, dtype)
        log_z, p = kernels.probabilities(logits, vocabulary, factors, dtype)
        torch.testing.assert_close(log_z, expected_z, rtol=1e-6, atol=1e-5)
        assert p.dtype == dtype and not p[:, vocabulary:].any()
        torch.testing.assert_close(p, expected_p, rtol=2.0**-7 if dtype == torch.bfloat16 else 2.0**-9, atol=1e-6)
        log_z, none = kernels.probabilities(logits, vocabulary, None, dtype)
        assert none is None
        torch.testing.assert_close(log_z, expected_z, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("chunk_rows", [None, 7])
def test_the_head_in_half_precision_through_its_kernel(chunk_rows, kernels, monkeypatch) -> None:
    """The whole loss and its gradients are those of the plain passes, up to a rounding; on a GPU the kernel is what runs anyway."""
    case = [part.to(DEVICE) for part in head_case(20, 1, 8, torch.float16)]
    case[2][::3] = IGNORED

    def found() -> tuple[torch.Tensor, ...]:
        hidden, head = (value.clone().requires_grad_() for value in case[:2])
        loss = summed_cross_entropy(hidden, head, case[2], chunk_rows, torch.float16)
        return loss.detach(), *torch.autograd.grad(loss, (hidden, head))

    monkeypatch.setattr("collapse_lib.model.loss._probabilities", plain_probabilities)
    expected = found()
    monkeypatch.setattr("collapse_lib.model.loss._probabilities", kernels.probabilities)
    for value, plain in zip(found(), expected, strict=True):
        torch.testing.assert_close(value, plain, rtol=2e-3, atol=1e-5)


def test_ids_that_nobody_has_change_nothing() -> None:
    """The head is padded for half-precision products; a vocabulary that is a multiple already is not."""
    for vocabulary in (ALIGNED, ALIGNED + 1, 3 * ALIGNED - 1):
        random = torch.Generator().manual_seed(vocabulary)
        hidden, head = torch.randn(30, 16, generator=random), torch.randn(vocabulary, 16, generator=random)
        targets = torch.randint(vocabulary, (30,), generator=random)
        half = [value.to(torch.float16).float().requires_grad_() for value in (hidden, head)]
        loss = summed_cross_entropy(*half, targets, products=torch.float16)
        plain = F.cross_entropy(half[0] @ half[1].T, targets, reduction="sum")
        torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-4)
        for gradient, expected in zip(torch.autograd.grad(loss, half), torch.autograd.grad(plain, half), strict=True):
            assert gradient.shape == expected.shape and (gradient - expected).norm() < 2e-3 * expected.norm()
