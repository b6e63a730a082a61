"""Which files the package consists of: the library, and as its data the notebooks and the book's sources. All else is in pyproject.toml."""

from setuptools import find_packages, setup

DATA = {"": ["presets/*.yaml", "data/*"]}  # of any package
PROJECT = {  # folders of the project, which an installation keeps under collapse_lib/project
    "notebooks/steps": ["*.ipynb"],
    "notebooks/theory": ["*.ipynb"],
    "notebooks/figures": ["*.ipynb"],
    "notebooks/studies": ["*.ipynb"],
    "book": ["*.md", "*.bib", "*.yml", "_static/*", "_templates/*"],
    "workflow": ["Snakefile", "*.yaml", "time_twelve", "profiles/*/config.yaml"],
}
PACKAGES = {f"collapse_lib.project.{folder.replace('/', '.')}": folder for folder in PROJECT}

setup(
    packages=[*find_packages(include=["collapse_lib*"]), *PACKAGES],
    package_dir=PACKAGES,
    package_data=DATA | {package: PROJECT[folder] for package, folder in PACKAGES.items()},
)
