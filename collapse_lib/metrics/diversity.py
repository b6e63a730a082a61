"""How different the texts of one generation are from each other, and how far they lie from those of another.

All of these depend on how much text is looked at. A sample is therefore cut into blocks of one size, which must be the same for every generation;
a measure is its mean over blocks, and blocks are the units of its standard error.

- **distinct n-grams** (Li et al. 2016): different n-grams divided by all of them;
- **self-BLEU** (Zhu et al. 2018, Texygen): the BLEU-4 of each text against all others of its block, from 0 (nothing in common) to 1 (copies). BLEU as
  Papineni et al. (2002) have it for one sentence: clipped n-gram precisions for n = 1 to 4, equal weights, the brevity penalty of the closest
  reference length (of two as close, the shorter); where no n-gram of an order above 1 matches, 0.1 of one does ("method 1" of Chen and Cherry
  2014, as in NLTK and Texygen);
- **compression ratio** (Shaib et al. 2024): bytes of UTF-8 divided by those that zlib leaves, at its highest level: repetition within 32 KB counts;
- **Fréchet distance** (Heusel et al. 2017, for text Semeniuta et al. 2018) of two samples' features, as if these were Gaussian:
  |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2). Features are those of generation 1's last layer, averaged over a text's tokens. It is not zero for two
  samples of one law: read it beside that of two real samples.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.parallel import side_by_side
from collapse_lib.metrics.estimates import Metric, mean, measured
from collapse_lib.metrics.perplexity import BATCH_TOKENS
from collapse_lib.metrics.repetition import distinct_ngrams

if TYPE_CHECKING:
    from collapse_lib.model.gpt_neo import GPTNeo

Item = TypeVar("Item")
ORDERS = (1, 2, 3, 4)
EPSILON = 0.1  # matches where there are none


def distinct_shares(rows: Sequence[np.ndarray], block_tokens: int) -> dict[str, Metric]:
    """Shares of distinct 1- to 4-grams inside rows (uint16 arrays) in blocks of ``block_tokens`` tokens; a block's last row is cut to its size."""
    blocks = list(_token_blocks(rows, block_tokens))
    return {
        f"distinct_{n}": measured(
            mean([different / max(total, 1) for different, total in (distinct_ngrams(*block, n) for block in blocks)]),
            "1",
            f"share of different {n}-grams among those inside rows, in {block_tokens} tokens",
            blocks=len(blocks),
        )
        for n in ORDERS
    }


def self_bleu(texts: Sequence[Sequence[int]], block_texts: int) -> Metric:
    """Self-BLEU of ``texts`` (of any hashable tokens) in blocks of ``block_texts``."""
    blocks = _blocks(texts, block_texts, 2)
    return measured(
        mean([float(np.mean(block_bleus(block))) for block in blocks]),
        "1",
        f"BLEU-4 of a text against the {block_texts - 1} others of its block, mean over texts",
        blocks=len(blocks),
    )


def block_bleus(texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """BLEU-4 of each text against all the others, [texts].

    Of each n-gram its two largest counts in one text are enough to know its largest count in all the others.
    """
    lengths = np.array([len(text) for text in texts])
    logs = np.zeros(len(texts))
    for n in ORDERS:
        counts = [Counter(zip(*(text[start:] for start in range(n)), strict=False)) for text in texts]
        largest: dict[tuple[int, ...], list[int]] = defaultdict(lambda: [0, 0, -1])  # largest count, second largest, whose the first is
        for number, counted in enumerate(counts):
            for gram, count in counted.items():
                top = largest[gram]
                if count > top[0]:
                    top[:] = count, top[0], number
                elif count > top[1]:
                    top[1] = count
        for number, counted in enumerate(counts):
            matches = sum(min(count, largest[gram][largest[gram][2] == number]) for gram, count in counted.items())
            if not matches and n == 1:
                logs[number] = -np.inf
            logs[number] += math.log((matches or EPSILON) / max(counted.total(), 1)) / len(ORDERS)
    return np.exp(logs + np.array([_log_brevity(lengths, number) for number in range(len(texts))]))


def compression_ratio(texts: Sequence[str], block_texts: int) -> Metric:
    """Bytes of text for each that zlib needs, in blocks of ``block_texts`` texts that stand one under the other."""
    blocks = ["\n".join(block).encode() for block in _blocks(texts, block_texts, 1)]
    return measured(
        mean([len(block) / len(zlib.compress(block, 9)) for block in blocks]),
        "1",
        f"bytes of {block_texts} texts divided by their bytes after zlib",
        blocks=len(blocks),
    )


def features(model: GPTNeo, texts: Sequence[np.ndarray], batch_tokens: int | None = None) -> NDArray[np.float64]:
    """[texts, H]: the model's last hidden state, averaged over a text's tokens behind its first (the start token, which every text shares).

    Of a text longer than the model's positions the beginning is read. Raises ``UserError`` for one without a second token.
    """
    device, longest = model.head.device, model.config.max_position_embeddings
    texts = [text[:longest] for text in texts]
    lengths = np.array([len(text) for text in texts])
    if not len(texts) or lengths.min() < 2:
        raise UserError("Features are of texts with a token behind their first; there is an empty text, or none at all.")
    order = np.argsort(-lengths, kind="stable")
    size = batch_tokens or BATCH_TOKENS[device.type]
    batches, start = [], 0
    while start < len(order):
        batches.append(order[start : start + max(1, size // int(lengths[order[start]]))])
        start += len(batches[-1])

    def averages(chosen: np.ndarray) -> np.ndarray:
        shown = np.zeros((len(chosen), int(lengths[chosen].max())), np.int64)  # zeros on the right, which no causal model sees
        for row, index in zip(shown, chosen, strict=True):
            row[: lengths[index]] = texts[index]
        column = torch.arange(shown.shape[1], device=device)
        known = (column >= 1) & (column < torch.from_numpy(lengths[chosen]).to(device)[:, None])  # [B, T]
        with torch.no_grad():  # which a thread of its own does not inherit
            hidden = model(torch.from_numpy(shown).to(device)).double()
        return ((hidden * known[..., None]).sum(1) / known.sum(1, keepdim=True)).cpu().numpy()

    found = np.empty((len(texts), model.config.hidden_size))
    with side_by_side(device) as (_, run):
        for chosen, values in zip(batches, run(averages, batches), strict=True):
            found[chosen] = values
    return found


def frechet_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Fréchet distance of two samples' features, [texts, H] each; their covariances may be singular."""
    (m1, s1), (m2, s2) = ((sample.mean(0), np.atleast_2d(np.cov(sample, rowvar=False))) for sample in (first, second))
    root = _square_root(s1)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ s2 @ root), 0)).sum()  # tr (S1 S2)^1/2 by a symmetric matrix with the same eigenvalues
    return float(np.square(m1 - m2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross)


def text_distance(first: NDArray[np.float64], second: NDArray[np.float64], block_texts: int) -> Metric:
    """Mean ``frechet_distance`` of pairs of blocks of two samples' features."""
    pairs = list(zip(_blocks(first, block_texts, 2), _blocks(second, block_texts, 2), strict=False))
    return measured(
        mean([frechet_distance(one, other) for one, other in pairs]),
        "1",
        f"Fréchet distance of {block_texts} texts and as many others in the features of generation 1's last layer",
        blocks=len(pairs),
    )


def _square_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


def _log_brevity(lengths: NDArray[np.int64], number: int) -> float:
    own, others = int(lengths[number]), np.delete(lengths, number)
    closest = int(others[np.lexsort((others, np.abs(others - own)))[0]])
    return 0.0 if own > closest else 1 - closest / max(own, 1)


def _blocks(texts: Sequence[Item], size: int, fewest: int) -> list[Sequence[Item]]:
    """As many blocks of ``size`` as there are; what is left over is not looked at."""
    if size < fewest or len(texts) < size:
        raise UserError(f"Blocks of {size} of {len(texts)} texts cannot be made; a block has from {fewest} to all of the texts.")
    return [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)]


def _token_blocks(rows: Sequence[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens [size] and whether each is the first of its row, as ``distinct_ngrams`` takes them; a row is in one block only."""
    if sum(map(len, rows)) < size or size < 1:
        raise UserError(f"A block of {size} tokens cannot be made of {sum(map(len, rows))}; give more text or a smaller block.")
    held: list[np.ndarray] = []
    count = 0
    for row in rows:
        held.append(row[: size - count])
        count += len(held[-1])
        if count == size:
            first = np.zeros(size, bool)
            first[np.cumsum([0, *map(len, held[:-1])])] = True
            yield np.concatenate(held), first
            held, count = [], 0
