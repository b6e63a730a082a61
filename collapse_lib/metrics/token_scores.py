"""What a model says at every token of some rows: the token's loss and the entropy of the law that it was drawn from.

Rows are integer arrays [T] whose first token is context only ('<|endoftext|>' where a corpus gives one); each later token is scored given the
``max_context`` tokens before it at most, as section 5.2 has it. To score the end of a complete story, append '<|endoftext|>': ``with_end`` does.
Other learners need to give the same two lists of arrays, and every measure built on them takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.parallel import side_by_side
from collapse_lib.metrics.padding import longest_first
from collapse_lib.metrics.perplexity import BATCH_TOKENS, paper_windows, window_tokens
from collapse_lib.model.loss import CACHED_LOGITS, LOSS_CHUNK_LOGITS, next_token_losses, product

if TYPE_CHECKING:
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import TokenCorpus

CPU_ROWS = 512  # hidden states that meet the head at once; few enough that some hundred ids' logits stay in a core's cache

Rows = Sequence[np.ndarray]
Score = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden [n, H], head [V, H], targets [n] -> [n, scores]


def with_end(corpus: TokenCorpus) -> list[np.ndarray]:
    """Complete rows, each with the '<|endoftext|>' that ends its story."""
    if not corpus.rows_are_complete:
        raise UserError("Stories are scored to their ends, and this corpus was cut off at the length of its rows; give one of complete stories.")
    return [np.append(row, corpus.eos_id) for row in corpus.iter_rows()]


def token_losses(model: GPTNeo, rows: Rows, max_context: int, batch_tokens: int | None = None) -> list[np.ndarray]:
    """Losses in nats of each row's tokens after its first, float64 [T - 1] a row."""
    scores = _scores(model, rows, max_context, batch_tokens, lambda *given: next_token_losses(*given)[:, None])
    return [values[:, 0] for values in scores]


def token_losses_and_entropies(
    model: GPTNeo, rows: Rows, max_context: int, batch_tokens: int | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """As ``token_losses``, and the entropies in nats of the laws of the same tokens."""
    scores = _scores(model, rows, max_context, batch_tokens, lambda *given: torch.stack(next_token_losses_and_entropies(*given), -1))
    return [values[:, 0] for values in scores], [values[:, 1] for values in scores]


def next_token_losses_and_entropies(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """``-log p(target)`` and ``-sum p log p`` in nats, fp32 [R] each, for hidden states [R, H] and targets [R], never holding all logits."""
    on_cpu = hidden.device.type == "cpu"
    rows = CPU_ROWS if on_cpu else max(1, LOSS_CHUNK_LOGITS["cuda"] // len(head))
    losses, entropies = torch.empty(2, len(hidden), device=hidden.device)
    for start in range(0, len(hidden), rows):
        h = hidden[start : start + rows].to(head.dtype)
        ids = min(len(head), max(64, CACHED_LOGITS // len(h))) if on_cpu else len(head)
        chunks = [_exponential_sums(product(h, part.T)) for part in head.split(ids)]
        largest, sums, weighted = (torch.stack(parts, -1) for parts in zip(*chunks, strict=True))  # [n, chunks] each
        log_z = torch.logsumexp(sums.log() + largest, -1, keepdim=True)
        shift = largest - log_z  # log p of a chunk's likeliest token: sum p log p needs no difference of large numbers
        entropies[start : start + rows] = -(shift.exp() * (weighted + shift * sums)).sum(-1)
        losses[start : start + rows] = log_z[:, 0] - (h.float() * head[targets[start : start + rows]].float()).sum(-1)
    return losses, entropies


def _exponential_sums(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits [n, ids] the largest m, sum e^(l - m) and sum (l - m) e^(l - m), [n] each."""
    largest = logits.amax(-1, keepdim=True)
    below = logits.sub_(largest)
    e = below.exp()
    return largest[:, 0], e.sum(-1), e.mul_(below).sum(-1)


def _scores(model: GPTNeo, rows: Rows, max_context: int, batch_tokens: int | None, score: Score) -> list[np.ndarray]:
    """float64 [T - 1, scores] a row."""
    positions = model.config.max_position_embeddings
    if max_context > positions:
        raise UserError(f"evaluation.max_context is {max_context}, but the model has only {positions} positions.")
    device, rows = model.head.device, list(rows)
    windows = paper_windows([len(row) for row in rows], max_context)
    batches = list(longest_first(windows.end - windows.begin, batch_tokens or BATCH_TOKENS[device.type]))
    values: list[list[tuple[int, np.ndarray]]] = [[] for _ in rows]
    with side_by_side(device) as (_, run):
        for chosen, scored in zip(
            batches, run(lambda chosen: _window_scores(model, *window_tokens(rows, windows, chosen), score), batches), strict=True
        ):
            parts = np.split(scored, np.cumsum(windows.end[chosen] - windows.first[chosen])[:-1])
            for story, first, part in zip(windows.story[chosen], windows.first[chosen], parts, strict=True):
                values[story].append((int(first), part))
    return [_in_order(parts) for parts in values]


def _in_order(parts: Iterable[tuple[int, np.ndarray]]) -> np.ndarray:
    ordered = [part for _, part in sorted(parts, key=lambda part: part[0])]
    return np.concatenate(ordered) if ordered else np.empty((0, 2))


@torch.no_grad()
def _window_scores(model: GPTNeo, shown: np.ndarray, scored: np.ndarray, score: Score) -> np.ndarray:
    device = model.head.device
    tokens = torch.from_numpy(shown).to(device)
    mask = torch.from_numpy(scored[:, 1:]).to(device)  # the hidden state at t predicts the token at t + 1
    return score(model(tokens[:, :-1])[mask], model.output_matrix, tokens[:, 1:][mask]).double().cpu().numpy()
