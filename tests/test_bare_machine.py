"""GPU machines often hold torch, transformers and accelerate alone: models, sampling, training and their benches run there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

BROUGHT_LATELY = {"pydantic", "pydantic-core"}  # newer command lines of the hub require them, those on GPU machines do not
ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def with_all_they_require(names: list[str]) -> set[str]:
    """Names of installed distributions and, without extras, of what they depend on."""
    found: set[str] = set()
    while names:
        name = names.pop()
        if name in found:
            continue
        try:
            requirements = map(Requirement, distribution(name).requires or [])
        except PackageNotFoundError:  # a requirement of another platform, or one that this build of torch does without
            continue
        found.add(name)
        names.extend(needed.name for needed in requirements if needed.marker is None or needed.marker.evaluate({"extra": ""}))
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A folder to import from that links to these three and what they depend on, and to nothing else but our own code."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "collapse_lib").symlink_to(ROOT / "collapse_lib")
    for name in with_all_they_require(["torch", "transformers", "accelerate"]) - BROUGHT_LATELY:
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(distribution(name).locate_file(top)))
    return folder


def python(bare: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -S leaves out site-packages; processes that this one starts take the path from the environment and the option from the parent.
    environment = {**os.environ, "PYTHONPATH": str(bare), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-S", *arguments], cwd=bare, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("package", ["pydantic", "pyarrow", "datasets", "spacy", "papermill", "sklearn", "matplotlib"])
def test_the_bare_machine_is_bare(bare, package):
    assert f"No module named '{package}'" in python(bare, "-c", f"import {package}").stderr


@pytest.mark.parametrize("what", ["sampling", "training", "perplexity"])
def test_benches_run_on_a_bare_machine(bare, what):
    done = python(bare, "-m", "collapse_lib.cli", "bench", what, "--config", "demo", "--rounds", "1", "--device", "cpu")
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["bench"] == what and report["checks"] and all(check["passed"] for check in report["checks"])


def test_what_needs_more_says_what_it_needs(bare):
    done = python(bare, "-m", "collapse_lib.cli", "run", "demo")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "collapse: this needs the Python package 'pydantic', which is not installed; `make extras` installs all.\n"
