"""Sections 2.1 to 2.3: the errors of the proof of one generation, measured on its model and added up over its ancestors.

What is computed at a context is in ``metrics.alpha``; here the contexts are chosen, the generations' errors accumulated, and the means over
contexts recorded. Every value of every context is kept in the step's ``series``, from which the figures are drawn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from collapse_lib.experiment.protocol import Protocol
from collapse_lib.experiment.run import Record, Run
from collapse_lib.steps.frame import Results, Task, perform
from collapse_lib.text.view import Union

if TYPE_CHECKING:
    from collapse_lib.metrics.alpha import Heads
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.tokenizer import Tokenizer
    from collapse_lib.text.view import Selection

SHOWN = 12  # contexts whose largest ratios are written out with their tokens
DIGITS = 7  # of a series' values: more would only fill the file
CHARACTERS_A_TOKEN = 16  # of a grammar's story that are tokenised for each token wanted

# Means over counted contexts, or over positions (``position_*``), with their units; {n} is the generation, {before} the one before it.
# Counted contexts lie inside each other, so that their means have no standard error; of positions, a story's count as one draw.
MEASURES = {
    "divergence": ("nats", "D_inf(p_{before} || p_{n}) = ln(1 + alpha*[{n}] / y[{before}])"),
    "kl": ("nats", "KL(p_{before} || p_{n})"),
    "tv": ("1", "total variation between p_{before} and p_{n}"),
    "entropy": ("nats", "entropy of p_{n}"),
    "accumulated": ("nats", "sum of D_inf over generations 1 to {n} = -ln w_{n}, w_{n} being the initial corpus' share in equation (3)"),
    "log_total": ("nats", "ln y[{n}], y[{n}] = N_x + alpha*[1] + ... + alpha*[{n}]"),
    "initial_divergence": ("nats", "D_inf(p_0 || p_{n}) = -ln w*_{n}, w*_{n} being the largest share of p_0 that p_{n} can contain"),
    "initial_kl": ("nats", "KL(p_0 || p_{n})"),
    "initial_tv": ("1", "total variation between p_0 and p_{n}"),
    "drift_tv": ("1", "expected total variation between p_{before} and the frequencies of N_x tokens drawn from it, N_x of corpus {before}"),
    "drift_kl": ("nats", "expected KL(c || p_{before}) of these frequencies c: what their plug-in entropy loses"),
    "text_tv": ("1", "total variation between p_{before} and what follows x in corpus {before}"),
    "fit_tv": ("1", "total variation between what follows x in corpus {before} and p_{n}"),
    "truth_tv": ("1", "total variation between the grammar's law and p_{n}"),
    "truth_kl": ("nats", "KL(law || p_{n})"),
    "truth_initial_tv": ("1", "total variation between the grammar's law and p_0"),
    "truth_noise_tv": ("1", "total variation by which the law, counted in a sample of stories, is itself expected to be off"),
    "first_divergence": ("nats", "D_inf(p_1 || p_{n})"),
    "first_kl": ("nats", "KL(p_1 || p_{n})"),
    "first_tv": ("1", "total variation between p_1 and p_{n}"),
}
SMOOTHED = "; smoothed, leaving out a mass of {epsilon:g} where the ratio is largest"  # ends the definition of a smoothed measure
OF_DRAWS = ("drift_tv", "drift_kl", "text_tv", "fit_tv")  # of a text's frequencies, which only contexts have that came up in it


def alpha(run: Run, generation: int, device: str = "auto") -> Results:
    """Minimal errors, the initial corpus' weight, drift and memory of ``generation`` (sections 2.1 to 2.3).

    Reads the models of this generation, the one before and the first, the text that it learned from, the initial training and validation stories,
    the tokeniser, and what ``alpha`` measured before. Returns what was measured: means over counted contexts and over positions, and in ``series``
    the values at each.

    Example: ``steps.alpha(Run.open("demo"), 1)["metrics"]["divergence"]["value"]``
    """
    return perform(measure_errors, "alpha", run, generation, device)


def measure_errors(
    task: Task,
    model: GPTNeo,
    previous_model: GPTNeo | None,
    first_model: GPTNeo | None,
    learned_text: TokenCorpus | Selection | Union,
    initial_text: TokenCorpus,
    validation: TokenCorpus,
    tokenizer: Tokenizer,
    previous_alpha: Results | None,
    first_alpha: Results | None,
) -> None:
    """The work of step ``alpha``; in generation 1 there is no previous model, and the first is its own."""
    from collapse_lib.metrics.alpha import measure_counted, measure_positions, sampled_positions

    settings, generation, record = task.protocol.alpha, task.generation, task.record
    prefixes, counts = counted_contexts(task.protocol, initial_text)
    learned = counts if generation == 1 else _follow(learned_text, prefixes)
    series_before = previous_alpha["series"] if previous_alpha else None

    contexts = [np.array((tokenizer.eos_id, *prefix)) for prefix in prefixes]
    truth = _truth(task, tokenizer, prefixes, first_alpha)
    counted = measure_counted(model, previous_model, contexts, counts, learned, settings.smoothing, truth)
    places, stories = sampled_positions(validation, settings.positions, task.protocol.evaluation.max_context, task.seed("alpha", 0))
    positions = measure_positions(model, previous_model, first_model if previous_model else None, places, settings.smoothing)

    attaining = {name: counted.pop(name) for name in ("attaining", "attaining_before", "attaining_now")}
    _accumulate(counted, series_before, "", settings.smoothing)
    if generation > 1:
        _accumulate(positions, series_before, "position_", settings.smoothing)
    counted["log_total"] = np.log(counted["counts"]) + counted["accumulated"]
    _record_means(record, generation, counted, settings.smoothing)
    _record_means(record, generation, positions, settings.smoothing, "position_", stories)
    _record_attaining(record, counted, attaining, prefixes, tokenizer)
    if truth is not None and generation == 1:
        record.examples["truth"] = [" ".join(f"{token}:{row[token]}" for token in np.flatnonzero(row)) for row in truth]
    series = counted | {f"position_{name}": values for name, values in positions.items()}
    record.series = {name: _rounded(values) for name, values in series.items()} | {"position_story": stories.tolist()}
    record.outputs["alpha"] = hashlib.sha256(json.dumps(record.series).encode()).hexdigest()


def counted_contexts(protocol: Protocol, initial_text: TokenCorpus) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """The story beginnings at which a run is measured, and their N_{x;v} [contexts, vocabulary] in its initial corpus (the part trained on)."""
    from collapse_lib.metrics.alpha import frequent_prefixes

    settings = protocol.alpha
    longest = min(settings.longest, protocol.model.max_position_embeddings - 1)
    prefixes = frequent_prefixes(initial_text, settings.contexts, longest, settings.minimum_count)
    return prefixes, _follow(initial_text, prefixes)


def _follow(corpus: TokenCorpus | Selection | Union, prefixes: Sequence[tuple[int, ...]]) -> np.ndarray:
    from collapse_lib.metrics.alpha import next_token_counts, story_heads

    if isinstance(corpus, Union):
        return np.sum([_follow(part, prefixes) for part in corpus.parts], axis=0)
    return next_token_counts(story_heads(corpus, 1 + max(map(len, prefixes))), prefixes, corpus.vocabulary, corpus.eos_id)


def _truth(task: Task, tokenizer: Tokenizer, prefixes: Sequence[tuple[int, ...]], first_alpha: Results | None) -> np.ndarray | None:
    """The grammar's own N_{x;v} in a large seeded sample of its stories, counted in generation 1; None for other sources.

    The grammar knows the probability of any beginning of a *text*, but a token's probability is no ratio of two of these: whether 'cat'
    may follow depends on whether the text goes on to 'cats', which is another token. So the law over tokens is counted.
    """
    from collapse_lib.metrics.alpha import next_token_counts

    corpus, count = task.protocol.corpus, task.protocol.alpha.truth_stories
    if corpus.source != "grammar" or not count:
        return None
    if first_alpha:
        law = np.zeros((len(prefixes), tokenizer.vocabulary), np.int64)
        for row, line in zip(law, first_alpha["examples"]["truth"], strict=True):
            pairs = np.array([pair.split(":") for pair in line.split()], np.int64).reshape(-1, 2)
            row[pairs[:, 0]] = pairs[:, 1]
        return law
    heads = _grammar_heads(task, tokenizer, count, 1 + max(map(len, prefixes)))
    return next_token_counts(heads, prefixes, tokenizer.vocabulary, tokenizer.eos_id)


def _grammar_heads(task: Task, tokenizer: Tokenizer, count: int, length: int) -> Iterator[Heads]:
    from collapse_lib.text.grammar import StoryGrammar

    texts = StoryGrammar(task.protocol.corpus.grammar).stories(task.seed("alpha truth", 0) >> 1, count)
    rows = []
    for text in texts:
        # Far beyond the tokens that are wanted a text can be cut, between words: what stands before is tokenised the same.
        cut = text.find(" ", CHARACTERS_A_TOKEN * length)
        rows.append(text if cut < 0 else text[:cut])
    heads, known = np.full((count, length), tokenizer.eos_id, np.int64), np.empty(count, np.int64)
    for row, ids in enumerate(tokenizer.encode_batch(rows)):
        heads[row, : len(ids)] = ids[:length]
        known[row] = min(len(ids) + 1, length)
    yield heads, known


def _accumulate(found: dict[str, np.ndarray], begun: dict[str, list] | None, where: str, smoothing: Sequence[float]) -> None:
    """Add this generation's divergences to those of its ancestors, as far as these were measured there."""
    for suffix in ("", *(f"_{epsilon:g}" for epsilon in smoothing)):
        before = (begun or {}).get(f"{where}accumulated{suffix}", 0.0)
        found[f"accumulated{suffix}"] = found[f"divergence{suffix}"] + np.asarray(before)


def _record_means(
    record: Record, generation: int, found: dict[str, np.ndarray], smoothing: Sequence[float], where: str = "", groups: np.ndarray | None = None
) -> None:
    from collapse_lib.metrics.uncertainty import grouped_mean

    numbers = {"n": str(generation), "before": str(generation - 1)}
    kind = "positions of validation stories" if where else "counted contexts"
    counts = {"positions" if where else "contexts": len(found["entropy"])}
    record.measure(*counts, *counts.values(), "contexts", f"{kind} at which this was measured")
    for name, values in found.items():
        base, _, epsilon = name.rpartition("_")
        smoothed = base in MEASURES and epsilon in {f"{value:g}" for value in smoothing}
        if not smoothed and name not in MEASURES:
            continue
        kept = base if smoothed else name
        unit, definition = MEASURES[kept]
        if where and kept == "accumulated":
            definition = "sum of D_inf over generations 2 to {n}"
        text = definition.format(**numbers) + (SMOOTHED.format(epsilon=float(epsilon)) if smoothed else "")
        there = np.isfinite(values)
        if not there.any():
            continue
        mean, error = (float(values[there].mean()), None) if groups is None else grouped_mean(values[there], groups[there])
        more = {"standard_error": error} if error is not None else {}
        over = f"those {kind} that came up in corpus {generation - 1}" if name in OF_DRAWS else kind
        record.measure(where + name, mean, unit, f"mean over {over}: {text}", counts=dict.fromkeys(counts, int(there.sum())), **more)
        if not smoothed and name in ("divergence", "accumulated", "initial_divergence"):
            record.measure(f"{where}{name}_median", float(np.median(values)), unit, f"median over {kind}: {text}", counts=counts)


def _record_attaining(
    record: Record, counted: dict[str, np.ndarray], attaining: dict[str, np.ndarray], prefixes: Sequence[tuple[int, ...]], tokenizer: Tokenizer
) -> None:
    """Which tokens the error is about: those whose probability fell most, in proportion."""
    counts = {"contexts": len(prefixes)}
    came_up = int((counted["learned_counts"] > 0).sum())
    record.measure("contexts_learned", came_up, "contexts", "counted contexts that came up in the corpus that this generation learned from")
    definition = "median over counted contexts: N_x in the corpus that this generation learned from"
    record.measure("learned_counts", float(np.median(counted["learned_counts"])), "stories", definition, counts=counts)
    record.measure(
        "attaining_probability",
        float(np.median(attaining["attaining_before"][:, 0])),
        "1",
        "median over counted contexts: what the token of largest ratio p_before / p_now had before",
        counts=counts,
    )
    record.measure(
        "attaining_rank",
        float(np.median(counted["attaining_rank"])),
        "1",
        "median over counted contexts: its rank before (1 = likeliest)",
        counts=counts,
    )
    record.measure(
        "attaining_unseen",
        float(counted["attaining_unseen"].mean()),
        "1",
        "share of counted contexts where that token never follows in the initial corpus",
        counts=counts,
    )
    record.examples["contexts"] = [tokenizer.decode(prefix) for prefix in prefixes]
    record.examples["attaining"] = [_shown(row, attaining, tokenizer) for row in range(min(SHOWN, len(prefixes)))]


def _shown(row: int, attaining: dict[str, np.ndarray], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    values = zip(*(attaining[name][row].tolist() for name in ("attaining", "attaining_before", "attaining_now")), strict=True)
    return [{"token": tokenizer.decode([token]), "before": _short(before), "now": _short(now)} for token, before, now in values if before > 0]


def _rounded(values: np.ndarray) -> list[Any]:
    return [_short(value) if isinstance(value, float) else value for value in values.tolist()]


def _short(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None  # JSON has no word for what is not a number
