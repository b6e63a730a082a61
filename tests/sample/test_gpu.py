"""The decoder of GPUs, against the CPU's and against plain arithmetic.

The decoder itself and, in Triton's interpreter, its kernels are tested on a CPU; on a GPU the same tests compile them. Nothing here needs more than
torch, transformers and pytest, so that it also runs where little else is installed; triton is skipped where it is missing.
"""

from __future__ import annotations

import importlib.util
import os
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

from collapse_lib.experiment.errors import UserError  # noqa: E402
from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig  # noqa: E402
from collapse_lib.sample import cpu  # noqa: E402
from collapse_lib.sample.context import tokens_in_view  # noqa: E402
from collapse_lib.sample.draw import CHECK_EVERY, TILE, TiledHead  # noqa: E402
from collapse_lib.sample.generate import sample_rows  # noqa: E402
from collapse_lib.sample.gpu import Plain, StaticDecoder  # noqa: E402

DEVICE = "cuda" if ON_GPU else "cpu"
EOS = 4
gpu = [pytest.mark.gpu, pytest.mark.skipif(not ON_GPU, reason="no CUDA device")]
on_gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])
compiled_or_interpreted = pytest.mark.gpu if ON_GPU else pytest.mark.slow
everywhere = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton")
    from collapse_lib.sample import triton_kernels as kernels

    return kernels


def small_model(heads: int = 4, device: str = "cpu") -> GPTNeo:
    """Windows of 5 and lengths far beyond; an init at which attention decides."""
    config = GPTNeoConfig(130, 3, 32, heads, window_size=5, max_position_embeddings=40, initializer_range=0.3, eos_token_id=EOS)
    return GPTNeo(config, seed=2).to(device)


def settings(**fields: object) -> SimpleNamespace:
    plain = {"length": 33, "max_context": 12, "overflow": "hop", "batch_size": 16, "start": "endoftext", "after_eos": "continue"}
    return SimpleNamespace(**{**plain, "temperature": 1.0, "top_k": None, "top_p": None, **fields})


def batch(steps: int, lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Given tokens, lengths and uniforms for as many rows as there are lengths."""
    generator = torch.Generator().manual_seed(seed)
    given = torch.randint(130, (max(lengths), len(lengths)), generator=generator)
    return given, torch.tensor(lengths), torch.rand(steps, len(lengths), generator=generator, dtype=torch.float64)


def mostly_the_same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether all rows agree, but for one that rounding may have sent another way."""
    return found.shape == expected.shape and (found.cpu() != expected.cpu()).any(0).sum() <= 1


def p_value(counts: torch.Tensor, p: torch.Tensor) -> float:
    """Chi-square of counts [V] under p [V], ids of less than 5 expected taken together."""
    expected, counts = p.double().cpu() * counts.sum().item(), counts.double().cpu()
    rare = expected < 5
    cells = [torch.cat([of[~rare], of[rare].sum()[None]]) for of in (counts, expected)]
    statistic = ((cells[0] - cells[1]) ** 2 / cells[1].clamp_min(1e-9)).sum()
    return torch.special.gammaincc(torch.tensor((len(cells[0]) - 1) / 2, dtype=torch.float64), statistic / 2).item()


# --- the decoder -----------------------------------------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("overflow", ["slide", "hop", "extend"])
@pytest.mark.parametrize("most", [1, 2, 5, 12, 13, 40])
def test_same_uniforms_same_tokens(overflow: str, most: int, device: str) -> None:
    """From the masked start, from one token, from prompts within and beyond the context, all through one decoder that keeps its buffers."""
    model, some = small_model(), settings(overflow=overflow, max_context=most)
    decoder = StaticDecoder(small_model(device=device), some)
    for number, (lengths, steps, stop) in enumerate([([0] * 20, 30, False), ([1] * 20, 30, False), ([1] * 20, 30, False), ([20] * 20, 14, True)]):
        given, lengths, uniforms = batch(steps, lengths, seed=number)
        expected = cpu.decode(model, some, given, lengths, uniforms, stop, None, 20)
        found = decoder.decode(given.to(device), lengths.to(device), uniforms.to(device), stop, None, 20)
        assert mostly_the_same(found, expected), number


@everywhere
@pytest.mark.parametrize("fields", [{}, {"overflow": "slide"}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}])
@pytest.mark.parametrize("stop", [False, True])
def test_prompts_of_different_lengths(fields: dict, stop: bool, device: str) -> None:
    model, some = small_model(), settings(max_context=9, **fields)
    given, lengths, uniforms = batch(40, [1, 3, 9, 20, 3, 7, 8, 2] * 4)
    given[2, 3] = EOS  # an end inside a prompt is no end
    expected = cpu.decode(model, some, given, lengths, uniforms, stop, None, 32)
    found = StaticDecoder(small_model(device=device), some).decode(given.to(device), lengths.to(device), uniforms.to(device), stop, None, 32)
    assert mostly_the_same(found, expected)
    for row, length in enumerate(lengths):
        assert torch.equal(found[:length, row].cpu(), given[:length, row])
    assert ((found[-2:] == EOS).all(0).sum() > 0) == stop


@pytest.mark.parametrize(("lengths", "stop"), [([1] * 16, False), ([1, 3, 9, 20] * 4, True)])
def test_a_recorded_step_serves_every_position(lengths: list[int], stop: bool) -> None:
    """As a CUDA graph would have it: a step's operations recorded once, on empty buffers, and repeated without any of its Python."""
    model, some = small_model(), settings(max_context=12)
    decoder = StaticDecoder(model, some)
    given, lengths, uniforms = batch(40, lengths)
    decoder._allocate(16, 40 + int(lengths.min()), bool(lengths.min() < lengths.max()), stop)
    with torch.no_grad():
        decoder._step = make_fx(lambda: StaticDecoder._step(decoder))()
    found = decoder.decode(given, lengths, uniforms, stop, None, 16)
    assert mostly_the_same(found, cpu.decode(model, some, given, lengths, uniforms, stop, None, 16))


def test_it_stops_when_every_row_has_ended_and_reports_each_token_once() -> None:
    class Progress:
        tokens = 0

        def update(self, count: int) -> None:
            self.tokens += count

    some, seen = settings(max_context=12), Progress()
    decoder = StaticDecoder(small_model(), some)
    given, lengths, uniforms = batch(75, [1] * 16)
    decoder.decode(given, lengths, uniforms, False, seen, 10)
    assert seen.tokens == 75 * 10
    model = small_model()
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(model.head[EOS] * 100)  # every row ends at once
    for rows in (16, 10):  # the others are padding, whose uniforms are 0
        seen = Progress()
        uniforms[:, rows:] = 0
        found = StaticDecoder(model, some).decode(given, lengths, uniforms, True, seen, rows)
        assert seen.tokens == CHECK_EVERY * rows and (found[1:] == EOS).all()


def test_padding_does_not_keep_a_batch_from_ending() -> None:
    """Rows that end at once beside padding that never would: its head's first id has all of the probability at a uniform of 0."""
    model, some, passes = small_model(), settings(max_context=12), 0
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.zero_()  # every id as likely as the others
    given, lengths, uniforms = batch(75, [1] * 16)
    uniforms[:, :10], uniforms[:, 10:] = (EOS + 0.5) / 130, 0
    decoder = StaticDecoder(model, some)
    emit = decoder._emit

    def count(hidden: torch.Tensor) -> None:
        nonlocal passes
        passes += 1
        emit(hidden)

    decoder._emit = count
    found = decoder.decode(given, lengths, uniforms, True, None, 10)
    assert passes == CHECK_EVERY and (found[1:] == EOS).all()


def test_positions_suffice_for_rows_as_long_as_there_are_positions() -> None:
    model, some = small_model(), settings(overflow="extend")
    given, lengths, uniforms = batch(40, [1] * 16)
    expected = cpu.decode(model, some, given, lengths, uniforms, False, None, 16)
    assert mostly_the_same(StaticDecoder(model, some).decode(given, lengths, uniforms, False, None, 16), expected)


def test_too_few_positions_are_refused() -> None:
    with pytest.raises(UserError, match="max_position_embeddings = 40"):
        StaticDecoder(small_model(), settings(overflow="extend")).decode(*batch(60, [1] * 4), False, None, 4)


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_hidden_states_are_the_models(dtype: torch.dtype, device: str) -> None:
    """Given all tokens but a row's, every step's hidden states must be those of a forward pass in fp32, as nearly as autocast's forward pass is."""
    model, some = small_model(device=device), settings(max_context=12)
    given, lengths, uniforms = batch(32, [1] + [33] * 31)
    decoder = StaticDecoder(model, some, dtype)
    decoder.uses_graph = False
    seen: list[torch.Tensor] = []
    emit = decoder._emit
    decoder._emit = lambda hidden: (seen.append(hidden.float()), emit(hidden))
    tokens = decoder.decode(given.to(device), lengths.to(device), uniforms.to(device), False, None, 32)
    errors = []
    with torch.no_grad():
        for position, hidden in enumerate(seen, 1):
            view = tokens[position - tokens_in_view(position, decoder.capacity, some.overflow) : position].T
            expected = model(view)[:, -1]
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                usual = model(view)[:, -1].to(dtype).float()
            errors.append([(found - expected).norm() / expected.norm() for found in (hidden, usual)])
    ours, usual = torch.tensor(errors).T
    assert len(ours) == 32 and ours.max() < (1e-5 if dtype == torch.float32 else 1.5 * usual.max())


# --- the kernels -----------------------------------------------------------------------------------------------------------------------

DTYPES = [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)]


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return found.dtype == expected.dtype and (found.double() - expected.double()).norm() <= tolerance * expected.double().norm()


@compiled_or_interpreted
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("hidden", [32, 64, 768])
def test_add_norm(kernels: ModuleType, hidden: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(hidden, device=DEVICE).requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    x = torch.randn(7, hidden, device=DEVICE) * 3 + 1
    for delta in (torch.randn(7, hidden, device=DEVICE).to(dtype), torch.randn(1, hidden, device=DEVICE).expand(7, -1)):
        ours, plain = x.clone(), x.clone()
        found, expected = kernels.add_norm(ours, delta, norm, dtype), Plain.add_norm(plain, delta, norm, dtype)
        assert torch.equal(ours, plain) and close(found, expected, tolerance)


@compiled_or_interpreted
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("heads", "width"), [(16, 4), (4, 16), (2, 48)])
@pytest.mark.parametrize(("slots", "filled"), [(1, 0), (1, 3), (7, 0), (7, 3), (300, 255), (300, 299), (300, 300), (300, 1000)])
def test_attend(kernels: ModuleType, heads: int, width: int, slots: int, filled: int, dtype: torch.dtype, tolerance: float) -> None:
    """Scores large enough that softmax decides, and NaN in every slot that must not be looked at."""
    torch.manual_seed(filled)
    rows = 3
    qkv = torch.randn(rows, 3 * heads * width, device=DEVICE).to(dtype)
    cached = [torch.randn(rows, heads, slots, width, device=DEVICE).to(dtype) for _ in range(2)]
    unseen = torch.arange(slots, device=DEVICE) >= filled
    unseen[filled % slots] = True
    poisoned = [cache.masked_fill(unseen[:, None], torch.nan) for cache in cached]
    position = torch.tensor([filled], device=DEVICE)
    expected = Plain.attend(qkv, *cached, position)
    found = kernels.attend(qkv, *poisoned, position)
    assert close(found, expected, tolerance)
    at = filled % slots
    assert all(torch.equal(ours[:, :, at], plain[:, :, at]) for ours, plain in zip(poisoned, cached, strict=True))
    kept = ~unseen
    assert all(torch.equal(ours[:, :, kept], plain[:, :, kept]) for ours, plain in zip(poisoned, cached, strict=True))


@compiled_or_interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("vocabulary", "hidden", "rows"), [(50257, 64, 3), (2048, 64, 70), (130, 768, 5), (1, 16, 2)])
def test_the_head_chooses_as_the_plain_one(kernels: ModuleType, vocabulary: int, hidden: int, rows: int, dtype: torch.dtype) -> None:
    assert kernels.TILE.value == TILE
    torch.manual_seed(1)
    head = TiledHead(torch.randn(vocabulary, hidden, device=DEVICE).to(dtype)).rows
    head[vocabulary:] = 100  # ids that are no tokens must not be seen, whatever they hold
    states = (torch.randn(rows, hidden, device=DEVICE) * 2 / hidden**0.5).to(dtype)
    found = kernels.log_masses(states, head, vocabulary)
    expected = Plain.log_masses(states, head, vocabulary)
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)
    steps = 20 if ON_GPU else 3  # the interpreter is slow
    uniforms = torch.rand(steps, rows, dtype=torch.float64, device=DEVICE)
    uniforms[1, ::2], uniforms[1, 1::2] = 0, 1 - 2**-53
    logits = (states.double() @ head[:vocabulary].double().T).softmax(-1)
    edges = F.pad(logits.cumsum(-1), (1, 0))
    for step in range(steps):
        position = torch.tensor([step], device=DEVICE)
        ids = kernels.choose(found, states, head, vocabulary, uniforms, position)
        assert ids.dtype == torch.int64 and (ids >= 0).all() and (ids < vocabulary).all()
        assert (ids != Plain.choose(expected, states, head, vocabulary, uniforms, position)).sum() <= rows // 100 + 1
        strays = (edges.gather(1, ids[:, None])[:, 0] - uniforms[step]).maximum(uniforms[step] - edges.gather(1, ids[:, None] + 1)[:, 0])
        assert strays.max() < 1e-5  # what fp32 logits allow


@compiled_or_interpreted
def test_an_impossible_id_is_never_chosen(kernels: ModuleType) -> None:
    """Few ids have any probability; uniforms at both ends, and where tiles meet."""
    torch.manual_seed(2)
    vocabulary, rows = 320, 64
    head = torch.full((vocabulary, 16), -30.0, device=DEVICE)
    possible = torch.tensor([3, 63, 64, 200, 319], device=DEVICE)
    head[possible] = 0.0
    uniforms = torch.linspace(0, 1, rows, dtype=torch.float64, device=DEVICE).clamp_max(1 - 2**-53)[None]
    uniforms[0, 10:14] = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    states, first = torch.ones(rows, 16, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    ids = kernels.choose(kernels.log_masses(states, head, vocabulary), states, head, vocabulary, uniforms, first)
    assert torch.isin(ids, possible).all() and len(ids.unique()) == 5


@compiled_or_interpreted
@pytest.mark.parametrize("heads", [8, 2])
def test_the_decoder_on_kernels(kernels: ModuleType, heads: int) -> None:
    model, some = small_model(heads), settings(max_context=7)
    given, lengths, uniforms = batch(8, [1, 2, 2, 4])
    expected = cpu.decode(model, some, given, lengths, uniforms, True, None, 4)
    decoder = StaticDecoder(small_model(heads, DEVICE), some)
    decoder.kernels = kernels
    found = decoder.decode(given.to(DEVICE), lengths.to(DEVICE), uniforms.to(DEVICE), True, None, 4)
    assert mostly_the_same(found, expected)


# --- on a GPU --------------------------------------------------------------------------------------------------------------------------


def wide_model(vocabulary: int, layers: int, hidden: int, heads: int, device: str) -> GPTNeo:
    config = GPTNeoConfig(vocabulary, layers, hidden, heads, max_position_embeddings=640, initializer_range=0.1, eos_token_id=vocabulary - 1)
    return GPTNeo(config, seed=1).to(device)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("vocabulary", "hidden"), [(2048, 64), (50257, 64), (50257, 768)])
def test_first_tokens_follow_the_models_fp32_probabilities(vocabulary: int, hidden: int, dtype: torch.dtype, device: str) -> None:
    model = wide_model(vocabulary, 2, hidden, 16, device)
    found = sample_rows(model, settings(length=1, max_context=512), range(200_000), seed=7, batch_size=20_000, dtype=dtype)
    with torch.no_grad():
        p = model.logits(model(torch.tensor([[vocabulary - 1]], device=device)))[0, 0].double().softmax(-1)
    counts = torch.bincount(torch.from_numpy(found.astype(np.int64).ravel()), minlength=vocabulary)
    assert p_value(counts, p) > 1e-3
    assert p_value(counts, p**1.1 / (p**1.1).sum()) < 1e-3  # a wrong temperature is seen


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("hidden", [64, 768])
def test_later_tokens_fall_where_transformers_says(hidden: int, dtype: torch.dtype, device: str, tmp_path) -> None:
    """Contexts beyond the window of 256 and a hop at 512; under transformers' eager model a token's place in its distribution is uniform."""
    from transformers import GPTNeoForCausalLM

    model = wide_model(50257, 2, hidden, 16, device)
    model.save_pretrained(tmp_path)
    oracle = GPTNeoForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").to(device).eval()
    some, rows = settings(length=600, max_context=512), 200
    found = torch.from_numpy(sample_rows(model, some, range(rows), seed=3, batch_size=rows, dtype=dtype).astype(np.int64)).to(device)
    tokens = F.pad(found, (1, 0), value=50256)
    decoder = StaticDecoder(model, some)
    decoder.capacity = 512
    generator = torch.Generator(device).manual_seed(0)
    for position in (1, 200, 257, 300, 512, 513, 514, 600):
        view = tokens_in_view(position, decoder.capacity, some.overflow)
        where = []
        with torch.no_grad():
            for part in tokens.split(50):
                p = oracle(part[:, position - view : position]).logits[:, -1].double().softmax(-1)
                chosen = p.gather(1, part[:, position : position + 1])
                where.append((p * (p > chosen)).sum(1) + chosen[:, 0] * torch.rand(len(part), device=device, generator=generator))
        counts = torch.histc(torch.cat(where).float(), 20, 0, 1)
        assert p_value(counts, torch.full((20,), 1 / 20)) > 1e-3, position


@on_gpu
def test_a_row_on_a_gpu_depends_on_its_number_and_the_batch_size_alone(device: str) -> None:
    model, some = wide_model(2048, 2, 64, 4, device), settings(length=100, max_context=48)
    whole = sample_rows(model, some, range(1000), seed=5, batch_size=256, dtype=torch.float16)
    again = sample_rows(model, some, range(300, 700), seed=5, batch_size=256, dtype=torch.float16)
    assert np.array_equal(again, whole[300:700])


@on_gpu
def test_fp32_on_a_gpu_agrees_with_the_cpu(device: str) -> None:
    some = settings(length=100, max_context=48)
    ours = sample_rows(wide_model(2048, 2, 64, 4, device), some, range(128), seed=5, batch_size=128)
    on_cpu = sample_rows(wide_model(2048, 2, 64, 4, "cpu"), some, range(128), seed=5, batch_size=128)
    assert (ours == on_cpu).all(1).mean() > 0.95  # rounding may send a row another way


@on_gpu
def test_no_step_makes_the_host_wait(device: str) -> None:
    decoder = StaticDecoder(wide_model(2048, 2, 64, 4, device), settings(max_context=512), torch.float16)
    given, lengths, uniforms = (tensor.to(device) for tensor in batch(100, [1] * 64))
    decoder.decode(given, lengths, uniforms, False, None, 64)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            decoder.counters.zero_()
            decoder._step()
            for _ in range(20):
                decoder.graph.replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
