"""``collapse plan``: what a run will take, before it is paid for.

How much there is to do follows from the protocol and the model's own counts; what it costs comes from a ``Calibration`` of this machine or of a
recorded one. Seconds are the product of the two, step by step (``lineage.STEPS``). What nobody can know beforehand is assumed, and each
assumption that a plan rests on is among its ``notes``.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_json
from collapse_lib.experiment.lineage import STEPS, steps_of
from collapse_lib.experiment.shapes import Notebook
from collapse_lib.text.sources import is_on_hub

if TYPE_CHECKING:
    from collapse_lib.cost.calibration import Calibration
    from collapse_lib.experiment.protocol import Protocol
    from collapse_lib.experiment.run import Run
    from collapse_lib.model.gpt_neo import GPTNeo

# What is assumed of a corpus on the hub: TinyStories, in GPT-2's tokens. Lengths as (share of the stories, tokens of one), from a sample.
HUB_STORIES, HUB_VALIDATION_STORIES, HUB_VOCABULARY, HUB_TOKENS = 2_120_000, 22_000, 50_257, 4.7e8
HUB_LENGTHS = ((0.1, 123), (0.15, 147), (0.25, 167), (0.25, 194), (0.15, 241), (0.05, 325), (0.035, 445), (0.01, 545), (0.004, 690), (0.001, 880))
CHARACTERS_A_TOKEN = 4.07  # of that text
CHARACTERS = 3  # of a sampled token, as a file of completions has them: many stop early
# Training and test rows of the hub's tasks, their mean tokens, and those of the longest of eight, up to 128 each.
TASK_ROWS = {
    "imdb": (25_000, 25_000, 123, 128),
    "sst2": (67_349, 872, 12, 28),
    "yelp": (560_000, 38_000, 86, 127),
    "yelp_full": (650_000, 50_000, 98, 128),
    "qqp": (363_846, 40_430, 27, 48),
    "qnli": (104_743, 5_463, 47, 76),
    "mrpc": (3_668, 408, 50, 68),
    "rte": (2_490, 277, 70, 110),
    "cola": (8_551, 1_043, 11, 16),
    "grammar_fits": (2_000, 1_000, 128, 128),
    "grammar_happy": (2_000, 1_000, 128, 128),
}
SAMPLE = 400  # stories whose lengths stand for all
EPOCHS = 3  # that early stopping finds: what the paper found (section 5.1.2)
EFFICIENCY = 0.9  # of several GPUs
PROMPTS, PROMPT_TOKENS = 44, 40  # story beginnings, and what one has
JUDGE_SECONDS = 2.0  # of one request
KERNEL_START, NOTEBOOK = 6.0, 1.2  # seconds of the one kernel's start and imports, and of each notebook around its step; 2 shared cores
KERNEL_MEMORY = 700_000_000  # bytes of figures and caches in a kernel that has executed fifty notebooks
BUSY = 0.5  # work per core from which on a measurement is said to be disturbed
STEP_FILES = 4  # notebook, metrics, manifest, lock
STEP_BYTES = {"train": 65_000, "alpha": 110_000}  # of these four, of which figures and series are most
OTHER_BYTES = 15_000
SHARD_BYTES = 600  # an Arrow file's head
TOKEN_BYTES = 45  # of a tokenizer's files
ACTIVATIONS = 34  # vectors of the hidden size that backward needs of a token and layer, as ``training.micro_batch_size`` counts


@dataclass(frozen=True)
class Text:
    """What an initial corpus holds: counts, the model's ``vocabulary``, and ``lengths`` as (share of the stories, tokens of one)."""

    stories: int
    validation_stories: int
    vocabulary: int
    lengths: tuple[tuple[float, float], ...]
    note: str = ""

    @property
    def mean(self) -> float:
        """Mean tokens of a story, its '<|endoftext|>' included."""
        return 1 + sum(share * tokens for share, tokens in self.lengths)

    def sample(self, count: int = SAMPLE) -> list[int]:
        """``count`` lengths, rounded, in which each is about as frequent as in the corpus."""
        edges = np.cumsum([share for share, _ in self.lengths])
        middles = (np.arange(count) + 0.5) / count
        return [max(1, round(self.lengths[min(int(part), len(edges) - 1)][1])) for part in np.searchsorted(edges, middles)]


@dataclass(frozen=True)
class Generation:
    """What one generation takes: ``seconds`` by step, and what it leaves on the disk."""

    number: int
    seconds: dict[str, float]
    bytes: int
    files: int


@dataclass(frozen=True)
class Plan:
    """What a run takes. ``memory`` (bytes, at once) is by "host" and, with a GPU, "GPU"; ``notes`` say what is assumed and not measured."""

    preset: str
    device: str
    gpus: int
    on_gpu: bool
    parameters: int
    generations: tuple[Generation, ...]
    overhead: float  # seconds of the kernel's start and of the notebooks around the steps
    memory: dict[str, int]
    scratch: int  # bytes of the checkpoint that a training keeps while it lasts
    notes: tuple[str, ...]

    @property
    def by_step(self) -> dict[str, float]:
        """Seconds of each step over all generations."""
        total: Counter[str] = Counter()
        for generation in self.generations:
            total.update(generation.seconds)
        return {name: total[name] for name in STEPS if name in total}

    @property
    def seconds(self) -> float:
        """Wall time of the whole run."""
        return sum(self.by_step.values()) + self.overhead

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs, which are held while a step computes on the host too."""
        return self.seconds / 3600 * self.gpus if self.on_gpu else 0.0

    @property
    def bytes(self) -> int:
        return sum(generation.bytes for generation in self.generations)

    @property
    def files(self) -> int:
        return sum(generation.files for generation in self.generations) + 2  # protocol and lock

    def as_dict(self) -> dict[str, Any]:
        """Everything for a program: the fields and what follows from them."""
        return asdict(self) | {name: getattr(self, name) for name in ("by_step", "seconds", "gpu_hours", "bytes", "files")}


def text_of(protocol: Protocol) -> Text:
    """Look at a protocol's corpus: the grammar and local files themselves, never the hub, of which TinyStories' sizes are assumed.

    Raises ``UserError`` as reading the stories does.
    """
    from collapse_lib.text import tokenizer as tokenization
    from collapse_lib.text.sources import read_stories

    corpus, source = protocol.corpus, protocol.tokenizer.source
    if is_on_hub(corpus.source):
        stories, validation = corpus.stories or HUB_STORIES, corpus.validation_stories or HUB_VALIDATION_STORIES
        # The sample's lengths, stretched to the whole corpus' mean.
        scale = (HUB_TOKENS / HUB_STORIES - 1) / sum(share * tokens for share, tokens in HUB_LENGTHS)
        note = (
            f"'{corpus.source}' is not fetched: assumed are TinyStories' sizes, {stories:,} stories"
            f" of {HUB_TOKENS / HUB_STORIES:.0f} GPT-2 tokens ({stories * HUB_TOKENS / HUB_STORIES:.2g} in all) and {validation:,} validation stories"
        )
        vocabulary = protocol.tokenizer.vocabulary if source == "learn" else HUB_VOCABULARY
        return Text(stories, validation, vocabulary, tuple((share, tokens * scale) for share, tokens in HUB_LENGTHS), note)
    stories, first = corpus.stories, list(islice(read_stories(corpus), SAMPLE))
    if corpus.source != "grammar":
        stories = sum(1 for _ in read_stories(corpus))
    validation = corpus.validation_stories or sum(1 for _ in read_stories(corpus, "validation"))
    note = f"lengths of stories are those of the first {len(first)}"
    if source == "learn":
        tokenizer = tokenization.learn(iter(first), protocol.tokenizer.vocabulary)
        vocabulary, lengths = protocol.tokenizer.vocabulary, [len(ids) for ids in tokenizer.encode_batch(first)]
    elif Path(source).expanduser().exists():
        tokenizer = tokenization.load(source)
        vocabulary, lengths = tokenizer.vocabulary, [len(ids) for ids in tokenizer.encode_batch(first)]
    else:
        vocabulary, lengths = HUB_VOCABULARY, [max(1, round(len(story) / CHARACTERS_A_TOKEN)) for story in first]
        note += f", at {CHARACTERS_A_TOKEN} characters a token; the tokenizer '{source}' is not opened, its vocabulary taken to be {vocabulary:,}"
    return Text(stories, validation, vocabulary, tuple((1 / len(lengths), length) for length in lengths), note)


def plan(protocol: Protocol, calibration: Calibration, text: Text, gpus: int = 1, preset: str = "") -> Plan:
    """What a run of ``protocol`` takes on the calibrated machine, with ``gpus`` of its GPU.

    Raises ``UserError`` for a number of GPUs that cannot be.
    """
    on_gpu = calibration.kind == "cuda"
    if gpus < 1:
        raise UserError(f"--gpus is {gpus}; a run needs at least 1.")
    if gpus > 1 and not on_gpu:
        raise UserError(f"--gpus is {gpus}, but the machine measured is a CPU ({calibration.device}); give a GPU's --machine.")
    work = _Work(protocol, calibration, text, gpus)
    generations = tuple(
        Generation(number, {step: work.seconds(step, number) for step in steps_of(protocol, number)}, *work.disk(number))
        for number in range(protocol.generations + 1)
    )
    notebooks = sum(len(generation.seconds) for generation in generations)
    return Plan(
        preset=preset,
        device=calibration.device,
        gpus=gpus,
        on_gpu=on_gpu,
        parameters=work.parameters,
        generations=generations,
        overhead=KERNEL_START + NOTEBOOK * notebooks,
        memory=work.memory(),
        scratch=12 * work.parameters + (4 * work.parameters if protocol.training.epochs == "early_stopping" else 0),
        notes=tuple(work.notes()),
    )


def contexts(length: int, max_context: int, overflow: str) -> tuple[np.ndarray, int]:
    """How a sequence is decoded: the tokens in view at each step that reads a cache, and how many tokens are encoded anew for the others."""
    if overflow == "extend" or length <= max_context:
        return np.arange(1, length + 1), 0
    seen, encoded, filled = [], 0, 0
    for _ in range(length):
        if filled < max_context:
            filled += 1
            seen.append(filled)
        elif overflow == "slide":
            encoded += max_context
        else:
            filled = max(1, max_context // 2)
            encoded += filled
    return np.array(seen), encoded


@dataclass(frozen=True)
class _Work:
    """How much there is to do, and what it costs."""

    protocol: Protocol
    costs: Calibration
    text: Text
    gpus: int

    @cached_property
    def model(self) -> GPTNeo:
        from collapse_lib.model.gpt_neo import GPTNeoConfig

        return _without_weights(GPTNeoConfig.from_settings(self.protocol.model, self.text.vocabulary, self.text.vocabulary - 1))

    @cached_property
    def measured(self) -> GPTNeo:
        """The model of the calibration."""
        from collapse_lib.model.gpt_neo import GPTNeoConfig

        return _without_weights(GPTNeoConfig(**self.costs.model))

    @cached_property
    def parameters(self) -> int:
        return self.model.num_parameters()

    def _larger(self, context: float = 1, head: bool = True) -> float:
        """How many times the FLOP of a token of the calibrated model ours takes."""
        if self.model.config == self.measured.config:
            return 1.0
        ours, theirs = (
            model.flops_per_token(max(1, round(context))) - (0 if head else 2 * model.config.hidden_size * model.config.vocab_size)
            for model in (self.model, self.measured)
        )
        return ours / theirs

    @property
    def _heavier(self) -> float:
        return self.parameters / self.measured.num_parameters()

    # Amounts.

    @property
    def initial_tokens(self) -> float:
        """Tokens of the initial corpus, the hold-out left out."""
        return self.text.stories * self.text.mean * (1 - self.protocol.training.holdout)

    @property
    def row(self) -> float:
        """Tokens that the corpus keeps of a sampled sequence."""
        settings = self.protocol.sampling
        sampled = settings.length if settings.after_eos == "continue" else sum(s * min(t + 1, settings.length) for s, t in self.text.lengths)
        return sampled + (settings.start == "endoftext")

    def corpus(self, generation: int) -> tuple[float, float]:
        """Rows and tokens of the corpus that a generation leaves to the next."""
        if generation:
            return self.protocol.sampling.sequences, self.protocol.sampling.sequences * self.row
        return self.text.stories * (1 - self.protocol.training.holdout), self.initial_tokens

    def training(self, rows: float, tokens: float) -> tuple[float, int]:
        """Tokens and optimizer steps of one epoch on a corpus."""
        settings = self.protocol.training
        blocks = max(1, int((tokens - 1) // settings.block_size)) if settings.layout == "contiguous" else math.ceil(rows)
        # Rows of a batch are padded to its longest, which among hundreds is nearly a block.
        return blocks * settings.block_size, math.ceil(blocks / settings.batch_size)

    @property
    def epochs(self) -> int:
        settings = self.protocol.training
        return min(EPOCHS, settings.max_epochs) if settings.epochs == "early_stopping" else settings.epochs

    def tries(self, generation: int) -> int:
        """Epochs trained: generation 1 has to see that one more does not help."""
        stopping = self.protocol.training.epochs == "early_stopping" and generation == 1
        return min(self.epochs + 1, self.protocol.training.max_epochs) if stopping else self.epochs

    # Seconds of each step.

    def seconds(self, step: str, generation: int) -> float:
        """Of one step of one generation."""
        alone = getattr(self, f"_{step}")(generation)
        shared = step in ("train", "sample") and self.gpus > 1
        return alone / (self.gpus * EFFICIENCY) if shared else alone

    def _corpus(self, generation: int) -> float:
        c, learning = self.costs, self.protocol.tokenizer.source == "learn"
        stories = self.text.stories * (1 + learning) + self.text.validation_stories  # read once to learn from them, once to keep them
        writing = c.write_story * stories if self.protocol.corpus.source == "grammar" else 0.0
        tokens = (self.text.stories + 2 * self.text.validation_stories) * self.text.mean  # of these the bytes are counted too
        words = c.first_words + self._words(self.initial_tokens)
        return writing + learning * c.learn_story * self.text.stories + c.tokenise * tokens + words

    def _train(self, generation: int) -> float:
        c, settings = self.costs, self.protocol.training
        tokens, steps = self.training(*self.corpus(generation - 1))
        a_token = c.train_token * self._larger(settings.block_size / 2)
        tries, saves = self.tries(generation), 1 + (steps - 1) // settings.checkpoint_every
        epoch = tokens * a_token + steps * c.train_step * self._heavier + saves * c.checkpoint * self._heavier
        looking = settings.epochs == "early_stopping" and generation == 1
        holdout = self.text.stories * self.text.mean * settings.holdout * a_token / 3 if looking else 0.0  # forward alone
        return c.train_call + tries * (epoch + holdout)

    def _decoding(self, seen: np.ndarray) -> float:
        """Seconds to sample a token at each of these contexts, added up."""
        places, costs = zip(*self.costs.decode, strict=True)
        values, often = np.unique(seen, return_counts=True)
        larger = np.array([self._larger(value) for value in values])
        return float((np.interp(values, places, costs) * larger * often).sum())

    def _sample(self, generation: int) -> float:
        return self._sampling

    @cached_property
    def _sampling(self) -> float:
        settings = self.protocol.sampling
        seen, encoded = contexts(settings.length, settings.max_context, settings.overflow)
        return settings.sequences * (self._decoding(seen) + encoded * self.costs.encode_token * self._larger(settings.max_context / 2, head=False))

    def _perplexity(self, generation: int) -> float:
        return self._scoring

    @cached_property
    def _scoring(self) -> float:
        from collapse_lib.metrics.perplexity import other_definition, paper_windows, released_windows

        c, settings = self.costs, self.protocol.evaluation
        lengths = self.text.sample()
        has_start = settings.perplexity == "paper"
        shown = sum(min(length + has_start, settings.max_context) for length in lengths)  # the ends of stories are scored apart
        scored = len(lengths)
        own, other = (settings.perplexity, settings.max_context), other_definition(settings.perplexity, self.protocol.model.max_position_embeddings)
        for definition, context in (own, other):
            starts = definition == "paper"
            windows = (paper_windows if starts else released_windows)([length + starts for length in lengths], context)
            shown += int((windows.end - windows.begin).sum())
            scored += int(windows.tokens.sum())
        each = shown * c.encode_token * self._larger(self.text.mean, head=False) + scored * c.head_token * self._larger()
        return self.text.validation_stories / len(lengths) * each

    def _free_text(self, generation: int) -> float:
        return (self.costs.lexicon if generation == 1 else 0.0) + self._words(self.corpus(generation)[1])

    def _words(self, tokens: float) -> float:
        """Seconds to count the words of a text, of which the different ones grow about as its square root (Heaps)."""
        return tokens * self.costs.text_token + self.costs.text_words * math.sqrt(tokens / self.costs.text_tokens)

    def _alpha(self, generation: int) -> float:
        c, settings = self.costs, self.protocol.alpha
        stories = self.text.stories + (self.corpus(generation - 1)[1] / self.text.mean if generation > 1 else 0)
        compared = settings.contexts * min(generation, 2) + settings.positions * min(generation, 3)
        truth = generation == 1 and self.protocol.corpus.source == "grammar"
        drawn = settings.truth_stories * (c.write_story + c.tokenise * self.text.mean) if truth else 0.0
        return c.scan_story * stories + c.compare_context * self._larger(head=False) * compared + drawn

    def _completions(self, generation: int) -> float:
        settings = self.protocol.completions
        rows = (settings.beginnings or PROMPTS) * settings.samples
        seen, encoded = contexts(PROMPT_TOKENS + settings.max_new_tokens, self.protocol.sampling.max_context, self.protocol.sampling.overflow)
        return rows * (self._decoding(seen) + encoded * self.costs.encode_token * self._larger(head=False))

    def _gpt_eval(self, generation: int) -> float:
        settings = self.protocol.completions
        requests = (settings.beginnings or PROMPTS) * settings.samples + (3 * self.protocol.gpt_eval.controls if generation == 0 else 0)
        return requests * JUDGE_SECONDS / self.protocol.gpt_eval.concurrency

    def _classification(self, generation: int) -> float:
        c, settings = self.costs, self.protocol.classification
        larger, seconds = self._larger(settings.max_length / 2, head=False), 0.0
        for task in settings.tasks:
            train_rows, test_rows, mean, longest = TASK_ROWS[task]
            most_train, most_test = settings.rows_of(task)
            train, test = min(train_rows, most_train or train_rows), min(test_rows, most_test or test_rows)
            mean, longest = min(mean, settings.max_length), min(longest, settings.max_length)
            steps = math.ceil(settings.epochs_of(task) * math.ceil(train / settings.batch_size))
            token = c.finetune_token * larger
            one = steps * (c.finetune_step * self._heavier + settings.batch_size * longest * token) + test * mean * token / 3
            one += train * mean * c.tokenise  # each fine-tuning draws its rows
            read = test * mean * c.tokenise
            if task.startswith("grammar"):
                # All of them, whatever is drawn; about every second story is of the kind that is wanted.
                read += 2 * (TASK_ROWS[task][0] + TASK_ROWS[task][1]) * c.write_story
            seconds += settings.seeds * one + read
        return seconds

    # What is left, and what is held meanwhile.

    def disk(self, generation: int) -> tuple[int, int]:
        """Bytes and files that a generation leaves."""
        protocol, names = self.protocol, steps_of(self.protocol, generation)
        size, files = sum(STEP_BYTES.get(name, OTHER_BYTES) for name in names), STEP_FILES * len(names)
        if generation:
            parts = [self.corpus(generation)]
            shards = math.ceil(protocol.sampling.sequences / protocol.sampling.shard_sequences)
            size += 4 * self.parameters + TOKEN_BYTES * self.text.vocabulary
            files += 5 + shards + 2  # weights, two configurations, the tokenizer's two files; shards, what they are, whose
        else:
            whole = [self.text.stories, self.text.validation_stories]
            parts = [(stories, stories * self.text.mean) for stories in whole]
            shards = sum(max(1, math.ceil(tokens * share / 2**22)) for (_, tokens), share in zip([parts[0], *parts], (0.05, 0.95, 1), strict=True))
            size, files = (
                size + TOKEN_BYTES * self.text.vocabulary,
                files + 2 + shards + 4,
            )  # the tokenizer's two files; what the shards are, and the words in them
        if "completions" in names:
            settings = protocol.completions
            size += CHARACTERS * (settings.beginnings or PROMPTS) * settings.samples * settings.max_new_tokens
            files += 1
        size += sum(round(2 * tokens + 4 * rows) for rows, tokens in parts) + SHARD_BYTES * shards
        return size, files

    def memory(self) -> dict[str, int]:
        """Most bytes at once, by where; by the model's counts, so a rough figure."""
        c, protocol, config = self.costs, self.protocol, self.model.config
        settings = protocol.training
        weights, logits = 4 * self.parameters, (2**28 if c.kind == "cuda" else 2**23) * 4
        a_token = config.num_layers * (ACTIVATIONS * config.hidden_size + 2 * config.num_heads * settings.block_size) * 4
        fits = c.device_memory // 4 if c.kind == "cuda" else c.workers * max(4096, settings.block_size) * a_token
        activations = min(settings.batch_size * settings.block_size * a_token, fits)
        training = weights * (4 + (c.workers if c.kind == "cpu" else 0)) + activations + logits
        view = protocol.sampling.length if protocol.sampling.overflow == "extend" else min(protocol.sampling.length, protocol.sampling.max_context)
        sampling = weights * 2 + min(protocol.sampling.batch_size, protocol.sampling.sequences) * self.model.kv_bytes_per_token(view) + logits
        work = round(max(training, sampling))
        best = weights if settings.epochs == "early_stopping" else 0
        if c.kind == "cuda":
            return {"host": round(c.base_memory + KERNEL_MEMORY + 4 * weights + best), "GPU": work}
        return {"host": round(c.base_memory + KERNEL_MEMORY + work + best)}

    def notes(self) -> list[str]:
        """What the figures rest on."""
        c, settings = self.costs, self.protocol.training
        found = [self.text.note]
        if settings.epochs == "early_stopping":
            tried = f"; generation 1 tries {self.tries(1)}" if self.tries(1) > self.epochs else ""
            found.append(
                f"early stopping is assumed to find {self.epochs} epochs (the paper found {EPOCHS}, max_epochs is {settings.max_epochs}){tried}"
            )
        if asdict(self.model.config) != asdict(self.measured.config):
            found.append(
                "the machine was measured with a model of another shape; its times are scaled by the models' FLOP, which small models do not follow"
            )
        if c.load > BUSY:
            found.append(f"other work was waiting while this was measured, {c.load:.1f} processes a core: on a quiet machine all is faster")
        if c.batch_tokens < min(settings.batch_size * settings.block_size, self.initial_tokens):
            found.append(f"training was timed on {c.batch_tokens:,} tokens a step, not on {settings.batch_size * settings.block_size:,}")
        if c.decode_rows < min(self.protocol.sampling.batch_size, self.protocol.sampling.sequences):
            found.append(f"sampling was timed with {c.decode_rows:,} sequences at once, not with {self.protocol.sampling.batch_size:,}")
        if c.kind == "cpu" and settings.precision == "fp16":
            found.append("training.precision is fp16, which no CPU trains in: timed in fp32, and such a run needs --set training.precision=fp32 here")
        if self.gpus > 1:
            found.append(
                f"training and sampling are divided by {self.gpus} GPUs at {EFFICIENCY:.0%} efficiency: assumed, not measured;"
                " `collapse run` drives one GPU, and handing out a generation's work to several is up to `accelerate launch` and the user"
            )
        if self.protocol.classification.tasks and any(not task.startswith("grammar") for task in self.protocol.classification.tasks):
            found.append("classification tasks are taken to have the rows of the public data sets (RTE's lengths are a guess)")
        if self.protocol.gpt_eval.judge:
            found.append(f"a judge is taken to answer in {JUDGE_SECONDS:g} s; `collapse judge estimate` counts tokens and money")
        found.append(f"a notebook costs {NOTEBOOK} s around its step and the kernel's start {KERNEL_START:g} s, as measured on two shared cores")
        found.append("memory is reckoned from the model's counts, not measured; sampled text is taken to have stories of the initial length")
        return found


def _without_weights(config: Any) -> GPTNeo:
    import torch

    from collapse_lib.model.gpt_neo import GPTNeo

    with torch.device("meta"):
        return GPTNeo(config, seed=None)


# --- for the eye -----------------------------------------------------------------------------------------------------


def table(found: Plan) -> str:
    """A plan as a table: generations that take the same are one line."""
    names = list(found.by_step)
    alike: dict[tuple[Any, ...], list[int]] = {}
    for generation in found.generations:
        shown = tuple(duration(generation.seconds[name]) if name in generation.seconds else "" for name in names)
        alike.setdefault((*shown, duration(sum(generation.seconds.values())), amount(generation.bytes)), []).append(generation.number)
    heads = [*names, "together", "disk"]
    rows = [(_ranges(numbers), *cells) for cells, numbers in alike.items()]
    rows.append(("whole run", *map(duration, found.by_step.values()), duration(sum(found.by_step.values())), amount(found.bytes)))
    first = max(len("generation"), *(len(row[0]) for row in rows))
    widths = [max(len(head), *(len(row[place + 1]) for row in rows)) + 2 for place, head in enumerate(heads)]
    lines = [
        f"{found.preset or 'this protocol'}, {found.parameters:,} parameters, on {found.device}" + (f" x {found.gpus}" if found.gpus > 1 else "")
    ]
    lines += ["", f"{'generation':<{first}}" + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))]
    lines += [f"{row[0]:<{first}}" + "".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths, strict=True)) for row in rows]
    largest = sorted(found.by_step.items(), key=lambda item: -item[1])[:2]
    most = " and ".join(f"{name} ({seconds / found.seconds:.0%})" for name, seconds in largest)
    held = ", ".join(f"{amount(size)} on the {where}" for where, size in found.memory.items())
    lines += [
        "",
        f"time         {duration(found.seconds)}, of which {duration(found.overhead)} for starting and executing notebooks; most is {most}",
        f"GPU hours    {found.gpu_hours:,.1f}" + (f", {found.gpus} held all the time" if found.gpus > 1 else "" if found.on_gpu else " (no GPU)"),
        f"disk         {amount(found.bytes)} in {found.files:,} files, and {amount(found.scratch)} more during a training for its checkpoint",
        f"memory       about {held}",
        "",
        *(f"- {note}" for note in found.notes if note),
    ]
    return "\n".join(lines)


def line(found: Plan) -> str:
    """A plan as one line of JSON."""
    return json.dumps(found.as_dict())


def duration(seconds: float) -> str:
    """Seconds for the eye: 8.3 s, 12 min, 3.4 h, 5.1 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def amount(size: float) -> str:
    """Bytes for the eye."""
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if size >= 1000**power:
            return f"{size / 1000**power:.1f} {unit}"
    return f"{size:.0f} B"


def _ranges(numbers: list[int]) -> str:
    """[2, 4, 6] and [1, 2, 3] as "2, 4, 6" and "1 to 3"; long lists by their ends and what lies between."""
    if len(numbers) > 2 and (step := numbers[1] - numbers[0]) and numbers == list(range(numbers[0], numbers[-1] + 1, step)):
        return f"{numbers[0]} to {numbers[-1]}" + (f" by {step}" if step > 1 else "")
    return ", ".join(map(str, numbers)) if len(numbers) < 6 else f"{len(numbers)} others"


# --- against what a run took -----------------------------------------------------------------------------------------


def check(found: Plan, protocol: Protocol, run: Run) -> list[dict[str, Any]]:
    """A plan beside the seconds that a finished run recorded: for each step over all generations, for all steps, and for the wall clock.

    Raises ``UserError`` when the run's protocol is another one or the run is not finished.
    """
    from collapse_lib.experiment.run import fully_executed

    if protocol.generations != run.protocol.generations:
        raise UserError(f"Run '{run.name}' has {run.protocol.generations} generations, the plan {protocol.generations}; plan it with --generations.")
    if changed := protocol.differences(run.protocol):
        raise UserError(f"Run '{run.name}' has another {changed[0]} than the plan; plan the run itself or give the same --set.")
    taken: Counter[str] = Counter()
    begins, ends = [], []
    for step in run.steps():
        manifest, notebook = step.manifest(), read_json(step.notebook, Notebook)
        if manifest is None or notebook is None or not fully_executed(notebook):
            raise UserError(f"Run '{run.name}' is not finished: {step} is missing.")
        taken[step.name] += manifest["seconds"]
        begins.append(datetime.fromisoformat(notebook["metadata"]["papermill"]["start_time"]))
        ends.append(datetime.fromisoformat(notebook["metadata"]["papermill"]["end_time"]))
    compared = [(name, seconds, taken[name]) for name, seconds in found.by_step.items()]
    compared.append(("all steps", sum(found.by_step.values()), sum(taken.values())))
    compared.append(("wall clock", found.seconds, (max(ends) - min(begins)).total_seconds()))
    return [{"what": what, "predicted": planned, "took": took, "off": planned / took - 1 if took else 0.0} for what, planned, took in compared]


def check_table(rows: list[dict[str, Any]], name: str) -> str:
    """What ``check`` found, for the eye."""
    lines = [f"{'':<16}{'predicted':>12}{'took':>12}{'off by':>10}   run {name}"]
    lines += [f"{row['what']:<16}{duration(row['predicted']):>12}{duration(row['took']):>12}{row['off']:>+10.0%}" for row in rows]
    return "\n".join(lines)
