"""Section 5.3.3, step 1: story beginnings are completed by sampling.

Apart from their grading, because a judge may be chosen, or changed, long after the models are gone.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from collapse_lib.experiment.run import Run
from collapse_lib.steps.frame import Results, Task, perform
from collapse_lib.steps.inputs import check_beginnings

if TYPE_CHECKING:
    from IPython.display import Markdown

    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.tokenizer import Tokenizer

EXAMPLES = 6  # completions that a run shows of each generation


def completions(run: Run, generation: int, device: str = "auto", processes: int = 1) -> Results:
    """Have the model of ``generation``, the untrained one in generation 0, complete the protocol's beginnings (section 5.3.3, step 1).

    Reads the model and the tokeniser; writes ``completions.jsonl``: a beginning with its completions a line. Returns what was measured.

    Example: ``steps.completions(Run.open("demo"), 1)["examples"]["completions"][0]``
    """
    check_beginnings(run.step(generation, "completions"))
    return perform(complete_beginnings, "completions", run, generation, device, processes)


def complete_beginnings(task: Task, model: GPTNeo, tokenizer: Tokenizer) -> None:
    """The work of step ``completions``."""
    from collapse_lib.metrics.gpt_eval import read_prompts
    from collapse_lib.sample.generate import complete

    settings, record = task.protocol.completions, task.record
    beginnings = read_prompts(settings.prompts)[: settings.beginnings]
    pure = task.protocol.sampling.model_copy(update={"temperature": 1.0, "top_k": None, "top_p": None})
    start = [tokenizer.eos_id] if pure.start == "endoftext" else []
    given = [np.array([*start, *tokenizer.encode(text)]) for text in beginnings]
    sampled = complete(model, given, pure, settings.max_new_tokens, settings.samples, task.seed("completions"), group=task.group)
    texts = [[tokenizer.decode(tokens) for tokens in of_one] for of_one in sampled]
    lines = [{"beginning": beginning, "completions": of_one} for beginning, of_one in zip(beginnings, texts, strict=True)]
    task.publish("completions", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    lengths = [len(tokens) for of_one in sampled for tokens in of_one]
    record.measure("beginnings", len(beginnings), "beginnings", "story beginnings that were completed")
    record.measure("completions", len(lengths), "completions", f"completions of them, {settings.samples} each")
    definition = f"tokens sampled, at most {settings.max_new_tokens} a completion, ends of stories not counted"
    record.measure("tokens", sum(lengths), "tokens", definition)
    ended = sum(length < settings.max_new_tokens for length in lengths)
    record.measure("ended", ended, "completions", "completions that the model brought to an end by itself")
    record.measure("empty", sum(not text.strip() for of_one in texts for text in of_one), "completions", "completions without text")
    record.examples["beginnings"] = beginnings
    record.examples["completions"] = [[line["beginning"], line["completions"][0]] for line in lines[:EXAMPLES]]


def how_to_grade(run: Run) -> Markdown:
    """One sentence: who grades these completions, or how to have them graded."""
    from IPython.display import Markdown

    from collapse_lib.text.display import literal

    if run.protocol.gpt_eval.judge:
        return Markdown(f"The judge {literal(run.protocol.gpt_eval.judge)} grades these completions in the step `gpt_eval`.")
    return Markdown(
        f"No judge had been chosen when this was sampled, so nothing is graded here: `collapse run {run.name} --set gpt_eval.judge=MODEL` "
        "has a model of the endpoint in `OPENAI_BASE_URL` grade them, and `collapse judge serve` serves one on this machine."
    )
