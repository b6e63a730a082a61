"""Section 5.1.2: a model with fresh weights learns from its predecessor's text alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collapse_lib.experiment.run import Run
from collapse_lib.steps.frame import Results, Task, perform
from collapse_lib.steps.inputs import fresh_model

if TYPE_CHECKING:
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.tokenizer import Tokenizer
    from collapse_lib.text.view import Selection, Union


def train(run: Run, generation: int, device: str = "auto", processes: int = 1) -> Results:
    """Train the model of ``generation`` on the text of the one before, the initial stories for generation 1 (section 5.1.2).

    Under another regime than the paper's it learns from what step ``compose`` put together. Reads that text and the tokeniser; generation 1 also
    the hold-out stories, on which it finds the number of epochs, and later generations that number. Writes ``model/``. Returns what was measured:
    ``loss`` (nats/token), ``epochs``, ``tokens_per_second``, ...

    Example: ``steps.train(Run.open("demo"), 1)["series"]["loss_curve"]``
    """
    return perform(train_model, "train", run, generation, device, processes)


def train_model(
    task: Task,
    learned_text: TokenCorpus | Selection | Union,
    tokenizer: Tokenizer,
    holdout: TokenCorpus,
    first_train: Results | None,
    previous_model: GPTNeo | None = None,
    corpus: Results | None = None,
) -> None:
    """The work of step ``train``.

    ``first_train`` is what generation 1's measured, None in generation 1; ``previous_model`` is given where its weights are started from, and
    ``corpus``, what generation 0 measured, where texts accumulate.
    """
    from collapse_lib.model.folder import save
    from collapse_lib.model.precision import dtype_name, product_dtype
    from collapse_lib.train.loop import train as run_training

    settings, record = task.protocol.training, task.record
    finds_epochs = settings.epochs == "early_stopping" and task.generation == 1
    model = previous_model or fresh_model(task.protocol, task.generation, tokenizer)
    result = run_training(
        model,
        learned_text,
        settings,
        seed=task.seed("train"),
        checkpoint_folder=task.scratch("checkpoint"),
        device=task.device,
        holdout=holdout if finds_epochs else None,
        epochs=None if finds_epochs else epochs_of(task, first_train),
        epoch_share=epoch_share(task, learned_text, corpus),
    )
    record.products = dtype_name(product_dtype(settings.precision, task.device))
    task.publish("model", lambda folder: save(model, tokenizer, folder))
    record.measure("loss", result.final_loss, "nats/token", "mean training loss over the last steps")
    record.measure("epochs", result.epochs, "epochs", "passes over the corpus that the final weights have seen")
    record.measure("steps", result.steps, "steps", "optimizer steps taken")
    record.measure("skipped_steps", result.skipped_steps, "steps", "steps not taken, because gradients were beyond fp16")
    record.measure("tokens", result.tokens_seen, "tokens", "training targets seen, repetitions included")
    record.measure("parameters", model.num_parameters(), "parameters", "trained parameters, the tied embedding counted once")
    record.measure("tokens_per_second", round(result.tokens_per_second, 1), "tokens/s", "training targets a second, evaluation left out")
    record.series["loss_curve"] = result.loss_curve
    record.series["holdout_losses"] = result.holdout_losses


def epochs_of(task: Task, first_train: Results | None) -> int:
    """The protocol's fixed number of epochs, or the one that early stopping found in generation 1."""
    settings = task.protocol.training
    return first_train["metrics"]["epochs"]["value"] if settings.epochs == "early_stopping" else settings.epochs


def epoch_share(task: Task, learned_text: TokenCorpus | Selection | Union, corpus: Results | None) -> float:
    """The share of the text that counts as one epoch, drawn anew for each.

    1, but where texts accumulate: there as much as the initial corpus has, so that all generations take as many steps, unless the protocol asks for
    whole passes.
    """
    if corpus is None or task.protocol.regime.training == "epochs":
        return 1.0
    return min(1.0, corpus["metrics"]["train_tokens"]["value"] / learned_text.tokens)
