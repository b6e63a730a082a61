"""The ``collapse`` command: its modules declare the commands beside what they do; here is what holds for all of them."""

from __future__ import annotations

import argparse
import os
import sys
import traceback

from collapse_lib import __version__
from collapse_lib.cli import completion, export, figure, judge, planning, runs, study
from collapse_lib.cli.arguments import Parser
from collapse_lib.experiment.errors import NotebookFailed, explained, first_line, one_line


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 the input was wrong, 130 interrupted.

    Whatever goes wrong is said in one line on standard error; ``--debug``, anywhere in the arguments, puts the traceback before it.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        try:
            parser = _parser()
            completion.answer_a_shell(parser)
            options = parser.parse_args([argument for argument in arguments if argument != "--debug"])
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


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="collapse", description="Train language models on their predecessors' text, generation after generation, and measure.")
    parser.add_argument("--version", action="version", version=f"collapse {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error too; may stand anywhere in a command")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (runs, study, figure, planning, export, judge, completion):
        module.add_commands(commands)
    return parser


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
