"""``collapse export``: a run for archives of workflows, or one of its models for the hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from collapse_lib.cli.arguments import add_run, count
from collapse_lib.experiment.errors import UserError


def add_commands(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write a run as an RO-Crate, or a model of it as a folder for the hub",
        description="Write a run's notebooks, metrics, protocol and lineage as a Workflow Run RO-Crate, which archives of workflows read; or, "
        "with --hub-folder, a generation's model with its card, as `hf upload` takes it. Nothing is sent anywhere.",
    )
    add_run(export)
    export.add_argument("--output", metavar="FOLDER", help="a folder that is not there yet (default: exports/RUN, exports/RUN-generation-NN)")
    export.add_argument("--hub-folder", action="store_true", help="a model with its card instead")
    export.add_argument("--generation", type=count, metavar="N", help="whose model (default: the last one trained)")
    export.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> None:
    from collapse_lib.experiment.run import Run

    if options.generation is not None and not options.hub_folder:
        raise UserError("--generation says whose model --hub-folder writes, and an RO-Crate holds the whole run; give both, or neither.")
    run = Run.open(options.run)
    if options.hub_folder:
        from collapse_lib.export.hub import trained_generation, write_hub_folder

        generation = trained_generation(run) if options.generation is None else options.generation
        target = _target(options, f"{run.name}-generation-{generation:02d}")
        write_hub_folder(run, generation, target)
        print(f"the model of generation {generation} of run {run.name}, with its card, is in {target}; `hf upload NAME {target}` publishes it.")
    else:
        from collapse_lib.export.crate import write_crate

        target = _target(options, run.name)
        print(f"{write_crate(run, target)} executions of steps of run {run.name} are in {target}; its models and corpora are named there by hash.")


def _target(options: argparse.Namespace, name: str) -> Path:
    return Path(options.output).expanduser() if options.output else Path("exports") / name
