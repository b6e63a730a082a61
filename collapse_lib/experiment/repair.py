"""Find what is damaged, stale or missing in a run, and make its steps undone, so that the next ``collapse run`` makes it again.

A step that is made again on the same kind of machine gives the same bits, so that what was made from it stays valid and is kept. If it gives
others, its descendants are found stale by the next call, and go together.
"""

from __future__ import annotations

from collapse_lib.experiment.artefacts import ARTEFACTS, is_whole, path_of
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.run import Run, Step


def faults(run: Run) -> dict[Step, str]:
    """The finished steps that have to be made again, in order, with a sentence or a few words why. Reads every byte that is recorded."""
    _refuse_other_format(run)
    found: dict[Step, str] = {}
    for step in run.steps():
        changed = next((parent for parent in step.parents().values() if found.get(parent, "").startswith("made from")), None)
        if changed and step.manifest_file.is_file():
            found[step] = f"made from {changed}"
        elif fault := _fault(step):
            found[step] = fault
    return dict(sorted((found | _missing(run, found)).items(), key=lambda item: list(run.steps()).index(item[0])))


def repair(run: Run) -> dict[Step, str]:
    """Drop the steps of ``faults``, which are returned; raises ``UserError`` while another process drives the run."""
    with run.exclusive():
        found = faults(run)
        for step in reversed(found):
            step.drop()
    return found


def _fault(step: Step) -> str | None:
    """What is wrong with a finished step's own records and artefacts; artefacts that are not there are no fault."""
    try:
        manifest = step.manifest()
        if manifest is None:
            return None
        stale = [name for name, parent in step.parents().items() if _outputs(parent) not in (None, manifest["parents"].get(name, _outputs(parent)))]
        if stale:
            return f"made from another {stale[0]} than there is now"
        step.results()
        for name in manifest["outputs"].keys() & ARTEFACTS.keys():
            path = path_of(step.folder, name)
            if path.exists():
                step.artefact(name)
                if not is_whole(step.folder, name):
                    return f"a file of {path} is missing or damaged"
    except UserError as refusal:
        return str(refusal).partition("; `collapse repair")[0]
    return None


def _refuse_other_format(run: Run) -> None:
    for step in run.steps():
        if _outputs(step) is not None:
            step.output_hashes()


def _outputs(step: Step) -> dict[str, str] | None:
    try:
        return (step.manifest() or {}).get("outputs")
    except UserError:  # the parent's own fault
        return None


def _missing(run: Run, faulty: dict[Step, str]) -> dict[Step, str]:
    """Sound steps whose artefacts are not there and are needed, directly or not, by steps that are to be done."""
    found: dict[Step, str] = {}
    waiting = [step for step in run.steps() if step in faulty or not step.manifest_file.is_file()]
    while waiting:
        for source, artefact in waiting.pop().sources().values():
            is_lost = artefact and source.manifest_file.is_file() and not path_of(source.folder, artefact).exists()
            if is_lost and source not in faulty | found:
                found[source] = f"its {artefact} is not here"
                waiting.append(source)
    return found
