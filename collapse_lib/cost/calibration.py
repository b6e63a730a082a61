"""What work costs on a machine, found in about half a minute by doing a little of each kind; ``plan`` multiplies it by what a run has to do.

The real code is timed: training, sampling, scoring, counting words, fine-tuning, on fresh weights and stand-in text, whose values decide no
time. What cannot be done in seconds is taken apart: a decoding step is timed at a few lengths of context instead of a whole sequence, an
optimizer step apart from the tokens it learns from.
"""

from __future__ import annotations

import io
import json
import math
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collapse_lib.experiment.errors import UserError, first_line
from collapse_lib.experiment.files import write_json
from collapse_lib.experiment.paths import runs_root
from collapse_lib.experiment.progress import PROGRESS_VARIABLE

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import Protocol
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.tokenizer import Tokenizer

# Work of one measurement: a second or two on two CPU cores, and enough for a GPU to be busy; or its time, where that is known from the one before.
FLOPS = {"cpu": 1e11, "cuda": 2e13}
SECONDS = 1.0
CACHE_BYTES = 2**28  # keys and values of the sequences that a CPU's worker is timed with: with more of them a token costs no less
TEXT_STORIES = 600  # of the grammar, on which reading, tokenising and counting words are timed
REPEATED_TEXT = 8  # times that text again, without a new word: what a token costs apart from the words
FINETUNING_STEPS = 30
CONTEXTS = (6, 256)  # fewest and most at which distributions are compared


@dataclass(frozen=True)
class Calibration:
    """Costs in seconds on ``device``, measured with one model, batch and precision.

    ``model`` holds the fields of its ``GPTNeoConfig``. Costs are named after the unit of work that they are the cost of.
    """

    device: str
    kind: str
    date: str
    versions: dict[str, str]
    model: dict[str, Any]
    batch_tokens: int  # of the optimizer step that was timed
    decode_rows: int  # sequences that were decoded at once
    base_memory: int  # bytes of a process with everything imported
    device_memory: int  # bytes of the GPU, 0 without one
    workers: int  # batches that are worked on side by side
    load: float  # other work per core while it was measured: 0 on a quiet machine
    measured_in: float  # seconds
    train_token: float  # a target, forward and backward
    train_step: float  # an optimizer step apart from its tokens
    train_call: float  # starting a training
    checkpoint: float  # saving one
    encode_token: float  # a token through the model without its head
    head_token: float  # the loss at a scored token
    decode: tuple[tuple[int, float], ...]  # (tokens in view, cost of a sampled token), from few to many
    write_story: float  # a story of the grammar
    learn_story: float  # learning a tokenizer from it
    tokenise: float  # a token
    text_token: float  # a token whose word is known already, in the free-text metrics
    text_words: float  # the different words of a text of ``text_tokens`` tokens
    text_tokens: int
    first_words: float  # loading spaCy's rules
    lexicon: float  # loading the list of words
    scan_story: float  # following a story to alpha's contexts
    compare_context: float  # one model's distribution at one context, compared with others
    finetune_step: float  # an optimizer step of classification apart from its tokens
    finetune_token: float  # a token of its rows, forward and backward

    def save(self, file: Path) -> None:
        """Write it as JSON, for ``load`` on any machine."""
        write_json(file, asdict(self))


def load(name: str) -> Calibration:
    """A recorded machine: a file, or ``NAME`` for ``papermill_runs/bench/NAME.json``; ``UserError`` when it is none."""
    path = Path(name).expanduser()
    folder = runs_root() / "bench"
    if not path.is_file():
        path = folder / f"{name}.json"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.json") if is_recorded_machine(file))
        there = f"there {'are' if len(known) > 1 else 'is'} {', '.join(known)}" if known else "none is recorded there yet"
        raise UserError(f"There is no recorded machine '{name}' in {folder} ({there}); give a file that `collapse plan --record FILE` wrote.")
    fields = _fields(path)
    if fields is None:
        raise UserError(f"{path} is not a machine that `collapse plan --record FILE` wrote.")
    from pydantic import TypeAdapter, ValidationError

    try:
        found = TypeAdapter(Calibration).validate_python(fields)
        return replace(found, model=found.model | {"attention_pattern": tuple(found.model["attention_pattern"])})
    except (ValidationError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a machine that `collapse plan --record FILE` wrote ({first_line(error)}).") from None


def is_recorded_machine(file: Path) -> bool:
    """Whether ``Calibration.save`` wrote a file, and not ``collapse bench``, whose reports lie in the same folder."""
    return _fields(file) is not None


def _fields(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() == Calibration.__annotations__.keys() else None


def calibrate(
    protocol: Protocol, vocabulary: int, story_tokens: list[int], device: str = "auto", say: Callable[[str], Any] = lambda what: None
) -> Calibration:
    """Measure this machine with the protocol's model, batches and lengths.

    Args:
        vocabulary: tokens of the model.
        story_tokens: lengths of some stories, long and short ones as often as in the corpus.
        device: as everywhere; ``UserError`` for one that is not here.
        say: told what is measured next.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a run; torch looks at it once
    import torch

    from collapse_lib.experiment.machine import choose_device, device_name, versions
    from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig

    began, busy = time.perf_counter(), _busy()
    place = torch.device(choose_device(device))
    config = GPTNeoConfig.from_settings(protocol.model, vocabulary, vocabulary - 1)
    model = GPTNeo(config, seed=1).to(place)
    with tempfile.TemporaryDirectory(prefix="collapse-plan-") as scratch, _silence():
        folder = Path(scratch)
        say("text")
        costs = _text(folder, protocol.tokenizer.vocabulary)
        say("sampling")
        costs |= _sampling(model, protocol)
        say("scoring")
        costs |= _scoring(model, protocol, story_tokens, costs["encode_token"], folder)
        say("classification")
        costs |= _classification(model, protocol)
        say("training")  # last: it changes the weights
        costs |= _training(model, protocol, folder)
    return Calibration(
        device=device_name(str(place)),
        kind=place.type,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        model=asdict(config),
        device_memory=torch.cuda.get_device_properties(place).total_memory if place.type == "cuda" else 0,
        workers=_workers(place),
        load=round(busy, 2),
        measured_in=round(time.perf_counter() - began, 1),
        **costs,
    )


def _text(folder: Path, vocabulary: int) -> dict[str, Any]:
    """Writing stories, learning from them, tokenising, counting words, following them. The grammar's stories stand for any."""
    from collapse_lib.metrics import alpha, words
    from collapse_lib.metrics.free_text import free_text
    from collapse_lib.text import tokenizer as tokenization
    from collapse_lib.text.grammar import StoryGrammar

    grammar = StoryGrammar()
    texts, write = _timed(lambda: list(grammar.stories(1, TEXT_STORIES)))
    tokenizer, learn = _timed(lambda: tokenization.learn(iter(texts), vocabulary))
    encoded, encode = _timed(lambda: tokenizer.encode_batch(texts))
    tokens = sum(map(len, encoded))
    corpus, repeated = (_corpus(folder / f"text-{times}", encoded * times, tokenizer.vocabulary, tokenizer) for times in (1, 1 + REPEATED_TEXT))
    # The first time loads what later times have.
    _, first = _timed(lambda: words.corpus_word_types(corpus, tokenizer))
    _, lexicon = _timed(words.lexicon)
    base = _resident()
    _, once = _timed(lambda: free_text(corpus, tokenizer, set()))
    _, often = _timed(lambda: free_text(repeated, tokenizer, set()))
    prefixes, scan = _timed(lambda: alpha.frequent_prefixes(repeated, 64, 24, 50))
    _, follow = _timed(lambda: alpha.next_token_counts(alpha.story_heads(repeated, 25), prefixes, corpus.vocabulary, corpus.eos_id))
    a_token = max(0.0, often - once) / (REPEATED_TEXT * tokens)
    return {
        "write_story": write / TEXT_STORIES,
        "learn_story": learn / TEXT_STORIES,
        "tokenise": encode / tokens,
        "text_token": a_token,
        "text_words": max(0.0, once - a_token * tokens),
        "text_tokens": tokens,
        "first_words": first,
        "lexicon": lexicon,
        "scan_story": (scan + follow) / repeated.rows,
        "base_memory": base,
    }


def _training(model: GPTNeo, protocol: Protocol, folder: Path) -> dict[str, Any]:
    import torch

    from collapse_lib.train.loop import adamw, micro_batch_size, train

    device, config = model.head.device, model.config
    precision = "fp32" if device.type == "cpu" and protocol.training.precision == "fp16" else protocol.training.precision
    settings = protocol.training.model_copy(update={"precision": precision, "layout": "contiguous", "checkpoint_every": 10**9})
    a_sequence = 3 * model.flops_per_token(settings.block_size) * settings.block_size
    # As many sequences of a step as can be had in a second or two, in the real micro-batches if these are not too many: one for each worker at least.
    workers, micro = _workers(device), micro_batch_size(settings, model, device, 1)
    wanted = max(1, int(FLOPS[device.type] / a_sequence))
    micro = min(micro, max(1, wanted // workers))
    batch = min(settings.batch_size, max(1, wanted // (micro * workers)) * micro * workers)
    settings = settings.model_copy(update={"batch_size": batch, "micro_batch_size": micro if batch % micro == 0 else None})
    steps = max(1, min(40, int(2 * FLOPS[device.type] / (batch * a_sequence))))
    # The first warms up.
    corpora = [_random_corpus(folder / f"train-{blocks}", config.vocab_size, [blocks * settings.block_size]) for blocks in (1, steps * batch)]
    for number, corpus in enumerate(corpora):
        place = folder / f"checkpoint-{number}"
        result, whole = _timed(lambda: train(model, corpus, settings, seed=1, checkpoint_folder=place, device=device.type, epochs=1), device)  # noqa: B023
        checkpoint = (place / "checkpoint.pt").stat().st_size
        shutil.rmtree(place)
    # The optimizer alone, which costs the same however few the tokens are.
    optimizer = adamw(model, settings)

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-6)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    _, alone = _timed(lambda: [step() for _ in range(3)], device)
    alone = min(alone / 3, 0.9 * result.seconds / steps)
    overhead = max(0.0, whole - result.seconds)
    _, save = _timed(lambda: _write(folder / "bytes", checkpoint))
    return {
        "batch_tokens": batch * settings.block_size,
        "train_token": (result.seconds / steps - alone) / (batch * settings.block_size),
        "train_step": alone,
        "train_call": max(0.0, overhead - save),
        "checkpoint": save,
    }


def _sampling(model: GPTNeo, protocol: Protocol) -> dict[str, Any]:
    """A decoding step with few and with many tokens in view, all workers at it as in a run; and encoding, for when the context overflows."""
    import torch

    from collapse_lib.experiment.parallel import side_by_side
    from collapse_lib.sample.cpu import GRANULE, Cache
    from collapse_lib.sample.draw import DTYPES, TiledHead
    from collapse_lib.sample.generate import sample_rows

    settings, device = protocol.sampling, model.head.device
    longest = settings.length if settings.overflow == "extend" else min(settings.max_context, settings.length)
    if device.type == "cuda":
        # Whole sequences, half as long and then in full: the difference is the half with the longer contexts.
        rows, half = range(settings.batch_size), max(1, longest // 2)
        dtype = DTYPES[protocol.training.precision]
        seconds = []
        for length in (8, half, longest):  # the first warms up
            shorter = settings.model_copy(update={"length": length})
            seconds.append(_timed(lambda: sample_rows(model, shorter, rows, seed=1, dtype=dtype), device)[1])  # noqa: B023
        first, last = seconds[1] / half, max(0.0, seconds[2] - seconds[1]) / max(1, longest - half)
        points = ((half // 2, first / len(rows)), (half + (longest - half) // 2, last / len(rows)))
        count = len(rows)
    else:
        workers = _workers(device)
        fitting = CACHE_BYTES // model.kv_bytes_per_token(longest)
        each = math.ceil(min(settings.batch_size / workers, fitting) / GRANULE) * GRANULE
        count, points, head = each * workers, (), TiledHead(model.head)
        tokens, uniforms = torch.zeros(1, each, dtype=torch.int64), torch.full((each,), 0.5, dtype=torch.float64)
        caches = [Cache(model, settings, each, longest) for _ in range(workers)]
        for values in (values for cache in caches for values in (*cache.keys, *cache.values)):
            values.zero_()

        @torch.inference_mode()
        def decode(cache: Cache, context: int, times: int) -> None:
            for _ in range(times):
                cache.filled = context - 1
                head.sample(cache.advance(tokens, 0), uniforms)

        with side_by_side(device) as (_, run):

            def together(context: int, times: int) -> float:
                return _timed(lambda: list(run(lambda cache: decode(cache, context, times), caches)))[1]

            for context in sorted({1, max(1, longest // 2), longest}):
                together(context, 1)
                times = max(1, int(SECONDS / 2 / together(context, 1)))
                points += ((context, together(context, times) / (times * count)),)
    return {"decode": points, "decode_rows": count, "encode_token": _encoding(model, max(2, longest // 2))}


def _encoding(model: GPTNeo, length: int) -> float:
    """Seconds a token through the model, its head left out, in the batches that the metrics take."""
    import torch

    from collapse_lib.experiment.parallel import side_by_side
    from collapse_lib.metrics.perplexity import BATCH_TOKENS

    device = model.head.device
    rows = max(1, BATCH_TOKENS[device.type] // length)
    tokens = torch.zeros(rows, length, dtype=torch.int64, device=device)

    def encode(_: int) -> None:
        with torch.no_grad():
            model(tokens)

    with side_by_side(device) as (workers, run):
        encode(0)
        _, once = _timed(lambda: list(run(encode, range(workers))), device)
        times = max(1, int(SECONDS / once))
        _, seconds = _timed(lambda: list(run(encode, range(times * workers))), device)
    return seconds / (times * workers * tokens.numel())


def _scoring(model: GPTNeo, protocol: Protocol, story_tokens: list[int], an_encoding: float, folder: Path) -> dict[str, Any]:
    """Perplexity, and distributions compared for alpha; ``an_encoding`` are the seconds that a token takes without the head."""
    from collapse_lib.metrics import alpha
    from collapse_lib.metrics.perplexity import perplexity

    device, most = model.head.device, protocol.evaluation.max_context
    length = max(2, min(most, int(np.mean(story_tokens))))
    rows = max(2, min(2000, int(SECONDS / (2 * an_encoding * length))))
    stories = _random_corpus(folder / "stories", model.config.vocab_size, [length] * rows)
    perplexity(model, _random_corpus(folder / "few", model.config.vocab_size, [length]), most)
    found, seconds = _timed(lambda: perplexity(model, stories, most), device)
    smoothing = protocol.alpha.smoothing
    fitting = int(SECONDS / (3 * an_encoding * length))
    places, _ = alpha.sampled_positions(stories, max(CONTEXTS[0], min(CONTEXTS[1], fitting)), most, 1)
    alpha.measure_positions(model, model, model, places[:1], smoothing)
    _, compared = _timed(lambda: alpha.measure_positions(model, model, model, places, smoothing), device)
    return {
        "head_token": max(0.0, seconds / found["tokens"] - an_encoding),
        "compare_context": compared / (3 * len(places)),
    }


def _classification(model: GPTNeo, protocol: Protocol) -> dict[str, Any]:
    from collapse_lib.experiment.parallel import side_by_side
    from collapse_lib.metrics.classification import Encoded, finetune

    settings, device = protocol.classification, model.head.device
    if not settings.tasks:
        return {"finetune_step": 0.0, "finetune_token": 0.0}
    batch, most = settings.batch_size, settings.max_length
    steps = max(1, min(FINETUNING_STEPS, int(FLOPS[device.type] / (3 * model.flops_per_token(most) * batch * most))))

    def a_step(length: int) -> float:
        def work(count: int) -> float:
            tokens = [np.zeros(length, np.int64)] * batch
            train = Encoded(tokens * count, np.arange(batch * count) % 2)
            few = Encoded(tokens[:1], np.zeros(1, np.int64))
            return _timed(lambda: finetune(model, train, few, settings, classes=2, epochs=1, seed=1), device)[1]

        return (work(steps + 1) - work(1)) / steps  # the copy of the model is made once a task

    with side_by_side(device):
        a_step(max(1, most // 8))  # warms up
        short, long = a_step(max(1, most // 8)), a_step(most)
    tokens = batch * (most - max(1, most // 8))
    per_token = max(0.0, long - short) / tokens
    return {"finetune_step": max(0.0, long - per_token * batch * most), "finetune_token": per_token}


def _random_corpus(folder: Path, vocabulary: int, lengths: list[int]) -> TokenCorpus:
    """Rows of random tokens, one token longer than ``lengths`` for the start token."""
    random = np.random.default_rng(0)
    return _corpus(folder, [random.integers(0, vocabulary - 1, length) for length in lengths], vocabulary)


def _corpus(folder: Path, rows: list[Any], vocabulary: int, tokenizer: Tokenizer | None = None) -> TokenCorpus:
    from collapse_lib.text.corpus import CorpusWriter

    eos = tokenizer.eos_id if tokenizer else vocabulary - 1
    with CorpusWriter(folder, eos, vocabulary, rows_are_complete=True) as writer:
        writer.write_shard(0, [np.array([eos, *row], np.uint16) for row in rows])
        return writer.finish(1)


def _write(file: Path, size: int) -> None:
    """Bytes that have reached the disk, as a checkpoint must."""
    with file.open("wb") as stream:
        stream.write(bytes(size))
        stream.flush()
        os.fsync(stream.fileno())
    file.unlink()


def _timed(work: Callable[[], Any], device: Any = "cpu") -> tuple[Any, float]:
    from collapse_lib.cost.bench import timed

    return timed(work, str(device))


def _workers(device: Any) -> int:
    import torch

    return torch.get_num_threads() if device.type == "cpu" else 1


def _busy() -> float:
    """Processes that want a core, for each core there is, over the last minute."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def _silence() -> Iterator[None]:
    """The measured functions show progress bars, here and to whoever watches a run; they tell nothing."""
    watched = os.environ.pop(PROGRESS_VARIABLE, None)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        if watched is not None:
            os.environ[PROGRESS_VARIABLE] = watched
