"""What `make` installs, what conda users install, what the package declares and what the code imports agree."""

import ast
import json
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NOT_OURS_TO_DECLARE = {"triton"}  # comes with torch where torch was built for GPUs, and is looked for before it is imported


def lines(path):
    return [line.split(" #")[0].strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]


def names(requirements):
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def pins(file):
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines(ROOT / file)}


INSTALLED = packages_distributions()
RUN, TEST = pins("requirements.txt"), pins("requirements-test.txt")
PINS = RUN | TEST


def test_every_requirement_is_pinned_exactly():
    assert PINS
    for requirement in PINS.values():
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), requirement


def test_pins_ask_the_package_index_and_nothing_else():
    for line in [*lines(ROOT / "requirements.txt"), *lines(ROOT / "requirements-test.txt")]:
        assert not line.startswith("-") and "://" not in line and "@" not in line, line


def with_all_they_require(wanted):
    """Names of the installed distributions that some requirements come to; builds of torch for other hardware require more than this one."""
    found, left = set(), list(map(Requirement, wanted))
    while left:
        requirement = left.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key not in found and is_installed(requirement.name):
            found.add(key)
            further = map(Requirement, requires(requirement.name) or [])
            left += [more for more in further if more.marker is None or any(more.marker.evaluate({"extra": extra}) for extra in ("", *key[1]))]
    return {name for name, _ in found}


def is_installed(name):
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def test_what_is_required_is_pinned_and_what_only_tests_require_apart():
    run = with_all_they_require(PROJECT["dependencies"] + EXTRAS["export"])
    test = with_all_they_require(EXTRAS["test"] + EXTRAS["bench"]) - run
    assert run <= RUN.keys() and test <= TEST.keys()
    assert not RUN.keys() & (test | TEST.keys())


def test_conda_users_get_the_same_pins():
    listed = [entry["pip"] for entry in conda()["dependencies"] if isinstance(entry, dict)]
    assert listed == [["-r requirements.txt"]]


def conda():
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def test_conda_and_the_makefile_take_the_same_pythons():
    python = next(entry for entry in conda()["dependencies"] if isinstance(entry, str) and entry.startswith("python="))
    assert python.removeprefix("python=") in ("3.11", "3.12")
    assert "(3, 11)" in (ROOT / "Makefile").read_text() and "(3, 12)" in (ROOT / "Makefile").read_text()


def test_the_package_accepts_its_own_pins():
    for line in PROJECT["dependencies"] + EXTRAS["bench"] + EXTRAS["export"] + EXTRAS["test"]:
        requirement = Requirement(line)
        pin = PINS[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(str(pin.specifier).removeprefix("==")), line


@pytest.mark.parametrize("name", sorted(PINS))
def test_what_is_installed_is_what_is_pinned(name):
    assert version(name).split("+")[0] == str(PINS[name].specifier).removeprefix("==")


def imported(source):
    """Names of the modules that a program's text imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


def foreign(modules, own=()):
    """The distributions, one of which must be declared, of each module that is neither Python's nor ours; the module's name where none is known."""
    tops = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"collapse_lib", *own} - NOT_OURS_TO_DECLARE
    return {top: {canonicalize_name(name) for name in INSTALLED.get(top, [top])} for top in tops}


def undeclared(modules, declared, own=()):
    return sorted(top for top, distributions in foreign(modules, own).items() if not distributions & declared)


def notebooks_code():
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        yield from ("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code")


def test_what_a_run_and_the_book_import_is_declared():
    extras = {"bench": "cost/bench", "judge": "judge", "export": "export"}  # which modules may import what an extra installs
    declared = names(PROJECT["dependencies"])
    for path in (ROOT / "collapse_lib").rglob("*.py"):
        extra = [line for name, folder in extras.items() if ROOT / "collapse_lib" / folder in path.parents for line in EXTRAS[name]]
        assert not undeclared(imported(path.read_text()), declared | names(extra)), path
    for code in notebooks_code():
        assert not undeclared(imported(code), declared), code
    book = yaml.safe_load((ROOT / "book" / "_config.yml").read_text())
    extensions = book["sphinx"]["config"]["extensions"]
    assert "sphinx_proof" in extensions
    for extension in extensions:
        if extension.startswith("collapse_lib."):
            assert (ROOT / f"{extension.replace('.', '/')}.py").is_file()
            continue
        distribution = extension.replace(".", "-")  # `sphinxcontrib` is many distributions' package
        assert canonicalize_name(distribution) in declared, extension


def test_what_is_declared_is_used():
    """By an import, or by name in the library or the book's configuration."""
    library = [path.read_text() for path in (ROOT / "collapse_lib").rglob("*.py")]
    used = set().union(*foreign(module for source in (*library, *notebooks_code()) for module in imported(source)).values())
    said = "\n".join([*library, (ROOT / "book" / "_config.yml").read_text()]).lower()
    for name in names(PROJECT["dependencies"]) - used - {"ipykernel"}:  # the kernel that every notebook names
        assert name in said or name.replace("-", "_") in said or name.replace("-", ".") in said, name


def test_what_the_tests_import_is_declared():
    helpers = {path.stem for path in (ROOT / "tests").glob("*.py")} | {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    declared = names(PROJECT["dependencies"] + EXTRAS["test"])
    for path in (ROOT / "tests").rglob("*.py"):
        assert not undeclared(imported(path.read_text()), declared, helpers), path


def test_the_scan_sees_what_is_not_declared():
    assert undeclared(imported("def f():\n    import numpy.linalg\n    from scipy import stats\n    import os"), {"numpy"}) == ["scipy"]
