"""Everything that runs measured, as one tidy table; figures and pages are drawn from it and from nothing else.

One row a number: ``run``, ``generation``, ``step``, ``metric``, ``value``, ``unit``, ``standard_error`` (missing where there is none).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collapse_lib.experiment.artefacts import manifest_files, read_manifest, read_metrics
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import naming
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.parameters import refuse_unknown_parameters
from collapse_lib.experiment.paths import run_folder, run_names, runs_root

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ["run", "generation", "step", "metric", "value", "unit", "standard_error"]
CHAIN_RECORD = "study.json"  # the file that makes a run a chain of a study
FORMATS = ("table", "csv", "json")

Runs = str | Sequence[str]


def load(runs: Runs = "newest") -> DataFrame:
    """The tidy table of some runs: a name, names with commas between them, a list of names, ``newest`` or ``all`` but the chains of studies.

    Only finished steps count. Raises ``UserError`` for a run that is not there or has no finished step yet.
    """
    from pandas import DataFrame

    rows = []
    for run in select(runs):
        manifests = _manifests(run)
        if not manifests:
            raise UserError(f"Run '{run}' has no results yet; `collapse run {run}` goes on with it.")
        for folder, manifest in manifests:
            record = read_metrics(folder, manifest["step"], manifest)
            for name, metric in record["metrics"].items():
                rows.append([run, record["generation"], record["step"], name, metric["value"], metric["unit"], metric.get("standard_error")])
    return DataFrame(rows, columns=COLUMNS).astype({"value": float, "standard_error": float})


def select(runs: Runs = "newest") -> list[str]:
    """Names of the runs that are meant, each once; see ``load``. A run that was begun and has no results yet is not the ``newest``."""
    refuse_unknown_parameters()  # here, where every notebook of figures begins
    names = [name.strip() for name in runs.split(",")] if isinstance(runs, str) else list(runs)
    if names == ["all"]:
        names = [name for name in runs_with_results() if not is_of_study(name)]
        if not names:
            raise UserError(f"No run in {runs_root()} has results yet; `collapse run demo` makes some.")
    return list(dict.fromkeys(run_folder(name, suits=_has_results).name for name in names))


def runs_with_results() -> list[str]:
    """Names of the runs that have at least one finished step, the most recently advanced one first."""
    return [name for name in run_names() if _has_results(runs_root() / name)]


def is_of_study(run: str) -> bool:
    """Whether a run is a chain of a study, which has a page for all of its chains."""
    return (runs_root() / run / CHAIN_RECORD).is_file()


def _has_results(folder: Path) -> bool:
    return bool(manifest_files(folder))


def measured(run: str, generation: int, step: str) -> dict[str, Any]:
    """All that one finished step measured: ``metrics``, ``series``, ``examples``, ``seconds``."""
    folder = run_folder(run) / f"generation-{generation:02d}"
    manifest = read_manifest(folder, step)
    if manifest is None:
        raise UserError(f"Step '{step}' of generation {generation} of run '{folder.parent.name}' is not finished.")
    return read_metrics(folder, step, manifest)


def metric(table: DataFrame, run: str, name: str, step: str | None = None) -> DataFrame:
    """One metric of one run by generation: columns ``generation``, ``value``, ``unit``, ``standard_error``.

    ``step`` tells apart what several steps call alike (``tokens``, ``loss``). Empty if it was not measured.
    """
    rows = table[(table["run"] == run) & (table["metric"] == name)]
    if step:
        rows = rows[rows["step"] == step]
    return rows.sort_values("generation")[["generation", "value", "unit", "standard_error"]].reset_index(drop=True)


def executed(runs: Runs = "all") -> DataFrame:
    """Every executed step: ``run``, ``generation``, ``step``, ``seconds``, ``device``, ``started``, and a column a version."""
    from pandas import DataFrame

    rows = []
    for run in select(runs):
        for _, manifest in _manifests(run):
            head = {name: manifest[name] for name in ("generation", "step", "seconds", "device", "started")}
            rows.append({"run": run} | head | manifest["versions"])
    return DataFrame(rows)


def formatted(table: DataFrame, format: str = "table") -> str:
    """The table as aligned text, CSV or JSON (a list of objects)."""
    if format == "csv":
        return table.to_csv(index=False, lineterminator="\n").rstrip("\n")
    if format == "json":
        return json.dumps(json.loads(table.to_json(orient="records", double_precision=15)), indent=1)
    if format == "table":
        return table.to_string(index=False, na_rep="", formatters={"value": _short, "standard_error": _short})
    raise UserError(f"There is no format '{format}'; choose {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")


def save(table: DataFrame, path: Path) -> None:
    """Write the table to a ``.csv``, ``.json`` or ``.parquet`` file."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json", ".parquet"):
        raise UserError(f"Results cannot be written to '{path.name}'; the name must end in .csv, .json or .parquet.")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder '{path.parent}' to write results to.")
    with naming(path):
        if suffix == ".parquet":
            table.to_parquet(path, index=False)
        else:
            path.write_text(formatted(table, suffix[1:]) + "\n", encoding="utf-8")


def _manifests(run: str) -> list[tuple[Path, dict[str, Any]]]:
    """Generation folders and manifests of a run's finished steps in the order of execution."""
    files = manifest_files(runs_root() / run)
    manifests = [(file.parents[1], read_manifest(file.parents[1], file.stem)) for file in files]
    order = {name: number for number, name in enumerate(STEPS)}  # of those that were begun in the same second
    return sorted(manifests, key=lambda found: (found[1]["generation"], found[1]["started"], order[found[1]["step"]]))


def _short(value: float) -> str:
    from collapse_lib.text.display import number

    if value != value:  # not a number: missing
        return ""
    return number(int(value) if value.is_integer() else value)
