"""``collapse completion``, and the answers to a shell that asks how a command may go on."""

from __future__ import annotations

import argparse
import os
from typing import Any

SHELLS = ("bash", "zsh", "fish")


def add_commands(commands: Any) -> None:
    command = commands.add_parser(
        "completion",
        help="print what makes a shell complete commands, runs, presets and fields",
        description='For bash: eval "$(collapse completion bash)", for zsh the same after compinit, for fish: collapse completion fish | source.',
    )
    command.add_argument("shell", choices=SHELLS)
    command.set_defaults(command=_print_script)


def answer_a_shell(parser: argparse.ArgumentParser) -> None:
    """If a shell asks for completions, give them and end the process."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def runs(**asked: Any) -> list[str]:
    """Names of the runs there are."""
    from collapse_lib.experiment.paths import run_names

    return run_names()


def figures(**asked: Any) -> list[str]:
    """Names of the figures."""
    from collapse_lib.figures import named

    return named.names()


def presets(**asked: Any) -> list[str]:
    """Names of the presets."""
    from collapse_lib.experiment.protocol import preset_names

    return preset_names()


def presets_and_runs(**asked: Any) -> list[str]:
    """What a command may begin from."""
    return [*presets(), *runs()]


def fields(**asked: Any) -> list[str]:
    """The fields of a protocol, up to the sign before their value."""
    from collapse_lib.experiment.protocol import Protocol

    return [f"{name}=" for name in Protocol.model_construct().flat()]


def _print_script(options: argparse.Namespace) -> None:
    import argcomplete

    print(argcomplete.shellcode(["collapse"], shell=options.shell))
