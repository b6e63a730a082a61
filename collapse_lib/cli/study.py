"""``collapse study``: plan, run, watch and read studies of many chains."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from collapse_lib.cli.arguments import add_device, count
from collapse_lib.experiment.errors import one_line

if TYPE_CHECKING:
    from collapse_lib.studies.design import Study


def add_commands(commands: Any) -> None:
    study = commands.add_parser(
        "study",
        help="run many chains that differ in named ways, side by side, and test what was declared beforehand",
        description="A study is a preset or a .yaml file: a base protocol, arms, seeds, and the questions asked of them.",
    )
    tasks = study.add_subparsers(required=True, metavar="TASK")
    for name, words, command in (
        ("run", "make every chain, or go on with it", _run),
        ("plan", "what a study will run and, once a generation was timed, how long it takes; runs nothing", _plan),
        ("status", "how far each chain is", _status),
        ("record", "keep a study's numbers in one small folder, from which its page can be made without the runs", _record),
        ("results", "print every number of a study's chains, or write it to a file", _results),
    ):
        task = tasks.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
        named = {} if name == "run" else {"nargs": "?", "default": "newest"}
        task.add_argument("study", metavar="STUDY", help="a study of the library, a .yaml file, or the name of a study that has runs", **named)
        task.set_defaults(command=command)
        if name == "run":
            task.add_argument("--jobs", type=count, metavar="N", help="chains at once (default: one a core; on a GPU one)")
            task.add_argument("--generations", type=count, metavar="N", help="stop after so many for now; the same command without it goes on")
            add_device(task)
            task.add_argument("--chain", metavar="ARM-SEED", help="make this chain alone, for schedulers that start one a job")
            task.add_argument("--end-with-input", action="store_true", help=argparse.SUPPRESS)  # how chains are started, and ended
        if name == "results":
            task.add_argument("--format", choices=["table", "csv", "json"], default="table")
            task.add_argument("--output", metavar="FILE", help="write them to this .csv, .parquet or .json file instead")


def _run(options: argparse.Namespace) -> None:
    from collapse_lib.experiment.processes import end_with_input
    from collapse_lib.studies.study import PATIENCE, check_study, open_study, run_chain, run_study

    if options.end_with_input:
        end_with_input(PATIENCE / 2)
    if options.chain:
        study = open_study(options.study)
        check_study(study, options.device)
        run_chain(study, options.chain, options.device, options.generations)
        return
    began = time.perf_counter()
    failures = run_study(options.study, options.device, options.jobs, options.generations)
    study = open_study(options.study)
    print(f"study {study.name}: {len(study.chains()) - len(failures)} of {len(study.chains())} chains in {time.perf_counter() - began:.1f} s")
    if failures:
        what = "1 chain" if len(failures) == 1 else f"{len(failures)} chains"
        said = "; ".join(f"{failure.chain.label}: {failure.reason.rstrip('.')}" for failure in failures)
        print(f"collapse: {one_line(f'{what} failed ({said}); the same command goes on from here.')}", file=sys.stderr)
        raise SystemExit(1)


def _plan(options: argparse.Namespace) -> None:
    from collapse_lib.studies.study import generations_done, open_study, seconds_a_generation

    study = open_study(options.study)
    timed = seconds_a_generation(study)
    print(f"study {study.name}: {len(study.chains())} chains of {study.generations} generations, steps {', '.join(study.steps)}\n")
    print(f"{'arm':<22}{'chains':>8}{'to do':>8}{'s a generation':>16}  otherwise than {study.base}")
    to_do, done = dict.fromkeys(study.arms, 0), generations_done(study)
    for chain in study.chains():
        to_do[chain.arm] += study.generations - done[chain.label]
        _ = chain.protocol  # what is wrong with an arm is said here, and not when its turn comes
    for arm, left in to_do.items():
        changes = ", ".join(f"{name}={value}" for name, value in study.arms[arm].fields.items())
        seconds = f"{timed[arm]:.1f}" if arm in timed else "-"
        print(f"{arm:<22}{len(study.seeds_of(arm)):>8}{left:>8}{seconds:>16}  {changes}")
    if not timed:
        print(f"\nNo generation has been timed here; `collapse study run {options.study} --generations 1` does, and none of its work is done again.")
        return
    usual = sum(timed.values()) / len(timed)
    seconds = sum(left * timed.get(arm, usual) for arm, left in to_do.items())
    guessed = f"; arms not yet timed are taken to be as the others ({usual:.1f} s)" if len(timed) < len(study.arms) else ""
    print(f"\n{seconds / 3600:.1f} hours of one core to go: divide by the cores that make chains{guessed}.")


def _status(options: argparse.Namespace) -> None:
    from collapse_lib.studies.study import generations_done, open_study

    study = open_study(options.study)
    by_label = generations_done(study)
    done = {(chain.arm, chain.seed): by_label[chain.label] for chain in study.chains()}
    complete = sum(count == study.generations for count in done.values())
    print(f"study {study.name} ({study.hash}): {complete} of {len(done)} chains have all {study.generations} generations\n")
    _grid(study, done)
    if complete < len(done):
        print(f"\n`collapse study run {options.study if options.study != 'newest' else study.name}` goes on with it.")


def _grid(study: Study, done: dict[tuple[str, int], int]) -> None:
    """Generations done, a row an arm and a column a seed."""
    seeds = sorted({seed for _, seed in done})
    print(f"{'arm':<22}" + "".join(f"{f'seed {seed}':>10}" for seed in seeds))
    for arm in study.arms:
        print(f"{arm:<22}" + "".join(f"{done.get((arm, seed), ''):>10}" for seed in seeds))


def _record(options: argparse.Namespace) -> None:
    from collapse_lib.studies.study import open_study, record

    folder = record(open_study(options.study))
    print(f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.2f} MB in {folder}")


def _results(options: argparse.Namespace) -> None:
    from pathlib import Path

    from collapse_lib.studies import results
    from collapse_lib.studies.study import open_study, table

    found = table(open_study(options.study))
    if options.output:
        results.save(found, Path(options.output))
        print(f"{len(found)} numbers in {options.output}")
    else:
        print(results.formatted(found, options.format))
