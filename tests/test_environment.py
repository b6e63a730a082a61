"""What `make` installs, what conda users install and what the package accepts agree."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def lines(path):
    return [line.split(" #")[0].strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]


PINS = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines(ROOT / "requirements.txt")}


def conda():
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def test_every_requirement_is_pinned_exactly():
    assert PINS
    for requirement in PINS.values():
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), requirement


def test_conda_users_get_the_same_pins():
    listed = next(entry["pip"] for entry in conda()["dependencies"] if isinstance(entry, dict))
    requirements = [Requirement(line) for line in listed if not line.startswith("-e")]
    assert {canonicalize_name(r.name): str(r) for r in requirements} == {name: str(r) for name, r in PINS.items()}


def test_conda_and_the_makefile_take_the_same_pythons():
    python = next(entry for entry in conda()["dependencies"] if isinstance(entry, str) and entry.startswith("python="))
    assert python.removeprefix("python=") in ("3.11", "3.12")
    assert "(3, 11)" in (ROOT / "Makefile").read_text() and "(3, 12)" in (ROOT / "Makefile").read_text()


def test_the_package_accepts_its_own_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"] + project["optional-dependencies"]["test"]:
        requirement = Requirement(line)
        pin = PINS[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(str(pin.specifier).removeprefix("==")), line


@pytest.mark.parametrize("name", sorted(PINS))
def test_what_is_installed_is_what_is_pinned(name):
    assert version(name).split("+")[0] == str(PINS[name].specifier).removeprefix("==")
