"""Which generations of a long run share a page, because a reader has no reason to stop at any one of them; and where a generation stands."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from collapse_lib.book.measures import OVERVIEW
from collapse_lib.book.runs import BookRun
from collapse_lib.experiment.lineage import STEPS

SHORT = 12  # generations: in a run that plans no more, each has a page of its own
EVALUATIONS = ("completions", "gpt_eval", "classification")  # steps that make a generation special where not every one has them
PAGE = "quiet-generations"  # of those that share one, in the folder of their run


def quiet_generations(run: BookRun) -> list[int]:
    """The finished generations that share a page: [] in a short run, or where there is only one.

    The initial corpus, the first generation and the last have pages of their own, and so have those that were evaluated when others were not
    (``EVALUATIONS``), those at which a number of the run's overview is highest or lowest, and that into which perplexity took its largest step.
    """
    if run.protocol.generations <= SHORT:
        return []
    special = [name for name in EVALUATIONS if not all(STEPS[name].done_in(run.protocol, generation) for generation in run.models)]
    apart = {0, 1, run.last} | {generation for generation in run.models if run.results[generation].keys() & special}
    for measure in OVERVIEW:
        points = run.series(measure.step, measure.metric)
        apart |= {choose(points, key=lambda point: point[1])[0] for choose in (min, max) if points}
    steps = [(abs(after - before), generation) for (_, before), (generation, after) in pairwise(run.series("perplexity", "perplexity"))]
    apart |= {max(steps)[1]} if steps else set()
    quiet = [generation for generation in run.models if generation not in apart]
    return quiet if len(quiet) > 1 else []


def own_pages(run: BookRun) -> list[int]:
    """The finished generations that have a page of their own."""
    shared = set(quiet_generations(run))
    return [generation for generation in run.results if generation not in shared]


def ranges(generations: Sequence[int]) -> str:
    """Ascending numbers in words: "2, 3 and 5 to 9"."""
    runs: list[list[int]] = []
    for generation in generations:
        if runs and runs[-1][-1] == generation - 1:
            runs[-1].append(generation)
        else:
            runs.append([generation])
    parts = [part for run in runs for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))]
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def page_of(generation: int) -> str:
    """The name of a generation's own page, in the folder of its run."""
    return f"generation-{generation:02d}"


def link(run: BookRun, generation: int, words: str = "") -> str:
    """A link, from another page of its run, to where a generation stands; ``words`` come before its number."""
    is_quiet = generation in quiet_generations(run)
    return f"[{words}{generation}]({f'{PAGE}.ipynb#generation-{generation}' if is_quiet else page_of(generation)})"


def forwarding(generation: int) -> str:
    """An HTML file for the address that a generation's own page would have: it leads on to the page that it shares.

    So the address of a generation is good for ever: a generation may be the last of its run today and a quiet one tomorrow.
    """
    target = f"{PAGE}.html#generation-{generation}"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Generation {generation}</title>'
        f'<meta http-equiv="refresh" content="0; url={target}"><meta name="robots" content="noindex"></head>\n'
        f'<body><p><a href="{target}">Generation {generation}</a></p></body></html>\n'
    )
