"""What a reader sees of a generation: how it continues the same few beginnings, and how surprised generation 1 is at every token of that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from collapse_lib.experiment.run import Run
from collapse_lib.steps.frame import Results, Task, perform
from collapse_lib.steps.inputs import check_beginnings

if TYPE_CHECKING:
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.tokenizer import Tokenizer


def continuations(run: Run, generation: int, device: str = "auto") -> Results:
    """Have the model of ``generation`` continue a few beginnings, once each; the first row of its text stands for the empty one.

    Reads the model, the text, generation 1's model and the tokeniser. Returns what was measured: ``continuations``, ``tokens``, and in ``examples``
    each continuation with its ``beginning``, ``pieces`` of text, their ``losses`` under generation 1 (nats), and whether the story ``ended``.

    Example: ``steps.continuations(Run.open("demo"), 1)["examples"]["continuations"][0]["pieces"]``
    """
    check_beginnings(run.step(generation, "continuations"))
    return perform(continue_beginnings, "continuations", run, generation, device)


def continue_beginnings(task: Task, model: GPTNeo, first_model: GPTNeo, text: TokenCorpus, tokenizer: Tokenizer) -> None:
    """The work of step ``continuations``."""
    from collapse_lib.metrics.gpt_eval import read_prompts
    from collapse_lib.metrics.token_scores import token_losses
    from collapse_lib.sample.generate import complete

    protocol, record = task.protocol, task.record
    settings = protocol.continuations
    beginnings = read_prompts(protocol.completions.prompts)[: settings.beginnings] if settings.beginnings else []
    pure = protocol.sampling.model_copy(update={"temperature": 1.0, "top_k": None, "top_p": None})
    start = [tokenizer.eos_id] if pure.start == "endoftext" else []
    given = [np.array([*start, *tokenizer.encode(beginning)]) for beginning in beginnings]
    written = [of_one[0] for of_one in complete(model, given, pure, settings.tokens, 1, task.seed("continuations"))]
    free, has_end = _first_story(text)
    beginnings, given, written = ["", *beginnings], [np.array([text.eos_id]), *given], [free[: settings.tokens], *written]
    ended = [has_end and len(free) < settings.tokens, *(len(ids) < settings.tokens for ids in written[1:])]
    rows = [np.concatenate(row).astype(np.int64) for row in zip(given, written, strict=True)]
    scores = token_losses(first_model, rows, protocol.evaluation.max_context)
    examples = []
    for beginning, ids, losses, is_whole in zip(beginnings, written, scores, ended, strict=True):
        pieces, summed = joined_pieces(ids, losses[len(losses) - len(ids) :], tokenizer)
        examples.append({"beginning": beginning, "pieces": pieces, "losses": [round(loss, 2) for loss in summed], "ended": is_whole})
    record.examples["continuations"] = examples
    record.measure("continuations", len(examples), "continuations", "one of each beginning, the empty one included")
    record.measure("tokens", sum(map(len, written)), "tokens", f"tokens in them, at most {settings.tokens} each, ends of stories not counted")
    record.measure("ended", sum(ended), "continuations", "continuations that the model brought to an end by itself")


def joined_pieces(ids: np.ndarray, losses: np.ndarray, tokenizer: Tokenizer) -> tuple[list[str], list[float]]:
    """The text of tokens in pieces, a token each, or a few where a character is spread over them, and the sum of the ``losses`` of each piece."""
    whole, pieces, summed, end, waiting = tokenizer.decode(ids), [], [], 0, 0.0
    for count, loss in enumerate(losses, 1):
        text, waiting = tokenizer.decode(ids[:count]), waiting + float(loss)
        if whole.startswith(text) and len(text) > end:
            pieces.append(text[end:])
            summed.append(waiting)
            end, waiting = len(text), 0.0
    return pieces, summed


def _first_story(text: TokenCorpus) -> tuple[np.ndarray, bool]:
    """The first row of a text up to the end of its first story, and whether the story has one."""
    row = text.row(0)[1 if text.has_start else 0 :].astype(np.int64)
    ends = np.flatnonzero(row == text.eos_id)
    return (row[: ends[0]], True) if len(ends) else (row, False)
