"""Data flows one way through the packages of the library, and through the modules of each: nothing imports against it, lazily neither."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import collapse_lib

LIBRARY = Path(collapse_lib.__file__).parent
ORDER = [
    "experiment",
    "text",
    "model",
    "train",
    "sample",
    "theory",
    "judge",
    "metrics",
    "steps",
    "studies",
    "cost",
    "figures",
    "book",
    "export",
    "cli",
]


def imports() -> dict[str, set[str]]:
    """Module -> the modules of the library that it imports, at the top, in a function or for type checking."""
    files = {
        ".".join(("collapse_lib", *file.relative_to(LIBRARY).with_suffix("").parts)).removesuffix(".__init__"): file for file in LIBRARY.rglob("*.py")
    }
    found = {}
    for module, file in files.items():
        froms = [
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom) and node.module.startswith("collapse_lib")
        ]
        names = {name for node in froms for name in ([f"{node.module}.{alias.name}" for alias in node.names] + [node.module])}
        found[module] = {name for name in names if name in files and not module.startswith(f"{name}.") and name != module}
    return found


def test_no_package_imports_from_a_later_one():
    def rank(module: str) -> int:
        return [*ORDER, "__main__"].index(module.split(".")[1]) if "." in module else -1

    against = [(module, name) for module, names in imports().items() if "." in module for name in names if rank(name) > rank(module)]
    assert against == []
    assert {module.split(".")[1] for module in imports() if "." in module} == {*ORDER, "__main__"}


def test_the_steps_whose_products_follow_the_protocol_are_those_that_its_module_names():
    asking = {module for module, names in imports().items() if "collapse_lib.model.precision" in names and module.startswith("collapse_lib.steps.")}
    assert asking == {f"collapse_lib.steps.{step}" for step in ("train", "sample", "perplexity")}


def test_no_modules_import_each_other():
    graph = {module: {name for name in names if name != "collapse_lib"} for module, names in imports().items()}
    packages = {module for module in graph if (LIBRARY / Path(*module.split(".")[1:]) / "__init__.py").is_file()}
    modules = {module: names - packages for module, names in graph.items() if module not in packages}
    list(TopologicalSorter(modules).static_order())  # raises CycleError
