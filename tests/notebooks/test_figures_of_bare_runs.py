"""A run may have been given no tasks, no completions, no judge and no twin: the pages on these say so in a sentence, and are pages."""

from __future__ import annotations

import nbformat
from synthetic_runs import write_run

from collapse_lib.experiment.execute import execute
from collapse_lib.experiment.paths import project_root
from collapse_lib.experiment.warm_kernel import warm_kernel

SAID = {
    "figure_3_judged_quality": "Not graded yet: **bare**.",
    "figure_4_classification": "Fine-tuned on no task: **bare**.",
    "figure_a3_classification_1m": "Fine-tuned on no task: **bare**.",
    "figure_a4_f1": "Fine-tuned on no task: **bare**.",
    "figure_a5_f1_1m": "Fine-tuned on no task: **bare**.",
    "table_a2_judged": "Not graded yet: **bare**.",
    "twins": "Not compared with twins: **bare**.",
}


def test_pages_on_what_a_run_does_not_have(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    write_run(tmp_path, "bare", 2)
    with warm_kernel() as kernel:
        for name, sentence in SAID.items():
            target = tmp_path / f"{name}.ipynb"
            execute(project_root() / "notebooks" / "figures" / target.name, target, {"runs": ["bare"]}, kernel)
            outputs = [output for cell in nbformat.read(target, as_version=4).cells for output in cell.get("outputs", [])]
            shown = [output["data"].get("text/markdown", "") for output in outputs if "data" in output]
            assert sum(sentence in text for text in shown) == 1, name
            assert not any("image/svg+xml" in output.get("data", {}) for output in outputs), name
