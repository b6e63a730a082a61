"""Where runs live, so that the command line, papermill and a notebook opened by hand all find the same folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from collapse_lib.experiment.errors import UserError

RUNS_FOLDER = "papermill_runs"
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # a name becomes part of paths, commands and pages
LONGEST_NAME = 100  # characters of a run's name: file systems take 255, and pages, twins and temporary files add to it
RESERVED_NAMES = ("all", "newest", "bench", "judge.sqlite", "README.md")  # what commands and the runs' folder use for something else


def runs_root() -> Path:
    """The folder that holds all runs.

    ``COLLAPSE_RUNS`` if set; else the ``papermill_runs`` folder of the working directory or of the nearest folder above it;
    else the one in the checkout, or in the working directory where the library was installed without one.
    """
    if chosen := os.environ.get("COLLAPSE_RUNS"):
        root = Path(chosen).expanduser().resolve()
        if root.exists() and not root.is_dir():
            raise UserError(f"COLLAPSE_RUNS is '{chosen}', which is a file; it must name the folder that holds the runs.")
        return root
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / RUNS_FOLDER).is_dir():
            return folder / RUNS_FOLDER
    return (_beside() if _is_checkout() else here) / RUNS_FOLDER


def project_root() -> Path:
    """The checkout this library was installed from: the folder with ``notebooks`` and ``book``; ``UserError`` where there is none."""
    if not _is_checkout():
        raise UserError(
            f"The notebooks that do the work are not installed with the library ({_beside() / 'notebooks'} is missing); "
            "clone the project and, in its folder, `pip install -e .`."
        )
    return _beside()


def _beside() -> Path:
    return Path(__file__).resolve().parents[2]


def _is_checkout() -> bool:
    return (_beside() / "notebooks" / "steps").is_dir()


def check_run_name(name: str) -> None:
    """Raise ``UserError`` for what a run cannot be called."""
    if len(name) > LONGEST_NAME:
        raise UserError(f"A run's name has at most {LONGEST_NAME} characters, and {name[:20]!r}... has {len(name)}.")
    reserved = name.lower().startswith("judge.sqlite") or name.lower() in map(str.lower, RESERVED_NAMES)
    if reserved or not RUN_NAME.fullmatch(name):
        raise UserError(
            f"A run cannot be called {name!r}; use letters, digits, '.', '_' and '-', "
            f"the first a letter or digit, and none of the words {', '.join(RESERVED_NAMES)}."
        )


def run_names() -> list[str]:
    """Names of all runs, the most recently advanced one first; a folder with other signs in its name is none."""
    protocols = [path for path in runs_root().glob("*/protocol.yaml") if RUN_NAME.fullmatch(path.parent.name)]
    return [path.parent.name for path in sorted(protocols, key=lambda path: (-_last_advance(path.parent), path.parent.name))]


def run_folder(name: str = "newest") -> Path:
    """The folder of a run that exists; ``newest`` is the run that advanced last.

    Raises ``UserError`` naming the runs there are.
    """
    if RUN_NAME.fullmatch(name) and (runs_root() / name / "protocol.yaml").is_file():  # without a look at all others: a study asks for many
        return runs_root() / name
    names = run_names()
    if name == "newest":
        if not names:
            raise UserError(f"There is no run in {runs_root()} yet; `collapse run demo` makes one.")
        return runs_root() / names[0]
    if name not in names:
        raise UserError(f"There is no run {name!r} in {runs_root()}; there {'are ' + ', '.join(names) if names else 'is none yet'}.")
    return runs_root() / name


def _last_advance(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.glob("generation-*/manifests/*.json")), default=(folder / "protocol.yaml").stat().st_mtime)
