"""Find what is damaged, stale or missing in a run, and make its steps undone, so that the next ``collapse run`` makes it again.

A step that is made again on the same kind of machine gives the same bits, so that what was made from it stays valid and is kept. If it gives
others, its descendants are found stale by the next call, and go together.
"""

from __future__ import annotations

from collapse_lib.experiment.artefacts import ARTEFACTS, gone, is_whole, path_of, read_metrics
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import write_text
from collapse_lib.experiment.retention import all_gone, keep_all
from collapse_lib.experiment.run import Run, Step


def faults(run: Run, missing: bool = False) -> dict[Step, str]:
    """The finished steps that have to be made again, in order, with a sentence or a few words why. Reads every byte that is recorded.

    Artefacts that are not there count if a step that is to be done reads them; all of them do if ``missing`` is asked for.
    """
    _refuse_other_format(run)
    found: dict[Step, str] = {}
    differ: set[Step] = set()  # those that will come out otherwise than before
    for step in run.steps():
        if not step.manifest_file.is_file():
            continue
        if reason := _outdated(step, differ):
            found[step] = reason
            differ.add(step)
        elif reason := _damage(step):
            found[step] = reason
    found |= _lost(run, found) if missing else _needed(run, found)
    return {step: found[step] for step in run.steps() if step in found}


def repair(run: Run, missing: bool = False) -> dict[Step, str]:
    """Drop the steps of ``faults``, which are returned; raises ``UserError`` while another process drives the run.

    Whoever asks for what is ``missing`` and was let go wants to keep it: the protocol then lets go of nothing any more.
    """
    with run.exclusive():
        found = faults(run, missing)
        if missing and all_gone(run):
            run = keep_all(run)
            write_text(run.folder / "protocol.yaml", run.protocol.to_yaml())
        for step in reversed(found):
            step.drop()
    return found


def _outdated(step: Step, differ: set[Step]) -> str | None:
    """Why a step would come out otherwise if it were done now."""
    try:
        manifest = step.manifest()
    except UserError:
        return None
    if manifest["protocol_hash"] != step.protocol_hash:
        return "made under another protocol"
    for name, parent in step.parents().items():
        outputs = _outputs(parent)
        if parent in differ or (outputs is not None and outputs != manifest["parents"].get(name, outputs)):
            return f"made from another {name} than there will be"
    return None


def _damage(step: Step) -> str | None:
    """What is wrong with a step's records and artefacts; an artefact that is not there is missed by those who need it alone."""
    try:
        manifest = step.manifest()
        read_metrics(step.folder, step.name, manifest)
        for name in manifest["outputs"].keys() & ARTEFACTS.keys():
            if path_of(step.folder, name).exists():
                path = step.artefact(name)
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


def _lost(run: Run, faulty: dict[Step, str]) -> dict[Step, str]:
    """Sound steps of whose artefacts one is not there."""
    found: dict[Step, str] = {}
    for step in run.steps():
        if step.manifest_file.is_file() and step not in faulty:
            lost = [name for name in step.output_hashes().keys() & ARTEFACTS.keys() if not path_of(step.folder, name).exists()]
            found |= {step: _absent(step, sorted(lost)[0])} if lost else {}
    return found


def _needed(run: Run, faulty: dict[Step, str]) -> dict[Step, str]:
    """Sound steps whose artefacts are not there and are needed, directly or not, by steps that are to be done."""
    found: dict[Step, str] = {}
    waiting = [step for step in run.steps() if step in faulty or not step.manifest_file.is_file()]
    while waiting:
        for source, artefact in waiting.pop().needs():
            is_lost = source.manifest_file.is_file() and not path_of(source.folder, artefact).exists()
            if is_lost and source not in faulty | found:
                found[source] = _absent(source, artefact)
                waiting.append(source)
    return found


def _absent(step: Step, artefact: str) -> str:
    return f"its {artefact} {'was let go' if gone(step.folder, artefact) else 'is not here'}"
