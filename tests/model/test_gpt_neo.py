"""The model against transformers' eager GPT-Neo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.protocol import ModelSettings
from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig, band_mask
from collapse_lib.model.loss import IGNORED

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
    tokens = some_tokens(model, 3, length)
    labels = tokens.clone()
    labels[0, length // 2 :] = IGNORED
    labels[1, 7] = IGNORED
    labels[2] = IGNORED
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


def test_padding_changes_nothing_and_costs_nothing(model: GPTNeo) -> None:
    length = model.config.max_position_embeddings - 1
    tokens = some_tokens(model, 3, length)
    kept = torch.arange(length) < torch.tensor([[1], [length // 2], [0]])
    with torch.no_grad():
        expected, found = model(tokens)[kept], model(tokens, kept=kept)
    assert found.shape == (1 + length // 2, model.config.hidden_size)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    model.zero_grad()
    loss, targets = model.loss(tokens, torch.full_like(tokens, IGNORED))
    loss.backward()
    assert loss == targets == 0 and all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


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
