"""``collapse bench``: ours beside what a user would otherwise do, in one run, with a check that both give the same.

Each side works in a process of its own, so that its peak memory is its own; the parent lets them work in turn, so that whatever else
the machine does meets all of them alike. One module for each bench describes its ``Bench``: the sides, how their outcomes are compared, and what
a unit of the work takes of the hardware.
"""

from __future__ import annotations

import importlib
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import resources
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from collapse_lib.cost.printing import columns
from collapse_lib.cost.timing import peak_memory, repeated
from collapse_lib.experiment.errors import UserError

if TYPE_CHECKING:
    from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig

BENCHES = ("sampling", "training", "perplexity", "free-text", "ngram")
CONFIGS = {"demo": "demo", "1m": "paper-1m", "3.7m": "demo", "33m": "paper-33m"}  # and the preset that each stands for
# What a configuration changes of its preset. The paper's 1M model is embeddings above all and 64 wide; this one, of as many parameters, has them in
# products 256 wide, where a CPU's units for bf16 begin to pay, on the demo's lengths. At the demo's learning rate so wide a model's first steps
# are chaotic: two that differ by rounding alone drift apart.
CHANGES = {"3.7m": {"model": {"num_layers": 4, "hidden_size": 256}, "training": {"learning_rate": 1.0e-3}}}
VOCABULARY = {"demo": 1280, "1m": 50257, "3.7m": 2048, "33m": 50257}
# Standard deviation of attention scores at the start, which GPT-Neo does not scale: large enough that attention matters and probabilities differ,
# where comparisons would otherwise be blind; not so large that a rounding decides which position is looked at. 0.2 for the 1M model's weights.
SCORE_DEVIATION = 5.12
OURS, IN_BF16 = "ours", ", bf16"  # a side's name ends so where its products are in bf16 beside sides in fp32
UNIT = "tokens"  # of work


@dataclass(frozen=True)
class Setup:
    """What all sides of a bench are given."""

    config: str
    device: str
    length: int | None  # sampled tokens a sequence, where that is not the preset's
    folder: Path  # the parent's scratch folder, with the model to use in it

    def settings(self, section: str, **changes: Any) -> SimpleNamespace:
        """A section of the configuration's preset, with its changes and these. It is not validated: not every GPU machine has pydantic."""
        import yaml

        preset = resources.files("collapse_lib.experiment") / "presets" / f"{CONFIGS[self.config]}.yaml"
        fields = yaml.safe_load(preset.read_text(encoding="utf-8"))[section]
        return SimpleNamespace(**{**fields, **CHANGES.get(self.config, {}).get(section, {}), **changes})

    @property
    def model_config(self) -> GPTNeoConfig:
        from collapse_lib.model.gpt_neo import GPTNeoConfig

        vocabulary = VOCABULARY[self.config]
        config = GPTNeoConfig.from_settings(self.settings("model"), vocabulary, vocabulary - 1)
        # transformers takes a training block and its last target as one sequence, which needs a position more than the block
        positions = max(config.max_position_embeddings, self.settings("training").block_size + 1)
        deviation = math.sqrt(SCORE_DEVIATION / (config.hidden_size * math.sqrt(config.hidden_size / config.num_heads)))
        return replace(config, initializer_range=deviation, max_position_embeddings=positions)

    @property
    def model_folder(self) -> Path:
        """Where ``save_model`` leaves the weights that all sides take."""
        return self.folder / "model"

    @property
    def has_bf16(self) -> bool:
        """Whether bf16 has sides of its own: on a CPU with units for it, whose protocols are fp32 unless they ask for it."""
        from collapse_lib.experiment.machine import bf16_units

        return self.device == "cpu" and bool(bf16_units())

    def our_model(self) -> GPTNeo:
        """Our GPT-Neo with the bench's weights, on the device."""
        from collapse_lib.model.gpt_neo import GPTNeo

        return GPTNeo.from_pretrained(self.model_folder).to(self.device).eval()

    def their_model(self) -> Any:
        """transformers' GPT-Neo with the same weights, on the device."""
        from transformers import GPTNeoForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        return GPTNeoForCausalLM.from_pretrained(self.model_folder).to(self.device).eval()


def save_model(setup: Setup) -> None:
    """Draw the weights that all sides take."""
    from collapse_lib.model.gpt_neo import GPTNeo

    GPTNeo(setup.model_config, seed=1).save_pretrained(setup.model_folder)


@dataclass(frozen=True)
class Work:
    """What one round of a side did: units of work, the seconds they took, and what came out, small enough to send to another process."""

    units: int
    seconds: float
    outcome: Any


@dataclass(frozen=True)
class Side:
    """One of the things compared. ``prepare(setup)`` returns a function that does a round; it runs in the side's own process."""

    name: str
    prepare: Callable[..., Callable[[], Work]]
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Needs:
    """What a unit of the work takes: FLOP in a precision ("fp32", "fp16" or "bf16"), and bytes of memory where their reading is the limit."""

    flops: float
    precision: str
    bytes_read: float | None = None


@dataclass(frozen=True)
class Bench:
    """A comparison. ``checks(setup, ours, theirs)`` compares the outcomes of our side and another; the side's name is added by the frame."""

    workload: Callable[[Setup], str]
    sides: Callable[[Setup], list[Side]]  # ours first
    checks: Callable[[Setup, Any, Any], list[dict[str, Any]]]
    needs: Callable[[Setup], Needs] | None = None  # where arithmetic is a limit that means something
    make_input: Callable[[Setup], None] = save_model


def bench(what: str, config: str = "1m", device: str = "auto", rounds: int = 3, length: int | None = None) -> dict[str, Any]:
    """Run one bench and return its report; see ``table`` for what it holds.

    Raises ``UserError`` for a bench, configuration or device that there is not.
    """
    from collapse_lib.experiment.machine import bf16_units, choose_device, device_name, versions

    if what not in BENCHES:
        raise UserError(f"There is no bench '{what}'; there are {', '.join(BENCHES)}.")
    if config not in CONFIGS:
        raise UserError(f"There is no bench configuration '{config}'; there are {', '.join(CONFIGS)}.")
    if rounds < 1 or (length is not None and length < 2):
        raise UserError("A bench needs at least one round, and sequences of at least two tokens.")
    kind: Bench = importlib.import_module(f"collapse_lib.cost.bench.{what.replace('-', '_')}").BENCH
    with tempfile.TemporaryDirectory(prefix="collapse-bench-") as scratch:
        setup = Setup(config, choose_device(device), length, Path(scratch))
        kind.make_input(setup)
        works, memory = _alternate(kind.sides(setup), setup, rounds)
        units = bf16_units() if setup.device == "cpu" else []
        ours, *others = ((name, done[0].outcome) for name, done in works.items())
        report = {
            "bench": what,
            "config": config,
            "device": ", ".join([device_name(setup.device), *units]),
            "bf16_units": units,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions() | {"transformers": _version("transformers")},
            "unit": UNIT,
            "workload": kind.workload(setup),
            "sides": {name: _side(done) | {"peak_memory_bytes": memory[name]} for name, done in works.items()},
            "ratios": {name: _ratio(works[_rival(name)], done) for name, done in works.items() if not name.startswith(OURS)},
            "checks": [check | {"what": f"{check['what']} ({name})"} for name, outcome in others for check in kind.checks(setup, ours[1], outcome)],
        }
        if OURS + IN_BF16 in works:
            report["bf16_gain"] = _ratio(works[OURS + IN_BF16], works[OURS])
        if kind.needs:
            report["floors"] = _limits(setup, kind.needs(setup), report["sides"][OURS]["rate"])
    return report


def is_equivalent(report: dict[str, Any]) -> bool:
    """Whether every check of a bench found that the sides did the same."""
    return all(check["passed"] for check in report["checks"])


def table(report: dict[str, Any]) -> str:
    """A report as text; ``line`` gives it to a program."""
    versions, rows = report["versions"], [("", f"{report['unit']}/s", "ours is faster by", "peak memory")]
    for name, side in report["sides"].items():
        ratio = report["ratios"].get(name)
        rows.append((name, f"{side['rate']:,.0f}", in_words(ratio) if ratio else "", f"{side['peak_memory_bytes'] / 2**20:,.0f} MiB"))
    lines = [
        f"{report['bench']}, {report['config']}: {report['workload']}",
        f"{report['device']}; torch {versions['torch']}, transformers {versions['transformers']}; {report['date']}",
        "",
        *columns(rows),
        "",
    ]
    if gain := report.get("bf16_gain"):
        lines.append(f"ours in bf16 against ours in fp32: {in_words(gain)}")
    for limit in report.get("floors", []):
        rate = f"{limit['limit_rate']:,.0f} {report['unit']}/s"
        lines.append(f"{limit['name']}: {limit['measured']}, which would allow {rate}; ours reaches {limit['share']:.1%} of that")
    lines.extend(f"{'same' if check['passed'] else 'NOT THE SAME'}: {check['what']}" for check in report["checks"])
    return "\n".join(lines)


def in_words(ratio: dict[str, float]) -> str:
    """A ratio with its range over the rounds."""
    return f"{ratio['median']:.2f}x ({ratio['least']:.2f} to {ratio['most']:.2f})"


def line(report: dict[str, Any]) -> str:
    """The report as one line of JSON."""
    return json.dumps(report)


def check(what: str, passed: bool) -> dict[str, Any]:
    """One thing that was compared, and whether it was the same."""
    return {"what": what, "passed": bool(passed)}


def best_batch(batches: Sequence[int], seconds: Callable[[int], float]) -> int:
    """The batch size that takes the least time; a single one is not tried."""
    return min(batches, key=seconds) if len(batches) > 1 else batches[0]


def _limits(setup: Setup, needs: Needs, rate: float) -> list[dict[str, Any]]:
    """The rates that arithmetic and memory would allow on this device, both measured now, and the share of each that ``rate`` reaches."""
    import torch

    device, on_gpu = torch.device(setup.device), setup.device != "cpu"
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[needs.precision if on_gpu else "fp32"]

    def least_seconds(work: Callable[[], Any]) -> float:
        return min(repeated(work, device.type, 2.0))  # a shared machine is slow for a moment now and then

    size = 8192 if on_gpu else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    arithmetic = 2 * size**3 / least_seconds(lambda: a @ b)
    limits = [("arithmetic", f"a {size} x {size} product runs at {arithmetic / 1e12:.2f} TFLOP/s", arithmetic / needs.flops)]
    if needs.bytes_read:
        source = torch.empty((2**31 if on_gpu else 2**27) // 4, device=device)
        target = torch.empty_like(source)
        memory = 2 * source.nbytes / least_seconds(lambda: target.copy_(source))
        limits.append(("memory", f"a copy moves {memory / 1e9:,.0f} GB/s", memory / needs.bytes_read))
    return [{"name": name, "measured": measured, "limit_rate": limit, "share": rate / limit} for name, measured, limit in limits]


def _alternate(sides: list[Side], setup: Setup, rounds: int) -> tuple[dict[str, list[Work]], dict[str, int]]:
    """Warm every side up, then let each do its round in turn. Returns their work and their peak memory in bytes."""
    works: dict[str, list[Work]] = {side.name: [] for side in sides}
    with ExitStack() as stack:
        workers = {side.name: stack.enter_context(_worker(side, setup)) for side in sides}
        for number in range(-1, rounds):
            for name, ask in workers.items():
                label = f"round {number + 1} of {rounds}" if number >= 0 else "warming up"
                print(f"\r\x1b[K{name}: {label}", end="", file=sys.stderr, flush=True)
                work = ask("work")
                if number >= 0:
                    works[name].append(work)
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        memory = {name: ask("memory") for name, ask in workers.items()}
    return works, memory


@contextmanager
def _worker(side: Side, setup: Setup) -> Iterator[Callable[[str], Any]]:
    """A process that holds one side; yields a function that has it do something and waits for the answer."""
    context = multiprocessing.get_context("spawn")  # a forked child could not use the GPU, nor have its own peak memory
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, side, setup), daemon=True)
    process.start()
    there.close()

    def ask(wish: str) -> Any:
        here.send(wish)
        try:
            answer = here.recv()
        except EOFError:
            raise RuntimeError(f"the process of '{side.name}' died, most likely for want of memory") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    try:
        yield ask
    finally:
        here.close()
        process.join(5)
        process.terminate()


def _serve(connection: Connection, side: Side, setup: Setup) -> None:
    import os

    os.environ["HF_HUB_OFFLINE"] = "1"
    work = None
    while True:
        try:
            wish = connection.recv()
        except EOFError:
            return
        try:
            if wish == "memory":
                connection.send(_peak_memory(setup.device))
            else:
                work = work or side.prepare(setup, **side.arguments)
                connection.send(work())
        except Exception as error:
            connection.send(error)


def _peak_memory(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    return peak_memory()


def _side(works: list[Work]) -> dict[str, Any]:
    rates = [work.units / work.seconds for work in works]
    return {"rate": statistics.median(rates), "rates": [round(rate, 1) for rate in rates]}


def _rival(name: str) -> str:
    """Which of our sides another is compared with: the one that multiplies in the same precision."""
    return OURS + IN_BF16 if name.endswith(IN_BF16) else OURS


def _ratio(ours: list[Work], theirs: list[Work]) -> dict[str, float]:
    """How many times faster we are, round by round."""
    ratios = [(a.units / a.seconds) / (b.units / b.seconds) for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
