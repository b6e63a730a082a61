"""What cannot be, whatever else a protocol says: asked before anything runs, and once more by the code that would meet it."""

from __future__ import annotations

from collapse_lib.experiment.errors import UserError

SMALLEST_VOCABULARY = 257  # every byte, and '<|endoftext|>'
LARGEST_VOCABULARY = 2**16  # token ids are stored in 16 bits


def check_learned_vocabulary(vocabulary: int) -> None:
    """``UserError`` unless a byte-level BPE of so many tokens can be learned and stored."""
    if not SMALLEST_VOCABULARY <= vocabulary <= LARGEST_VOCABULARY:
        allowed = f"{SMALLEST_VOCABULARY} (every byte and '<|endoftext|>') to {LARGEST_VOCABULARY}"
        raise UserError(f"tokenizer.vocabulary is {vocabulary}; allowed is {allowed}.")


def check_precision(precision: str, device: str) -> None:
    """``UserError`` unless a model can be trained in that ``training.precision`` on the device, "cpu" or "cuda"."""
    if device == "cpu" and precision == "fp16":
        raise UserError("training.precision is fp16, which needs a GPU; on a CPU choose --set training.precision=fp32 or bf16.")


def share_of_batch(batch_size: int, micro_batch_size: int | None, processes: int) -> int:
    """Sequences of an effective batch that fall to each of the processes; ``UserError`` unless they come out even, in whole micro-batches."""
    share, rest = divmod(batch_size, processes)
    if rest:
        raise UserError(f"training.batch_size = {batch_size} cannot be shared evenly by {processes} processes; use a number of them that divides it.")
    if micro_batch_size and share % micro_batch_size:
        raise UserError(
            f"training.batch_size = {batch_size} is not a multiple of training.micro_batch_size x processes"
            f" = {micro_batch_size} x {processes}; choose a micro-batch size that divides {share}."
        )
    return share
