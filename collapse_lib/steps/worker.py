"""One of several processes that share a step's work: ``python -m collapse_lib.steps.worker RUN STEP GENERATION``.

``frame.perform`` starts them on one machine. On several, ``torchrun`` does; the step's notebook then finds the work done.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable

from collapse_lib.experiment.errors import explained, one_line
from collapse_lib.experiment.machine import choose_device
from collapse_lib.experiment.processes import end_with_input, joined
from collapse_lib.experiment.run import Run
from collapse_lib.steps.completions import complete_beginnings
from collapse_lib.steps.frame import carry_out
from collapse_lib.steps.perplexity import measure_perplexity
from collapse_lib.steps.sample import write_text
from collapse_lib.steps.train import train_model

WORK: dict[str, Callable[..., None]] = {
    "train": train_model,
    "sample": write_text,
    "perplexity": measure_perplexity,
    "completions": complete_beginnings,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m collapse_lib.steps.worker", description=__doc__)
    parser.add_argument("run")
    parser.add_argument("step", choices=WORK)
    parser.add_argument("generation", type=int)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--end-with-input", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.end_with_input:
        end_with_input(patience=2.0)
    status = 0
    try:
        device = choose_device(options.device)
        step = Run.open(options.run).step(options.generation, options.step)
        with joined(device) as group:
            carry_out(WORK[options.step], step, device, group)
    except Exception as error:
        if sentence := explained(error):
            print(one_line(sentence), file=sys.stderr)
        else:
            traceback.print_exc()
        status = 2 if sentence else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # not by the interpreter's own end, at which torch may wait for processes that are no more


if __name__ == "__main__":
    main()
