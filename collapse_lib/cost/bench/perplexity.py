"""Perplexity of a validation set against a loop over its stories, one forward pass a window, as the released ``evaluate_ppl.py`` does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from collapse_lib.cost.bench import IN_BF16, OURS, Bench, Needs, Setup, Side, Work, check
from collapse_lib.cost.timing import timed
from collapse_lib.model.weightless import without_weights

if TYPE_CHECKING:
    from collapse_lib.text.corpus import TokenCorpus

STORIES = {"cpu": {"demo": 2000, "1m": 300, "3.7m": 600, "33m": 60}, "cuda": {"demo": 2000, "1m": 4000, "3.7m": 2000, "33m": 4000}}
MEAN_TOKENS = {"demo": 40, "1m": 200, "3.7m": 40, "33m": 200}  # of a story of the small grammar, and of TinyStories, about


def workload(setup: Setup) -> str:
    return f"{STORIES[setup.device][setup.config]} stories of {MEAN_TOKENS[setup.config]} tokens on average, the released code's definition"


def corpus(setup: Setup) -> TokenCorpus:
    from collapse_lib.text.corpus import TokenCorpus

    random = np.random.default_rng(0)
    vocabulary, most = setup.model_config.vocab_size, setup.model_config.max_position_embeddings
    lengths = np.clip(random.gamma(8, MEAN_TOKENS[setup.config] / 8, STORIES[setup.device][setup.config]).astype(int), 2, most - 1)
    rows = [np.append(vocabulary - 1, random.integers(0, vocabulary - 1, length)).astype(np.uint16) for length in lengths]
    return TokenCorpus.in_memory(rows, vocabulary - 1, vocabulary, rows_are_complete=True)


def sides(setup: Setup) -> list[Side]:
    in_bf16 = [
        Side(OURS + IN_BF16, ours, {"precision": "bf16"}),
        Side("transformers, story by story" + IN_BF16, story_by_story, {"precision": "bf16"}),
    ]
    return [Side(OURS, ours), Side("transformers, story by story", story_by_story), *(in_bf16 if setup.has_bf16 else [])]


def ours(setup: Setup, precision: str = "fp32") -> Callable[[], Work]:
    from collapse_lib.metrics.perplexity import perplexity
    from collapse_lib.model.precision import DTYPES

    model, stories = setup.our_model().rounded(DTYPES[precision]), corpus(setup)

    def work() -> Work:
        measured, seconds = timed(lambda: perplexity(model, stories, _window(setup), "released"), setup.device)
        return Work(measured["tokens"], seconds, (measured["loss_nats"], measured["tokens"], precision))

    return work


def story_by_story(setup: Setup, precision: str = "fp32") -> Callable[[], Work]:
    import torch

    from collapse_lib.metrics.perplexity import RELEASED_STRIDE
    from collapse_lib.model.precision import DTYPES

    model = setup.their_model().to(DTYPES[precision])
    stories = [row[1:].astype(np.int64) for row in corpus(setup).iter_rows()]
    window = _window(setup)

    @torch.no_grad()
    def loop() -> tuple[float, int]:
        total, count = 0.0, 0
        for story in stories:
            tokens = torch.from_numpy(story)[None].to(setup.device)
            done = 0
            for begin in range(0, len(story), min(RELEASED_STRIDE, window)):
                end = min(begin + window, len(story))
                visible = tokens[:, begin:end]
                labels = visible.clone()
                labels[:, : -(end - done)] = -100
                total += model(visible, labels=labels).loss.item() * (end - done)
                count += end - done
                done = end
                if end == len(story):
                    break
        return total / count, count

    def work() -> Work:
        (loss, tokens), seconds = timed(loop, setup.device)
        return Work(tokens, seconds, (loss, tokens, precision))

    return work


def checks(setup: Setup, ours: Any, theirs: Any) -> list[dict[str, Any]]:
    """The same loss on the same tokens."""
    (loss, tokens, _), (other, count, precision) = ours, theirs
    same = tokens == count and abs(loss / other - 1) < (1e-4 if precision == "fp32" else 1e-2)
    return [check(f"loss {loss:.6f} and {other:.6f} nats a token, over {tokens:,} and {count:,} tokens", same)]


def needs(setup: Setup) -> Needs:
    """FLOP of a token, in the mean over a story of average length."""
    tokens = MEAN_TOKENS[setup.config]
    return Needs(sum(map(without_weights(setup.model_config).flops_per_token, range(1, tokens + 1))) / tokens, "fp32")


def _window(setup: Setup) -> int:
    return setup.model_config.max_position_embeddings


BENCH = Bench(workload, sides, checks, needs)
