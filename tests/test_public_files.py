"""What others read of the project, as far as it can be checked here: workflows, citation, archive, images and editors."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib

import pytest
import yaml
from checkers import checker
from checkout import ROOT

import collapse_lib

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def workflow(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())


def commands(name: str) -> list[str]:
    return [step["run"] for job in workflow(name)["jobs"].values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize(
    ("command", "files"),
    [
        (["check-jsonschema", "--builtin-schema", "vendor.github-workflows"], WORKFLOWS),
        (["check-jsonschema", "--builtin-schema", "vendor.citation-file-format"], [ROOT / "CITATION.cff"]),
        (["hadolint"], [ROOT / "Containerfile"]),
    ],
    ids=["workflows", "citation", "image"],
)
def test_a_checker_of_its_own_kind_has_no_complaint(command, files):
    assert files
    ended = subprocess.run([checker(command[0]), *command[1:], *map(str, files)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_workflows_run_all_tests_and_publish_what_make_book_builds():
    assert ".ci/run" in commands("ci") and os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "make book" in commands("pages")
    (published,) = [step["with"]["path"] for step in workflow("pages")["jobs"]["build"]["steps"] if "path" in step.get("with", {})]
    assert f"{published}/index.html" in (ROOT / "Makefile").read_text()
    for name in ("ci", "pages"):  # what a workflow may do beyond reading is said job by job
        assert workflow(name)["permissions"] == {"contents": "read"}


def test_the_package_the_citation_and_the_archive_agree():
    citation, archive = yaml.safe_load((ROOT / "CITATION.cff").read_text()), json.loads((ROOT / ".zenodo.json").read_text())
    assert citation["version"] == archive["version"] == PROJECT["version"] == collapse_lib.__version__
    assert citation["license"] == archive["license"] == PROJECT["license"]
    assert citation["title"] == archive["title"]
    assert citation["abstract"] == archive["description"] and citation["keywords"] == archive["keywords"]
    assert [author["name"] for author in citation["authors"]] == [creator["name"] for creator in archive["creators"]]
    (paper,), (related,) = citation["references"], archive["related_identifiers"]
    assert paper["identifiers"][0]["value"] == related["identifier"] and paper["url"].rsplit("/", 1)[1] in related["identifier"]
    assert f"## {citation['version']} ({citation['date-released']})" in (ROOT / "CHANGELOG.md").read_text()


def test_images_and_editors_install_the_pins_and_nothing_else():
    instructions = (ROOT / "Containerfile").read_text().splitlines()
    installs = [line for line in instructions if "pip install" in line]
    assert [line.split("--no-cache-dir ")[1] for line in installs] == ["--requirement requirements.txt", "--no-deps --editable ."]
    binder = ROOT / ".binder"
    listed = [line for line in (binder / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert listed == ["-r ../requirements.txt"] and (binder / ".." / "requirements.txt").is_file()
    assert (binder / "runtime.txt").read_text().strip().replace("-", ":", 1) in "\n".join(instructions)
    assert os.access(binder / "postBuild", os.X_OK) and subprocess.run(["sh", "-n", binder / "postBuild"], check=False).returncode == 0
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert (ROOT / ".devcontainer" / container["build"]["dockerfile"]).resolve() == ROOT / "Containerfile"
    assert f"--uid 1000 {container['remoteUser']}" in "\n".join(instructions)
