"""A generation's model as a folder that ``huggingface_hub`` uploads as it is: what ``transformers`` opens, and the model card."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collapse_lib.experiment.artefacts import ARTEFACTS, gone, path_of
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_json
from collapse_lib.experiment.lineage import is_composed
from collapse_lib.experiment.paths import project_root
from collapse_lib.experiment.run import Run, Step
from collapse_lib.export.folder import new_folder
from collapse_lib.model.folder import complete
from collapse_lib.steps.inputs import open_artefact
from collapse_lib.text.display import metrics_table, plain
from collapse_lib.text.sources import is_on_hub

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

Results = dict[str, dict[str, Any]]  # step -> its metrics file

USE = """```python
from transformers import pipeline

pipeline("text-generation", ".")("Once upon a time")  # "." is this folder, or its name on the hub
```"""


def trained_generation(run: Run) -> int:
    """The last generation of which a model was trained; raises ``UserError`` when there is none."""
    trained = [step.generation for step in run.steps_named("train") if step.manifest()]
    if not trained:
        raise UserError(f"Run '{run.name}' has trained no model to export yet; `collapse run {run.name}` goes on with it.")
    return trained[-1]


def write_hub_folder(run: Run, generation: int, target: Path) -> None:
    """Write the model of ``generation`` >= 1 with its card into the new folder ``target``.

    Raises ``UserError`` when the run has no such model, when it is damaged or not here, and when ``target`` holds anything.
    """
    model = _model_folder(run.step(generation, "train"))
    tokenizer = open_artefact(run.step(0, "corpus"), "tokenizer")
    with new_folder(target) as folder:
        for file in ARTEFACTS["model"].files:  # the hash of nothing else in there was recorded
            shutil.copy2(model / file, folder)
        complete(folder, tokenizer, read_json(folder / "config.json")["max_position_embeddings"])
        shutil.copy2(run.folder / "protocol.yaml", folder)
        (folder / "README.md").write_text(model_card(run, generation), encoding="utf-8")


def _model_folder(train: Step) -> Path:
    """The model that a step trained; the advice where it is not here holds for a finished run too, of which no step needs it any more."""
    if train.manifest() and not path_of(train.folder, "model").exists() and not gone(train.folder, "model"):
        here = [str(step.generation) for step in train.run.steps_named("train") if path_of(step.folder, "model").exists()]
        others = f"here: generation {', '.join(here)}" if here else "nor is any other of this run"
        raise UserError(
            f"The model of generation {train.generation} of run '{train.run.name}' is not here ({others}); to have it trained again, "
            f"delete {train.manifest_file}, then call `collapse repair {train.run.name}` and `collapse run {train.run.name}`."
        )
    return train.artefact("model")


def model_card(run: Run, generation: int) -> str:
    """The card of a generation's model: front matter that the hub reads, then Markdown for people, none of it shaped by text of the protocol."""
    measured = {step.name: results for step in run.steps_of(generation) if (results := step.results())}
    tables = "\n\n".join(
        f"### {step.kind.title}\n\n{metrics_table(measured[step.name]).data}" for step in run.steps_of(generation) if step.name in measured
    )
    size = f" of {measured['train']['metrics']['parameters']['value']:,} parameters" if "parameters" in measured["train"]["metrics"] else ""
    return f"""---
{front_matter(run, generation, measured).to_yaml()}
---

# Generation {generation} of run {plain(run.name)}

A GPT-Neo language model{size}, generation {generation} of a chain in which models learn from text that their predecessors
wrote. It was made to study how such chains degenerate, and is of no use for anything else.

{plain(run.protocol.description)}

## What it was trained on

{_trained_on(run, generation)}

`protocol.yaml` beside this card holds every field that decided the result.

## Lineage

Each generation's text and model, by content hash (SHA-256):

{_lineage_table(run, generation)}

## Use

{USE}

`generation_config.json` has text drawn from the model's own distribution. The library that trained it: {_versions(run.step(generation, "train"))}.

## What was measured

One chain was run: these numbers are this model's, and say nothing of how others would turn out.

{tables}

## Licence

{_licence_sentence(run)}

## Citation

```bibtex
{_citation()}
```
"""


def front_matter(run: Run, generation: int, measured: Results) -> ModelCardData:
    """What the hub reads of a model card; ``measured`` gives the perplexity, where there is one."""
    from huggingface_hub import EvalResult, ModelCardData

    source, perplexity = run.protocol.corpus.source, measured.get("perplexity", {}).get("metrics", {}).get("perplexity")
    result = perplexity and EvalResult(
        task_type="text-generation",
        dataset_type=source if is_on_hub(source) else "stories",
        dataset_name=f"validation stories of run {run.name}",
        metric_type="perplexity",
        metric_value=perplexity["value"],
        metric_name=perplexity["definition"],
    )
    return ModelCardData(
        model_name=f"{run.name}-generation-{generation:02d}",
        library_name="transformers",
        pipeline_tag="text-generation",
        license="mit" if source == "grammar" else "unknown",
        language="en" if source == "grammar" else None,
        datasets=[source] if is_on_hub(source) else None,
        eval_results=[result] if result else None,
        tags=["gpt_neo", "model-collapse", "synthetic-data"],
    )


def _trained_on(run: Run, generation: int) -> str:
    """What this generation learned from, and where the first one's text came from."""
    corpus, regime = run.protocol.corpus, run.protocol.regime
    source = f"stories of the embedded grammar ({plain(corpus.grammar)})" if corpus.source == "grammar" else f"stories from {plain(corpus.source)}"
    if initial := run.step(0, "corpus").results():
        amounts = {name: initial["metrics"][name]["value"] for name in ("train_stories", "train_tokens") if name in initial["metrics"]}
        source += "".join(f", {value:,} {name.removeprefix('train_')}" for name, value in amounts.items())
    if is_composed(run.protocol, generation):
        settings = {"mix": f" ({regime.real} real text, share {regime.share})", "select": f" ({regime.share} of it, by {regime.verifier})"}
        learned = f"what the regime {plain(regime.name + settings.get(regime.name, ''))} put together"
    else:
        learned = "the initial corpus" if generation == 1 else f"the text that generation {generation - 1} wrote, and nothing else"
    weights = "the weights of its predecessor" if run.protocol.training.init == "previous" and generation > 1 else "fresh weights"
    return f"The initial corpus: {source}. Generation {generation} learned from {learned}, starting with {weights}."


def _lineage_table(run: Run, generation: int) -> str:
    rows = ["| generation | learned from | model |", "|--:|:--|:--|"]
    for step in run.steps_named("train")[1 : generation + 1]:
        if manifest := step.manifest():
            read = next(read for read in step.reads() if read.argument == "learned_text")
            learned = manifest["parents"].get(read.parent(step.generation), {}).get(read.source(step.generation)[1], "not recorded")
            rows.append(f"| {step.generation} | `{learned}` | `{manifest['outputs'].get('model', 'not recorded')}` |")
    return "\n".join(rows)


def _versions(step: Step) -> str:
    manifest = step.manifest()
    return plain(", ".join(f"{name} {version}" for name, version in manifest["versions"].items()) + f"; on {manifest['device']}")


def _licence_sentence(run: Run) -> str:
    if run.protocol.corpus.source == "grammar":
        return "MIT, as the software and the grammar whose stories began the chain."
    return (
        "The software is under the MIT licence. What the licence of the stories that began the chain asks of works made from them holds for "
        "these weights: name a licence in the first lines of this file before you publish it."
    )


def _citation() -> str:
    """The paper's entry in the book's bibliography."""
    bibliography = (project_root() / "book" / "references.bib").read_text(encoding="utf-8")
    return re.search(r"^@misc\{wang2024collapse,.*?^\}", bibliography, re.DOTALL | re.MULTILINE).group()
