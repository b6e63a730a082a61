"""The twin experiment: is a chain "unaffected by the distribution of the initial corpus", as section 2.3.1 has it?

Three runs of one protocol, all with the tokenizer of the first:

    <name>             the chain itself
    <name>-twin        another initial corpus, everything else the same, seeds included
    <name>-reseeded    the same initial corpus, other seeds from then on

Two chains that differ in corpus and seeds (the twin and the reseeded run) are set against two that differ in their seeds alone (the chain and the
reseeded run): ``excess_both`` is what another initial corpus adds. The twin against the chain itself would not do (``excess``), for these two share
their seeds and the other pair does not. One chain of each kind is no test, whatever the difference: chance among chains is not seen.

The three are compared at the same positions of held-out stories, generation by generation; what is found goes to ``<name>/twins.json``, one
generation at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import exclusive, read_json, sealed, write_json
from collapse_lib.experiment.machine import choose_device
from collapse_lib.experiment.paths import run_names, runs_root
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.experiment.run import Run
from collapse_lib.experiment.shapes import Comparison
from collapse_lib.steps.inputs import open_artefact, open_text
from collapse_lib.studies.results import Runs, select

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

    from collapse_lib.text.corpus import TokenCorpus

ROLES = ("chain", "twin", "reseeded")
PAIRS = {
    "twin": ("chain", "twin"),  # another initial corpus, the same seeds
    "reseeded": ("chain", "reseeded"),  # other seeds
    "both": ("twin", "reseeded"),  # another initial corpus and other seeds
}
RECORD = "twins.json"
TWINS = {"standard": "twin", "small": "small-twin"}  # parameter sets of the story grammar's languages

# Evaluations that the comparison does not need, and that the two other runs are spared.
SPARED = {"completions.every": "null", "gpt_eval.judge": "null", "classification.tasks": "[]"}


def names(name: str) -> dict[str, str]:
    """The three runs' names by role."""
    return {"chain": name, "twin": f"{name}-twin", "reseeded": f"{name}-reseeded"}


def protocols(name: str, protocol: Protocol, changes: dict[str, str] | None = None) -> dict[str, Protocol]:
    """The three runs' protocols by role.

    ``changes`` are the twin's fields of ``corpus`` (dotted names and texts, as ``--set`` gives them). Without any the story grammar's twin has
    its other parameter set, and for any other source the twin reads the stories behind those of the chain: two disjoint corpora of one kind.
    Raises ``UserError`` for changes of anything but the corpus, for none at all, and where there is no default.
    """
    corpus = protocol.corpus
    if protocol.retention.drop:
        raise UserError("Twins are compared in all generations when the last is done, so that they keep everything: set retention.drop=[].")
    if not changes:
        if corpus.source == "grammar":
            changes = {"corpus.grammar": TWINS.get(corpus.grammar) or next(name for name, twin in TWINS.items() if twin == corpus.grammar)}
        elif corpus.stories is None:
            raise UserError(
                "corpus.stories is null, so the chain takes all stories and leaves none to its twin; "
                "give --set corpus.stories=N, or the twin's own source with --change corpus.source=SOURCE."
            )
        else:
            changes = {"corpus.skip": str(corpus.skip + corpus.stories)}
    for field in changes:
        if not field.startswith("corpus."):
            raise UserError(f"A twin may differ in its initial corpus alone, in fields such as corpus.source, and not in '{field}'.")
    twin = protocol.with_changes({"tokenizer.source": f"run:{name}"} | SPARED | changes)
    if twin.corpus == corpus:
        raise UserError(f"The twin's initial corpus would be the chain's own: {' and '.join(changes)} must get other values than the chain has.")
    own_seed = protocol.seed if corpus.seed is None else corpus.seed
    reseeded = {"seed": str((protocol.seed + 1) % 2**32), "corpus.seed": str(own_seed), "tokenizer.source": f"run:{name}"} | SPARED
    return {"chain": protocol, "twin": twin, "reseeded": protocol.with_changes(reseeded)}


def run_twins(name: str, protocol: Protocol, changes: dict[str, str] | None = None, device: str = "auto") -> Path:
    """Make the three runs, or go on with them, and compare them; returns the record's file.

    A run that is there already keeps its generations where it has more than ``protocol`` asks for.
    """
    from collapse_lib.experiment.execute import advance
    from collapse_lib.steps.preflight import begun, check_stories

    wanted = protocols(name, protocol, changes)
    for role, run_name in names(name).items():  # before the first of them takes its hours
        check_stories(Run.proposed(run_name, wanted[role]))
    for role, run_name in names(name).items():
        with begun(run_name, wanted[role], device) as run:
            print(f"{role}: run {run.name}, {run.protocol.generations} generations in {run.folder}", flush=True)
            advance(run, device)
    return compare(name, device)


def compare(name: str, device: str = "auto") -> Path:
    """Measure how far apart the three runs' generations are, and write ``twins.json`` into the chain's folder.

    A generation that was compared before is not compared again unless one of its models has changed. Raises ``UserError`` when a run or one
    of its generations is missing, and when the three do not share what they must.
    """
    runs = {role: Run.open(run_name) for role, run_name in names(name).items()}
    chain, device = runs["chain"], choose_device(device)
    file, settings = chain.folder / RECORD, chain.protocol.alpha
    if unfinished := [step for run in runs.values() for step in run.steps() if step.name in ("corpus", "train", "sample") and not step.results()]:
        raise UserError(f"Step {unfinished[0]} is not finished; `collapse twins {name}` goes on with it and compares when all is there.")
    _check_shared(runs)
    head = _head(runs)
    with exclusive(chain.folder / "twins.lock", f"The comparison of run '{name}' with its twins"):
        record = read_json(file, Comparison)
        if record is None or any(record[key] != value for key, value in head.items()):
            record = head | {"generations": []}
        known = {found["generation"]: found for found in record["generations"]}
        places = {part: _places(runs[role], settings.positions) for part, role in _validations(runs)}
        for generation in range(min(run.protocol.generations for run in runs.values()) + 1):
            made_from = _made_from(runs, generation)
            if known.get(generation, {}).get("made_from") != made_from:
                known[generation] = {"generation": generation} | _distances(runs, generation, places, device) | {"made_from": made_from}
                write_json(file, sealed(record | {"generations": [known[number] for number in sorted(known)]}))
    return file


def comparisons(runs: Runs = "newest") -> list[dict[str, Any]]:
    """What ``compare`` found about some runs (``results.select``), be they named as the chain, its twin or its reseeded copy; each once.

    Raises ``UserError`` for a record that is damaged, or of other models and texts than those runs have, where they are here.
    """
    suffixes = [run_name for role, run_name in names("").items() if role != "chain"]
    chains = {}
    for name in select(runs):
        chain = next((name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix)), name)
        chains[chain] = read_json(runs_root() / chain / RECORD, Comparison)
    found = [record for record in chains.values() if record]
    for record in found:
        _check_made_from(record)
    return found


def table(records: Sequence[dict[str, Any]]) -> DataFrame:
    """The distances of some comparisons, a row each: chain, generation, the stories whose positions were used (None: whole texts), pair, measure."""
    from pandas import DataFrame

    rows: list[tuple] = []
    for record in records:
        chain = record["runs"]["chain"]
        for found in record["generations"]:
            key = (chain, found["generation"])
            rows += [(*key, None, pair, "unigram_tv", value, None) for pair, value in found["unigram_tv"].items()]
            for part, pairs in found.get("positions", {}).items():
                distances = [(pair, kinds) for pair, kinds in pairs.items() if isinstance(kinds, dict)]
                rows += [(*key, part, pair, kind, at["value"], at["standard_error"]) for pair, kinds in distances for kind, at in kinds.items()]
    return DataFrame(rows, columns=["chain", "generation", "stories", "pair", "measure", "value", "standard_error"])


def _head(runs: dict[str, Run]) -> dict[str, Any]:
    """What the three runs are and have in common."""
    chain = runs["chain"].protocol
    fields = {
        role: {name: run.protocol.flat()[name] for name in chain.differences(run.protocol) if name not in SPARED}
        for role, run in runs.items()
        if role != "chain"
    }
    stories = {role: open_artefact(run.step(0, "corpus"), "train").rows for role, run in runs.items()}
    same = {name: chain.flat()[name] for name in sorted({name for changed in fields.values() for name in changed})}
    return {
        "runs": {role: run.name for role, run in runs.items()},
        "fields": {"chain": same} | fields,
        "train_stories": stories,
        "epochs": {role: run.step(1, "train").results()["metrics"]["epochs"]["value"] for role, run in runs.items()},
        "positions_wanted": chain.alpha.positions,
        "max_context": chain.evaluation.max_context,
    }


def _check_shared(runs: dict[str, Run]) -> None:
    made = {role: run.step(0, "corpus").output_hashes() for role, run in runs.items()}
    for role in ROLES[1:]:
        if made[role]["tokenizer"] != made["chain"]["tokenizer"]:
            raise UserError(f"Runs '{runs['chain'].name}' and '{runs[role].name}' have different tokenizers and cannot be compared.")
    if made["reseeded"] != made["chain"]:
        raise UserError(f"Run '{runs['reseeded'].name}' has another initial corpus than '{runs['chain'].name}'; delete its folder and make it again.")


def _validations(runs: dict[str, Run]) -> Iterator[tuple[str, str]]:
    """Whose validation stories are used: the chain's, and the twin's where they are others."""
    own, other = (open_artefact(runs[role].step(0, "corpus"), "validation").hash for role in ("chain", "twin"))
    yield "chain", "chain"
    if own != other:
        yield "twin", "twin"


def _places(run: Run, count: int) -> tuple[list[np.ndarray], NDArray[np.int64]]:
    from collapse_lib.metrics.alpha import sampled_positions

    return sampled_positions(open_artefact(run.step(0, "corpus"), "validation"), count, run.protocol.evaluation.max_context, run.seed(0, "twins"))


def _check_made_from(record: dict[str, Any]) -> None:
    named = set(record["runs"].values())
    runs = {role: Run.open(name) for role, name in record["runs"].items()} if named <= set(run_names()) else {}
    for found in record["generations"] if runs else ():
        steps = [run.step(found["generation"], step) for run in runs.values() for step in _steps_read(found["generation"])]
        if all(step.manifest_file.is_file() for step in steps) and found["made_from"] != _made_from(runs, found["generation"]):
            file = runs_root() / record["runs"]["chain"] / RECORD
            raise UserError(f"{file} compares other models or texts than these runs have; delete it to have it made again.")


def _steps_read(generation: int) -> tuple[str, ...]:
    return ("train", "sample") if generation else ("corpus",)


def _made_from(runs: dict[str, Run], generation: int) -> str:
    """A hash over what the three runs have at a generation: their initial corpora, or their models and their texts."""
    made = {role: [run.step(generation, step).output_hashes() for step in _steps_read(generation)] for role, run in runs.items()}
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def _distances(runs: dict[str, Run], generation: int, places: dict[str, Any], device: str) -> dict[str, Any]:
    """One generation of the three runs, pair by pair."""
    texts = {role: _unigrams(open_text(run, generation)) for role, run in runs.items()}
    found: dict[str, Any] = {"unigram_tv": {pair: float(np.abs(texts[a] - texts[b]).sum() / 2) for pair, (a, b) in PAIRS.items()}}
    if generation:
        models = {role: open_artefact(run.step(generation, "train"), "model", device) for role, run in runs.items()}
        found["positions"] = {part: _at_positions(models, *where) for part, where in places.items()}
    return found


def _at_positions(models: dict[str, Any], contexts: list[np.ndarray], stories: NDArray[np.int64]) -> dict[str, Any]:
    """Distances of the next-token distributions, averaged over positions, with standard errors that take a story as one draw."""
    from collapse_lib.metrics.alpha import distributions_by_piece, jensen_shannon
    from collapse_lib.metrics.uncertainty import grouped_mean
    from collapse_lib.theory.proof import total_variation

    values: dict[str, dict[str, list]] = {pair: {"tv": [], "js": []} for pair in PAIRS}
    for logs in distributions_by_piece([models[role] for role in ROLES], contexts):
        at = dict(zip(ROLES, logs, strict=True))
        for pair, (a, b) in PAIRS.items():
            values[pair]["tv"].append(total_variation(np.exp(at[a]), np.exp(at[b])))
            values[pair]["js"].append(jensen_shannon(at[a], at[b]))
    joined = {pair: {kind: np.concatenate(parts) for kind, parts in kinds.items()} for pair, kinds in values.items()}
    # The same positions serve all pairs: the error of a difference is that of the differences, not of two separate means.
    joined["excess"] = {kind: joined["twin"][kind] - joined["reseeded"][kind] for kind in ("tv", "js")}
    joined["excess_both"] = {kind: joined["both"][kind] - joined["reseeded"][kind] for kind in ("tv", "js")}
    summary: dict[str, Any] = {"contexts": len(contexts), "stories": len(np.unique(stories))}
    for pair, kinds in joined.items():
        summary[pair] = {kind: dict(zip(("value", "standard_error"), grouped_mean(found, stories), strict=True)) for kind, found in kinds.items()}
    return summary


def _unigrams(corpus: TokenCorpus) -> NDArray[np.float64]:
    counts = corpus.token_counts()
    return counts / counts.sum()
