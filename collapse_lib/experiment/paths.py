"""Where runs live, so that the command line, papermill and a notebook opened by hand all find the same folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from collapse_lib.experiment.errors import UserError

RUNS_FOLDER = "papermill_runs"
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # a name becomes part of paths, commands and pages
LONGEST_NAME = 100  # characters of a run's name: file systems take 255, and pages, twins and temporary files add to it
# What commands and the runs' folder use for something else.
RESERVED_NAMES = (
    "all",
    "newest",
    "bench",
    "studies",
    "torture.json",
    "judge.sqlite",
    "README.md",
)


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
    return (_checkout() or here) / RUNS_FOLDER


def project_root() -> Path:
    """The folder with ``notebooks`` and ``book``: the checkout, or what a wheel installed of it inside the library.

    Raises ``UserError`` where there is neither.
    """
    installed = Path(__file__).resolve().parents[1] / "project"
    root = installed if (installed / "notebooks" / "steps").is_dir() else _checkout()
    if root is None:
        raise UserError(
            f"The notebooks that do the work are not installed with the library ({installed / 'notebooks'} is missing); "
            "install it again, or clone the project and, in its folder, `pip install -e .`."
        )
    return root


def book_folder() -> Path:
    """Where a book is built: the ``book`` folder of the checkout, or of the working directory where the library was installed without one."""
    return (_checkout() or Path.cwd()) / "book"


def _checkout() -> Path | None:
    """The checkout that this file lies in, if it does."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "notebooks" / "steps").is_dir() else None


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
    """Names of all runs, the most recently advanced one first; a folder that no run can be called is none."""
    protocols = [path for path in runs_root().glob("*/protocol.yaml") if _is_name(path.parent.name)]
    return [path.parent.name for path in sorted(protocols, key=lambda path: (-last_advance(path.parent), path.parent.name))]


def run_folder(name: str = "newest", suits: Callable[[Path], bool] = Path.is_dir) -> Path:
    """The folder of a run that exists; ``newest`` is the run that advanced last, of those whose folder ``suits`` if there is one.

    Raises ``UserError`` naming the runs there are.
    """
    root = runs_root()
    if name == "newest":
        folders = [root / name for name in run_names()]
        if not folders:
            raise UserError(f"There is no run in {root} yet; `collapse run demo` makes one.")
        return next(filter(suits, folders), folders[0])
    if not (_is_name(name) and (root / name / "protocol.yaml").is_file()):  # not a search: whoever reads many runs asks for each
        names = run_names()
        raise UserError(f"There is no run {name!r} in {root}; there {'are ' + ', '.join(names) if names else 'is none yet'}.")
    return root / name


def _is_name(name: str) -> bool:
    return len(name) <= LONGEST_NAME and RUN_NAME.fullmatch(name) is not None


def last_advance(folder: Path) -> float:
    """When a run last finished a step, or was begun: seconds since the epoch."""
    return max((path.stat().st_mtime for path in folder.glob("generation-*/manifests/*.json")), default=(folder / "protocol.yaml").stat().st_mtime)
