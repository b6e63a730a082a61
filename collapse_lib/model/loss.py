"""Next-token losses whose logits never exist all at once: at a vocabulary of 50,257 and 192k tokens a step they would take 36 GiB.

Shapes in the comments: R rows (positions), n rows of a chunk, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from collapse_lib.experiment.machine import compiles_triton

IGNORED = -100  # a target that is no target, as in torch's cross entropy
# Logits alive at once in the loss. A GPU wants thousands of rows a matrix product (1 GiB of fp32), a CPU hundreds.
LOSS_CHUNK_LOGITS = {"cpu": 2**24, "cuda": 2**28}
CACHED_LOGITS = 2**18  # logits that a core's cache holds while they are turned into exponentials
ALIGNED = 64  # ids: 50,257 is odd, and half-precision products whose rows begin at odd places are slow
LIFT = 2.0**15  # factor of probabilities in half precision: fp16 then holds them down to 2e-12, while 1 stays in its range


def summed_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, chunk_rows: int | None = None, products: torch.dtype | None = None) -> Tensor:
    """Cross entropy in nats, summed over the targets: an fp32 scalar, differentiable once.

    Args:
        hidden: [R, H].
        head: [V, H]; logits are ``hidden @ head.T``.
        targets: [R] int64, -100 where there is none.
        chunk_rows: rows whose logits are held together; chosen by device when not given. It changes rounding only.
        products: dtype of the matrix products; when not given, autocast's where it is on, else that of the hidden states.
    """
    device = hidden.device.type
    dtype = products or (torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype)
    return _ChunkedCrossEntropy.apply(hidden, head, targets, chunk_rows, dtype, torch.is_grad_enabled())


def next_token_losses(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """``-log p(target)`` in nats, fp32 [R], for hidden states [R, H] and targets [R], without ever holding all logits; no gradient.

    Products run in the dtype of ``head``.
    """
    losses = torch.empty(len(hidden), device=hidden.device)
    padded = _padded(head) if hidden.is_cuda else head
    for rows in _row_chunks(len(hidden), len(head), hidden.device):
        h = hidden[rows].to(head.dtype)
        if hidden.is_cuda:
            log_z = _probabilities(product(h, padded.T), len(head), None, head.dtype)[0]
        else:
            log_z = _log_normalizers(*_exponentials(h, head, _chunk_ids(len(h), head))[1:])
        losses[rows] = log_z - (h.float() * head[targets[rows]].float()).sum(-1)
    return losses


def plain_probabilities(logits: Tensor, vocabulary: int, factors: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """log of the sum of e^logit over the first ``vocabulary`` ids, fp32 [n], and the ids' probabilities times ``factors``, in ``dtype``.

    ``logits`` are fp32 [n, V or more], contiguous, ``factors`` fp32 [n]. The probabilities, None without factors, are as wide as the logits and 0
    beyond the vocabulary.
    """
    log_z = torch.logsumexp(logits[:, :vocabulary], -1)
    if factors is None:
        return log_z, None
    p = torch.zeros_like(logits, dtype=dtype)
    p[:, :vocabulary] = torch.exp(logits[:, :vocabulary] - log_z[:, None]).mul_(factors[:, None])
    return log_z, p


def _probabilities(logits: Tensor, vocabulary: int, factors: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """``plain_probabilities``, in one pass where there is a kernel for it."""
    if logits.is_cuda and compiles_triton():
        from collapse_lib.model.triton_loss import probabilities

        return probabilities(logits, vocabulary, factors, dtype)
    return plain_probabilities(logits, vocabulary, factors, dtype)


def _padded(head: Tensor) -> Tensor:
    """The head with ids that nobody has, so that its products take a GPU's fast path: [V rounded up to a multiple of ``ALIGNED``, H]."""
    return F.pad(head, (0, 0, 0, -len(head) % ALIGNED))


def _row_chunks(rows: int, vocabulary: int, device: torch.device, chunk_rows: int | None = None) -> Iterator[slice]:
    size = chunk_rows or max(1, LOSS_CHUNK_LOGITS[device.type] // vocabulary)
    size = math.ceil(rows / max(1, math.ceil(rows / size)))  # as many each: for a few left over, all of the head would be read once more
    for start in range(0, rows, max(1, size)):
        yield slice(start, min(start + size, rows))


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """``a @ b`` in fp32. Kernels add up in fp32 whatever they multiply; in fp16 the sums could be too large or too small to be rounded back."""
    if a.dtype == torch.float32:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    if a.dtype == torch.float16:  # no CPU kernel gives such sums in fp32
        return a.float() @ b.float()
    return (a @ b).float() if out is None else out.copy_(a @ b)  # bf16 has the range of fp32, so that rounded sums do not overflow


def _exponentials(h: Tensor, head: Tensor, size: int, keep: bool = False, space: Tensor | None = None) -> tuple[list[Tensor], Tensor, Tensor]:
    """exp(logit - largest of its chunk of ids) for rows [n, H], with the chunks' sums and largest logits, [n, chunks] each.

    The ids are taken ``size`` at a time, so that their logits stay in a CPU's cache while they are worked on. The exponentials, [n, ids] a chunk,
    are kept if wanted, in ``space`` ([chunks, at least n, size]) and its dtype if it is given, else in fp32.
    """
    exponentials, sums, largest = [], [], []
    for number, start in enumerate(range(0, len(head), size)):
        ids = head[start : start + size]
        place = None if space is None else space[number, : len(h), : len(ids)]
        e = product(h, ids.T, place if h.dtype == torch.float32 else None)
        largest.append(e.amax(-1, keepdim=True))
        sums.append(e.sub_(largest[-1]).exp_().sum(-1, keepdim=True))
        if keep:
            exponentials.append(e if place is None or h.dtype == torch.float32 else place.copy_(e))
    return exponentials, torch.cat(sums, -1), torch.cat(largest, -1)


def _log_normalizers(sums: Tensor, largest: Tensor) -> Tensor:
    """log of the sum over all ids of e^logit, [n], from chunks' sums relative to their largest."""
    return torch.logsumexp(sums.log() + largest, -1)


def _chunk_ids(rows: int, head: Tensor) -> int:
    return min(len(head), max(64, CACHED_LOGITS // rows)) if head.device.type == "cpu" else len(head)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross entropy of ``hidden @ head.T``, with both gradients computed in the forward pass, chunk by chunk.

    The gradient of a sum is known up to the factor that arrives in the backward pass, so a chunk's logits can be turned into gradients
    while they are there and dropped: checkpointing would compute every logit twice. Products run in ``dtype`` (autocast's, if it is on),
    exponentials and sums in fp32. The gradient of the logits, softmax less one at the target, is never formed: the targets' part is a sum of single
    vectors. In fp32 and, on a CPU, in bf16 the factor of a row's exponentials goes to the hidden states, where there is less to multiply. In half
    precision elsewhere, logits become probabilities in one kernel.

    A loss scale comes with the backward pass, too late for what fp16 rounded to zero here. So probabilities are multiplied by ``LIFT`` before they
    are rounded, and both gradients are handed on in fp32.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int | None, dtype: torch.dtype, needs_grad: bool) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(dtype)  # [V, H]
            loss = torch.zeros((), device=hidden.device)
            chunks = list(_row_chunks(len(hidden), len(head), hidden.device, chunk_rows))
            rows = chunks[0].stop if chunks else 1  # the most of any chunk
            size = _chunk_ids(rows, head)
            space = None
            wide = dtype == torch.float32 or (dtype == torch.bfloat16 and not hidden.is_cuda)  # exponentials are in its range without their factors
            padded = head if wide else _padded(head)
            if needs_grad:
                grad_hidden = torch.empty(hidden.shape, device=hidden.device)
                grad_weight = torch.zeros_like(weight, dtype=torch.float32)
                if wide:
                    space = torch.empty(math.ceil(len(head) / size), rows, size, dtype=dtype, device=hidden.device)
            for rows in chunks:
                counts = (targets[rows, None] != IGNORED).float()  # [n, 1]
                target = targets[rows].clamp_min(0)  # [n]
                h = hidden[rows].to(dtype)  # [n, H]
                target_rows = head[target]  # [n, H]
                if wide:
                    exponentials, sums, largest = _exponentials(h, head, size, needs_grad, space)
                    log_z = _log_normalizers(sums, largest)[:, None]  # [n, 1]
                else:
                    log_z, p = _probabilities(product(h, padded.T), len(head), counts[:, 0] * LIFT if needs_grad else None, dtype)
                    log_z = log_z[:, None]  # [n, 1]
                loss += ((log_z - (h.float() * target_rows.float()).sum(-1, keepdim=True)) * counts).sum()
                if needs_grad:
                    grad = target_rows * -counts  # [n, H] fp32
                    if wide:
                        factors, start = torch.exp(largest - log_z) * counts, 0  # [n, chunks], from a chunk's exponentials to probabilities
                        for e, factor in zip(exponentials, factors.split(1, -1), strict=True):
                            ids = slice(start, start := start + e.shape[1])
                            grad += factor * product(e, head[ids])
                            grad_weight[ids] += product(e.T, (factor * h).to(dtype))
                    else:
                        grad.add_(product(p, padded), alpha=1 / LIFT)
                        grad_weight.add_(product(p.T, h)[: len(head)], alpha=1 / LIFT)
                    grad_weight.index_add_(0, target, h * -counts)
                    grad_hidden[rows] = grad
        if needs_grad:
            ctx.save_for_backward(grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype))
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors  # in place: they are needed once, and another head's worth of memory is slow to come by
        return grad_hidden.mul_(factor), grad_weight.mul_(factor), None, None, None, None
