"""Fine-tuning a copy of a model on a classification task and scoring it (section 5.4).

What is fine-tuned is what transformers calls ``GPTNeoForSequenceClassification``: the model with one linear layer on the last token's
hidden state. Here it is built on our own GPT-Neo, several times as fast on a CPU; the tests hold the two to equal logits and gradients.

Optimisation follows the released runner, which leaves everything that the paper does not mention at the defaults of transformers'
``Trainer``: AdamW without weight decay, a rate that falls linearly to zero with no warm-up, gradients clipped to norm 1, fp32.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_json, sealed, write_json
from collapse_lib.experiment.parallel import side_by_side
from collapse_lib.experiment.progress import progress
from collapse_lib.experiment.shapes import FineTuning
from collapse_lib.metrics import crossed
from collapse_lib.metrics.padding import longest_first, padded
from collapse_lib.text.tasks import room_for_pairs
from collapse_lib.train.devices import deterministic

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import ClassificationSettings
    from collapse_lib.experiment.run import Record
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.tasks import Rows, TaskData
    from collapse_lib.text.tokenizer import Tokenizer

MAX_GRAD_NORM = 1.0
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}  # of a forward pass in scoring; it changes rounding only
FINAL_STEPS = 50  # over which the reported training loss is a mean


class Classifier(nn.Module):
    """A GPT-Neo with a linear layer, without bias, from the hidden state of each row's last token to the classes.

    The layer starts from N(0, ``initializer_range``), as transformers starts it; ``model`` is changed by training.
    """

    def __init__(self, model: GPTNeo, classes: int, generator: torch.Generator):
        super().__init__()
        self.model = model
        self.score = nn.Linear(model.config.hidden_size, classes, bias=False)
        nn.init.normal_(self.score.weight, 0.0, model.config.initializer_range, generator=generator)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits [B, classes] of right-padded ``tokens`` [B, T] int64 of which each row has ``lengths`` [B] int64, at least one."""
        hidden = self.model(tokens)  # [B, T, H]
        return self.score(hidden[torch.arange(len(tokens), device=tokens.device), lengths - 1])


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids (``tokens``: one int64 array a row) with their ``labels`` [rows] int64."""

    tokens: list[np.ndarray]
    labels: np.ndarray

    def batch(self, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, T], padded to the longest of these rows, their lengths [B] and their labels [B]."""
        lengths = np.array([len(self.tokens[row]) for row in rows])
        tokens = padded([self.tokens[row] for row in rows])
        return tuple(torch.from_numpy(part).to(device) for part in (tokens, lengths, self.labels[rows]))


def encode(rows: Rows, tokenizer: Tokenizer, max_length: int, separator: str = "") -> Encoded:
    """Token ids of rows, at most ``max_length`` each: the texts of a pair one after the other, ``separator`` between them.

    A row that is too long loses tokens at the end of the longer of its texts, as with the truncation of transformers' tokenizers.
    """
    first = tokenizer.encode_batch([row[0] for row in rows.texts])
    if len(rows.texts[0]) == 1:
        return Encoded([np.array(ids[:max_length], dtype=np.int64) for ids in first], rows.labels)
    second = tokenizer.encode_batch([row[1] for row in rows.texts])
    between, room = tokenizer.encode(separator), room_for_pairs(tokenizer, max_length, separator)
    tokens = []
    for a, b in zip(first, second, strict=True):
        kept_a, kept_b = _longest_first(len(a), len(b), room)
        tokens.append(np.array([*a[:kept_a], *between, *b[:kept_b]], dtype=np.int64))
    return Encoded(tokens, rows.labels)


def _longest_first(a: int, b: int, room: int) -> tuple[int, int]:
    """Tokens kept of two texts of ``a`` and ``b`` tokens: the longer one gives way until both are equal, then the two in turn."""
    if a + b <= room:
        return a, b
    half = room // 2
    if min(a, b) <= half:
        return (a, room - a) if a <= b else (room - b, b)
    return (half, room - half) if a <= b else (room - half, half)


def finetune(
    model: GPTNeo,
    train: Encoded,
    test: Encoded,
    settings: ClassificationSettings,
    *,
    classes: int,
    epochs: float,
    seed: int,
    advance: Callable[[int], Any] = lambda rows: None,
) -> tuple[np.ndarray, float]:
    """Fine-tune a copy of ``model``, on the device where it is, and have the copy answer the test rows.

    ``seed`` decides the new layer's weights and the order of the rows; ``advance`` is told of every batch of rows done. A fraction of an
    epoch ends at the next full batch. Returns the class answered for each test row [rows] and the mean loss (nats) of the last 50 steps. Raises
    ``UserError`` if the loss is no longer a number.
    """
    device = model.head.device
    generator = torch.Generator().manual_seed(seed)
    classifier = Classifier(copy.deepcopy(model).cpu(), classes, generator).to(device).train()
    steps = math.ceil(epochs * math.ceil(len(train.labels) / settings.batch_size))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses: deque[Tensor] = deque(maxlen=FINAL_STEPS)
    for _, batch in zip(range(steps), _shuffled(len(train.labels), settings.batch_size, generator), strict=False):
        tokens, lengths, labels = train.batch(batch, device)
        loss = F.cross_entropy(classifier(tokens, lengths), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(classifier.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.detach())
        advance(len(batch))
    final = torch.stack(list(losses)).mean().item()
    if not math.isfinite(final):
        raise UserError(f"Fine-tuning ended in a loss of {final}; choose a smaller classification.learning_rate.")
    return answers(classifier.eval(), test, advance), final


def _shuffled(rows: int, batch_size: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    """Batches of row numbers, every row once an epoch, without end; the last batch of an epoch may be smaller."""
    while True:
        yield from (part.numpy() for part in torch.randperm(rows, generator=generator).split(batch_size))


@torch.no_grad()
def answers(classifier: Classifier, rows: Encoded, advance: Callable[[int], Any] = lambda rows: None) -> np.ndarray:
    """The class that a classifier gives to each row, [rows] int64; rows of like length are scored together."""
    device = classifier.score.weight.device
    lengths = np.array([len(tokens) for tokens in rows.tokens])
    classes = np.zeros(len(lengths), dtype=np.int64)
    for batch in longest_first(lengths, BATCH_TOKENS[device.type]):
        tokens, sizes, _ = rows.batch(batch, device)
        classes[batch] = classifier(tokens, sizes).argmax(-1).cpu().numpy()
        advance(len(batch))
    return classes


def classify(
    model: GPTNeo,
    tasks: Sequence[TaskData],
    tokenizer: Tokenizer,
    settings: ClassificationSettings,
    *,
    seed: Callable[[str], int],
    folder: Path,
    identity: dict[str, Any],
) -> dict[str, list[dict[str, Any]]]:
    """Fine-tune a model on every task, ``settings.seeds`` times each, and have it answer the test rows.

    ``seed`` makes a seed of a purpose. Fine-tunings differ in the new layer, in the order of the training rows and, where these are limited, in
    which of them are drawn; the test rows are the same. Every finished fine-tuning is kept in ``folder`` and not done again if it was made from
    the same ``identity`` (model and settings) and rows. Returns, by task, a record a fine-tuning: ``answers`` (``crossed.packed``) and ``loss``.
    """

    def encoded(rows: Rows) -> Encoded:
        return encode(rows, tokenizer, settings.max_length, settings.separator)

    tests = {data.task.name: encoded(data.test) for data in tasks}
    hashes = {data.task.name: data.hash for data in tasks}
    jobs = [(data, number) for number in range(settings.seeds) for data in tasks]
    rows = [math.ceil(settings.epochs_of(data.task.name) * data.train_rows) + len(data.test) for data, _ in jobs]

    fine_tunings: dict[str, list[dict[str, Any]]] = {data.task.name: [] for data in tasks}
    device = model.head.device
    # On a CPU with one thread: batches of eight rows are too small to share among threads, and fine-tunings side by side were no faster.
    with progress(sum(rows), "row", "fine-tuning") as bar, deterministic(device), side_by_side(device):
        for (data, number), done in zip(jobs, accumulate(rows), strict=True):
            name, classes = data.task.name, len(data.task.labels)
            file = folder / f"{name}-{number}.json"
            made_from = identity | {"rows": hashes[name], "number": number}
            record = read_json(file, FineTuning)
            if record is None or record["made_from"] != made_from:
                answered, loss = finetune(
                    model,
                    encoded(data.draw(number)),
                    tests[name],
                    settings,
                    classes=classes,
                    epochs=settings.epochs_of(name),
                    seed=seed(f"{name}/{number}"),
                    advance=bar.update,
                )
                record = {"made_from": made_from, "answers": crossed.packed(answered, classes), "loss": loss}
                write_json(file, sealed(record))
            bar.update(done - bar.n)  # for what was kept, and for a fraction of an epoch that ended at a full batch
            fine_tunings[name].append(record)
    return fine_tunings


def report(record: Record, tasks: Sequence[TaskData], records: dict[str, list[dict[str, Any]]]) -> None:
    """Add the metrics of ``classify``'s records to a step's; their names begin with the task's."""
    means = []
    for data in tasks:
        name, classes, true = data.task.name, len(data.task.labels), data.test.labels
        packed = [one["answers"] for one in records[name]]
        answered = crossed.unpacked(packed, len(true), classes)
        balance = {part: np.bincount(rows.labels, minlength=classes) for part, rows in (("train", data.draw(0)), ("test", data.test))}
        common = int(balance["train"].argmax())
        answer = data.task.labels[common]
        counts = {"train_rows": data.train_rows, "test_rows": len(true), "fine_tunings": len(answered)}
        chance = "for other test rows and other fine-tunings" if len(answered) > 1 else "for other test rows, not for other fine-tunings"
        for measure, what in (
            ("accuracy", "share of the test rows classified correctly"),
            ("f1", "F1 of each class, weighted by its share of the test rows"),
        ):
            scores = crossed.row_scores(true, answered, classes, measure)
            always = crossed.row_scores(true, np.full((1, len(true)), common), classes, measure).mean()
            estimate, by_seed = crossed.mean(scores), scores.mean(1)
            low, high = crossed.interval(estimate, len(true))
            definition = f"{data.task.title}: {what}, mean over fine-tunings"
            record.measure(f"{name}_{measure}", estimate.value, "1", definition, counts=counts, standard_error=estimate.standard_error)
            record.measure(f"{name}_{measure}_low", low, "1", f"lower end of its 95% interval {chance}")
            record.measure(f"{name}_{measure}_high", high, "1", f"upper end of its 95% interval {chance}")
            if len(by_seed) > 1:
                spread = float(by_seed.std(ddof=1))
                record.measure(f"{name}_{measure}_seed_sd", spread, "1", "its standard deviation across fine-tunings")
            record.measure(
                f"{name}_{measure}_majority", float(always), "1", f"the same when always answering '{answer}', the most frequent training label"
            )
            record.series[f"{name}_{measure}_by_seed"] = by_seed.tolist()
            if measure == "accuracy":
                means.append(estimate.value)
        answered_share = float((answered == common).mean())
        record.measure(
            f"{name}_answered_majority", answered_share, "1", f"share of the test rows answered with '{answer}', the most frequent training label"
        )
        record.series[f"{name}_loss_by_seed"] = [one["loss"] for one in records[name]]
        record.examples[name] = {
            "labels": list(data.task.labels),
            **{f"{part}_balance": shares.tolist() for part, shares in balance.items()},
            "confusions": [crossed.confusion(true, one, classes).tolist() for one in answered],
            "true": crossed.packed(true, classes),
            "answers": packed,
            "rows": data.hash,
        }
    record.measure("mean_accuracy", float(np.mean(means)), "1", "mean of the tasks' accuracies")
    record.measure("tasks", len(means), "tasks", "tasks that the model was fine-tuned on")
