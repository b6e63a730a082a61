"""Perplexity of a model on stories it was not trained on (section 5.2).

The loss of a token is ``-log p(token | the tokens of its story before it)``, of which the model sees at most ``max_context``; the
validation loss is the mean over all tokens of all stories, and perplexity is e to its power.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.parallel import side_by_side
from collapse_lib.experiment.processes import ALONE, Group
from collapse_lib.metrics.padding import longest_first, padded
from collapse_lib.metrics.uncertainty import independent_mean, ratio_error
from collapse_lib.model.loss import next_token_losses

if TYPE_CHECKING:
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import TokenCorpus

BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}  # tokens of a forward pass: a CPU wants them to stay in its cache
RELEASED_STRIDE = 512  # tokens between the released code's windows
CONTEXTS = {"paper": 512, "released": 2048}  # tokens that the model may see, as either definition has it
# First and last positions whose losses are told apart. What the released pipeline does to a text differs along its rows of 600: no model learns
# to predict a row's first token (0), and what lies behind a training block (512 and more) is hardly trained.
BANDS = ((0, 0), (1, 32), (33, 255), (256, 511), (512, 599))


@dataclass(frozen=True)
class Windows:
    """What the model is shown: ``story[begin:end]``, in which the tokens from ``first`` on are scored, each given those before it.

    Arrays with one value a window. The mean loss of a window's tokens counts ``tokens`` times.
    """

    story: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    first: np.ndarray
    tokens: np.ndarray

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[int, int, int, int, int]]) -> Windows:
        return cls(*np.array(list(rows), dtype=np.int64).reshape(-1, 5).T)


def perplexity(
    model: GPTNeo,
    corpus: TokenCorpus,
    max_context: int,
    definition: str = "paper",
    batch_tokens: int | None = None,
    group: Group = ALONE,
) -> dict[str, Any]:
    """Perplexity of ``model`` on the stories (complete rows) of ``corpus``, every token scored in fp32, or with the products of a ``rounded`` model.

    "paper": a story is ``[start token, x1, x2, ...]``; each ``x`` counts, given the ``max_context`` tokens before it at most, the start
    token among them. After the first ``max_context`` tokens that takes a forward pass of a whole window for each token.
    "released": what the released script computes. No start token; windows of ``max_context`` tokens every 512, each scoring the tokens
    that no window before it held; the mean over the scored tokens is multiplied by the number of new ones, so that a story's unscored
    first token takes the mean of the others. A story of one token has no such mean and is left out.

    ``batch_tokens`` is the size of a forward pass, chosen by device when not given; it changes rounding only. The model is left on its device
    and in its mode.

    Returns a dict of ``perplexity``, ``loss_nats`` (per token), ``bits_per_token``, ``tokens`` and ``stories`` that count,
    ``stories_skipped``, and ``loss_standard_error`` and ``perplexity_standard_error``, which take whole stories as the sampling units
    (None for a single story: nothing is known of the spread). ``bands`` is a list of dicts with ``first`` and ``last`` position, ``loss_nats``,
    ``loss_standard_error`` and ``tokens``, for those of ``BANDS`` in which a token was scored. A token's position is the number of story
    tokens that the model was shown before it, so that ``max_context - 1`` is the highest there is.
    """
    if max_context > model.config.max_position_embeddings:
        raise UserError(f"evaluation.max_context is {max_context}, but the model has only {model.config.max_position_embeddings} positions.")
    stories = [row if definition == "paper" else row[1:] for row in corpus.iter_rows()]
    windows = {"paper": paper_windows, "released": released_windows}[definition]([len(story) for story in stories], max_context)
    loss_sums = np.zeros(len(stories))
    band_sums, band_tokens = np.zeros((2, len(BANDS), len(stories)))
    for batch, losses in _scored(model, stories, windows, batch_tokens, "perplexity", group):
        counts = windows.end[batch] - windows.first[batch]
        weights = np.repeat(windows.tokens[batch] / counts, counts)
        story, positions = np.repeat(windows.story[batch], counts), _positions(windows, batch, has_start=definition == "paper")
        loss_sums += np.bincount(story, losses * weights, minlength=len(stories))
        for band, (first, last) in enumerate(BANDS):
            in_band = (positions >= first) & (positions <= last)
            band_sums[band] += np.bincount(story[in_band], losses[in_band], minlength=len(stories))
            band_tokens[band] += np.bincount(story[in_band], minlength=len(stories))
    summary = _summary(loss_sums, np.bincount(windows.story, windows.tokens, minlength=len(stories)))
    bands = zip(BANDS, band_sums, band_tokens, strict=True)
    return summary | {"bands": [_band(*ends, sums, tokens) for ends, sums, tokens in bands if tokens.any()]}


def other_definition(definition: str, positions: int) -> tuple[str, int]:
    """The one of the two definitions that is not meant, and its context in a model with so many positions."""
    (other,) = CONTEXTS.keys() - {definition}
    return other, min(CONTEXTS[other], positions)


def story_ends(
    model: GPTNeo, corpus: TokenCorpus, max_context: int, definition: str = "paper", batch_tokens: int | None = None, group: Group = ALONE
) -> dict[str, Any]:
    """How probable '<|endoftext|>' is to ``model`` where the stories of ``corpus`` end, given at most ``max_context`` tokens before it.

    ``definition`` says as in ``perplexity`` whether a story begins with its start token; empty stories are left out. Returns a dict of
    ``probability``, the mean over stories, ``standard_error`` (None for a single story) and ``stories``.
    """
    stories = [np.append(row if definition == "paper" else row[1:], corpus.eos_id) for row in corpus.iter_rows() if len(row) > 1]
    last = [len(story) - 1 for story in stories]
    windows = Windows.from_rows((story, max(0, end - max_context), end + 1, end, 1) for story, end in enumerate(last))
    batch_probabilities = [np.exp(-losses) for _, losses in _scored(model, stories, windows, batch_tokens, "story ends", group)]
    probabilities = np.concatenate([np.empty(0), *batch_probabilities])
    if not len(probabilities):
        raise UserError("The validation corpus has no story with a token in it, so there is no end of one to predict.")
    mean, error = independent_mean(probabilities)
    return {"probability": mean, "standard_error": error, "stories": len(stories)}


def paper_windows(lengths: Sequence[int], max_context: int) -> Windows:
    """The first ``max_context`` tokens after the start token in one window, and a window for each token after those."""
    return Windows.from_rows(
        window
        for story, length in enumerate(lengths)
        if length > 1
        for window in (
            (story, 0, min(length, max_context + 1), 1, min(length, max_context + 1) - 1),
            *((story, token - max_context, token + 1, token, 1) for token in range(max_context + 1, length)),
        )
    )


def released_windows(lengths: Sequence[int], max_context: int) -> Windows:
    """Windows of ``max_context`` tokens every 512; the first token of a story has nothing before it and is never scored."""
    stride = min(RELEASED_STRIDE, max_context)
    rows = []
    for story, length in enumerate(lengths):
        done = 0  # tokens that the windows so far have held
        for begin in range(0, length, stride):
            end, first = min(begin + max_context, length), max(done, begin + 1)
            if first < end:
                rows.append((story, begin, end, first, end - done))
            done = end
            if done == length:
                break
    return Windows.from_rows(rows)


def window_tokens(stories: list[np.ndarray], windows: Windows, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a batch of windows, [B, T] int64 with zeros on the right (which no causal model sees), and which are scored, [B, T] bool."""
    lengths = windows.end[batch] - windows.begin[batch]
    bounds = zip(windows.story[batch], windows.begin[batch], windows.end[batch], strict=True)
    tokens = padded([stories[story][begin:end] for story, begin, end in bounds])
    column = np.arange(tokens.shape[1])
    scored = (column >= (windows.first - windows.begin)[batch, None]) & (column < lengths[:, None])
    return tokens, scored


def _scored(
    model: GPTNeo, stories: list[np.ndarray], windows: Windows, batch_tokens: int | None, name: str, group: Group
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of the windows of a forward pass, and the losses of their scored tokens, window by window; a progress bar called ``name``."""
    device = model.head.device
    batches = list(longest_first(windows.end - windows.begin, batch_tokens or BATCH_TOKENS[device.type]))
    with group.progress(int(windows.tokens.sum()), "token", name) as bar, side_by_side(device) as (_, run):

        def score(own: list[np.ndarray]) -> Iterator[np.ndarray]:
            batch_losses = run(lambda batch: _token_losses(model, *window_tokens(stories, windows, batch)), own)
            for batch, losses in zip(own, batch_losses, strict=True):
                yield losses
                bar.update(int(windows.tokens[batch].sum()))

        yield from zip(batches, group.spread(batches, score), strict=True)


def _positions(windows: Windows, batch: np.ndarray, has_start: bool) -> np.ndarray:
    """Positions of the scored tokens of a batch of windows, window by window; the start token has none."""
    counts = windows.end[batch] - windows.first[batch]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat((windows.first - windows.begin)[batch], counts) + within - has_start


@torch.no_grad()
def _token_losses(model: GPTNeo, windows: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Losses in nats of the scored tokens, row by row, float64."""
    device = model.head.device
    tokens = torch.from_numpy(windows).to(device)
    mask = torch.from_numpy(scored[:, 1:]).to(device)  # the hidden state at t predicts the token at t + 1
    hidden, targets = model(tokens[:, :-1])[mask], tokens[:, 1:][mask]  # [n, H], [n]
    return next_token_losses(hidden, model.output_matrix, targets).double().cpu().numpy()


def _summary(loss_sums: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    """The metrics, from each story's summed loss and number of tokens."""
    counted = tokens > 0
    total, stories = int(tokens.sum()), int(counted.sum())
    if not total:
        raise UserError("The validation corpus has no token that could be scored; give stories of at least two tokens.")
    loss = float(loss_sums.sum() / total)
    error = _mean_error(loss_sums, tokens, loss)
    return {
        "perplexity": math.exp(loss),
        "perplexity_standard_error": math.exp(loss) * error if error is not None else None,
        "loss_nats": loss,
        "loss_standard_error": error,
        "bits_per_token": loss / math.log(2),
        "tokens": total,
        "stories": stories,
        "stories_skipped": len(tokens) - stories,
    }


def _band(first: int, last: int, loss_sums: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    """The mean loss at some positions, from each story's summed loss and number of tokens there."""
    loss = float(loss_sums.sum() / tokens.sum())
    return {"first": first, "last": last, "loss_nats": loss, "loss_standard_error": _mean_error(loss_sums, tokens, loss), "tokens": int(tokens.sum())}


def _mean_error(loss_sums: np.ndarray, tokens: np.ndarray, loss: float) -> float | None:
    """The error of a mean loss, by the stories that have any of its tokens: tokens of one story are not independent."""
    return ratio_error((loss_sums - loss * tokens)[tokens > 0], float(tokens.sum()))
