"""Which runs are chains of one experiment, and which experiments differ in the size of their models alone.

Nothing has to be declared: runs whose protocols decide the same but for the seed are chains of one experiment, which bears the name of its longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.experiment.run import Run

MAKING = ("corpus", "compose", "train", "sample")  # the steps that make a chain; the others measure it
OF_TEXT = ("corpus", "tokenizer", "regime")  # what experiments share that are compared by size

Experiments = dict[str, list[str]]


def experiments(runs: Sequence[str]) -> Experiments:
    """Runs by experiment, in the order in which they are given: its name and its chains, the longest first.

    Runs of one seed are not two chains: whichever comes second stands for itself, as does a run that cannot be opened.
    """
    groups: dict[Any, dict[int, tuple[str, int]]] = {}
    for run in runs:
        protocol = _protocol(run)
        key = run if protocol is None else _decided(protocol, MAKING)
        seed, length = (0, 0) if protocol is None else (protocol.seed, protocol.generations)
        if seed in groups.get(key, {}):
            key = run
        groups.setdefault(key, {})[seed] = (run, length)
    found = ([run for run, _ in sorted(chains.values(), key=lambda chain: -chain[1])] for chains in groups.values())
    return {chains[0]: chains for chains in found}


def sizes(runs: Sequence[str], parameters: dict[str, int]) -> list[str]:
    """Of the experiments among ``runs``, those on one text whose models have two sizes or more, the smallest first; [] if there are none.

    ``parameters`` has those of runs that have trained a model. Of several such families, the one that has more generations to show.
    """
    families: dict[Any, dict[int, tuple[str, int]]] = {}
    for name in experiments(runs):
        protocol = _protocol(name)
        if protocol is not None and protocol.regime.name == "replace" and name in parameters:
            families.setdefault(_decided(protocol, (), OF_TEXT), {}).setdefault(parameters[name], (name, protocol.generations))
    several = [family for family in families.values() if len(family) > 1]
    longest = max(several, key=lambda family: sum(length for _, length in family.values()), default={})
    return [longest[size][0] for size in sorted(longest)]


def _protocol(run: str) -> Protocol | None:
    try:
        return Run.open(run).protocol
    except UserError:
        return None


def _decided(protocol: Protocol, steps: Sequence[str], sections: Sequence[str] = ()) -> str:
    """What decides some steps and sections of the protocol, apart from the run's seed, as a key."""
    names = {name for step in steps for name in STEPS[step].decided_by} | set(sections)
    return repr(sorted((name, str(value)) for name, value in protocol.deciding(names).items() if name != "seed"))
