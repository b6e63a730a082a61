"""A run as a Provenance Run Crate, which is a Workflow Run Crate with every step's execution in it: what workflow archives and their tools read.

The crate holds the protocol, the notebooks as they stand and as they were executed, metrics and manifests. Models and corpora are too large, and
their text is not ours to publish: they are described by their content hash, and by whether the run's folder still holds them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from collapse_lib.experiment import lineage
from collapse_lib.experiment.artefacts import ARTEFACTS, content_hash
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_json
from collapse_lib.experiment.paths import project_root
from collapse_lib.experiment.run import Run, Step
from collapse_lib.experiment.shapes import Notebook
from collapse_lib.export.folder import new_folder

if TYPE_CHECKING:
    from rocrate.model import ContextEntity, File
    from rocrate.rocrate import ROCrate

VERSION = "1.1"  # of RO-Crate, on which the run crates' profiles are built
TERMS = "https://w3id.org/ro/terms/workflow-run#"
PROFILES = {  # by permanent address: name and version
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
PAPER = "https://arxiv.org/abs/2412.14872"
NOTEBOOK = "application/x-ipynb+json"
LICENCE = "https://spdx.org/licenses/MIT"


def write_crate(run: Run, target: Path) -> int:
    """Write the finished steps of a run into the new folder ``target`` as an RO-Crate; returns how many they are.

    Raises ``UserError`` when there are none, when one is damaged or stale, and when ``target`` holds anything.
    """
    steps = [step for step in run.steps() if step.is_finished()]
    if not steps:
        raise UserError(f"Run '{run.name}' has no finished step to export yet; `collapse run {run.name}` goes on with it.")
    with new_folder(target) as folder:
        _Export(run, steps).crate.write(folder)
    return len(steps)


class _Export:
    """The crate of a run while it is put together; entities are known by their identifiers."""

    def __init__(self, run: Run, steps: list[Step]):
        from rocrate.rocrate import ROCrate

        self.run = run
        self.crate: ROCrate = ROCrate(version=VERSION)
        self.crate.metadata.extra_terms["sha256"] = f"{TERMS}sha256"
        self.manifests = {step: step.manifest() for step in steps}
        self.began = min(manifest["started"] for manifest in self.manifests.values())
        self.ended = max(manifest["finished"] for manifest in self.manifests.values())
        protocol = self._file(run.folder / "protocol.yaml", "protocol.yaml", "every field that decides the results", "application/yaml")
        self._describe()
        workflow, tools = self._workflow(steps)
        actions = [self._execution(step, tools[step.name]) for step in steps]
        whole = self._action("#run", workflow, [protocol], [result for action in actions for result in action["result"]], self.began, self.ended)
        whole["name"], whole["description"] = f"run {run.name}", f"{len(steps)} steps of {run.protocol.generations} generations"
        self._orchestration(workflow, tools, dict(zip(steps, actions, strict=True)), whole)

    def _describe(self) -> None:
        """The crate itself: what it is, by which profiles and under which licence."""
        root = self.crate.root_dataset
        self.crate.name = f"Run {self.run.name}: language models trained on their predecessors' text"
        self.crate.description = self.run.protocol.description or "Generations of language models, each trained on text that the one before wrote."
        root["datePublished"] = self.ended  # when the last step ended, so that the same run gives the same crate
        root["keywords"] = "language models, model collapse, synthetic data, GPT-Neo"
        terms = {
            "name": "MIT License",
            "description": "Holds for software, notebooks and numbers; text that they quote from a corpus keeps the licence of that corpus.",
        }
        self.crate.license = self._entity(LICENCE, "CreativeWork", terms)
        title = "Why language models collapse when trained on recursively generated text"
        root["citation"] = self._entity(PAPER, "ScholarlyArticle", {"name": title})
        root["conformsTo"] = [
            self._entity(address, "CreativeWork", {"name": name, "version": address.rsplit("/", 1)[1]}) for address, name in PROFILES.items()
        ]

    def _workflow(self, steps: list[Step]) -> tuple[File, dict[str, File]]:
        """The table of steps as the main workflow, and by step the notebook that does it."""
        from rocrate.model import ComputerLanguage

        version = self.manifests[steps[-1]]["versions"]["collapse-lib"]
        python = {"name": "Python", "version": self.manifests[steps[-1]]["versions"]["python"], "url": "https://www.python.org"}
        language = self.crate.add(ComputerLanguage(self.crate, "https://www.python.org#language", properties={"@type": "ComputerLanguage"} | python))
        described = {
            "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
            "name": "Generations of language models",
            "description": "The table of steps: what each reads, what it makes and what decides it.",
            "version": version,
            "encodingFormat": "text/x-python",
        }
        workflow = self.crate.add_workflow(lineage.__file__, "workflow/lineage.py", main=True, lang=language, properties=described)
        tools = {}
        executed = {step.name for step in steps}
        for name in filter(executed.__contains__, lineage.STEPS):
            source = project_root() / "notebooks" / "steps" / f"{name}.ipynb"
            more = {"@type": ["File", "SoftwareSourceCode"], "version": version}
            tools[name] = self._file(source, f"workflow/steps/{name}.ipynb", lineage.STEPS[name].title, NOTEBOOK, **more)
        workflow["hasPart"] = list(tools.values())
        return workflow, tools

    def _execution(self, step: Step, tool: File) -> ContextEntity:
        """One execution of a step: by which notebook, from what, with what outcome, when, on what."""
        manifest, place = self.manifests[step], f"generation-{step.generation:02d}"
        results = [self._artefact(name, digest, step) for name, digest in manifest["outputs"].items() if name in ARTEFACTS]
        for file, what, form in (
            (step.notebook, "the executed notebook", NOTEBOOK),
            (step.metrics_file, "what was measured: value, unit and definition", "application/json"),
            (step.manifest_file, "from what, by what and when it was done", "application/json"),
        ):
            results.append(
                self._file(file, file.relative_to(self.run.folder).as_posix(), f"{step.name} of generation {step.generation}: {what}", form)
            )
        action = self._action(f"#{place}-{step.name}", tool, self._read_by(step), results, manifest["started"], manifest["finished"])
        action["name"] = f"{step.name} of generation {step.generation}"
        action["description"] = f"{step.kind.title}: {manifest['seconds']:,} s on {manifest['device']}"
        properties = {"device": manifest["device"], "seed": str(manifest.get("seed", ""))} | manifest["versions"]
        action["additionalProperty"] = [
            self._entity(quote(f"#{name}-{value}", safe="#"), "PropertyValue", {"name": name, "value": value})
            for name, value in properties.items()
            if value
        ]
        return action

    def _read_by(self, step: Step) -> list[ContextEntity]:
        """What a step read, of all that its parents made: artefacts by the hash that its manifest recorded, and measurements."""
        recorded, read = self.manifests[step]["parents"], {}
        for argument in step.reads():
            parent, (_, artefact) = argument.parent(step.generation), argument.source(step.generation)
            if artefact in recorded.get(parent, {}):
                entity = self._artefact(artefact, recorded[parent][artefact])
                read[entity.id] = entity
        for source, artefact in step.sources().values():
            if artefact is None and source in self.manifests:
                entity = self.crate.dereference(source.metrics_file.relative_to(self.run.folder).as_posix())
                read[entity.id] = entity
        return list(read.values())

    def _orchestration(self, workflow: File, tools: dict[str, File], actions: dict[Step, ContextEntity], whole: ContextEntity) -> None:
        """How papermill drove the steps: what makes a Workflow Run Crate a Provenance Run Crate."""
        how = {}
        for position, (name, tool) in enumerate(tools.items(), 1):
            how[name] = self._entity(f"{workflow.id}#{name}", "HowToStep", {"name": lineage.STEPS[name].title, "position": str(position)})
            how[name]["workExample"] = tool
        workflow["step"] = list(how.values())
        notebooks = (read_json(step.notebook, Notebook)["metadata"].get("papermill", {}) for step in actions)
        versions = sorted({notebook["version"] for notebook in notebooks if "version" in notebook})
        papermill = {"name": "papermill", "softwareVersion": ", ".join(versions) or "unknown", "url": "https://papermill.readthedocs.io"}
        engine = self._entity("https://papermill.readthedocs.io#engine", "SoftwareApplication", papermill)
        controls = []
        for step, action in actions.items():
            controls.append(self._entity(f"{action.id}-control", "ControlAction", {"name": f"papermill executes {step}"}))
            controls[-1]["instrument"], controls[-1]["object"] = how[step.name], action
        organised = self._entity("#papermill", "OrganizeAction", {"name": "papermill drives the run", "startTime": self.began, "endTime": self.ended})
        organised["instrument"], organised["object"], organised["result"] = engine, controls, whole

    def _artefact(self, name: str, digest: str, maker: Step | None = None) -> ContextEntity:
        """A model, a text or the like by its content hash, one entity whoever made or read it; ``maker`` knows where it would lie."""
        identifier = f"#{name}-{digest}"
        if maker is None:
            return self.crate.dereference(identifier) or self._entity(identifier, "CreativeWork", {"name": name, "sha256": digest})
        files = ARTEFACTS[name].files
        content = (
            f"the SHA-256 of {files[0]}" if len(files) == 1 else f"the SHA-256 of the hexadecimal SHA-256 of {', '.join(files)}, one after another"
        )
        status = "in the run's folder, not in this crate" if _is_here(maker, name, digest) else "no longer in the run's folder as it was recorded"
        described = {
            "name": f"{name} of generation {maker.generation}",
            "description": f"{content[0].upper()}{content[1:]} is its hash." if files else "One file, of which this is the SHA-256.",
            "creativeWorkStatus": f"{status}, when this crate was written",
        }
        return self._entity(identifier, "CreativeWork", described | {"sha256": digest})

    def _action(self, identifier: str, tool: File, read: list, results: list, began: str, ended: str) -> ContextEntity:
        times = {"startTime": began, "endTime": ended, "actionStatus": "http://schema.org/CompletedActionStatus"}
        action = self.crate.add_action(tool, identifier, object=read[0] if len(read) == 1 else read, result=results, properties=times)
        self.crate.root_dataset.append_to("mentions", action)
        return action

    def _entity(self, identifier: str, kind: str, properties: dict[str, Any]) -> ContextEntity:
        from rocrate.model import ContextEntity

        return self.crate.add(ContextEntity(self.crate, identifier, properties={"@type": kind} | properties))

    def _file(self, source: Path, destination: str, name: str, form: str, **more: Any) -> File:
        return self.crate.add_file(source, destination, properties={"name": name, "encodingFormat": form} | more, record_size=True)


def _is_here(maker: Step, name: str, digest: str) -> bool:
    """Whether the artefact that a step made is in the run's folder as it was recorded."""
    try:
        return content_hash(maker.folder, name) == digest
    except FileNotFoundError:
        return False
