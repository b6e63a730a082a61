"""What to know before a run: ``collapse presets``, ``plan`` and ``bench``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from collapse_lib.cli import completion
from collapse_lib.cli.arguments import add_device, add_json, add_protocol, check_output, preset_name, print_json, wanted_protocol
from collapse_lib.experiment.errors import UserError

CONFIG_HELP = "size of the model (default: 1m); demo, 1m and 33m are those of the presets, 3.7m has four layers 256 wide on the demo's lengths"


def add_commands(commands: Any) -> None:
    presets = commands.add_parser("presets", help="list the presets")
    presets.add_argument("preset", nargs="?", help="show this one in full").completer = completion.presets
    presets.add_argument("--fields", action="store_true", help="list every field of a protocol with its meaning and default")
    add_json(presets)
    presets.set_defaults(command=_presets)

    plan = commands.add_parser(
        "plan",
        help="what a run will take: time for each step, disk, memory",
        description="Measure this machine for half a minute (or take a recorded one) and reckon what a run takes; runs and fetches nothing.",
    )
    add_protocol(plan)
    plan.add_argument("--machine", metavar="NAME|FILE", help="a machine that --record wrote, instead of measuring this one")
    plan.add_argument("--record", metavar="FILE", help="write what was measured to this file, for --machine elsewhere")
    plan.add_argument("--check", metavar="RUN", help="compare the plan with the seconds that a finished run recorded").completer = completion.runs
    add_json(plan)
    plan.add_argument("--output", metavar="FILE", help="write the plan to this file too, as one line of JSON")
    plan.set_defaults(command=_plan)

    bench = commands.add_parser(
        "bench",
        help="time our fast paths beside what a user would otherwise do",
        description="Both sides in turn, in one run, and a check that they agree.",
    )
    bench.add_argument("what", choices=["sampling", "training", "perplexity", "free-text", "ngram"])
    bench.add_argument("--config", choices=["demo", "1m", "3.7m", "33m"], default="1m", help=CONFIG_HELP)
    add_device(bench)
    bench.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each side does its work (default: 3)")
    bench.add_argument("--length", type=int, metavar="TOKENS", help="sampled tokens a sequence (default: the paper's 600 on a GPU, fewer on a CPU)")
    add_json(bench)
    bench.add_argument("--output", metavar="FILE", help="write the report to this file too, as one line of JSON")
    bench.set_defaults(command=_bench)


def _presets(options: argparse.Namespace) -> None:
    from collapse_lib.experiment.protocol import load_preset, preset_names

    if options.fields:
        value: Any = _fields()
        lines = [f"{field['name']:<34} {field['default']!s:<24} {field['description']}" for field in value]
    elif options.preset:
        protocol = load_preset(options.preset)
        value, lines = protocol.model_dump(mode="json"), protocol.to_yaml().splitlines()
    else:
        value = [{"name": name, "description": load_preset(name).description} for name in preset_names()]
        lines = [f"{preset['name']:<18} {preset['description']}" for preset in value]
    if options.json:
        print_json(value)
    else:
        print("\n".join(lines))


def _fields() -> list[dict[str, Any]]:
    """Every field of a protocol: ``name``, ``default``, ``description``."""
    from collapse_lib.experiment.protocol import Protocol

    described = []
    for name, default in Protocol.model_construct().flat().items():
        section, _, field = name.rpartition(".")
        owner = Protocol.model_fields[section].annotation if section else Protocol
        described.append({"name": name, "default": default, "description": owner.model_fields[field or name].description or ""})
    return described


def _plan(options: argparse.Namespace) -> None:
    from collapse_lib.cost import calibration, check, plan
    from collapse_lib.cost.corpus_size import initial_corpus
    from collapse_lib.experiment.files import write_text
    from collapse_lib.experiment.run import Run

    if options.machine and options.record:
        raise UserError("--machine takes a recorded machine and --record measures this one; give one of the two.")
    check_output(options.record, options.output)
    protocol = wanted_protocol(options)
    run = Run.open(options.check) if options.check else None
    machine = calibration.load(options.machine) if options.machine else None
    initial = initial_corpus(protocol)
    if machine is None:
        terminal = sys.stderr  # as it is now: what is measured is kept from writing to it
        machine = calibration.calibrate(
            protocol, initial, options.device, lambda what: print(f"\r\x1b[Kmeasuring {what}", end="", file=terminal, flush=True)
        )
        print("\r\x1b[K", end="", file=terminal, flush=True)
        print(f"measured {machine.device} for {machine.measured_in:.0f} s", file=terminal if options.json else sys.stdout)
    if options.record:
        machine.save(Path(options.record))
    planned = plan.plan(protocol, machine, initial, preset_name(options))
    compared = check.check(planned, protocol, run) if run else None
    if options.output:
        write_text(Path(options.output), planned.as_json() + "\n")
    print(planned.as_json() if options.json else plan.table(planned))
    if compared:
        print("\n" + check.table(compared, run.name), file=sys.stderr if options.json else sys.stdout)


def _bench(options: argparse.Namespace) -> None:
    from collapse_lib.cost import bench
    from collapse_lib.experiment.files import sealed, write_text

    check_output(options.output)
    report = bench.bench(options.what, options.config, options.device, options.rounds, options.length)
    if not options.json:
        print(bench.table(report))
    print(bench.line(report))
    if options.output:
        write_text(Path(options.output), bench.line(sealed(report)) + "\n")
    if not bench.is_equivalent(report):
        print("collapse: the two sides did not do the same, so their times say nothing.", file=sys.stderr)
        raise SystemExit(1)
