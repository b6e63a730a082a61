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

from collapse_lib.errors import UserError
from collapse_lib.model import next_token_losses
from collapse_lib.parallel import side_by_side
from collapse_lib.progress import progress

if TYPE_CHECKING:
    from collapse_lib.corpus import TokenCorpus
    from collapse_lib.model import GPTNeo

BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}  # tokens of a forward pass: a CPU wants them to stay in its cache
RELEASED_STRIDE = 512  # tokens between the released code's windows


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
) -> dict[str, Any]:
    """Perplexity of ``model`` on the stories (complete rows) of ``corpus``, every token scored in fp32.

    "paper": a story is ``[start token, x1, x2, ...]``; each ``x`` counts, given the ``max_context`` tokens before it at most, the start
    token among them. Behind the first ``max_context`` tokens that takes a forward pass of a whole window for each token.
    "released": what the released script computes. No start token; windows of ``max_context`` tokens every 512, each scoring the tokens
    that no window before it held; the mean over the scored tokens is multiplied by the number of new ones, so that a story's unscored
    first token takes the mean of the others. A story of one token has no such mean and is left out.

    ``batch_tokens`` is the size of a forward pass, chosen by device when not given; it changes rounding only. The model is left on its device
    and in its mode.

    Returns a dict of ``perplexity``, ``loss_nats`` (per token), ``bits_per_token``, ``tokens`` and ``stories`` that count,
    ``stories_skipped``, and ``loss_standard_error`` and ``perplexity_standard_error``, which take whole stories as the units drawn
    (None for a single story: nothing is known of the spread).
    """
    if max_context > model.config.max_position_embeddings:
        raise UserError(f"evaluation.max_context is {max_context}, but the model has only {model.config.max_position_embeddings} positions.")
    stories = [row if definition == "paper" else row[1:] for row in corpus.iter_rows()]
    windows = {"paper": paper_windows, "released": released_windows}[definition]([len(story) for story in stories], max_context)
    loss_sums = np.zeros(len(stories))
    device = model.head.device
    batches = list(_batches(windows, batch_tokens or BATCH_TOKENS[device.type]))
    with progress(int(windows.tokens.sum()), "token", "perplexity") as bar, side_by_side(device) as (_, run):
        found = run(lambda chosen: _token_losses(model, *_tokens(stories, windows, chosen)), batches)
        for chosen, losses in zip(batches, found, strict=True):
            counts = windows.end[chosen] - windows.first[chosen]
            weights = np.repeat(windows.tokens[chosen] / counts, counts)
            loss_sums += np.bincount(np.repeat(windows.story[chosen], counts), losses * weights, minlength=len(stories))
            bar.update(int(windows.tokens[chosen].sum()))
    return _summary(loss_sums, np.bincount(windows.story, windows.tokens, minlength=len(stories)))


def paper_windows(lengths: Sequence[int], max_context: int) -> Windows:
    """The first ``max_context`` tokens behind the start token in one window, and a window for each token after those."""
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


def _batches(windows: Windows, batch_tokens: int) -> Iterator[np.ndarray]:
    """Numbers of the windows of each forward pass: longest first, so that equals meet and a batch too large for the memory fails at once."""
    lengths = windows.end - windows.begin
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, batch_tokens // int(lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


def _tokens(stories: list[np.ndarray], windows: Windows, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chosen windows' tokens, [B, T] int64 with zeros on the right (which no causal model sees), and which of them are scored, [B, T] bool."""
    lengths = windows.end[chosen] - windows.begin[chosen]
    shown = np.zeros((len(chosen), int(lengths.max())), dtype=np.int64)
    for row, story, begin, end in zip(shown, windows.story[chosen], windows.begin[chosen], windows.end[chosen], strict=True):
        row[: end - begin] = stories[story][begin:end]
    column = np.arange(shown.shape[1])
    scored = (column >= (windows.first - windows.begin)[chosen, None]) & (column < lengths[:, None])
    return shown, scored


@torch.no_grad()
def _token_losses(model: GPTNeo, shown: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Losses in nats of the scored tokens, row by row, float64."""
    device = model.head.device
    tokens = torch.from_numpy(shown).to(device)
    mask = torch.from_numpy(scored[:, 1:]).to(device)  # the hidden state at t predicts the token at t + 1
    hidden, targets = model(tokens[:, :-1])[mask], tokens[:, 1:][mask]  # [n, H], [n]
    return next_token_losses(hidden, model.head, targets).double().cpu().numpy()


def _summary(loss_sums: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    """The metrics, from each story's summed loss and number of tokens."""
    counted = tokens > 0
    total, stories = int(tokens.sum()), int(counted.sum())
    if not total:
        raise UserError("The validation corpus has no token that could be scored; give stories of at least two tokens.")
    loss = float(loss_sums.sum() / total)
    # Tokens of one story are not independent, so the stories are the sample: the usual error of a ratio of two sums.
    spread = float(np.square(loss_sums - loss * tokens)[counted].sum())
    error = math.sqrt(spread * stories / (stories - 1)) / total if stories > 1 else None
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
