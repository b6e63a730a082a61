"""Arguments that several commands take, and how they are read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from collapse_lib.cli import completion
from collapse_lib.experiment.errors import UserError

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import Protocol


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence, as all others are."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` shows what can be given.")


def count(text: str, least: int = 1) -> int:
    """A whole number of at least 1, for options that count something."""
    if not text.isdecimal() or not least <= int(text[:19]) < 10**9:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {least}")
    return int(text)


def whole(text: str) -> int:
    """A whole number of at least 0, for options in which 0 stands for all there are."""
    return count(text, least=0)


def port(text: str) -> int:
    """A port of this machine."""
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port, a whole number from 0 (any that is free) to 65535")
    return int(text)


def assignment(text: str, option: str = "--set") -> tuple[str, str]:
    """Field and value of ``FIELD=VALUE``."""
    field, sign, value = text.partition("=")
    if not sign or not field.strip():
        raise UserError(f"{option} takes FIELD=VALUE, not '{text}'.")
    return field.strip(), value.strip()


def add_run(command: argparse.ArgumentParser) -> None:
    """The run that a command is about."""
    run = command.add_argument("run", nargs="?", default="newest", help="default: the run that advanced last")
    run.completer = completion.runs


def add_set(command: argparse.ArgumentParser, help: str) -> None:
    """Fields of the protocol that are changed."""
    change = command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=help)
    change.completer = completion.fields


def add_device(command: argparse.ArgumentParser) -> None:
    """Where torch computes."""
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one")


def add_processes(command: argparse.ArgumentParser) -> None:
    """How many processes share a step's work."""
    what = "processes that share the work of training, sampling, perplexity and completions (default: 1); 0: one a GPU"
    command.add_argument("--processes", type=whole, default=1, metavar="N", help=what)


def add_protocol(command: argparse.ArgumentParser) -> None:
    """What ``wanted_protocol`` reads."""
    preset = command.add_argument("preset", help="a preset (`collapse presets`), a protocol .yaml file, or the name of a run")
    preset.completer = completion.presets_and_runs
    add_set(command, "change a field of the protocol, e.g. training.batch_size=64; may be repeated")
    command.add_argument("--generations", type=int, metavar="N", help="how many generations (a finished run can be extended)")
    add_device(command)


def wanted_protocol(options: argparse.Namespace) -> Protocol:
    """The protocol that a preset, a file or a run, ``--set`` and ``--generations`` ask for.

    A run keeps its own, also one that is named like the preset that it began as.
    """
    from collapse_lib.experiment.paths import run_names
    from collapse_lib.experiment.protocol import load_preset, preset_names
    from collapse_lib.experiment.run import Run

    if options.generations is not None:
        options.set.append(f"generations={options.generations}")
    is_other = options.preset in preset_names() and getattr(options, "name", None) not in (None, options.preset)
    is_run = options.preset in run_names() and not is_other and not options.preset.endswith((".yaml", ".yml"))
    protocol = Run.open(options.preset).protocol if is_run else load_preset(options.preset)
    return protocol.with_changes(dict(assignment(text) for text in options.set))


def preset_name(options: argparse.Namespace) -> str:
    """The name of the preset, the file or the run that was given."""
    return options.preset.rsplit("/", 1)[-1].removesuffix(".yaml").removesuffix(".yml")


def add_json(command: argparse.ArgumentParser) -> None:
    """The same for a program to read."""
    command.add_argument("--json", action="store_true", help="print JSON instead, and nothing else")


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def check_output(*files: str | None) -> None:
    """Raise ``UserError`` for a file whose folder does not exist: before the work and not after it."""
    for file in filter(None, files):
        if not Path(file).absolute().parent.is_dir():
            raise UserError(f"There is no folder '{Path(file).absolute().parent}' to write '{file}' to.")
