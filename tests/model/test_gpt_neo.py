"""The model against transformers' eager GPT-Neo, and its loss against plain cross entropy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.protocol import ModelSettings
from collapse_lib.model.gpt_neo import IGNORED, LOSS_CHUNK_LOGITS, GPTNeo, GPTNeoConfig, _ChunkedCrossEntropy, band_mask, next_token_losses

# The paper's shapes; a small vocabulary keeps them fast, and a large init makes attention matter (see test_attention_matters).
SHAPES = {
    "1M, heads of 4": GPTNeoConfig(311, 8, 64, 16, max_position_embeddings=400, initializer_range=0.3, eos_token_id=310),
    "33M, heads of 48": GPTNeoConfig(311, 4, 768, 16, max_position_embeddings=300, initializer_range=0.06, eos_token_id=310),
    "an odd pattern, a small window": GPTNeoConfig(
        67, 3, 24, 3, ("local", "global"), window_size=5, max_position_embeddings=64, initializer_range=0.4
    ),
}


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest) -> GPTNeo:
    return GPTNeo(SHAPES[request.param], seed=3)


@pytest.fixture(scope="module")
def oracle(model: GPTNeo, tmp_path_factory: pytest.TempPathFactory):
    """transformers' model, opened from the folder that ours saved."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def some_tokens(model: GPTNeo, rows: int, length: int) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("share_of_positions", [1.0, 0.7, 0.01])
def test_logits_are_transformers(model: GPTNeo, oracle, share_of_positions: float) -> None:
    length = max(1, int(share_of_positions * model.config.max_position_embeddings) - 1)  # beyond the window and below
    tokens = some_tokens(model, 2, length)
    with torch.no_grad():
        expected, found = oracle(tokens).logits, model.logits(model(tokens))
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


def test_attention_matters(model: GPTNeo) -> None:
    """Parity would say little if the context hardly moved the logits: the far end must, and through the window's edge."""
    length = model.config.max_position_embeddings
    tokens = some_tokens(model, 1, length)
    other = tokens.clone()
    other[:, : length // 3] = tokens[:, : length // 3].roll(1)
    with torch.no_grad():
        moved = (model.logits(model(tokens)) - model.logits(model(other)))[0, -1].abs().max()
        assert moved > 1e-2 * model.logits(model(tokens))[0, -1].abs().max()


def test_loss_and_gradients_are_transformers(model: GPTNeo, oracle) -> None:
    length = model.config.max_position_embeddings * 5 // 8
    tokens = some_tokens(model, 2, length)
    labels = tokens.clone()
    labels[0, length // 2 :] = IGNORED
    labels[1, 7] = IGNORED
    model.zero_grad()
    oracle.zero_grad()
    total, targets = model.loss(tokens[:, :-1], labels[:, 1:], chunk_rows=50)
    (total / targets).backward()
    expected = oracle(tokens, labels=labels).loss
    expected.backward()
    assert targets == (labels[:, 1:] != IGNORED).sum()
    torch.testing.assert_close(total / targets, expected, rtol=1e-5, atol=0)
    found = dict(model.named_parameters())
    for name, parameter in oracle.named_parameters():
        scale = parameter.grad.abs().max()
        assert (found[name].grad - parameter.grad).abs().max() < 1e-4 * scale, name


@pytest.mark.parametrize("chunk_rows", [1, 7, 64, 1000, None])
@pytest.mark.parametrize("ignored", ["none", "some", "all"])
@pytest.mark.parametrize("cached", [2**18, 1000])  # all ids at once; chunks of ids, of which fewer rows could have longer ones
@pytest.mark.filterwarnings("error")
def test_chunked_loss_is_cross_entropy(chunk_rows: int | None, ignored: str, cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collapse_lib.model.gpt_neo.CACHED_LOGITS", cached)
    model = GPTNeo(GPTNeoConfig(200, 1, 16, 2, max_position_embeddings=32, initializer_range=0.5), seed=1)
    tokens, targets = some_tokens(model, 3, 31), some_tokens(model, 3, 31).roll(1, 0)
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
    tokens = some_tokens(model, 4, 64)
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


def head_case(rows: int, gain: float, spread: float, dtype: torch.dtype) -> list[torch.Tensor]:
    """Hidden states, a head and targets, exact in ``dtype``, of ids with very unequal probabilities."""
    random = torch.Generator().manual_seed(3)
    hidden, head = torch.randn(rows, 16, generator=random) * gain, torch.randn(600, 16, generator=random) * 0.02
    hidden[:, 0], head[:, 0] = 1, torch.linspace(-spread, spread, 600)
    return [hidden.to(dtype).float(), head.to(dtype).float(), torch.full((rows,), 7)]


def head_gradients(case: list[torch.Tensor], dtype: torch.dtype, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the mean loss for hidden states and head, with products in ``dtype`` and the loss scaled as a GradScaler does."""
    hidden, head = (value.clone().requires_grad_() for value in case[:2])
    loss = _ChunkedCrossEntropy.apply(hidden, head, case[2], None, dtype, True) / len(hidden)
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
            if function is torch.ops.aten.empty.memory_format:
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


def test_the_window_includes_the_token_itself() -> None:
    assert band_mask(5, 2, torch.device("cpu")).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_folders_exchange_with_transformers(model: GPTNeo, oracle, tmp_path: Path) -> None:
    oracle.save_pretrained(tmp_path)
    again = GPTNeo.from_pretrained(tmp_path)
    assert again.config == model.config
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert oracle.config.eos_token_id == model.config.eos_token_id
    assert oracle.lm_head.weight.data_ptr() == oracle.transformer.wte.weight.data_ptr()
    assert not any(name.startswith("lm_head") for name in again.state_dict())
    assert all(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize(("name", "parameters"), [("1M", 3_745_984), ("33M", 68_514_048)])
def test_published_configurations(real_data: Path, name: str, parameters: int) -> None:
    fields = json.loads((real_data / "configs" / f"TinyStories-{name}.config.json").read_text())
    config = GPTNeoConfig.from_hf(fields)
    with torch.device("meta"):
        assert GPTNeo(config, seed=None).num_parameters() == parameters
    written = config.to_hf()
    for field in ("vocab_size", "num_layers", "hidden_size", "num_heads", "attention_types", "attention_layers", "window_size", "eos_token_id"):
        assert written[field] == fields[field], field
    assert GPTNeoConfig.from_hf(written) == config


def test_costs_of_the_1m_model() -> None:
    config = GPTNeoConfig(50257, 8, 64, 16)
    with torch.device("meta"):
        model = GPTNeo(config, seed=None)
    trunk_and_head = 2 * (8 * 12 * 64**2 + 50257 * 64)
    assert model.flops_per_token(1) == trunk_and_head + 8 * 4 * 64
    assert model.flops_per_token(600) == trunk_and_head + 4 * 4 * 64 * (600 + 256)
    assert model.kv_bytes_per_token(600, bytes_per_value=2) == 4 * 2 * 64 * 2 * (600 + 256)


def test_flops_are_what_torch_counts() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = GPTNeo(GPTNeoConfig(101, 2, 32, 4, ("global",), max_position_embeddings=64), seed=1)
    tokens = some_tokens(model, 1, 48)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.logits(model(tokens))
    assert counter.get_total_flops() == 48 * model.flops_per_token(48)  # torch counts the masked half of the attention too


def test_initial_weights() -> None:
    settings = ModelSettings(num_layers=2, hidden_size=64, num_heads=4)
    config = GPTNeoConfig.from_settings(settings, vocab_size=2048, eos_token_id=9)
    assert (config.vocab_size, config.eos_token_id, config.attention_layers) == (2048, 9, ("global", "local"))
    model, same, other = GPTNeo(config, seed=5), GPTNeo(config, seed=5), GPTNeo(config, seed=6)
    for (name, value), twin, stranger in zip(model.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(value, twin)
        if name.endswith("bias"):
            assert not value.any()
        elif "ln_" in name:
            assert (value == 1).all()
        else:
            assert not torch.equal(value, stranger)
            assert abs(value.std().item() / 0.02 - 1) < 0.05, name


def test_a_mistaken_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        GPTNeo.from_pretrained(tmp_path)
    model = GPTNeo(SHAPES["an odd pattern, a small window"], seed=1)
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    for change, named in [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"activation_function": "relu"}, "relu"),
        ({"hidden_size": 48}, "k_proj"),
        ({"num_layers": 2}, "attention_types"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(fields | change))
        with pytest.raises(UserError, match=named):
            GPTNeo.from_pretrained(tmp_path)
    del fields["vocab_size"]
    whole = json.dumps(fields).encode()
    for content in (b"", whole[: len(whole) // 2], b"[]", b"{}", b"\xff" + whole, json.dumps(fields | {"attention_types": 7}).encode()):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(UserError, match=r"config"):
            GPTNeo.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(whole)
    with pytest.raises(UserError, match="vocab_size"):
        GPTNeo.from_pretrained(tmp_path)


@pytest.mark.parametrize("vocabulary", [7, 64, 1000])
@pytest.mark.parametrize("rows", [1, 5, 300])
def test_losses_without_all_logits(vocabulary: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the chunks of ids and rows, the losses are those of the plain cross entropy."""
    random = torch.Generator().manual_seed(rows)
    hidden, head = torch.randn(rows, 12, generator=random) * 4, torch.randn(vocabulary, 12, generator=random)
    targets = torch.randint(vocabulary, (rows,), generator=random)
    expected = F.cross_entropy(hidden @ head.T, targets, reduction="none")
    for cached, held in ((1, 64), (2000, 700), (2**18, 2**23)):
        monkeypatch.setattr("collapse_lib.model.gpt_neo.CACHED_LOGITS", cached)
        monkeypatch.setitem(LOSS_CHUNK_LOGITS, "cpu", held)
        torch.testing.assert_close(next_token_losses(hidden, head, targets), expected, rtol=1e-5, atol=1e-5)
