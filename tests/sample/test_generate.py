"""Sampling against slow references: every token from a context encoded afresh, and the model's own probabilities."""

from __future__ import annotations

import copy
import math
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.parallel import side_by_side
from collapse_lib.experiment.protocol import SamplingSettings
from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig
from collapse_lib.sample.cpu import GRANULE, Cache
from collapse_lib.sample.draw import CHECK_EVERY, row_uniforms
from collapse_lib.sample.generate import batches, complete, sample_corpus, sample_rows
from collapse_lib.text.corpus import CorpusWriter

EOS = 4


@pytest.fixture(scope="module")
def model() -> GPTNeo:
    """Windows of 5 and lengths far beyond; an init at which attention decides."""
    return GPTNeo(GPTNeoConfig(130, 3, 32, 4, window_size=5, max_position_embeddings=40, initializer_range=0.3, eos_token_id=EOS), seed=2)


def settings(**fields: object) -> SamplingSettings:
    return SamplingSettings(**{"sequences": 10, "length": 33, "max_context": 12, "overflow": "hop", "batch_size": 64, **fields})


def context_in_view(tokens: torch.Tensor, overflow: str, most: int) -> torch.Tensor:
    """Of [B, T] tokens those that the model sees when it predicts the next: the rule of each overflow mode, by itself."""
    length = tokens.shape[1]
    if overflow == "extend" or length <= most:
        return tokens
    if overflow == "slide":
        return tokens[:, -most:]
    kept = max(1, most // 2)
    return tokens[:, -(kept + (length - most - 1) % (most - kept + 1 if most > 1 else 1)) :]


@torch.no_grad()
def reference_logits(model: GPTNeo, tokens: torch.Tensor, overflow: str, most: int) -> torch.Tensor:
    return model.logits(model(context_in_view(tokens, overflow, most)))[:, -1]


@pytest.mark.parametrize("overflow", ["slide", "hop", "extend"])
@pytest.mark.parametrize("most", [1, 2, 4, 5, 6, 12, 13, 33])
def test_decoding_is_encoding_the_context_afresh(model: GPTNeo, overflow: str, most: int) -> None:
    tokens = torch.randint(130, (33, 6), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        cache = Cache(model, settings(overflow=overflow, max_context=most), 6, 33)
        seen = []
        for position in range(33):
            found = model.logits(cache.advance(tokens, position))
            expected = reference_logits(model, tokens[: position + 1].T, overflow, most)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            seen.append(context_in_view(tokens[: position + 1].T, overflow, most).shape[1])
    assert max(seen) == (33 if overflow == "extend" else most)


def chi_square(counts: np.ndarray, p: np.ndarray) -> float:
    """p-value of counts under p, cells of less than 5 expected pooled."""
    order = np.argsort(-p)
    expected = p[order] * counts.sum()
    rare = expected < 5
    cells = np.append(counts[order][~rare], counts[order][rare].sum()), np.append(expected[~rare], expected[rare].sum())
    kept = cells[1] > 0
    return stats.chisquare(cells[0][kept], cells[1][kept] * cells[0].sum() / cells[1].sum()).pvalue


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [512, 50257])
def test_samples_follow_the_models_probabilities(vocabulary: int, dtype: torch.dtype) -> None:
    """The first token by chi-square; later tokens, whose contexts all differ, by where they fall in their own distributions.

    In bf16 the law is that of the rounded model, whose logits are products in bf16.
    """
    eos, rows = vocabulary - 1, 6000 if vocabulary == 512 else 800
    config = GPTNeoConfig(vocabulary, 2, 16, 2, window_size=3, max_position_embeddings=16, initializer_range=1.2, eos_token_id=eos)
    model = GPTNeo(config, seed=1)
    sampled = sample_rows(model, settings(length=3, max_context=16), range(rows), seed=7, dtype=dtype).astype(np.int64)
    model = model.rounded(dtype)
    tokens = torch.from_numpy(np.insert(sampled, 0, eos, axis=1))
    with torch.no_grad():
        p = model.logits(model(tokens[:1, :1]))[0, 0].double().softmax(-1).numpy()
    assert chi_square(np.bincount(sampled[:, 0], minlength=vocabulary), p) > 1e-3
    assert chi_square(np.bincount(sampled[:, 0], minlength=vocabulary), p**1.3 / (p**1.3).sum()) < 1e-3  # a wrong temperature is seen
    mids = []
    with torch.no_grad():
        for part in tokens.split(20):
            p = model.logits(model(part))[:, :-1].double().softmax(-1)
            chosen = p.gather(-1, part[:, 1:, None])
            # Position of the token among all, the likeliest first, spread uniformly over its own share and that of its equals, of which rounded
            # logits have many: uniform if the sample is right.
            before, equal = (p * (p > chosen)).sum(-1), (p * (p == chosen)).sum(-1)
            mids.append((before + equal * torch.rand(before.shape, generator=torch.Generator().manual_seed(len(mids)))).numpy())
    for position, where in enumerate(np.concatenate(mids).T):
        assert stats.kstest(where, "uniform").pvalue > 1e-3, position


@pytest.mark.parametrize("fields", [{}, {"overflow": "slide"}, {"overflow": "extend"}, {"start": "masked_zero"}, {"after_eos": "pad", "top_p": 0.9}])
def test_a_row_depends_on_nothing_but_its_number(model: GPTNeo, fields: dict) -> None:
    many = settings(length=20, max_context=9, **fields)
    alone = sample_rows(model, many, range(200), seed=11, batch_size=200)
    assert alone.shape == (200, 20) and alone.dtype == np.uint16
    for batch_size in (1, 7, 64):
        some = range(200) if batch_size > 1 else range(5)
        assert np.array_equal(sample_rows(model, many, some, seed=11, batch_size=batch_size), alone[: len(some)]), batch_size
    assert np.array_equal(sample_rows(model, many, range(37, 41), seed=11), alone[37:41])
    assert sample_rows(model, many, range(5, 5), seed=11).shape == (0, 20)
    assert not np.array_equal(sample_rows(model, many, range(200), seed=12), alone)
    assert len(np.unique(alone, axis=0)) > 190


@pytest.mark.parametrize("shape", [(2048, 2, 64, 4), (600, 8, 64, 16), (600, 2, 768, 16)])
def test_a_rows_arithmetic_does_not_depend_on_its_batch(shape: tuple[int, int, int, int]) -> None:
    """Bit for bit, at the widths in use, through steps and a re-encoding, for every number of rows that a batch can have."""
    model = GPTNeo(GPTNeoConfig(*shape, window_size=3, max_position_embeddings=8, initializer_range=0.3), seed=1)
    tokens = torch.randint(600, (7, 13 * GRANULE), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def logits(width: int) -> list[torch.Tensor]:
        cache = Cache(model, settings(max_context=5), width, 7)
        return [model.logits(cache.advance(tokens[:, :width], position)) for position in range(7)]

    with side_by_side(torch.device("cpu")) as (_, run):  # as batches run: on one thread each
        all_rows, *others = run(logits, [13 * GRANULE, GRANULE, 2 * GRANULE, 5 * GRANULE])
    for some_rows in others:
        assert all(torch.equal(some, every[: len(some)]) for some, every in zip(some_rows, all_rows, strict=True))


def test_a_row_in_bf16_depends_on_its_number_and_the_batch_size_alone() -> None:
    """At a width where kernels for few and for many rows round differently."""
    model = GPTNeo(GPTNeoConfig(600, 2, 768, 16, window_size=3, max_position_embeddings=8, initializer_range=0.3), seed=1)

    def sampled(rows: range) -> np.ndarray:
        return sample_rows(model, settings(length=6, max_context=5), rows, seed=11, batch_size=96, dtype=torch.bfloat16)

    every = sampled(range(100))
    for rows in (range(5), range(37, 41), range(90, 100)):
        assert np.array_equal(sampled(rows), every[rows.start : rows.stop])


def test_batches_cover_the_rows_within_the_batch_size() -> None:
    for rows, batch_size, workers in [(200, 1, 2), (200, 64, 3), (5, 100, 4), (1024, 200, 2), (0, 10, 2), (17, 16, 1)]:
        parts = batches(range(rows), batch_size, workers, torch.device("cpu"))
        assert [row for part, _ in parts for row in part] == list(range(rows))
        assert all(len(part) <= math.ceil(batch_size / workers) <= batch_size + workers and width % GRANULE == 0 for part, width in parts)
        assert all(len(part) <= width < len(part) + GRANULE for part, width in parts)


def test_threads_do_not_matter_and_are_given_back(model: GPTNeo) -> None:
    threads = torch.get_num_threads()
    found = []
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(sample_rows(model, settings(), range(50), seed=1))
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    assert np.array_equal(*found)


def test_restrictions_reach_the_sample(model: GPTNeo) -> None:
    with torch.no_grad():
        likeliest = model.logits(model(torch.tensor([[EOS]])))[0, 0].topk(3).indices
    greedy = sample_rows(model, settings(top_k=1), range(20), seed=1)
    assert (greedy == greedy[0]).all() and greedy[0, 0] == likeliest[0]
    assert set(sample_rows(model, settings(top_k=3, length=1), range(200), seed=1).ravel().tolist()) == set(likeliest.tolist())
    assert (sample_rows(model, settings(top_p=1e-6), range(5), seed=1) == greedy[0]).all()
    assert (sample_rows(model, settings(temperature=1e-3, length=1), range(20), seed=1) == greedy[0, 0]).all()


def test_after_the_end_of_a_story(model: GPTNeo) -> None:
    goes_on = sample_rows(model, settings(length=60), range(100), seed=5)
    padded = sample_rows(model, settings(length=60, after_eos="pad"), range(100), seed=5)
    ended = 0
    for free, pad in zip(goes_on, padded, strict=True):
        ends = np.flatnonzero(free == EOS)
        first = ends[0] if len(ends) else len(free)
        assert np.array_equal(free[: first + 1], pad[: first + 1])
        assert (pad[first:] == EOS).all()
        ended += first < len(free) - 1 and (free[first:] != EOS).any()
    assert ended > 4


def test_padding_does_not_keep_a_batch_from_ending(model: GPTNeo) -> None:
    """Rows that all end within a few tokens, beside padding whose uniforms of 0 would draw the first id for ever."""
    ending = copy.deepcopy(model)
    with torch.no_grad():
        ending.transformer.ln_f.weight.zero_()
        ending.transformer.ln_f.bias.copy_(ending.head[EOS] * 4)
    passes: list[int] = []
    ending.transformer.ln_f.register_forward_hook(lambda *_: passes.append(1))
    with side_by_side(torch.device("cpu")) as (workers, _):
        pass
    for rows in (GRANULE, GRANULE - 3):
        passes.clear()
        found = sample_rows(ending, settings(length=200, after_eos="pad"), range(workers * rows), seed=5)
        assert (found[:, -1] == EOS).all() and len(passes) <= workers * (CHECK_EVERY + 1)


def test_masked_zero_is_the_released_codes_start(model: GPTNeo) -> None:
    """Token 0 at position 1 gives the first token; from then on the sequence stands alone, from position 0."""
    some = settings(start="masked_zero", length=7, max_context=12)
    sampled = sample_rows(model, some, range(40), seed=9)
    uniform = torch.from_numpy(row_uniforms(9, range(40), 7))
    with torch.no_grad():
        for position in range(7):
            tokens = torch.from_numpy(sampled[:, :position].astype(np.int64))
            if position:
                logits = model.logits(model(tokens))[:, -1]
            else:
                logits = model.logits(model(torch.zeros(40, 1, dtype=torch.int64), torch.tensor([1])))[:, 0]
            expected = (logits.double().softmax(-1).cumsum(-1) <= uniform[:, position, None]).sum(-1)
            assert np.array_equal(sampled[:, position], expected.numpy()), position


def test_too_few_positions_are_refused(model: GPTNeo) -> None:
    with pytest.raises(UserError, match="max_position_embeddings = 40"):
        sample_rows(model, settings(length=60, overflow="extend"), range(3), seed=1)
    assert sample_rows(model, settings(length=60), range(3), seed=1).shape == (3, 60)


@pytest.mark.parametrize("start", ["endoftext", "masked_zero"])
def test_positions_suffice_for_rows_as_long_as_there_are_positions(model: GPTNeo, start: str) -> None:
    """The last token is sampled but never read, so with the start token 41 tokens need 40 positions."""
    some = settings(length=40, overflow="extend", start=start)
    shorter = sample_rows(model, some.model_copy(update={"length": 39}), range(20), seed=1)
    assert np.array_equal(sample_rows(model, some, range(20), seed=1)[:, :39], shorter)
    with pytest.raises(UserError, match="needs 41 positions"):
        sample_rows(model, some.model_copy(update={"length": 41 if start == "endoftext" else 42}), range(3), seed=1)


@pytest.mark.parametrize("overflow", ["slide", "hop"])
def test_prompts_of_different_lengths(model: GPTNeo, overflow: str) -> None:
    """Each continuation is the one that the model's probabilities and the row's uniforms give, whatever stands beside it."""
    some = settings(overflow=overflow, max_context=9)
    prompts = [np.array(ids, np.uint16) for ids in ([EOS], [7, 8, 9], list(range(20)), [100, 3])]
    found = complete(model, prompts, some, max_new_tokens=11, samples_per_prompt=3, seed=21, stop_at_eos=False)
    assert [len(samples) for samples in found] == [3] * 4
    for number, prompt in enumerate(prompts):
        for sample in range(3):
            uniform = row_uniforms(21, [3 * number + sample], 11)[0]
            text = torch.tensor([prompt.tolist()])
            for u in uniform:
                p = reference_logits(model, text, overflow, 9).double().softmax(-1)
                text = torch.cat([text, (p.cumsum(-1) <= u).sum(-1, keepdim=True)], 1)
            assert np.array_equal(found[number][sample], text[0, len(prompt) :].numpy())
    again = complete(model, prompts, some.model_copy(update={"batch_size": 2}), 11, 3, 21, stop_at_eos=False)
    assert all(np.array_equal(a, b) for ours, theirs in zip(found, again, strict=True) for a, b in zip(ours, theirs, strict=True))


def test_completions_stop_at_the_end_of_the_story(model: GPTNeo) -> None:
    prompts = [np.array([EOS, 9]), np.array([EOS, 9, 1, EOS, 2]), np.array([3, 3, EOS])]  # an end inside a prompt is no end
    one_batch = settings(batch_size=1000)
    free = complete(model, prompts, one_batch, 60, 41, seed=2, stop_at_eos=False)
    stopped = complete(model, prompts, one_batch, 60, 41, seed=2)
    short = 0
    for whole, cut in zip(chain(*free), chain(*stopped), strict=True):
        ends = np.flatnonzero(whole == EOS)
        assert np.array_equal(cut, whole[: ends[0]] if len(ends) else whole)
        short += len(cut) < 60
    assert short > 4
    with pytest.raises(UserError, match="no token"):
        complete(model, [np.array([], np.uint16)], settings(), 5, 1, seed=1)


def corpus_writer(folder: Path, some: SamplingSettings) -> CorpusWriter:
    return CorpusWriter(folder, EOS, 130, rows_are_complete=False, has_start=some.start == "endoftext")


def test_a_shard_of_another_size_is_sampled_anew(model: GPTNeo, tmp_path: Path) -> None:
    large, small = settings(sequences=32, shard_sequences=16), settings(sequences=24, shard_sequences=8)
    with corpus_writer(tmp_path, large) as writer:
        sample_corpus(model, large, 3, writer)
        assert sample_corpus(model, small, 3, writer)["sequences"] == 24
        corpus = writer.finish(3)
    expected = sample_rows(model, small, range(24), seed=3)
    assert all(np.array_equal(row[1:], sampled) for row, sampled in zip(corpus.iter_rows(), expected, strict=True))


@pytest.mark.parametrize("fields", [{}, {"start": "masked_zero", "after_eos": "pad"}, {"after_eos": "pad"}])
def test_an_interrupted_corpus_goes_on_at_its_missing_shards(model: GPTNeo, tmp_path: Path, fields: dict) -> None:
    some = settings(sequences=50, shard_sequences=16, **fields)
    with corpus_writer(tmp_path, some) as writer:
        statistics = sample_corpus(model, some, 3, writer)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len([name for name in files if name.endswith(".arrow")]) == 4
    for lost in ("shard-00001.arrow", "shard-00003.arrow", "corpus.json"):
        (tmp_path / lost).unlink()
    untouched = (tmp_path / "shard-00000.arrow").stat().st_mtime_ns
    with corpus_writer(tmp_path, some) as writer:
        again = sample_corpus(model, some, 3, writer)
        corpus = writer.finish(4)
        idle = sample_corpus(model, some, 3, writer)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert (tmp_path / "shard-00000.arrow").stat().st_mtime_ns == untouched
    for name in ("sequences", "tokens", "stories"):
        assert statistics[name] == again[name] == idle[name]
    assert statistics["tokens_per_second"] > 0 and idle["tokens_per_second"] == 0
    sampled = sample_rows(model, some, range(50), seed=3)
    start = 1 if some.start == "endoftext" else 0
    kept = []
    for row, stored in zip(sampled, corpus.iter_rows(), strict=True):
        ends = np.flatnonzero(row == EOS)
        kept.append(row[: ends[0] + 1] if len(ends) and some.after_eos == "pad" else row)
        assert (stored[:start] == EOS).all() and np.array_equal(stored[start:], kept[-1])
    assert statistics["tokens"] == sum(map(len, kept))
    assert statistics["stories"] == (np.concatenate(kept) == EOS).sum()
