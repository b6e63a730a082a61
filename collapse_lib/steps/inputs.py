"""Open what steps read: each artefact through the one check of its hash, as the thing that it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collapse_lib.experiment.artefacts import mend
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_text
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.experiment.run import Run, Step

if TYPE_CHECKING:
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.tokenizer import Tokenizer
    from collapse_lib.text.view import Selection, Union

Completions = list[tuple[str, list[str]]]  # each beginning with its completions


def open_inputs(step: Step, device: str = "cpu") -> dict[str, Any]:
    """Everything that a step reads, by argument name; None for what its generation does not have, such as a model before generation 1.

    The model of generation 0, where a step reads its own generation's, is the untrained baseline.
    """
    opened: dict[tuple[Step, str | None], Any] = {}
    inputs: dict[str, Any] = {read.argument: None for read in step.reads()}
    for argument, source in step.sources().items():
        if source not in opened:
            maker, artefact = source
            opened[source] = maker.results() if artefact is None else open_artefact(maker, artefact, device)
        inputs[argument] = opened[source]
    if step.generation == 0 and "model" in inputs:
        inputs["model"] = fresh_model(step.run.protocol, 0, inputs["tokenizer"]).to(device)
    return inputs


def open_artefact(step: Step, name: str, device: str = "cpu") -> Any:
    """One artefact of a finished step; raises ``UserError`` when it is missing or not what the step's manifest recorded."""
    return OPENERS[name](step.artefact(name), step, device)


def open_text(run: Run, generation: int) -> TokenCorpus:
    """The text of a generation: what its model wrote, of generation 0 the initial training stories."""
    return open_artefact(run.step(generation, "sample"), "corpus") if generation else open_artefact(run.step(0, "corpus"), "train")


def fresh_model(protocol: Protocol, generation: int, tokenizer: Tokenizer) -> GPTNeo:
    """The randomly initialised model that a generation starts from; generation 0 gives the untrained baseline."""
    from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig

    config = GPTNeoConfig.from_settings(protocol.model, tokenizer.vocabulary, tokenizer.eos_id)
    return GPTNeo(config, seed=protocol.derived_seed(generation, "weights"))


def given_tokenizer(source: str) -> Tokenizer:
    """The tokeniser that a protocol names and does not learn: another run's, a folder's or the hub's."""
    from collapse_lib.text import tokenizer

    kind, _, other = source.partition("run:")
    return open_artefact(Run.open(other).step(0, "corpus"), "tokenizer") if other and not kind else tokenizer.load(source)


def check_beginnings(step: Step) -> None:
    """Raise ``UserError``, before a step is begun, for prompts that cannot be read or are not those that earlier generations were given."""
    protocol, is_continued = step.run.protocol, step.name == "continuations"
    count = protocol.continuations.beginnings if is_continued else protocol.completions.beginnings
    if step.manifest() is not None or count == 0:
        return
    from collapse_lib.metrics.gpt_eval import read_prompts

    prompts = protocol.completions.prompts
    now = read_prompts(prompts)[:count]
    before = next((each for each in step.run.steps() if each.name == step.name and each.manifest() is not None), None)
    if before is None:
        return
    shown = before.results()["examples"]
    if is_continued:
        given = [one["beginning"] for one in shown["continuations"][1:]]  # the first is of no beginning
    else:
        given = shown.get("beginnings") or [beginning for beginning, _ in shown["completions"]]  # of before all were recorded, some
        now = now if "beginnings" in shown else now[: len(given)]
    if given != now:
        raise UserError(f"The prompts '{prompts}' are not those that {before} was given; put them back, or begin another run with the new ones.")


def _corpus(path: Path, step: Step, device: str) -> TokenCorpus:
    from collapse_lib.text.corpus import TokenCorpus

    return TokenCorpus.open(path, mend(step.run.name))


def _composition(path: Path, step: Step, device: str) -> TokenCorpus | Selection | Union:
    from collapse_lib.text import composition

    return composition.load(path, lambda generation: open_text(step.run, generation), mend(step.run.name))


def _tokenizer(path: Path, step: Step, device: str) -> Tokenizer:
    from collapse_lib.text import tokenizer

    return tokenizer.load(path)


def _model(path: Path, step: Step, device: str) -> GPTNeo:
    from collapse_lib.model.gpt_neo import GPTNeo

    return GPTNeo.from_pretrained(path).to(device)


def _words(path: Path, step: Step, device: str) -> set[str]:
    return set(read_text(path).split())


def _completions(path: Path, step: Step, device: str) -> Completions:
    # Not splitlines: random tokens spell characters that it takes for line ends.
    lines = [json.loads(line) for line in read_text(path).split("\n") if line]
    return [(line["beginning"], line["completions"]) for line in lines]


OPENERS: dict[str, Callable[[Path, Step, str], Any]] = {
    "train": _corpus,
    "holdout": _corpus,
    "validation": _corpus,
    "corpus": _corpus,
    "composition": _composition,
    "tokenizer": _tokenizer,
    "words": _words,
    "model": _model,
    "completions": _completions,
}
