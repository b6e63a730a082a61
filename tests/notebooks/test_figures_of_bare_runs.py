"""A run may have been given no tasks, no completions, no judge and no twin: the pages on these say so in a sentence, and are pages."""

from __future__ import annotations

from collections.abc import Iterator

import nbformat
import papermill
import pytest
from jupyter_client.manager import AsyncKernelManager
from refusal import refusal
from synthetic_runs import write_run

from collapse_lib.book.notebooks import notebook_pages
from collapse_lib.experiment.execute import environment, execute
from collapse_lib.experiment.paths import project_root
from collapse_lib.experiment.warm_kernel import warm_kernel

SAID = {
    "figure_3_judged_quality": "Not graded yet: **bare**.",
    "figure_4_classification": "Fine-tuned on no task: **bare**.",
    "figure_a3_classification_1m": "Fine-tuned on no task: **bare**.",
    "figure_a4_f1": "Fine-tuned on no task: **bare**.",
    "figure_a5_f1_1m": "Fine-tuned on no task: **bare**.",
    "table_a2_judged": "Not graded yet: **bare**.",
    "likelihoods": "Step `texture` has not been done yet: **bare**.",
    "tails": "Step `exact` has not been done yet: **bare**.",
    "texture": "Step `texture` has not been done yet: **bare**.",
    "twins": "Not compared with twins: **bare**.",
}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> Iterator[AsyncKernelManager]:
    """A kernel in whose runs folder there is the run ``bare``."""
    runs = tmp_path_factory.mktemp("runs")
    write_run(runs, "bare", 2)
    with environment({"COLLAPSE_RUNS": str(runs)}), warm_kernel() as manager:
        yield manager


def test_pages_on_what_a_run_does_not_have(kernel, tmp_path):
    pages = {page.name: page for page in notebook_pages("figures")}
    for name, sentence in SAID.items():
        target = tmp_path / f"{name}.ipynb"
        execute(pages[name].notebook, target, {"runs": ["bare"]} | pages[name].parameters, kernel)
        outputs = [output for cell in nbformat.read(target, as_version=4).cells for output in cell.get("outputs", [])]
        shown = [output["data"].get("text/markdown", "") for output in outputs if "data" in output]
        assert sum(sentence in text for text in shown) == 1, name
        assert not any("image/svg+xml" in output.get("data", {}) for output in outputs), name


@pytest.mark.parametrize("notebook", sorted((project_root() / "notebooks" / "figures").glob("*.ipynb")), ids=lambda file: file.stem)
def test_a_parameter_that_a_notebook_does_not_have_is_refused(notebook, kernel, tmp_path):
    """By the notebook itself: papermill warns, and would go on without it."""
    known = ", ".join(sorted(papermill.inspect_notebook(str(notebook))))
    assert refusal(notebook, {"run": "bare"}, kernel, tmp_path) == f"This notebook has no parameter 'run', only {known}."
