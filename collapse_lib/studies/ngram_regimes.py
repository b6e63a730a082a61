"""The n-gram twin of the study of regimes: every regime with a learner that counts, in twenty chains of forty generations.

What makes a network's chain differ from these is its error, for here there is none but sampling. Chains are kept in one table in the runs' folder,
``studies/ngram_regimes.parquet``, which a call of ``run`` fills up.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from collapse_lib.experiment import tables
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import exclusive
from collapse_lib.experiment.paths import runs_root
from collapse_lib.experiment.processes import end_with_parent
from collapse_lib.experiment.regimes import Regime
from collapse_lib.model.ngram import NGram, row_tokens
from collapse_lib.studies.ngram_chains import GrammarWords, Measures, chain, measures
from collapse_lib.text.corpus import TokenCorpus
from collapse_lib.theory.proof import heterozygosity

if TYPE_CHECKING:
    from pandas import DataFrame

GENERATIONS = 40
TOKENS = 20_000
GRAMMAR = "small"  # that of the networks' study
MEASURES = ("tokens", "types", "entropy", "conditional_entropy", "context_information", "distinct_pairs", "contexts", "loss")
AGAIN = "delete it, and `collapse_lib.studies.ngram_regimes.run()` makes it again"
FREQUENCIES = (1, 4, 16, 64)  # occurrences in the initial corpus, from these to twice as many, of the words whose survival is kept


REPLACE = Regime()


@cache  # a process makes many chains, and they share their corpora
def _source(tokens: int) -> GrammarWords:
    return GrammarWords(GRAMMAR, tokens)


@dataclass(frozen=True)
class Arm:
    """``chains`` chains of models with contexts of ``k`` words, ``tokens`` in the initial corpus and in every text."""

    regime: Regime = REPLACE
    k: int = 3
    tokens: int = TOKENS
    chains: int = 20

    @property
    def source(self) -> GrammarWords:
        return _source(self.tokens)


ARMS: dict[str, Arm] = {
    "replace": Arm(),
    "fresh": Arm(Regime("fresh")),
    "first_only": Arm(Regime("first_only")),
    "accumulate": Arm(Regime("accumulate")),
    "accumulate_subsample": Arm(Regime("accumulate_subsample")),
    "mix-0.1": Arm(Regime("mix", 0.1)),
    "mix-0.5": Arm(Regime("mix", 0.5)),
    "select-likelihood": Arm(Regime("select", 0.5), chains=5),  # judging every story takes a minute or two a chain
    "select-grammar": Arm(Regime("select", 0.5, verifier="grammar"), chains=3),
    "quarter": Arm(tokens=TOKENS // 4),
    "fourfold": Arm(tokens=TOKENS * 4),
    "no context": Arm(k=0),
    "no context, 500 tokens": Arm(k=0, tokens=500),
    "no context, 500 tokens, accumulate": Arm(Regime("accumulate"), k=0, tokens=500),
}


def table_file() -> Path:
    """Where the chains' table is kept."""
    return runs_root() / "studies" / "ngram_regimes.parquet"


def load() -> DataFrame:
    """The chains that there are: a row a generation, with columns ``arm``, ``seed``, ``generation`` and what ``measure`` returns.

    Raises ``UserError`` as long as there are none.
    """
    found = _load()
    found.attrs.pop(tables.MADE_FROM, None)
    return found


def _load() -> DataFrame:
    file = table_file()
    if not file.is_file():
        raise UserError(f"There is no table {file} of n-gram chains; `collapse_lib.studies.ngram_regimes.run()` makes it.")
    return tables.load(file, AGAIN)


def run(arms: Mapping[str, Arm] = ARMS, generations: int = GENERATIONS, workers: int | None = None) -> DataFrame:
    """Make the chains that are not there yet, ``workers`` at once (the cores, if not given), and return ``load``'s table.

    Each chain is stored when it is done, so that a call that was interrupted loses no more than those under way. Chains of an arm are numbered from
    seed 1 on; none depends on the others.
    """
    from pandas import DataFrame, concat

    file = table_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(file.with_suffix(".lock"), "The study of n-gram chains"):
        done = _load() if file.is_file() else DataFrame({"arm": [], "seed": []})
        made = {name: _kind(arm, generations) for name, arm in arms.items()}
        origins = done.attrs.pop(tables.MADE_FROM, {})
        if other := [name for name, kind in made.items() if origins.get(name, kind) != kind]:
            raise UserError(f"{file} has chains of '{other[0]}' that are {origins[other[0]]}, and not {made[other[0]]}; {AGAIN}.")
        have = set(zip(done["arm"], done["seed"], strict=True))
        wanted = [(name, seed) for name, arm in arms.items() for seed in range(1, 1 + arm.chains)]
        wanted.sort(key=lambda chain: (-arms[chain[0]].chains, chain[1]))  # quick ones first, and something of each arm
        missing = [chain for chain in wanted if chain not in have]
        with ProcessPoolExecutor(workers or len(os.sched_getaffinity(0)), get_context("spawn"), end_with_parent) as pool:
            try:
                for future in as_completed([pool.submit(one_chain, name, arms[name], seed, generations) for name, seed in missing]):
                    done = concat([part for part in (done, future.result()) if len(part)], ignore_index=True)
                    _store(done, list(arms), file, origins | made)
            except BrokenProcessPool:
                raise UserError(f"A process of the n-gram chains was killed; what is done is in {file}, and the same call goes on.") from None
    return load()


def one_chain(name: str, arm: Arm, seed: int, generations: int = GENERATIONS) -> DataFrame:
    """A chain as ``load``'s table has it."""
    source = arm.source
    floor = -float((source.scores(source.held_out) * row_tokens(source.held_out)).mean())
    found = chain(source, arm.k, generations, arm.regime, seed, measure=partial(measure, floor))
    found.insert(0, "seed", seed)
    found.insert(0, "arm", name)
    return found.astype(dict.fromkeys(found.columns[3:], "float32") | {"seed": "int16", "generation": "int16"})


def measure(floor: float, model: NGram, text: TokenCorpus, initial: TokenCorpus, held_out: TokenCorpus | None) -> Measures:
    """Some of ``ngram_chains.measures``, with two more.

    ``heterozygosity`` is that of the text's words; ``excess_loss`` is how far the loss of a held-out story lies above ``floor``, the smallest
    possible one, in nats: KL(truth || model) up to the sampling of stories.
    """
    every, counts = measures(model, text, initial, held_out), text.token_counts()
    found = {name: every[name] for name in MEASURES}
    found |= {"heterozygosity": float(heterozygosity(counts / counts.sum())), "excess_loss": every["row_loss"] - floor}
    return found | {name: every[name] for name in (f"survived_{m}" for m in FREQUENCIES) if name in every}


def _kind(arm: Arm, generations: int) -> str:
    """What decides a chain, its seed apart, in words."""
    regime = ", ".join(str(value) for value in vars(arm.regime).values() if value is not None)
    return f"{generations} generations of {arm.tokens} tokens, contexts of {arm.k} ({regime})"


def _store(table: DataFrame, arms: list[str], file: Path, made_from: dict[str, str]) -> None:
    """Write the table, in an order that does not tell when which chain was done."""
    order = table["arm"].map({name: number for number, name in enumerate(arms)})
    table = table.assign(order=order).sort_values(["order", "seed", "generation"], ignore_index=True).drop(columns="order")
    tables.store(table, file, made_from)
