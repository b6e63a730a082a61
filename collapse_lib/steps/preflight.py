"""Check, then lock, then write: what a run needs from outside is looked for before anything of it is stored.

A step that fails for want of a file or a key may come hours after the start, and a run that was stored and cannot go on is in everyone's way.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.machine import choose_device
from collapse_lib.experiment.parameters import refuse_unknown_parameters
from collapse_lib.experiment.paths import project_root
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.experiment.run import Run
from collapse_lib.steps.inputs import check_beginnings, given_tokenizer
from collapse_lib.text.sources import all_held_out, held_out, is_on_hub, one_story_only, read_stories

FEW = 10_000  # stories that a hold-out could take all of


def begin(name: str, protocol: Protocol, device: str = "auto", exact: bool = False) -> Run:
    """``Run.create``, for a protocol whose unfinished steps will find what they need."""
    refuse_unknown_parameters()
    check(Run.proposed(name, protocol, exact), device)
    return Run.create(name, protocol, exact)


@contextmanager
def begun(name: str, protocol: Protocol, device: str = "auto", exact: bool = False) -> Iterator[Run]:
    """The run of ``begin``; if it is new and the block is refused before one step is finished, nothing of it stays.

    A notebook that was kept to show where it stopped, for want of memory or room, is kept here too.
    """
    project_root()  # before a folder is made: without the notebooks there is nothing to execute
    run = Run.proposed(name, protocol, exact)
    is_new = not run.folder.exists()
    run = begin(name, protocol, device, exact)
    try:
        yield run
    except UserError:
        if is_new and not run.manifest_files() and not list(run.folder.glob("*/*.ipynb")):
            with run.exclusive():
                shutil.rmtree(run.folder)
        raise


def check(run: Run, device: str = "auto") -> None:
    """Raise ``UserError`` for what a step still to be done would not find: stories, tokenizer, prompts, tasks, a judge's key, a GPU.

    Data sets on the hub are left to the steps that fetch them. The run need not be stored.
    """
    protocol = run.protocol
    unfinished = {step.name: step for step in run.steps() if step.manifest() is None}
    wanted = unfinished.keys()
    if device == "cuda":
        choose_device(device)
    check_stories(run)
    if "corpus" in wanted and protocol.tokenizer.source != "learn":
        given_tokenizer(protocol.tokenizer.source)
    for name in ("completions", "continuations"):
        if name in wanted:
            check_beginnings(unfinished[name])
    if "classification" in wanted:
        from collapse_lib.text.tasks import check_files

        check_files(protocol.classification)
    if "gpt_eval" in wanted:
        from collapse_lib.judge.connection import connect

        connect(protocol.gpt_eval)


def check_stories(run: Run) -> None:
    """Read the first stories of each source on this machine, unless the run has its initial corpus already."""
    settings, share, seed = run.protocol.corpus, run.protocol.training.holdout, run.protocol.derived_seed(0, "corpus")
    if run.step(0, "corpus").manifest() is None:
        few = settings.stories is not None and settings.stories <= FEW
        if few and all(held_out(seed, "holdout", index, share) for index in range(settings.stories)):
            raise all_held_out(share, settings.stories)
        for split, source in (("train", settings.source), ("validation", settings.validation_source or settings.source)):
            if not is_on_hub(source):
                found = list(islice(read_stories(settings, split, seed), 2))
                if split == "train" and len(found) < 2:
                    raise one_story_only(settings.source)
