"""Section 5.4: copies of a model are fine-tuned on classification tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collapse_lib.experiment.run import Run
from collapse_lib.steps.frame import Results, Task, perform

if TYPE_CHECKING:
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.tokenizer import Tokenizer


def classification(run: Run, generation: int, device: str = "auto") -> Results:
    """Fine-tune copies of the model of ``generation``, the untrained one in generation 0, on the protocol's tasks (section 5.4).

    Reads the model, the tokeniser and the tasks' data. Returns what was measured: accuracy and F1 of each task.

    Example: ``steps.classification(Run.open("demo"), 1)["metrics"]["mean_accuracy"]["value"]``
    """
    return perform(fine_tune, "classification", run, generation, device)


def fine_tune(task: Task, model: GPTNeo, tokenizer: Tokenizer) -> None:
    """The work of step ``classification``."""
    from collapse_lib.metrics.classification import classify, report
    from collapse_lib.text.tasks import read_tasks

    settings = task.protocol.classification
    tasks = read_tasks(settings)
    answers = classify(
        model,
        tasks,
        tokenizer,
        settings,
        # The same new layers and the same orders of rows for every generation: they differ in their pre-training alone.
        seed=lambda purpose: task.seed(f"classification/{purpose}", 0),
        folder=task.scratch("classification"),
        identity=task.made_from,
    )
    report(task.record, tasks, answers)
