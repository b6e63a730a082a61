"""Perplexity against references that score one token at a time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import Run
from collapse_lib.metrics import perplexity as module
from collapse_lib.metrics.perplexity import other_definition, perplexity, story_ends
from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig
from collapse_lib.text.corpus import CorpusWriter, TokenCorpus

VOCABULARY, EOS, CONTEXT = 40, 39, 8
CONFIG = GPTNeoConfig(VOCABULARY, 2, 16, 4, window_size=5, max_position_embeddings=64, initializer_range=0.5, eos_token_id=EOS)
# A single token; shorter than the window, exactly it with and without the start token, one more, and several windows.
LENGTHS = (1, 2, 5, CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT, 37, 1, 20)


@pytest.fixture(scope="module")
def model() -> GPTNeo:
    return GPTNeo(CONFIG, seed=3)


def write(folder: Path, lengths, seed: int = 0) -> TokenCorpus:
    random = np.random.default_rng(seed)
    rows = [np.append(EOS, random.integers(0, EOS, length)) for length in lengths]
    with CorpusWriter(folder, EOS, VOCABULARY, rows_are_complete=True) as writer:
        writer.write_shard(0, rows[:3])
        writer.write_shard(1, rows[3:])
        return writer.finish(2)


@torch.no_grad()
def naive_losses(model: GPTNeo, story: list[int], max_context: int) -> list[float]:
    """Section 5.2 read aloud: each token's loss given at most ``max_context`` tokens before it."""
    losses = []
    for index in range(1, len(story)):
        context = torch.tensor([story[max(0, index - max_context) : index]])
        losses.append(-torch.log_softmax(model.logits(model(context)[0, -1]).double(), -1)[story[index]].item())
    return losses


@torch.no_grad()
def naive_released(model: GPTNeo, story: list[int], window: int, stride: int) -> tuple[float, int]:
    """The released script's loop: labels of the new tokens, of which the first of a window is lost by the shift; mean times their number."""
    total, before = 0.0, 0
    for begin in range(0, len(story), stride):
        end = min(begin + window, len(story))
        new = end - before
        tokens = torch.tensor(story[begin:end])
        labels = tokens.clone()
        labels[:-new] = -100
        logits = model.logits(model(tokens[None])[0])
        total += new * torch.nn.functional.cross_entropy(logits[:-1], labels[1:]).item()
        before = end
        if end == len(story):
            break
    return total, len(story)


@pytest.mark.parametrize("max_context", [CONTEXT, 3, 64])
@pytest.mark.parametrize("batch_tokens", [1, 40, 16384])
def test_every_token_is_scored_as_section_5_2_says(tmp_path, model, max_context, batch_tokens):
    corpus = write(tmp_path, LENGTHS)
    losses = [naive_losses(model, row.tolist(), max_context) for row in corpus.iter_rows()]
    found = perplexity(model, corpus, max_context, batch_tokens=batch_tokens)
    assert (found["tokens"], found["stories"], found["stories_skipped"]) == (sum(LENGTHS), len(LENGTHS), 0)
    assert found["loss_nats"] == pytest.approx(np.mean(np.concatenate(losses)), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss_nats"]))
    assert found["bits_per_token"] == pytest.approx(math.log2(found["perplexity"]))


def test_context_matters_here(tmp_path, model):
    """What the test above could not see otherwise: that the window is the right one."""
    losses = {context: perplexity(model, write(tmp_path, LENGTHS), context)["loss_nats"] for context in (3, 7, 8, 64)}
    assert len({round(loss, 3) for loss in losses.values()}) == 4


@pytest.mark.parametrize(("window", "stride"), [(64, 512), (20, 7), (10, 10)])
def test_released_definition_equals_the_released_loop(tmp_path, model, monkeypatch, window, stride):
    monkeypatch.setattr(module, "RELEASED_STRIDE", stride)
    corpus = write(tmp_path, [length for length in LENGTHS if length % window != 1 or length == 1])
    stories = [row[1:].tolist() for row in corpus.iter_rows()]
    reference = [naive_released(model, story, window, stride) for story in stories if len(story) > 1]
    found = perplexity(model, corpus, window, "released", batch_tokens=50)
    total, tokens = np.sum(reference, axis=0)
    assert found["loss_nats"] == pytest.approx(total / tokens, rel=1e-6)
    assert (found["tokens"], found["stories"], found["stories_skipped"]) == (tokens, len(reference), 2)
    assert math.isnan(naive_released(model, [7], window, stride)[0])  # why a story of one token is skipped


def test_standard_error_takes_stories_as_the_units(tmp_path, model):
    """Against the jackknife: the loss again and again with one story left out."""
    corpus = write(tmp_path, np.random.default_rng(5).integers(1, 30, 60))
    sums = np.array([(sum(losses), len(losses)) for losses in (naive_losses(model, row.tolist(), 64) for row in corpus.iter_rows())])
    left_out = sums.sum(0) - sums
    estimates = left_out[:, 0] / left_out[:, 1]
    jackknife = math.sqrt(59 / 60 * np.square(estimates - estimates.mean()).sum())
    found = perplexity(model, corpus, 64)
    assert found["loss_standard_error"] == pytest.approx(jackknife, rel=0.05)
    assert found["perplexity_standard_error"] == pytest.approx(found["perplexity"] * found["loss_standard_error"])


def test_standard_error_of_equal_stories_is_that_of_their_mean(tmp_path, model):
    corpus = write(tmp_path, [6] * 5)
    means = [np.mean(naive_losses(model, row.tolist(), CONTEXT)) for row in corpus.iter_rows()]
    assert perplexity(model, corpus, CONTEXT)["loss_standard_error"] == pytest.approx(np.std(means, ddof=1) / math.sqrt(5), rel=1e-4)


def test_one_story_gives_no_standard_error(tmp_path, model):
    with CorpusWriter(tmp_path, EOS, VOCABULARY, rows_are_complete=True) as writer:
        writer.write_shard(0, [np.array([EOS, 1, 2])])
        one = writer.finish(1)
    assert perplexity(model, one, CONTEXT)["loss_standard_error"] is None


def test_an_untrained_model_is_as_surprised_as_a_uniform_one(tmp_path):
    fresh = GPTNeo(GPTNeoConfig(VOCABULARY, 2, 16, 4, max_position_embeddings=64, eos_token_id=EOS), seed=1)
    assert perplexity(fresh, write(tmp_path, LENGTHS), CONTEXT)["perplexity"] == pytest.approx(VOCABULARY, rel=0.02)


def test_more_context_than_positions_is_refused(tmp_path, model):
    with pytest.raises(UserError, match=r"evaluation.max_context is 65, but the model has only 64 positions"):
        perplexity(model, write(tmp_path, LENGTHS), 65)


def test_nothing_to_score_is_said(tmp_path, model):
    with pytest.raises(UserError, match="no token that could be scored"):
        perplexity(model, write(tmp_path, [1, 1, 1, 1]), CONTEXT, "released")


@pytest.mark.parametrize(("definition", "context"), [("paper", 48), ("released", 64), ("paper", CONTEXT)])
def test_losses_by_position(tmp_path, model, definition, context):
    """Each token's loss sorted by hand into the bands, by the number of story tokens that the model was shown before it."""
    corpus = write(tmp_path, LENGTHS)
    found = perplexity(model, corpus, context, definition)
    skipped = int(definition == "released")  # no start token, so the first token is never scored
    by_band: dict[tuple[int, int], list[float]] = {}
    for row in corpus.iter_rows():
        losses = naive_losses(model, row[skipped:].tolist(), context)
        for index, loss in enumerate(losses):
            position = min(index + skipped, context - 1)
            by_band.setdefault(next(band for band in module.BANDS if band[0] <= position <= band[1]), []).append(loss)
    assert [(band["first"], band["last"]) for band in found["bands"]] == sorted(by_band)
    for band in found["bands"]:
        losses = by_band[band["first"], band["last"]]
        assert band["tokens"] == len(losses) and band["loss_nats"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert band["loss_standard_error"] is None or band["loss_standard_error"] > 0  # a single story is that long
    if definition == "paper":
        assert sum(band["loss_nats"] * band["tokens"] for band in found["bands"]) / found["tokens"] == pytest.approx(found["loss_nats"])
        assert found["bands"][0]["tokens"] == len(LENGTHS)


@torch.no_grad()
@pytest.mark.parametrize("definition", ["paper", "released"])
def test_ends_of_stories(tmp_path, model, definition):
    corpus, probabilities = write(tmp_path, LENGTHS), []
    for row in corpus.iter_rows():
        story = torch.tensor(row[int(definition == "released") :].astype(np.int64))[-CONTEXT:]
        probabilities.append(torch.softmax(model.logits(model(story[None])[0, -1]).double(), -1)[EOS].item())
    found = story_ends(model, corpus, CONTEXT, definition)
    assert found["probability"] == pytest.approx(np.mean(probabilities), rel=1e-5) and found["stories"] == len(LENGTHS)
    assert found["standard_error"] == pytest.approx(np.std(probabilities, ddof=1) / math.sqrt(len(LENGTHS)), rel=1e-4)


def test_without_a_story_there_is_no_end(tmp_path, model):
    with CorpusWriter(tmp_path, EOS, VOCABULARY, rows_are_complete=True) as writer:
        writer.write_shard(0, [np.array([EOS])])
        corpus = writer.finish(1)
    with pytest.raises(UserError, match="no end of one to predict"):
        story_ends(model, corpus, CONTEXT)


@pytest.mark.parametrize(
    ("definition", "positions", "other"),
    [("paper", 2048, ("released", 2048)), ("paper", 300, ("released", 300)), ("released", 2048, ("paper", 512)), ("released", 64, ("paper", 64))],
)
def test_the_other_definition_has_its_own_context_where_the_model_has_the_positions(definition, positions, other):
    assert other_definition(definition, positions) == other


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a run that has a model to evaluate."""
    from collapse_lib import steps

    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLAPSE_RUNS", str(root))
        run = Run.create("first", load_preset("smoke").with_changes({"training.epochs": "1"}))
        steps.corpus(run)
        steps.train(run, 1, "cpu")
    return root


def test_the_step_measures_by_both_definitions(trained, monkeypatch):
    """A run's own perplexity under its plain name, the other under its definition's, and each what a run that follows it calls its own."""
    from collapse_lib import steps

    monkeypatch.setenv("COLLAPSE_RUNS", str(trained))
    found = {}
    for definition in ("paper", "released"):
        # Only the evaluation differs, and nothing of it has been done: the model is the same.
        run = Run.create("first", Run.open("first").protocol.with_changes({"evaluation.perplexity": definition, "evaluation.max_context": "64"}))
        found[definition] = steps.perplexity(run, 1, "cpu")["metrics"]
        run.step(1, "perplexity").manifest_file.unlink()
    paper, released = found["paper"], found["released"]
    assert "perplexity_paper" not in paper and "perplexity_released" not in released
    for own, other in ((paper["perplexity"], released["perplexity_paper"]), (released["perplexity"], paper["perplexity_released"])):
        assert {name: own[name] for name in ("value", "counts", "standard_error")} == {
            name: other[name] for name in ("value", "counts", "standard_error")
        }
    assert "at most 64 tokens of context (released)" in paper["perplexity_released"]["definition"]
    assert paper["perplexity"]["value"] != paper["perplexity_released"]["value"]
