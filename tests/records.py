"""Change what a step has recorded as if it had measured or made that: the file and, in its manifest, the hash."""

from __future__ import annotations

from typing import Any

from collapse_lib.experiment.files import read_json, sealed, sha256, write_json
from collapse_lib.experiment.run import Step


def rewrite_metrics(step: Step, record: dict[str, Any]) -> None:
    """Give a finished step other measurements."""
    write_json(step.metrics_file, record)
    write_json(step.manifest_file, sealed(read_json(step.manifest_file) | {"metrics": sha256(step.metrics_file)}))


def rewrite_outputs(step: Step, **outputs: str) -> None:
    """Give a finished step other hashes of what it made."""
    manifest = read_json(step.manifest_file)
    write_json(step.manifest_file, sealed(manifest | {"outputs": manifest["outputs"] | outputs}))
