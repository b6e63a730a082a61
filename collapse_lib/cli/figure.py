"""``collapse figure``: one picture, without the book."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from collapse_lib.cli import completion
from collapse_lib.cli.arguments import check_output
from collapse_lib.experiment.errors import UserError

FORMATS = ("svg", "png", "pdf")


def add_commands(commands: Any) -> None:
    figure = commands.add_parser(
        "figure",
        help="draw one figure, or any measure by generation, into a file",
        description="Draw a figure of the book, or any step.metric that was measured, with the band between chains where there are three of a kind. "
        "Without a name, list the figures.",
    )
    figure.add_argument("name", nargs="?", help="a figure's name, or step.metric, e.g. perplexity.perplexity").completer = completion.figures
    shown = figure.add_argument("--run", action="append", default=[], metavar="RUN", help="may be repeated (default: the run that advanced last)")
    shown.completer = completion.runs
    figure.add_argument("--study", metavar="STUDY", help="draw the arms of a study instead of runs (for a step.metric)")
    figure.add_argument("--format", choices=FORMATS, help="default: that of --output's ending, else svg")
    figure.add_argument("--output", metavar="FILE", help="default: NAME.FORMAT here")
    figure.set_defaults(command=_figure)


def _figure(options: argparse.Namespace) -> None:
    from collapse_lib.figures import named

    if options.name is None:
        print("\n".join([*named.names(), "or any step.metric; `collapse results RUN` lists them"]))
        return
    if options.run and options.study:
        raise UserError("--run and --study exclude each other; a figure is of runs or of a study.")
    ending = Path(options.output or "").suffix[1:].lower()
    if options.format and ending and ending != options.format:
        raise UserError(f"--format is {options.format} and --output ends in .{ending}; give one of them, or the same.")
    output = options.output or f"{options.name}.{options.format or 'svg'}"
    if not Path(output).suffix:
        output += f".{options.format or 'svg'}"
    check_output(output)
    named.picture(options.name, options.run or ["newest"], options.study).save(output)
    print(output)
