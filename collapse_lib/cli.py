"""The ``collapse`` command."""

from __future__ import annotations

import argparse
import sys
import time

from collapse_lib import __version__
from collapse_lib.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 the input was wrong, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except UserError as error:
        print(f"collapse: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncollapse: interrupted; nothing finished is lost, and the same command goes on from here.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, say) has seen enough
        sys.stderr.close()
        return 0
    except Exception as error:
        from collapse_lib.batch import NotebookFailed

        if not isinstance(error, NotebookFailed):
            raise
        print(f"collapse: {error}. The notebook as far as it came: {error.saved}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="collapse", description="Train language models on their predecessors' text, generation after generation, and measure."
    )
    parser.add_argument("--version", action="version", version=f"collapse {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", help="run a preset, or go on with an interrupted run", description="Execute every missing step of a run with papermill."
    )
    run.add_argument("preset", help="a preset (`collapse presets`), a protocol .yaml file, or the name of a run to go on with")
    run.add_argument("--name", help="the run's folder under papermill_runs (default: the preset's name)")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the protocol, e.g. training.batch_size=64; may be repeated",
    )
    run.add_argument("--generations", type=int, metavar="N", help="how many generations (a finished run can be extended)")
    run.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one")
    run.set_defaults(command=_run)

    status = commands.add_parser("status", help="show where a run is")
    status.add_argument("run", nargs="?", default="newest", help="default: the run that advanced last")
    status.set_defaults(command=_status)

    presets = commands.add_parser("presets", help="list the presets")
    presets.add_argument("preset", nargs="?", help="show this one in full")
    presets.add_argument("--fields", action="store_true", help="list every field of a protocol with its meaning and default")
    presets.set_defaults(command=_presets)

    results = commands.add_parser("results", help="print everything a run measured")
    results.add_argument("run", nargs="?", default="newest", help="default: the run that advanced last")
    results.add_argument("--format", choices=["table", "csv", "json"], default="table")
    results.set_defaults(command=_results)

    book = commands.add_parser("book", help="execute the figure notebooks and build the book")
    book.add_argument("runs", nargs="*", metavar="RUN", help="the runs to show, the main one first (default: all, demo first)")
    book.set_defaults(command=_book)
    return parser


def _run(options: argparse.Namespace) -> None:
    from collapse_lib.batch import advance
    from collapse_lib.paths import run_names
    from collapse_lib.protocol import Protocol, load_preset, preset_names
    from collapse_lib.run import Run

    changes = dict(_assignment(text) for text in options.set)
    if options.generations is not None:
        changes["generations"] = str(options.generations)
    known_preset = options.preset in preset_names() or options.preset.endswith((".yaml", ".yml"))
    if not known_preset and options.preset in run_names():
        protocol: Protocol = Run.open(options.preset).protocol
    else:
        protocol = load_preset(options.preset)
    name = options.name or options.preset.rsplit("/", 1)[-1].removesuffix(".yaml").removesuffix(".yml")
    if changes:
        protocol = protocol.with_changes(changes)
    run = Run.create(name, protocol)
    began = time.perf_counter()
    print(f"run {run.name}: {protocol.generations} generations in {run.folder}", flush=True)
    executed = advance(run, options.device)
    seconds = time.perf_counter() - began
    print(f"{len(executed)} steps in {seconds:.1f} s; `collapse results {run.name}` prints the numbers, `collapse book` makes the book.")


def _status(options: argparse.Namespace) -> None:
    from collapse_lib.lineage import STEPS
    from collapse_lib.progress import read_progress
    from collapse_lib.run import Run

    run = Run.open(options.run)
    steps = list(run.steps())
    finished = [step for step in steps if step.is_finished()]
    print(f"run {run.name} in {run.folder}")
    print(f"{len(finished)} of {len(steps)} steps finished; {'a process works on it now' if run.is_driven() else 'no process works on it'}")
    rows: dict[int, dict[str, str]] = {}
    for step in steps:
        manifest = step.manifest()
        state = f"{manifest['seconds']:.1f} s" if step in finished else "notebook missing" if manifest else "-"
        rows.setdefault(step.generation, {})[step.name] = state
    columns = [name for name in STEPS if any(name in states for states in rows.values())]
    width = max(map(len, (*columns, *(state for states in rows.values() for state in states.values())))) + 2
    print(f"\n{'generation':>10}" + "".join(f"{name:>{width}}" for name in columns))
    for generation, states in rows.items():
        print(f"{generation:>10}" + "".join(f"{states.get(name, ''):>{width}}" for name in columns))
    state = read_progress(run.progress_file)
    if state and run.is_driven():
        share = f"{state['n'] / state['total']:.0%} of " if state["total"] else ""
        print(f"\nnow: {state['prefix'].rstrip(': ')}, {share}{state['total'] or state['n']:,}{state['unit']}s")
    elif len(finished) < len(steps):
        print(f"\n`collapse run {run.name}` goes on with it.")


def _presets(options: argparse.Namespace) -> None:
    from collapse_lib.protocol import Protocol, load_preset, preset_names

    if options.fields:
        defaults = Protocol.model_construct().flat()
        for name, default in defaults.items():
            section, _, field = name.rpartition(".")
            owner = Protocol.model_fields[section].annotation if section else Protocol
            print(f"{name:<34} {default!s:<24} {owner.model_fields[field or name].description or ''}")
    elif options.preset:
        print(load_preset(options.preset).to_yaml(), end="")
    else:
        for name in preset_names():
            print(f"{name:<14} {load_preset(name).description}")


def _results(options: argparse.Namespace) -> None:
    from collapse_lib import results

    print(results.formatted(results.load(options.run), options.format))


def _book(options: argparse.Namespace) -> None:
    from collapse_lib import book

    report = book.build(options.runs)
    print(f"{report.pages} pages in {report.seconds:.1f} s: {report.path}")


def _assignment(text: str) -> tuple[str, str]:
    field, sign, value = text.partition("=")
    if not sign or not field.strip():
        raise UserError(f"--set takes FIELD=VALUE, not '{text}'.")
    return field.strip(), value.strip()


if __name__ == "__main__":
    sys.exit(main())
