"""The ``collapse`` command."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, NoReturn

from collapse_lib import __version__
from collapse_lib.experiment.errors import NotebookFailed, UserError, explained, first_line, one_line
from collapse_lib.studies import commands as study_commands

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import Protocol
    from collapse_lib.experiment.run import Run


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 the input was wrong, 130 interrupted.

    Whatever goes wrong is said in one line on standard error; ``--debug``, anywhere in the arguments, puts the traceback before it.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        try:
            options = _parser().parse_args([argument for argument in arguments if argument != "--debug"])
            options.command(options)
        finally:
            sys.stdout.flush()  # here, where a full disk behind it can still be reported
    except BrokenPipeError:  # the reader of our output (head, say) has seen enough
        _drop_output()
    except KeyboardInterrupt:
        print("\ncollapse: interrupted; nothing finished is lost, and the same command goes on from here.", file=sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        status, sentence = _said(error)
        print(f"collapse: {one_line(sentence)}", file=sys.stderr)
        _drop_output()
        return status
    return 0


def _said(error: Exception) -> tuple[int, str]:
    """Exit status and sentence for an exception."""
    if isinstance(error, NotebookFailed):
        return 1, f"{error}. The notebook as far as it came: {error.saved}"
    if sentence := explained(error):
        return 2, sentence
    what = f"{type(error).__name__}{f' ({first_line(error)})' if str(error).strip() else ''}"
    return 1, f"this stopped on an unexpected {what}, which is a mistake in collapse itself; add --debug to the command to see where, and report it."


def _drop_output() -> None:
    """Lose what standard output cannot take, or Python would complain of it once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence, as all others are."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` shows what can be given.")


def _count(text: str) -> int:
    """A whole number of at least 1, for options that count something."""
    if not text.isdecimal() or not 0 < int(text[:19]) < 10**9:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port, a whole number from 0 (any that is free) to 65535")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="collapse", description="Train language models on their predecessors' text, generation after generation, and measure.")
    parser.add_argument("--version", action="version", version=f"collapse {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error too; may stand anywhere in a command")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", help="run a preset, or go on with an interrupted run", description="Execute every missing step of a run with papermill."
    )
    twins = commands.add_parser(
        "twins",
        help="ask what the initial corpus still decides: a run, its twin from another corpus, and the run with other seeds",
        description="Make three runs that share a protocol and a tokenizer: NAME; NAME-twin, which begins from another initial corpus; and "
        "NAME-reseeded, which begins from the same one with other seeds. Then compare them generation by generation.",
    )
    twins.add_argument(
        "--change",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="the twin's initial corpus, e.g. corpus.source=other.txt; may be repeated (default: the grammar's twin, or the source's next stories)",
    )
    twins.set_defaults(command=_twins)
    for command in (run, twins):
        command.add_argument("preset", help="a preset (`collapse presets`), a protocol .yaml file, or the name of a run to go on with")
        command.add_argument("--name", help="the run's folder under papermill_runs (default: the preset's name)")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="FIELD=VALUE",
            help="change a field of the protocol, e.g. training.batch_size=64; may be repeated",
        )
        command.add_argument("--generations", type=int, metavar="N", help="how many generations (a finished run can be extended)")
        command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one")
    run.add_argument("--max-cost", metavar="X", help="most that a judge's grades may cost in all, short for --set gpt_eval.max_cost=X")
    run.set_defaults(command=_run)

    status = commands.add_parser("status", help="show where a run is")
    status.add_argument("run", nargs="?", default="newest", help="default: the run that advanced last")
    status.set_defaults(command=_status)

    presets = commands.add_parser("presets", help="list the presets")
    presets.add_argument("preset", nargs="?", help="show this one in full")
    presets.add_argument("--fields", action="store_true", help="list every field of a protocol with its meaning and default")
    presets.set_defaults(command=_presets)

    study_commands.add_arguments(commands)

    results = commands.add_parser("results", help="print everything a run measured, or write it to a file")
    results.add_argument("run", nargs="?", default="newest", help="default: the run that advanced last")
    results.add_argument("--format", choices=["table", "csv", "json"], default="table")
    results.add_argument("--output", metavar="FILE", help="write them to this .csv, .parquet or .json file instead")
    results.set_defaults(command=_results)

    judge = commands.add_parser(
        "judge", help="ask what a judge would cost, try it, serve one", description="What there is to do about the judge that grades completions."
    )
    tasks = judge.add_subparsers(required=True, metavar="TASK")
    for name, words in (
        ("estimate", "how many requests, tokens and how much money grading a run takes; sends nothing"),
        ("check", "have the judge grade the run's control rows alone: can it tell stories from noise? (paid, and kept for the run)"),
        ("forget", "drop a run's grades, so that another judge can grade it; completions and paid answers stay"),
    ):
        task = tasks.add_parser(name, help=words, description=words)
        task.add_argument("run", nargs="?", default="newest", help="default: the run that advanced last")
        if name != "forget":
            task.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="try another value, e.g. gpt_eval.judge=MODEL")
        task.set_defaults(command=globals()[f"_judge_{name}"])
    serve = tasks.add_parser("serve", help="serve a small, weak judge on this machine, for those without a key", description="Ctrl-C stops it.")
    serve.add_argument("--port", type=_port, default=8123)
    serve.add_argument("--threads", type=_count, default=None, help="default: all cores")
    serve.set_defaults(command=_judge_serve)

    plan = commands.add_parser(
        "plan",
        help="what a run will take: time for each step, disk, memory",
        description="Measure this machine for half a minute (or take a recorded one) and reckon what a run takes; runs and fetches nothing.",
    )
    plan.add_argument("preset", help="a preset (`collapse presets`), a protocol .yaml file, or the name of a run")
    plan.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the protocol; may be repeated")
    plan.add_argument("--generations", type=int, metavar="N", help="how many generations")
    plan.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one")
    plan.add_argument("--machine", metavar="NAME|FILE", help="a machine that --record wrote, instead of measuring this one")
    plan.add_argument("--record", metavar="FILE", help="write what was measured to this file, for --machine elsewhere")
    plan.add_argument("--check", metavar="RUN", help="compare the plan with the seconds that a finished run recorded")
    plan.add_argument("--json", metavar="FILE", help="write the plan to this file too, as one line of JSON")
    plan.set_defaults(command=_plan, name=None)

    bench = commands.add_parser(
        "bench",
        help="time our fast paths beside what a user would otherwise do",
        description="Both sides in turn, in one run, and a check that they agree.",
    )
    bench.add_argument("what", choices=["sampling", "training", "perplexity", "free-text", "ngram"])
    bench.add_argument("--config", choices=["demo", "1m", "33m"], default="1m", help="size of the model (default: 1m)")
    bench.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one")
    bench.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each side does its work (default: 3)")
    bench.add_argument("--length", type=int, metavar="TOKENS", help="sampled tokens a sequence (default: the paper's 600 on a GPU, fewer on a CPU)")
    bench.add_argument("--json", metavar="FILE", help="write the report to this file too")
    bench.set_defaults(command=_bench)

    book = commands.add_parser("book", help="execute the figure notebooks and build the book")
    book.add_argument("runs", nargs="*", metavar="RUN", help="the runs to show, the main one first (default: all, demo first)")
    book.set_defaults(command=_book)
    return parser


def _run(options: argparse.Namespace) -> None:
    from collapse_lib.experiment.execute import advance
    from collapse_lib.steps.preflight import begun

    if options.max_cost is not None:
        options.set.append(f"gpt_eval.max_cost={options.max_cost}")
    name, protocol = _wanted(options)
    began = time.perf_counter()
    with begun(name, protocol, options.device, exact="generations" in dict(map(_assignment, options.set))) as run:
        print(f"run {run.name}: {run.protocol.generations} generations in {run.folder}", flush=True)
        if run.protocol.gpt_eval.judge:
            _print_estimate(run)
        executed = advance(run, options.device)
    seconds = time.perf_counter() - began
    print(f"{len(executed)} steps in {seconds:.1f} s; `collapse results {run.name}` prints the numbers, `collapse book` makes the book.")


def _wanted(options: argparse.Namespace) -> tuple[str, Protocol]:
    """The name and the protocol that a preset (or a run to go on with), ``--name``, ``--set`` and ``--generations`` ask for."""
    from collapse_lib.experiment.paths import run_names
    from collapse_lib.experiment.protocol import load_preset, preset_names
    from collapse_lib.experiment.run import Run

    if options.generations is not None:
        options.set.append(f"generations={options.generations}")
    changes = dict(_assignment(text) for text in options.set)
    is_preset = options.preset in preset_names() or options.preset.endswith((".yaml", ".yml"))
    protocol = Run.open(options.preset).protocol if not is_preset and options.preset in run_names() else load_preset(options.preset)
    name = options.name if options.name is not None else options.preset.rsplit("/", 1)[-1].removesuffix(".yaml").removesuffix(".yml")
    return name, protocol.with_changes(changes) if changes else protocol


def _twins(options: argparse.Namespace) -> None:
    from collapse_lib.studies.twins import run_twins

    name, protocol = _wanted(options)
    began = time.perf_counter()
    file = run_twins(name, protocol, dict(_assignment(text, "--change") for text in options.change), options.device)
    print(f"compared in {file} after {time.perf_counter() - began:.1f} s; notebooks/figures/twins.ipynb and `collapse book` show it.")


def _status(options: argparse.Namespace) -> None:
    from collapse_lib.experiment.lineage import STEPS
    from collapse_lib.experiment.progress import read_progress
    from collapse_lib.experiment.run import Run

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
    from collapse_lib.experiment.protocol import Protocol, load_preset, preset_names

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
    from pathlib import Path

    from collapse_lib.studies import results

    table = results.load(options.run)
    if options.output:
        results.save(table, Path(options.output))
        print(f"{len(table)} numbers in {options.output}")
    else:
        print(results.formatted(table, options.format))


def _judge_estimate(options: argparse.Namespace) -> None:
    _print_estimate(_changed_run(options))


def _judge_check(options: argparse.Namespace) -> None:
    from collapse_lib.steps.gpt_eval import check

    run = _changed_run(options)
    for name, metric in check(run).items():
        print(f"{name:<30} {metric['value']:>8.3g}  {metric['unit']:<14} {metric['definition']}")


def _judge_forget(options: argparse.Namespace) -> None:
    from collapse_lib.experiment.run import Run
    from collapse_lib.steps.gpt_eval import forget

    run = Run.open(options.run)
    print(f"dropped the grades of {forget(run)} generations of run {run.name}")


def _judge_serve(options: argparse.Namespace) -> None:
    import threading

    from collapse_lib.judge.local_server import LOCAL_MODEL, local_judge

    with local_judge(options.port, threads=options.threads) as url:
        print(f"A WEAK judge, good for trying things out and not for conclusions, answers at {url} until Ctrl-C. Elsewhere:\n")
        print(f"    export OPENAI_BASE_URL={url}\n    collapse run NAME --set gpt_eval.judge={LOCAL_MODEL}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("\nstopped")


def _changed_run(options: argparse.Namespace) -> Run:
    """A run with some fields changed for this command alone."""
    from collapse_lib.experiment.run import Run

    run = Run.open(options.run)
    return Run(run.folder, run.protocol.with_changes(dict(_assignment(text) for text in options.set)))


def _print_estimate(run: Run) -> None:
    from collapse_lib.steps.gpt_eval import estimate

    found = estimate(run)
    for generation, expected in found.items():
        print(f"judge {run.protocol.gpt_eval.judge}, generation {generation:>2}: {expected}", flush=True)
    if not found:
        print(f"judge {run.protocol.gpt_eval.judge}: every generation is graded")
    elif None not in (costs := [expected.cost for expected in found.values()]):
        print(f"judge {run.protocol.gpt_eval.judge}: about {sum(costs):.4f} in all", flush=True)


def _bench(options: argparse.Namespace) -> None:
    from pathlib import Path

    from collapse_lib.cost import bench
    from collapse_lib.experiment.files import write_text

    if options.json and not Path(options.json).absolute().parent.is_dir():
        raise UserError(f"There is no folder '{Path(options.json).absolute().parent}' to write the report to.")
    report = bench.bench(options.what, options.config, options.device, options.rounds, options.length)
    print(bench.table(report))
    print(bench.line(report))
    if options.json:
        write_text(Path(options.json), bench.line(report) + "\n")
    if not bench.is_equivalent(report):
        print("collapse: the two sides did not do the same, so their times say nothing.", file=sys.stderr)
        raise SystemExit(1)


def _plan(options: argparse.Namespace) -> None:
    from pathlib import Path

    from collapse_lib.cost import calibration, check, plan
    from collapse_lib.cost.corpus_size import initial_corpus
    from collapse_lib.experiment.files import write_text
    from collapse_lib.experiment.run import Run

    if options.machine and options.record:
        raise UserError("--machine takes a recorded machine and --record measures this one; give one of the two.")
    for file in filter(None, (options.record, options.json)):
        if not Path(file).absolute().parent.is_dir():
            raise UserError(f"There is no folder '{Path(file).absolute().parent}' to write '{file}' to.")
    name, protocol = _wanted(options)
    run = Run.open(options.check) if options.check else None
    machine = calibration.load(options.machine) if options.machine else None
    initial = initial_corpus(protocol)
    if machine is None:
        terminal = sys.stderr  # as it is now: what is measured is kept from writing to it
        machine = calibration.calibrate(
            protocol, initial, options.device, lambda what: print(f"\r\x1b[Kmeasuring {what}", end="", file=terminal, flush=True)
        )
        print("\r\x1b[K", end="", file=terminal, flush=True)
        print(f"measured {machine.device} for {machine.measured_in:.0f} s")
    if options.record:
        machine.save(Path(options.record))
    planned = plan.plan(protocol, machine, initial, name)
    compared = check.check(planned, protocol, run) if run else None
    print(plan.table(planned))
    if compared:
        print("\n" + check.table(compared, run.name))
    if options.json:
        write_text(Path(options.json), planned.as_json() + "\n")


def _book(options: argparse.Namespace) -> None:
    from collapse_lib.book import build as book

    report = book.build(options.runs)
    for name, reason in report.left_out.items():
        print(f"run {name} is left out: {reason}", file=sys.stderr)
    print(f"{report.pages} pages in {report.seconds:.1f} s: {report.path}")


def _assignment(text: str, option: str = "--set") -> tuple[str, str]:
    field, sign, value = text.partition("=")
    if not sign or not field.strip():
        raise UserError(f"{option} takes FIELD=VALUE, not '{text}'.")
    return field.strip(), value.strip()


if __name__ == "__main__":
    sys.exit(main())
