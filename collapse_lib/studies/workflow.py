"""Runs and studies as a workflow engine (``workflow/Snakefile``) sees them: steps, the files that say one is done, and those it waits for.

A job is one step of one generation of one run. Its manifest and its executed notebook decide whether it is done, as they do for ``collapse run``.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.paths import run_names
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import Run, Step
from collapse_lib.studies.design import Chain
from collapse_lib.studies.study import check_study, enrol, open_study

KNOWN = {"runs", "studies", "device", "processes"}


@dataclass(frozen=True)
class Target:
    """A run that the workflow makes, of these steps; as a chain of a study, if it is one. The run need not be stored yet.

    ``exact`` is whether its number of generations was asked for: see ``Run.create``.
    """

    run: Run
    only: Container[str] = tuple(STEPS)
    chain: Chain | None = None
    exact: bool = False

    def steps(self) -> list[Step]:
        """All its steps, in the order in which one process would do them."""
        return [step for step in self.run.steps() if step.name in self.only]


def targets(config: Mapping[str, Any]) -> dict[str, Target]:
    """What a configuration asks for, by the run's name.

    ``runs`` is names separated by commas, each of a run or a preset, or a mapping from a run's name to its ``preset``, ``set`` (fields and values)
    and ``generations``; ``studies`` is names or files of studies, separated by commas or a list. Raises ``UserError`` for anything else.
    """
    if unknown := sorted(set(config) - KNOWN):
        raise UserError(f"The workflow has no setting '{unknown[0]}'; it has {', '.join(sorted(KNOWN))}.")
    runs = config.get("runs") or {}
    found = [_target(name, settings or {}) for name, settings in (runs if isinstance(runs, Mapping) else dict.fromkeys(_names(runs))).items()]
    for source in _names(config.get("studies") or []):
        study = open_study(source)
        found += [Target(Run.proposed(chain.name, chain.protocol), study.steps, chain) for chain in study.chains()]
    if not found:
        raise UserError("The workflow has nothing to do; give it --config runs=NAME,NAME or --config studies=NAME.")
    return {target.run.name: target for target in found}


def begin(wanted: Iterable[Target], device: str = "auto") -> None:
    """Check the studies, then store the runs that are not; raises ``UserError`` for whatever would stop one of them before its first step."""
    from collapse_lib.steps import preflight  # which imports torch; a scheduler's every job reads the Snakefile

    wanted = list(wanted)
    for study in {target.chain.study.name: target.chain.study for target in wanted if target.chain}.values():
        check_study(study, device)
    for target in wanted:
        run = preflight.begin(target.run.name, target.run.protocol, device, target.exact)
        if target.chain:
            enrol(target.chain, run)


def done_when(step: Step) -> list[Path]:
    """The files whose presence says that a step is done."""
    return [step.manifest_file, step.notebook]


def waits_for(step: Step) -> list[Path]:
    """The files that must be there before a step can be done: the manifests of those it reads from."""
    return [parent.manifest_file for parent in dict.fromkeys(step.parents().values())]


def critical_steps(run: Run) -> set[str]:
    """Names of the steps without which the last generation cannot sample: what is on nobody's way can wait for them."""
    names: set[str] = set()
    waiting = [run.step(run.protocol.generations, "sample")]
    seen = set(waiting)
    while waiting:
        step = waiting.pop()
        names.add(step.name)
        waiting += (new := set(step.parents().values()) - seen)
        seen |= new
    return names


def _names(value: Any) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else [str(name) for name in value]


def _target(name: str, settings: Mapping[str, Any]) -> Target:
    if unknown := sorted(set(settings) - {"preset", "set", "generations"}):
        raise UserError(f"Run '{name}' of the workflow has no setting '{unknown[0]}'; it has generations, preset, set.")
    exists, generations = name in run_names(), settings.get("generations")
    protocol = Run.open(name).protocol if exists and "preset" not in settings else load_preset(settings.get("preset", name))
    changes = dict(settings.get("set") or {}) | ({} if generations is None else {"generations": generations})
    is_exact = generations is not None
    return Target(Run.proposed(name, protocol.with_changes(changes), is_exact), exact=is_exact)
