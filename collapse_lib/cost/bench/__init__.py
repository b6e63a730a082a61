"""``collapse bench``: ours beside what a user would otherwise do, in one run, with a check that both give the same.

Each side works in a process of its own, so that its peak memory is its own; the parent lets them work in turn, so that whatever else
the machine does meets all of them alike. One module a bench says what the sides are, how their outcomes are compared, and what the
hardware's limits would allow.
"""

from __future__ import annotations

import importlib
import json
import math
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import resources
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from collapse_lib.experiment.errors import UserError

if TYPE_CHECKING:
    from collapse_lib.model.gpt_neo import GPTNeoConfig

BENCHES = ("sampling", "training", "perplexity", "free-text", "ngram")
CONFIGS = {"demo": "demo", "1m": "paper-1m", "33m": "paper-33m"}  # and the preset that each stands for
VOCABULARY = {"demo": 2048, "1m": 50257, "33m": 50257}
INITIALIZER_RANGE = 0.2  # large enough that attention matters and probabilities differ, where comparisons would otherwise be blind
OURS = "ours"


@dataclass(frozen=True)
class Setup:
    """What all sides of a bench are given."""

    config: str
    device: str
    length: int | None  # sampled tokens a sequence, where that is not the preset's
    folder: Path  # the parent's scratch folder, with the model to use in it

    def settings(self, section: str, **changes: Any) -> SimpleNamespace:
        """A section of the preset, some of its fields changed. It is not validated: a GPU machine may have torch and transformers alone."""
        import yaml

        preset = resources.files("collapse_lib.experiment") / "presets" / f"{CONFIGS[self.config]}.yaml"
        return SimpleNamespace(**{**yaml.safe_load(preset.read_text(encoding="utf-8"))[section], **changes})

    @property
    def model_config(self) -> GPTNeoConfig:
        from collapse_lib.model.gpt_neo import GPTNeoConfig

        vocabulary = VOCABULARY[self.config]
        config = GPTNeoConfig.from_settings(self.settings("model"), vocabulary, vocabulary - 1)
        # transformers takes a training block and its last target as one sequence, which needs a position more than the block
        positions = max(config.max_position_embeddings, self.settings("training").block_size + 1)
        return replace(config, initializer_range=INITIALIZER_RANGE, max_position_embeddings=positions)

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"


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


def bench(what: str, config: str = "1m", device: str = "auto", rounds: int = 3, length: int | None = None) -> dict[str, Any]:
    """Run one bench and return its report; see ``table`` for what it holds.

    Raises ``UserError`` for a bench, configuration or device that there is not.
    """
    from collapse_lib.experiment.machine import choose_device, device_name, versions

    if what not in BENCHES:
        raise UserError(f"There is no bench '{what}'; there are {', '.join(BENCHES)}.")
    if config not in CONFIGS:
        raise UserError(f"There is no bench configuration '{config}'; there are {', '.join(CONFIGS)}.")
    if rounds < 1 or (length is not None and length < 2):
        raise UserError("A bench needs at least one round, and sequences of at least two tokens.")
    module = importlib.import_module(f"collapse_lib.cost.bench.{what.replace('-', '_')}")
    with tempfile.TemporaryDirectory(prefix="collapse-bench-") as scratch:
        setup = Setup(config, choose_device(device), length, Path(scratch))
        module.make_input(setup)
        sides = module.sides(setup)
        works, memory = _alternate(sides, setup, rounds)
        first = {name: done[0].outcome for name, done in works.items()}
        report = {
            "bench": what,
            "config": config,
            "device": device_name(setup.device),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions() | {"transformers": _version("transformers")},
            "unit": module.UNIT,
            "workload": module.workload(setup),
            "sides": {name: _side(done) | {"peak_memory_bytes": memory[name]} for name, done in works.items()},
            "ratios": {name: _ratio(works[OURS], done) for name, done in works.items() if name != OURS},
            "checks": module.checks(setup, first),
        }
        if hasattr(module, "floors"):
            report["floors"] = module.floors(setup, report["sides"][OURS]["rate"])
    return report


def is_equivalent(report: dict[str, Any]) -> bool:
    """Whether every check of a bench found that the sides did the same."""
    return all(check["passed"] for check in report["checks"])


def table(report: dict[str, Any]) -> str:
    """A report for the eye; ``line`` gives it for a program."""
    lines = [
        f"{report['bench']}, {report['config']}: {report['workload']}",
        f"{report['device']}; torch {report['versions']['torch']}, transformers {report['versions']['transformers']}; {report['date']}",
        "",
        f"{'':<42}{report['unit'] + '/s':>14}  {'ours is faster by':<24}{'peak memory':>12}",
    ]
    for name, side in report["sides"].items():
        ratio = report["ratios"].get(name)
        faster = f"{ratio['median']:.2f}x ({ratio['least']:.2f} to {ratio['most']:.2f})" if ratio else ""
        lines.append(f"{name:<42}{side['rate']:>14,.0f}  {faster:<24}{side['peak_memory_bytes'] / 2**20:>8,.0f} MiB")
    for limit in report.get("floors", []):
        lines.append(
            f"\n{limit['name']}: {limit['measured']}\n  ours reaches {limit['share']:.1%} of it ({limit['limit_rate']:,.0f} {report['unit']}/s)"
        )
    lines.append("")
    lines.extend(f"{'same' if check['passed'] else 'NOT THE SAME'}: {check['what']}" for check in report["checks"])
    return "\n".join(lines)


def line(report: dict[str, Any]) -> str:
    """The report as one line of JSON."""
    return json.dumps(report)


def check(what: str, passed: bool) -> dict[str, Any]:
    """One thing that was compared, and whether it was the same."""
    return {"what": what, "passed": bool(passed)}


def limits(setup: Setup, flops: float, bytes_read: float, precision: str) -> list[dict[str, Any]]:
    """The rates that arithmetic and memory would allow on this device, both measured now; ``flops`` and ``bytes_read`` are a unit's."""
    import torch

    device = torch.device(setup.device)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision if device.type == "cuda" else "fp32"]
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    arithmetic = 2 * size**3 / _best_seconds(lambda: a @ b, device)
    source = torch.empty((2**31 if device.type == "cuda" else 2**27) // 4, device=device)
    target = torch.empty_like(source)
    memory = 2 * source.nbytes / _best_seconds(lambda: target.copy_(source), device)
    return [
        {"name": "arithmetic", "measured": f"a {size} x {size} product runs at {arithmetic / 1e12:.2f} TFLOP/s", "limit_rate": arithmetic / flops},
        {"name": "memory", "measured": f"a copy moves {memory / 1e9:,.0f} GB/s", "limit_rate": memory / bytes_read},
    ]


def shares(found: list[dict[str, Any]], rate: float) -> list[dict[str, Any]]:
    """``limits`` with the share of each that ``rate`` reaches."""
    return [limit | {"share": rate / limit["limit_rate"]} for limit in found]


def _best_seconds(work: Callable[[], Any], device: Any) -> float:
    """The least time of ``work`` in two seconds of repeating it: a shared machine is slow for a moment now and then."""
    work()
    best, end = math.inf, time.perf_counter() + 2.0
    while time.perf_counter() < end:
        best = min(best, timed(work, device.type)[1])
    return best


def timed(work: Callable[[], Any], device: str) -> tuple[Any, float]:
    """What ``work`` returns and the seconds that it took, a GPU's queue emptied before and behind."""
    import torch

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    wait()
    began = time.perf_counter()
    result = work()
    wait()
    return result, time.perf_counter() - began


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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _side(works: list[Work]) -> dict[str, Any]:
    rates = [work.units / work.seconds for work in works]
    return {"rate": statistics.median(rates), "rates": [round(rate, 1) for rate in rates]}


def _ratio(ours: list[Work], theirs: list[Work]) -> dict[str, float]:
    """How many times faster we are, round by round."""
    ratios = [(a.units / a.seconds) / (b.units / b.seconds) for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
