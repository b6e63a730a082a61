"""A crate says of every execution by what, from what and with what outcome; a checker that is not ours agrees that it is a run crate."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from checkers import checker

from collapse_lib.cli import main
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.run import Run
from collapse_lib.export.crate import PROFILES, write_crate

# What https://w3id.org/ro/crate/1.1/context says of the terms that a crate of ours uses: a checker without a network is told.
SCHEMA_ORG = (
    "ComputerLanguage ControlAction CreateAction CreativeWork Dataset HowTo HowToStep OrganizeAction PropertyValue ScholarlyArticle "
    "SoftwareApplication SoftwareSourceCode about actionStatus additionalProperty citation contentSize creativeWorkStatus datePublished "
    "description encodingFormat endTime hasPart instrument keywords license mainEntity mentions name object position programmingLanguage result "
    "softwareVersion startTime step url value version workExample"
)
CONTEXT = {term: f"http://schema.org/{term}" for term in SCHEMA_ORG.split()} | {
    "File": "http://schema.org/MediaObject",
    "ComputationalWorkflow": "https://bioschemas.org/ComputationalWorkflow",
    "conformsTo": "http://purl.org/dc/terms/conformsTo",
    "sha256": "https://w3id.org/ro/terms/workflow-run#sha256",
}


def entities(crate: Path) -> dict[str, dict]:
    return {entity["@id"]: entity for entity in json.loads((crate / "ro-crate-metadata.json").read_text())["@graph"]}


def ids(value: dict | list[dict]) -> set[str]:
    return {entity["@id"] for entity in (value if isinstance(value, list) else [value])}


@pytest.fixture
def crate(run, tmp_path) -> Path:
    assert write_crate(run, tmp_path / "crate") == 7
    return tmp_path / "crate"


def test_every_execution_names_its_notebook_what_it_read_and_what_it_made(run, crate):
    graph = entities(crate)
    executed = [step for step in run.steps() if step.manifest()]
    assert {name for name in graph if name.startswith("#generation-") and not name.endswith("-control")} == {
        f"#generation-{step.generation:02d}-{step.name}" for step in executed
    }
    for step in executed:
        manifest, action = step.manifest(), graph[f"#generation-{step.generation:02d}-{step.name}"]
        assert action["instrument"] == {"@id": f"workflow/steps/{step.name}.ipynb"}
        assert (action["startTime"], action["endTime"]) == (manifest["started"], manifest["finished"])
        made = {f"#{name}-{digest}" for name, digest in manifest["outputs"].items()}
        files = {file.relative_to(run.folder).as_posix() for file in (step.notebook, step.metrics_file, step.manifest_file)}
        assert ids(action["result"]) == made | files
        versions = {graph[name]["name"]: graph[name]["value"] for name in ids(action["additionalProperty"])}
        assert versions.items() >= manifest["versions"].items() and versions["device"] == manifest["device"]


def test_what_one_step_made_is_what_the_next_one_read(run, crate):
    graph = entities(crate)
    (text,) = [name for name in ids(graph["#generation-01-sample"]["result"]) if name.startswith("#corpus-")]
    (model,) = [name for name in ids(graph["#generation-02-train"]["result"]) if name.startswith("#model-")]
    initial = run.step(0, "corpus").manifest()["outputs"]
    read = ids(graph["#generation-02-train"]["object"])
    assert read == {text, f"#tokenizer-{initial['tokenizer']}", f"#holdout-{initial['holdout']}", "generation-01/metrics/train.json"}
    assert model in ids(graph["#generation-02-sample"]["object"])
    assert f"#validation-{initial['validation']}" not in read  # made by the same step as the tokeniser, and not read


def test_the_crate_holds_what_it_lists_and_no_more(run, crate):
    graph = entities(crate)
    listed = {name for name in graph if not name.startswith(("#", "http", "./", "workflow/lineage.py#"))}
    assert listed == {path.relative_to(crate).as_posix() for path in crate.rglob("*") if path.is_file()}
    for name in listed - {"ro-crate-metadata.json"}:
        assert int(graph[name].get("contentSize", (crate / name).stat().st_size)) == (crate / name).stat().st_size
    executed = "generation-02/train.ipynb"
    assert (crate / executed).read_bytes() == (run.folder / executed).read_bytes()


def test_the_same_run_gives_the_same_crate_and_says_which_artefacts_are_gone(run, crate, tmp_path, monkeypatch):
    shutil.copytree(run.folder, tmp_path / "runs" / "small")
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
    copy = Run.open("small")
    write_crate(copy, tmp_path / "same")
    assert (tmp_path / "same" / "ro-crate-metadata.json").read_bytes() == (crate / "ro-crate-metadata.json").read_bytes()
    shutil.rmtree(copy.generation_folder(1) / "model")
    (copy.generation_folder(1) / "corpus" / "corpus.json").write_text("{}")
    write_crate(copy, tmp_path / "gone")
    before, after = entities(crate), entities(tmp_path / "gone")
    changed = {name.partition("-")[0] for name in before if before[name] != after[name]}
    assert changed == {"#model", "#corpus"}
    model = f"#model-{run.step(1, 'train').manifest()['outputs']['model']}"
    assert before[model]["creativeWorkStatus"].startswith("in the run's folder") and after[model]["creativeWorkStatus"].startswith("no longer")


def test_a_checker_finds_a_provenance_run_crate(crate):
    graph = entities(crate)
    assert ids(graph["./"]["conformsTo"]) == PROFILES.keys()
    assert verdict(crate) == []
    file = crate / "ro-crate-metadata.json"
    file.write_text(file.read_text().replace('"instrument"', '"tool"'))
    assert verdict(crate)  # and would say what is wrong


def verdict(crate: Path) -> list[str]:
    """What the checker says against a crate whose context is given in it instead of by its address."""
    file, copy = crate / "ro-crate-metadata.json", crate.with_name("checked")
    shutil.copytree(crate, copy, dirs_exist_ok=True)
    (copy / file.name).write_text(json.dumps(json.loads(file.read_text()) | {"@context": CONTEXT}))
    validate = [checker("rocrate-validator"), "--no-interactive", "validate", str(copy), "--output-format", "json"]
    chosen = ["--profile-identifier", "provenance-run-crate-0.5", "--requirement-severity", "required"]
    ended = subprocess.run([*validate, *chosen], capture_output=True, text=True, check=False, timeout=120)
    report = json.loads(ended.stdout[ended.stdout.index("{") :])
    return [issue["message"] for issue in report["issues"]]


def test_what_cannot_be_exported_is_said_in_one_sentence(run, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    for arguments, sentence in (
        (["nobody"], "There is no run 'nobody'"),
        (["small", "--output", str(tmp_path / "taken")], "exists and is not an empty folder"),
        (["small", "--generation", "1"], "--hub-folder"),
    ):
        assert main(["export", *arguments]) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1
    assert (tmp_path / "taken" / "file").read_text() == "mine"
    Run.create("begun", run.protocol)
    with pytest.raises(UserError, match=r"no finished step.*collapse run begun"):
        write_crate(Run.open("begun"), tmp_path / "crate")
    shutil.rmtree(Run.open("begun").folder)
    assert not (tmp_path / "crate").exists()


def test_the_command_writes_a_crate_into_an_empty_folder(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["export", "small", "--output", str(tmp_path / "empty")]) == 0
    assert "7 executions" in capsys.readouterr().out and (tmp_path / "empty" / "ro-crate-metadata.json").is_file()
