"""What each kind of work costs on a machine, measured in about half a minute.

The run's own code is timed, on fresh weights and stand-in text, whose values do not change the time. Where decoding whole sequences would take
too long, single steps are timed, with the fewest and with the most tokens in view.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from collapse_lib.cost.timing import repeated, timed
from collapse_lib.experiment.errors import UserError, first_line
from collapse_lib.experiment.files import read_json, sealed, write_json
from collapse_lib.experiment.paths import runs_root

if TYPE_CHECKING:
    from collapse_lib.cost.corpus_size import CorpusSize
    from collapse_lib.experiment.protocol import Protocol
    from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig
    from collapse_lib.text.corpus import TokenCorpus

FLOPS = {"cpu": 1e11, "cuda": 2e13}  # of one measurement of training or fine-tuning: seconds on two CPU cores, enough to keep a GPU busy
SECONDS = 1.0  # of one measurement that can be repeated until they have passed
CACHE_BYTES = 2**28  # keys and values of the sequences that one CPU worker decodes: with more sequences a token costs no less
DECODING_STEPS = 8  # of all workers, between two looks at the clock
ENCODED_BATCHES = 4  # likewise, for each worker
TEXT_STORIES = 600  # of the grammar, on which work with text is timed
READ_STORIES, TRUE_STORIES = 20, 20  # that the grammar is timed to judge, and to give probabilities to
CPU_SEQUENCES = 6.0  # seconds that decoding whole sequences may take on a CPU; single steps are timed where it would take more
TEXT_REPEATS = 8  # times the same text again, without a new word
FINETUNING_STEPS, TRAINING_STEPS = 30, 40  # most
CONTEXTS = (6, 256)  # fewest and most at which distributions are compared


# Units of work, and with what the seconds of one grow from model to model: the FLOP of a token, those without the head, or the parameters.
RATES = {
    "train_token": "token",  # a target: forward, backward, and its share of the optimizer step
    "checkpoint": "parameters",  # saving one, and starting the training
    "encode_token": "encoder",  # a token through the model without its head
    "score_token": "token",  # the loss of a token that was encoded
    "decode_token": "token",  # sampling a token, apart from its context
    "decode_byte": "",  # a byte of keys and values in its context
    "write_story": "",  # a story of the grammar
    "read_story": "",  # judging a sampled story by the grammar
    "truth_story": "",  # the probability that the grammar gives to a story, token by token
    "learn_story": "",  # learning a tokenizer from a story
    "tokenise": "",  # a token
    "load_words": "",  # spaCy's rules and the list of words, once a run
    "text_token": "",  # a token in the free-text metrics, apart from new words
    "text_root": "",  # the new words of a text, which grow about as the square root of its tokens (Heaps' law): seconds over that root
    "scan_story": "",  # following a story to alpha's contexts
    "compare_context": "token",  # one model's distribution at one context, compared with another's
    "finetune_step": "parameters",  # an optimizer step of classification apart from its tokens
    "finetune_token": "encoder",  # a token of its rows, forward and backward
}


@dataclass(frozen=True)
class Calibration:
    """What work costs on ``device``, measured with one model, batch and precision."""

    device: str  # as a reader knows it
    kind: str  # "cpu" or "cuda"
    date: str
    versions: dict[str, str]
    model: dict[str, Any]  # its config.json
    batch_tokens: int  # of the optimizer step that was timed
    decode_rows: int  # sequences decoded at once
    device_memory: int  # bytes of the GPU, 0 without one
    workers: int  # batches in work side by side
    load: float  # processes that wanted a core, for each core, before the measurement: 0 on a quiet machine
    measured_in: float  # seconds
    rates: dict[str, float]  # seconds of each of ``RATES``

    def save(self, file: Path) -> None:
        """Write it as JSON, for ``load`` on any machine."""
        write_json(file, sealed(asdict(self)))

    def rates_for(self, config: GPTNeoConfig, context: int) -> dict[str, float]:
        """The rates of a model of that shape, scaled to it if another was measured; FLOP are those with ``context`` tokens in view."""
        from collapse_lib.model.gpt_neo import GPTNeoConfig
        from collapse_lib.model.weightless import without_weights

        def counts(config: GPTNeoConfig) -> dict[str, int]:
            model = without_weights(config)
            flops, head = model.flops_per_token(context), 2 * config.hidden_size * config.vocab_size
            return {"token": flops, "encoder": flops - head, "parameters": model.num_parameters(), "": 1}

        ours, measured = counts(config), counts(GPTNeoConfig.from_hf(self.model))
        return {unit: seconds * ours[RATES[unit]] / measured[RATES[unit]] for unit, seconds in self.rates.items()}


def load(name: str) -> Calibration:
    """A recorded machine: a file, or ``NAME`` for ``papermill_runs/bench/NAME.json``; ``UserError`` when it is none."""
    path, folder = Path(name).expanduser(), runs_root() / "bench"
    if not path.is_file():
        path = folder / f"{name}.json"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.json") if is_recorded_machine(file))
        there = f"there {'are' if len(known) > 1 else 'is'} {', '.join(known)}" if known else "none is recorded there yet"
        raise UserError(f"There is no recorded machine '{name}' in {folder} ({there}); give a file that `collapse plan --record FILE` wrote.")
    from pydantic import TypeAdapter, ValidationError

    refusal = f"{path} is not a machine that this version's `collapse plan --record FILE` wrote"
    try:
        machine = TypeAdapter(Calibration).validate_python(read_json(path, dict[str, Any], "record the machine again"))
    except ValidationError as error:
        raise UserError(f"{refusal} ({first_line(error)}).") from None
    if machine.rates.keys() != RATES.keys():
        raise UserError(f"{refusal} (its rates are of other units).")
    return machine


def is_recorded_machine(file: Path) -> bool:
    """Whether ``Calibration.save`` wrote a file, and not ``collapse bench``, whose reports lie in the same folder."""
    try:
        return (read_json(file) or {}).keys() - {"sha256"} == Calibration.__annotations__.keys()
    except UserError:
        return False


def calibrate(protocol: Protocol, initial: CorpusSize, device: str = "auto", report: Callable[[str], Any] = lambda what: None) -> Calibration:
    """Measure this machine with a protocol's model, batches and lengths.

    Args:
        initial: the protocol's initial corpus.
        device: "auto", "cpu" or "cuda"; ``UserError`` for one that is not here.
        report: called with the name of what is measured next.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a run; torch looks at it once
    import torch

    from collapse_lib.experiment.machine import choose_device, device_name, versions
    from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig

    began, load = time.perf_counter(), os.getloadavg()[0] / (os.cpu_count() or 1)
    chosen = torch.device(choose_device(device))
    config = GPTNeoConfig.from_settings(protocol.model, initial.vocabulary, initial.vocabulary - 1)
    model = GPTNeo(config, seed=1).to(chosen)
    measured: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # progress bars
        # Training comes last: it changes the weights.
        for measure in (_text, _decoding, _scoring, _classification, _training):
            report(measure.__name__.strip("_"))
            measured |= measure(model, protocol, initial)
    return Calibration(
        device=device_name(str(chosen)),
        kind=chosen.type,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        model=config.to_hf(),
        device_memory=torch.cuda.get_device_properties(chosen).total_memory if chosen.type == "cuda" else 0,
        workers=_workers(chosen),
        load=round(load, 2),
        measured_in=round(time.perf_counter() - began, 1),
        rates={unit: measured.pop(unit) for unit in RATES},
        **measured,
    )


def _text(model: GPTNeo, protocol: Protocol, initial: CorpusSize) -> dict[str, Any]:
    """Writing stories, learning from them, tokenising, counting words, following them. The grammar's stories stand for any."""
    from collapse_lib.metrics import alpha
    from collapse_lib.metrics.free_text import free_text
    from collapse_lib.metrics.tails import true_losses
    from collapse_lib.metrics.words import corpus_word_types, lexicon
    from collapse_lib.steps.exact import judge_of
    from collapse_lib.text import tokenizer as tokenization
    from collapse_lib.text.grammar import StoryGrammar

    variant = protocol.corpus.grammar
    grammar = StoryGrammar(variant)
    judge, reading = judge_of(grammar)
    sampled = [text if number % 2 else _broken(text) for number, text in enumerate(grammar.stories(2, READ_STORIES))]
    _, read = timed(lambda: [(judge.judge(text), reading(text)) for text in sampled])
    texts, write = timed(lambda: list(grammar.stories(1, TEXT_STORIES)))
    tokenizer, learn = timed(lambda: tokenization.learn(iter(texts), protocol.tokenizer.vocabulary))
    encoded, encode = timed(lambda: tokenizer.encode_batch(texts))
    true = [np.array(ids) for ids in encoded[:TRUE_STORIES]]
    _, truth = timed(lambda: [true_losses(ids, tokenizer, grammar.log_probability, grammar.log_prefix_probabilities) for ids in true])
    few, many = (_corpus(encoded * times, tokenizer.vocabulary, tokenizer.eos_id) for times in (1, 1 + TEXT_REPEATS))
    _, load = timed(lambda: (corpus_word_types(few, tokenizer), lexicon()))
    _, once = timed(lambda: free_text(few, tokenizer, set()))
    _, often = timed(lambda: free_text(many, tokenizer, set()))
    token = max(0.0, often - once) / (many.tokens - few.tokens)
    prefixes, scan = timed(lambda: alpha.frequent_prefixes(many, 64, 24, 50))
    _, follow = timed(lambda: alpha.next_token_counts(alpha.story_heads(many, 25), prefixes, many.vocabulary, many.eos_id))
    return {
        "write_story": write / TEXT_STORIES,
        "read_story": read / READ_STORIES,
        "truth_story": truth / TRUE_STORIES,
        "learn_story": learn / TEXT_STORIES,
        "tokenise": encode / few.tokens,
        "load_words": load,
        "text_token": token,
        "text_root": max(0.0, once - token * few.tokens) / math.sqrt(few.tokens),
        "scan_story": (scan + follow) / many.rows,
    }


def _broken(story: str) -> str:
    """A story as a model may write it: legal up to its middle."""
    words = story.split(" ")
    middle = len(words) // 2
    words[middle], words[-1] = words[-1], words[middle]
    return " ".join(words)


def _decoding(model: GPTNeo, protocol: Protocol, initial: CorpusSize) -> dict[str, Any]:
    """Tokens decoded with few and with many others in view: the difference is what the bytes of these cost."""
    settings = protocol.sampling
    longest = settings.length if settings.overflow == "extend" else min(settings.max_context, settings.length)
    on_cpu = model.head.device.type == "cpu"  # a GPU decodes whole sequences by a recorded graph, and fast enough
    rows, *points = (_steps if on_cpu else _sequences)(model, protocol, longest)
    if on_cpu and protocol.sampling.batch_size * 1.5 * longest * mean(seconds for _, seconds in points) < CPU_SEQUENCES:
        rows, *points = _sequences(model, protocol, longest)  # with all that goes on around the steps
    (short, first), (long, last) = ((model.kv_bytes_per_token(context), seconds) for context, seconds in points)
    byte = max(0.0, last - first) / max(1, long - short)
    return {"decode_rows": rows, "decode_token": max(0.0, first - byte * short), "decode_byte": byte}


def _sequences(model: GPTNeo, protocol: Protocol, longest: int) -> tuple[int, tuple[int, float], tuple[int, float]]:
    """How many sequences at once, and (tokens in view, seconds of a token), in the mean, of the first and the second half of a sequence."""
    from collapse_lib.model.precision import product_dtype
    from collapse_lib.sample.generate import sample_rows

    rows, half = protocol.sampling.batch_size, max(1, longest // 2)

    def sample(length: int) -> float:
        settings, dtype = protocol.sampling.model_copy(update={"length": length}), product_dtype(protocol.training.precision, model.head.device)
        return timed(lambda: sample_rows(model, settings, range(rows), seed=1, dtype=dtype), model.head.device.type)[1]

    _, first, whole = sample(min(8, half)), sample(half), sample(longest)  # the first warms up
    second = (whole - first) / max(1, longest - half)
    return rows, (max(1, half // 2), first / half / rows), ((half + longest) // 2, second / rows)


def _steps(model: GPTNeo, protocol: Protocol, longest: int) -> tuple[int, tuple[int, float], tuple[int, float]]:
    """How many sequences at once, and (tokens in view, seconds of a token) with the fewest and the most, all workers at it as in a run."""
    import torch

    from collapse_lib.experiment.parallel import side_by_side
    from collapse_lib.model.precision import product_dtype
    from collapse_lib.sample.cpu import GRANULE, Cache
    from collapse_lib.sample.draw import TiledHead

    model = model.rounded(product_dtype(protocol.training.precision, model.head.device))  # on a CPU
    fitting = CACHE_BYTES // model.kv_bytes_per_token(longest)
    with side_by_side(model.head.device) as (workers, run):
        rows = math.ceil(min(protocol.sampling.batch_size / workers, fitting) / GRANULE) * GRANULE
        tokens, uniforms, head = (
            torch.zeros(1, rows, dtype=torch.int64),
            torch.full((rows,), 0.5, dtype=torch.float64),
            TiledHead(model.output_matrix),
        )
        caches = [Cache(model, protocol.sampling, rows, longest) for _ in range(workers)]
        for values in (values for cache in caches for values in (*cache.keys, *cache.values)):
            values.zero_()

        @torch.inference_mode()
        def decode(cache: Cache, context: int) -> None:
            for _ in range(DECODING_STEPS):
                cache.filled = context - 1
                head.sample(cache.advance(tokens, 0), uniforms)

        def token(context: int) -> float:
            seconds = repeated(lambda: list(run(decode, caches, [context] * workers)), "cpu", SECONDS)
            return mean(seconds) / (DECODING_STEPS * rows * workers)

        return rows * workers, (1, token(1)), (longest, token(longest))


def _scoring(model: GPTNeo, protocol: Protocol, initial: CorpusSize) -> dict[str, Any]:
    """Encoding, perplexity, and distributions compared for alpha."""
    import torch

    from collapse_lib.experiment.parallel import side_by_side
    from collapse_lib.metrics import alpha
    from collapse_lib.metrics.perplexity import BATCH_TOKENS, perplexity

    device, most, smoothing = model.head.device, protocol.evaluation.max_context, protocol.alpha.smoothing
    length = max(2, min(most, int(initial.mean_tokens) - 1))
    tokens = torch.zeros(max(1, BATCH_TOKENS[device.type] // length), length, dtype=torch.int64, device=device)

    def encode(_: int) -> None:
        with torch.no_grad():
            model(tokens)

    with side_by_side(device) as (workers, run):
        batches = range(ENCODED_BATCHES * workers)
        encoding = mean(repeated(lambda: list(run(encode, batches)), device.type, SECONDS)) / (len(batches) * tokens.numel())
    stories = _random_corpus(model, [length] * max(2, min(2000, int(SECONDS / (2 * encoding * length)))))
    perplexity(model, _random_corpus(model, [length]), most)  # warms up
    scores, seconds = timed(lambda: perplexity(model, stories, most), device.type)
    contexts, _ = alpha.sampled_positions(stories, int(np.clip(SECONDS / (3 * encoding * length), *CONTEXTS)), most, 1)
    alpha.measure_positions(model, model, model, contexts[:1], smoothing)
    _, compared = timed(lambda: alpha.measure_positions(model, model, model, contexts, smoothing), device.type)
    return {
        "encode_token": encoding,
        "score_token": max(0.0, seconds / scores["tokens"] - encoding),
        "compare_context": compared / (3 * len(contexts)),
    }


def _classification(model: GPTNeo, protocol: Protocol, initial: CorpusSize) -> dict[str, Any]:
    """Fine-tuning on short and on long rows: the difference is the tokens', the rest the step's."""
    from collapse_lib.experiment.parallel import side_by_side
    from collapse_lib.metrics.classification import Encoded, finetune

    settings, device = protocol.classification, model.head.device
    if not settings.tasks:
        return {"finetune_step": 0.0, "finetune_token": 0.0}
    batch, longest = settings.batch_size, settings.max_length
    shortest = max(1, longest // 8)
    steps = max(1, min(FINETUNING_STEPS, int(FLOPS[device.type] / (3 * model.flops_per_token(longest) * batch * longest))))

    def seconds(length: int, steps: int) -> float:
        rows = [np.zeros(length, np.int64)] * (batch * steps)
        train, test = Encoded(rows, np.arange(len(rows)) % 2), Encoded(rows[:1], np.zeros(1, np.int64))
        return timed(lambda: finetune(model, train, test, settings, classes=2, epochs=1, seed=1), device.type)[1]

    def step(length: int) -> float:
        return (seconds(length, steps + 1) - seconds(length, 1)) / steps  # the copy of the model is made once a task

    with side_by_side(device):
        step(shortest)  # warms up
        short, long = step(shortest), step(longest)
    token = max(0.0, long - short) / (batch * (longest - shortest))
    return {"finetune_step": max(0.0, long - token * batch * longest), "finetune_token": token}


def _training(model: GPTNeo, protocol: Protocol, initial: CorpusSize) -> dict[str, Any]:
    from collapse_lib.train.loop import train

    device, settings = model.head.device, protocol.training
    sequence_flops = 3 * model.flops_per_token(settings.block_size) * settings.block_size
    # As many sequences of a step as can be had in a second or two, one for each worker at least.
    workers = _workers(device)
    batch = min(settings.batch_size, max(1, int(FLOPS[device.type] / sequence_flops) // workers) * workers)
    steps = max(1, min(TRAINING_STEPS, int(2 * FLOPS[device.type] / (batch * sequence_flops))))
    settings = settings.model_copy(
        update={
            "batch_size": batch,
            "micro_batch_size": None if batch % (settings.micro_batch_size or 1) else settings.micro_batch_size,
            "precision": "fp32" if device.type == "cpu" and settings.precision == "fp16" else settings.precision,
            "checkpoint_every": 10**9,
        }
    )
    contiguous = settings.layout == "contiguous"
    width = settings.block_size if contiguous else initial.longest_of(batch, settings.block_size)
    lengths = np.random.default_rng(0).choice(np.asarray(initial.lengths, int), steps * batch)
    for blocks in (1, steps * batch):  # the first warms up
        corpus = _random_corpus(model, [blocks * settings.block_size] if contiguous else lengths[:blocks].tolist())
        with tempfile.TemporaryDirectory(prefix="collapse-plan-") as folder:
            arguments = {"seed": 1, "checkpoint_folder": Path(folder), "device": device.type, "epochs": 1}
            result, whole = timed(lambda: train(model, corpus, settings, **arguments), device.type)  # noqa: B023 - called at once
    return {
        "batch_tokens": round(batch * width),
        "train_token": result.seconds / (steps * batch * width),
        "checkpoint": max(0.0, whole - result.seconds),
    }


def _random_corpus(model: GPTNeo, lengths: list[int]) -> TokenCorpus:
    """Stories of random tokens, ``lengths`` without their start tokens."""
    random, vocabulary = np.random.default_rng(0), model.config.vocab_size
    return _corpus([random.integers(0, vocabulary - 1, length) for length in lengths], vocabulary, model.config.eos_token_id)


def _corpus(stories: list[Any], vocabulary: int, eos: int) -> TokenCorpus:
    from collapse_lib.text.corpus import TokenCorpus

    return TokenCorpus.in_memory([np.array([eos, *story], np.uint16) for story in stories], eos, vocabulary, rows_are_complete=True)


def _workers(device: Any) -> int:
    import torch

    return torch.get_num_threads() if device.type == "cpu" else 1
