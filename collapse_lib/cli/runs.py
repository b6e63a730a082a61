"""Runs: to make them, look at them, show them, delete them."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collapse_lib.cli import completion
from collapse_lib.cli.arguments import (
    add_device,
    add_json,
    add_processes,
    add_protocol,
    add_run,
    assignment,
    preset_name,
    print_json,
    wanted_protocol,
)
from collapse_lib.cli.judge import print_estimate
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import amount

if TYPE_CHECKING:
    from collapse_lib.experiment.inventory import Entry, Standing
    from collapse_lib.experiment.run import Run


def add_commands(commands: Any) -> None:
    run = commands.add_parser(
        "run", help="run a preset, or go on with an interrupted run", description="Execute every missing step of a run with papermill."
    )
    add_protocol(run)
    run.add_argument("--name", help="the run's folder under papermill_runs (default: the preset's name)")
    run.add_argument("--max-cost", metavar="X", help="most that a judge's grades may cost in all, short for --set gpt_eval.max_cost=X")
    add_processes(run)
    run.set_defaults(command=_run)

    step = commands.add_parser(
        "step", help="execute one step of a run, for schedulers that give each a job", description="Other steps may go on beside."
    )
    step.add_argument("run", help="its name").completer = completion.runs
    step.add_argument("step", help="e.g. train, sample, perplexity")
    step.add_argument("generation", type=int)
    add_device(step)
    add_processes(step)
    step.set_defaults(command=_step)

    twins = commands.add_parser(
        "twins",
        help="ask what the initial corpus still decides: a run, its twin from another corpus, and the run with other seeds",
        description="Make three runs that share a protocol and a tokenizer: NAME; NAME-twin, which begins from another initial corpus; and "
        "NAME-reseeded, which begins from the same one with other seeds. Then compare them generation by generation.",
    )
    add_protocol(twins)
    twins.add_argument("--name", help="NAME (default: the preset's name)")
    twins.add_argument(
        "--change",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="the twin's initial corpus, e.g. corpus.source=other.txt; may be repeated (default: the grammar's twin, or the source's next stories)",
    ).completer = completion.fields
    add_json(twins)
    twins.set_defaults(command=_twins)

    listing = commands.add_parser("list", help="list the runs, the one that advanced last first")
    add_json(listing)
    listing.set_defaults(command=_list)

    status = commands.add_parser(
        "status", help="show where runs are", description="One run step by step; several, or all, a line each, with the time that is left."
    )
    status.add_argument(
        "runs", nargs="*", metavar="RUN", help="default: all runs; newest stands for the one that advanced last"
    ).completer = completion.runs
    add_json(status)
    status.set_defaults(command=_status)

    results = commands.add_parser("results", help="print everything a run measured, or write it to a file")
    add_run(results)
    results.add_argument("--format", choices=["table", "csv", "json"], default="table")
    results.add_argument("--output", metavar="FILE", help="write them to this .csv, .parquet or .json file instead")
    results.set_defaults(command=_results)

    repair = commands.add_parser(
        "repair",
        help="find what is damaged or missing in a run, so that `collapse run` makes it again",
        description="Compare everything in a run with the hashes that were recorded. Steps whose files are damaged, or missing and "
        "needed, or were made from something that has changed since, are made undone; `collapse run` then makes them again.",
    )
    add_run(repair)
    repair.add_argument("--missing", action="store_true", help="make everything again that is not here, such as models that were not committed")
    add_json(repair)
    repair.set_defaults(command=_repair)

    remove = commands.add_parser("rm", help="delete a run", description="Say what a run's folder holds, ask, and delete it.")
    remove.add_argument("run", help="its name").completer = completion.runs
    remove.add_argument("--yes", action="store_true", help="do not ask")
    remove.set_defaults(command=_remove)

    book = commands.add_parser("book", help="execute the figure notebooks and build the book")
    shown = book.add_argument("runs", nargs="*", metavar="RUN", help="the runs to show, the main one first (default: all, demo first)")
    shown.completer = completion.runs
    book.set_defaults(command=_book)


def _run(options: argparse.Namespace) -> None:
    from collapse_lib.experiment.execute import advance
    from collapse_lib.steps.preflight import begun
    from collapse_lib.studies.study import steps_wanted, threads

    if options.max_cost is not None:
        options.set.append(f"gpt_eval.max_cost={options.max_cost}")
    name, protocol = _name(options), wanted_protocol(options)
    began = time.perf_counter()
    with begun(name, protocol, options.device, exact="generations" in dict(map(assignment, options.set))) as run:
        print(f"run {run.name}: {run.protocol.generations} generations in {run.folder}", flush=True)
        if run.protocol.gpt_eval.judge:
            print_estimate(run)
        with threads(run, options.device):
            executed = advance(run, options.device, steps_wanted(run), options.processes)
    seconds = time.perf_counter() - began
    print(f"{len(executed)} steps in {seconds:.1f} s; `collapse results {run.name}` prints the numbers, `collapse book` makes the book.")


def _step(options: argparse.Namespace) -> None:
    from collapse_lib.experiment.execute import advance_step
    from collapse_lib.experiment.run import Run
    from collapse_lib.studies.study import steps_wanted, threads

    step = Run.open(options.run).step(options.generation, options.step)
    with threads(step.run, options.device):
        was_needed = advance_step(step, options.device, options.processes, steps_wanted(step.run))
    if not was_needed:
        print(f"step {step} is finished")


def _name(options: argparse.Namespace) -> str:
    return preset_name(options) if options.name is None else options.name


def _twins(options: argparse.Namespace) -> None:
    from collapse_lib.experiment.files import read_json
    from collapse_lib.studies.twins import run_twins

    protocol = wanted_protocol(options)
    began = time.perf_counter()
    changes = dict(assignment(text, "--change") for text in options.change)
    with redirect_stdout(sys.stderr if options.json else sys.stdout):
        file = run_twins(_name(options), protocol, changes, options.device)
    if options.json:
        print_json(read_json(file))
    else:
        print(f"compared in {file} after {time.perf_counter() - began:.1f} s; notebooks/figures/twins.ipynb and `collapse book` show it.")


def _list(options: argparse.Namespace) -> None:
    from collapse_lib.experiment.inventory import runs
    from collapse_lib.experiment.paths import runs_root

    entries = runs()
    if options.json:
        print_json([entry.as_json() for entry in entries])
    elif not entries:
        print(f"There is no run in {runs_root()} yet; `collapse run demo` makes one.")
    else:
        width = max(len("run"), *(len(entry.name) for entry in entries)) + 2
        print(f"{'run':<{width}}{'preset':<19}{'generations':<14}{'last advance':<18}{'size':>9}")
        for entry in entries:
            when = entry.last_advance.astimezone().strftime("%Y-%m-%d %H:%M")
            note = f"  {entry.problem}" if entry.problem else "  a process works on it now" if entry.driven else ""
            print(f"{entry.name:<{width}}{entry.preset or '-':<19}{_progress(entry):<14}{when:<18}{amount(entry.size):>9}{note}")


def _progress(entry: Entry) -> str:
    return "unreadable" if entry.planned is None else f"{entry.finished} of {entry.planned}"


def _status(options: argparse.Namespace) -> None:
    from collapse_lib.experiment.progress import read_progress
    from collapse_lib.experiment.run import Run

    if len(options.runs) != 1:
        _overview(options.runs, options.json)
        return
    run = Run.open(options.runs[0])
    report = _report(run)
    working = read_progress(run.progress_file) if report["driven"] else None
    if options.json:
        print_json(report | {"working": working})
        return
    print(f"run {run.name} in {run.folder}")
    driven = "a process works on it now" if report["driven"] else "no process works on it"
    print(f"{report['finished']} of {report['steps']} steps finished; {driven}")
    if report["let_go"]:
        print(f"let go, for no step needs it any more: {_let_go(report['let_go'])}")
    _print_steps(report["generations"])
    if working:
        share = f"{working['n'] / working['total']:.0%} of " if working["total"] else ""
        print(f"\nnow: {working['prefix'].rstrip(': ')}, {share}{working['total'] or working['n']:,}{working['unit']}s")
    elif report["finished"] < report["steps"]:
        print(f"\n`collapse run {run.name}` goes on with it.")


def _overview(names: list[str], as_json: bool) -> None:
    """A line a run: generations and steps done, time left, and what is worked on."""
    from collapse_lib.cost.printing import columns
    from collapse_lib.experiment.inventory import standing, together
    from collapse_lib.experiment.paths import run_names, runs_root
    from collapse_lib.experiment.run import Run

    standings, unreadable = [], {}
    for name in names or run_names():
        try:
            standings.append(standing(Run.open(name)))
        except UserError as error:
            if names:
                raise
            unreadable[name] = str(error)  # one broken run hides no other
    if as_json:
        print_json([*(found.as_json() for found in standings), *({"run": name, "problem": problem} for name, problem in unreadable.items())])
        return
    if not standings and not unreadable:
        print(f"There is no run in {runs_root()} yet; `collapse run demo` makes one.")
        return
    rows, notes = [("run", "steps done", "time left", "trained", "sampled")], ["now"]
    for found in standings:
        rows.append(_standing_row(found))
        notes.append(", ".join(found.working))
    rows += [(name, "unreadable", "", "", "") for name in unreadable]
    notes += unreadable.values()
    if len(standings) > 1:
        rows.append(_standing_row(together(standings)))
        notes.append("")
    print("\n".join(f"{row}  {note}".rstrip() for row, note in zip(columns(rows), notes, strict=True)))


def _standing_row(found: Standing) -> tuple[str, ...]:
    from collapse_lib.cost.printing import duration

    left = "unknown" if found.seconds_left is None else duration(found.seconds_left) if found.seconds_left else "-"
    made = [f"{found.done.get(name, 0)} of {found.planned[name]}" for name in ("train", "sample")]
    return (found.run, f"{sum(found.done.values())} of {sum(found.planned.values())}", left, *made)


def _report(run: Run) -> dict[str, Any]:
    """Where a run is, as plain JSON values: of each generation's steps, the ``state`` and the ``seconds`` it took."""
    from collapse_lib.experiment.retention import all_gone

    generations: dict[int, dict[str, Any]] = {}
    for step in run.steps():
        manifest = step.manifest()
        state = "finished" if step.is_finished() else "notebook missing" if manifest else "missing"
        generations.setdefault(step.generation, {})[step.name] = {"state": state, "seconds": manifest["seconds"] if manifest else None}
    states = [step["state"] for steps in generations.values() for step in steps.values()]
    return {
        "run": run.name,
        "folder": str(run.folder),
        "driven": run.is_driven(),
        "steps": len(states),
        "finished": states.count("finished"),
        "let_go": [{"generation": step.generation, "artefact": artefact, "bytes": size} for step, artefact, size in all_gone(run)],
        "generations": [{"generation": generation, "steps": steps} for generation, steps in generations.items()],
    }


LET_GO = {"corpus": ("text", "texts"), "composition": ("composition", "compositions"), "model": ("model", "models")}


def _let_go(gone: list[dict[str, Any]]) -> str:
    """How many artefacts of each kind, and what room they took."""
    counts = {words: sum(row["artefact"] == kind for row in gone) for kind, words in LET_GO.items()}
    said = [f"{count} {words[count > 1]}" for words, count in counts.items() if count]
    return f"{', '.join(said)} ({amount(sum(row['bytes'] for row in gone))})"


def _print_steps(generations: list[dict[str, Any]]) -> None:
    """A row a generation, a column a step."""
    from collapse_lib.experiment.lineage import STEPS

    words = {"finished": "{seconds:.1f} s", "notebook missing": "notebook missing", "missing": "-"}
    rows = {row["generation"]: {name: words[step["state"]].format(**step) for name, step in row["steps"].items()} for row in generations}
    columns = [name for name in STEPS if any(name in states for states in rows.values())]
    width = max(map(len, (*columns, *(state for states in rows.values() for state in states.values())))) + 2
    print(f"\n{'generation':>10}" + "".join(f"{name:>{width}}" for name in columns))
    for generation, states in rows.items():
        print(f"{generation:>10}" + "".join(f"{states.get(name, ''):>{width}}" for name in columns))


def _results(options: argparse.Namespace) -> None:
    from collapse_lib.studies import results

    table = results.load(options.run)
    if options.output:
        results.save(table, Path(options.output))
        print(f"{len(table)} numbers in {options.output}")
    else:
        print(results.formatted(table, options.format))


def _repair(options: argparse.Namespace) -> None:
    from collapse_lib.experiment.repair import repair
    from collapse_lib.experiment.run import Run

    run = Run.open(options.run)
    dropped = repair(run, options.missing)
    if options.json:
        print_json([{"generation": step.generation, "step": step.name, "reason": reason} for step, reason in dropped.items()])
        return
    for step, reason in dropped.items():
        print(f"generation {step.generation:>2}  {step.name:<15} {reason}")
    if Run.open(run.name) != run:
        print("What was let go is kept from now on: retention.drop is [].")
    print(f"{len(dropped)} steps are to be made again: `collapse run {run.name}`." if dropped else "Everything is as it was recorded.")


def _remove(options: argparse.Namespace) -> None:
    from collapse_lib.experiment import inventory

    entry = inventory.run(options.run)
    if entry.driven:
        raise UserError(f"Run '{entry.name}' is in use by another process; wait for it to end or stop it.")
    generations = "a protocol that cannot be read" if entry.problem else f"{_progress(entry)} generations"
    print(f"run {entry.name}: {generations}, {amount(entry.size)} in {entry.folder}")
    print("its models, corpora, executed notebooks and numbers all go", flush=True)
    if not options.yes:
        try:
            answer = input("delete it? [y/N] ")
        except EOFError:
            print()
            raise UserError(f"Run '{entry.name}' was not deleted, for nobody answered; `collapse rm {entry.name} --yes` does not ask.") from None
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing was deleted")
            return
    inventory.remove(entry)
    print(f"deleted run {entry.name}")


def _book(options: argparse.Namespace) -> None:
    from collapse_lib.book import build as book

    report = book.build(options.runs)
    for name, reason in report.left_out.items():
        print(f"run {name} is left out: {reason}", file=sys.stderr)
    print(f"{report.pages} pages in {report.seconds:.1f} s: {report.path}")
