"""One progress bar for every long loop: in a terminal, in a notebook, and in the terminal of whoever started the notebook.

A step runs in a notebook's kernel, whose output nobody watches. So a bar also writes its state to the small file that
``COLLAPSE_PROGRESS`` names; ``collapse run`` shows it as a bar of its own, and ``collapse status`` reads it from anywhere.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

PROGRESS_VARIABLE = "COLLAPSE_PROGRESS"
# A bar's state before a later one of the same bar on the same line, where a viewer that saved the notebook has lost the carriage returns.
OVERTAKEN = re.compile(r"^([^\n|]{1,99}?): +\d[^\n]*(?=\1: +(?:\d+%\||[\d.]+\S* \w+ \[\d))", re.MULTILINE)


def progress(total: int | None, unit: str, description: str, initial: int = 0) -> Any:
    """A ``tqdm`` bar with rate and time left; use it as a context manager and call ``update(n)``.

    ``unit`` is a singular noun; ``initial`` is what an interrupted run had already done.
    """
    from tqdm import tqdm

    class PublishedBar(tqdm):
        monitor_interval = 0  # no thread beside, which could publish when the step is over and its file is gone

        def display(self, *args: Any, **kwargs: Any) -> Any:
            publish(self)
            return super().display(*args, **kwargs)

    terminal = sys.stderr.isatty()
    return PublishedBar(
        total=total,
        initial=initial,
        unit=f" {unit}",
        desc=description,
        unit_scale=True,
        dynamic_ncols=terminal,
        ncols=None if terminal else 100,
        file=sys.stderr if terminal else sys.stdout,
        mininterval=0.2 if terminal else 1.0,
    )


def publish(bar: Any) -> None:
    """Write a bar's state to the progress file, if one is asked for."""
    if target := os.environ.get(PROGRESS_VARIABLE):
        state = {name: bar.format_dict[name] for name in ("prefix", "n", "total", "unit", "elapsed", "initial")}
        beside = _beside(target)
        try:
            beside.write_text(json.dumps(state), encoding="utf-8")
            beside.replace(target)
        except OSError:  # the watcher has gone and taken its folder along; the work matters more than its display
            pass


def clear_progress(path: Path) -> None:
    """Delete what was published to ``path``, and what a process that was killed while it published left beside it."""
    for file in (path, _beside(path)):
        file.unlink(missing_ok=True)


def _beside(target: str | Path) -> Path:
    return Path(f"{target}.tmp")


def read_progress(path: Path) -> dict[str, Any] | None:
    """The state last published to ``path``, or None."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def settled(outputs: list[Any]) -> list[Any]:
    """A notebook cell's outputs as they stand at the end: each stream in one piece where it began, of a line written over its last state.

    A kernel sends every state of a bar as an output of its own, and a warning may come between two of them.
    """
    kept, streams = [], {}
    for output in outputs:
        if output.output_type != "stream":
            kept.append(output)
        elif output.name in streams:
            streams[output.name].text += output.text
        else:
            streams[output.name] = output
            kept.append(output)
    for stream in streams.values():
        stream.text = OVERTAKEN.sub("", "\n".join(map(_last_state, stream.text.split("\n"))))
    return [output for output in kept if output.get("text") != ""]


def _last_state(line: str) -> str:
    states = line.rstrip("\r").split("\r")
    return states[-1].rstrip() if len(states) > 1 else states[0]
