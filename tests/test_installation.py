"""Installed from a wheel, the library does all that it does in a checkout, and writes only where one stands."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from checkout import ROOT, copy_checkout

from collapse_lib.book.build import PROSE
from collapse_lib.experiment.lineage import steps_of
from collapse_lib.experiment.protocol import load_preset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A virtual environment into which pip installed the wheel, with the packages of this one to import."""
    folder = tmp_path_factory.mktemp("installation")
    source = copy_checkout(folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done(*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), cwd=source)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    packages = Path(done(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    paths = [path for path in sys.path if path.endswith("-packages")] or [sysconfig.get_path("purelib")]
    (packages / "those-of-the-tests.pth").write_text("\n".join(paths))
    done(*pip, "--python", str(python), "install", "--no-deps", "--no-index", "--ignore-installed", str(wheel), cwd=folder)
    return folder / "venv"


def done(*command: str, cwd: Path) -> str:
    """What a command prints that ends well, run without what the tests' own environment says about the library and its runs."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COLLAPSE_RUNS")}
    ended = subprocess.run(command, cwd=cwd, env=variables | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    return ended.stdout


def installed_library(environment: Path) -> Path:
    (library,) = environment.glob("lib/python3*/site-packages/collapse_lib")
    return library


def test_the_wheel_carries_every_module_notebook_and_page(environment):
    library = installed_library(environment)
    carried = {path.relative_to(library).as_posix() for path in library.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    ours = {path.relative_to(ROOT / "collapse_lib") for path in (ROOT / "collapse_lib").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    notebooks = {path.relative_to(ROOT) for path in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts}
    workflow = {path.relative_to(ROOT) for path in (ROOT / "workflow").rglob("*") if path.is_file()}
    prose = {path.relative_to(ROOT) for pattern in PROSE for path in (ROOT / "book").glob(pattern) if path.is_file()}
    assert carried == {path.as_posix() for path in ours} | {f"project/{path.as_posix()}" for path in notebooks | prose | workflow}


def test_an_installation_runs_smoke_and_builds_the_book_in_an_empty_folder(environment, tmp_path):
    steps = sum(len(steps_of(load_preset("smoke"), generation)) for generation in range(3))
    before = sorted(path for path in installed_library(environment).rglob("*") if "__pycache__" not in path.parts)
    command = str(environment / "bin" / "collapse")
    assert f"{steps} steps" in done(command, "run", "smoke", cwd=tmp_path)
    assert str(tmp_path / "book" / "_build" / "html" / "index.html") in done(command, "book", "smoke", cwd=tmp_path)
    assert (tmp_path / "book" / "_build" / "html" / "index.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book", "papermill_runs"]
    assert sorted(path for path in installed_library(environment).rglob("*") if "__pycache__" not in path.parts) == before
