"""Runs whose numbers are made up: they test reading and drawing, and nothing of them is shown to a reader."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np

from collapse_lib.experiment.files import write_json, write_text
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.metrics import crossed
from collapse_lib.studies.design import Study

EVALUATED = ("train", "sample", "perplexity", "free_text", "exact", "texture")
SAMPLES = ["Once upon a time | there was a *cat*.", "z z z z <b>z</b>\nz", "Tom and $x$ went to the park."]


def write_run(
    root: Path,
    name: str,
    generations: int,
    growth: float = 1.12,
    first: float = 3.0,
    steps: tuple[str, ...] = ("train", "sample", "perplexity", "free_text"),
) -> Path:
    """A finished run in the layout of a run folder, without notebooks, models and corpora."""
    folder = root / name
    write_text(folder / "protocol.yaml", Protocol.from_fields({"corpus": {"stories": 10}, "generations": generations}).to_yaml())
    _write_step(folder, 0, "corpus", {"vocabulary": _value(2048, "tokens"), "train_stories": _value(10, "stories")})
    for generation in range(1, generations + 1):
        perplexity = first * growth ** (generation - 1)
        rise = generation / max(generations, 1)
        measured = {
            "train": (
                {"loss": _value(2.0 / generation, "nats/token"), "tokens": _value(1000, "tokens")},
                {"loss_curve": [[1, 7.0], [10, 3.0], [20, 2.5]], "holdout_losses": [3.1, 2.9, 3.0] if generation == 1 else []},
                {},
            ),
            "sample": ({"tokens": _value(600, "tokens")}, {}, {"samples": [f"{generation}: {text}" for text in SAMPLES]}),
            "perplexity": (
                {"perplexity": _value(perplexity, "1", perplexity * 0.03) | {"counts": {"tokens": 100, "stories": 1}}},
                {},
                {},
            ),
            "free_text": (
                {
                    "entropy": _value(5.0 + math.sin(3 * rise) * 0.6, "nats"),
                    "oov_lexicon_occurrences": _value(int(900 * rise**2) + 20, "words"),
                    "oov_initial_occurrences": _value(int(1500 * rise**2) + 60, "words"),
                    "repeated": _value(0.01 * generation, "1"),
                },
                {},
                {"frequent_oov": [["zzz", 3]]},
            ),
        }
        measured |= {"exact": _exact(generation, rise), "texture": _texture(generation, rise)}
        for step in steps:
            _write_step(folder, generation, step, *measured[step])
    return folder


def _exact(generation: int, rise: float) -> tuple[dict, dict, dict]:
    """A chain that forgets: its excess doubles each generation, its stories break ever earlier, what is rare goes first."""
    legal, told = 0.6 * (1 - rise), [max(1, round(most * (1 - rise))) for most in (8, 60, 30)]
    broken = {"early_end": 0.1, "non_word": 0.5 * rise, "cast": 0.1 * (1 - rise), "plot": 0.1}
    metrics = {
        "story_floor": _value(80.0, "nats"),
        "excess_loss": _value(20.0 * 2**generation, "nats", 2.0**generation),
        "excess_share": _value(0.25 * 2**generation, "1", 0.02 * 2**generation),
        "judged_stories": _value(300, "stories"),
        "legal_share": _value(legal, "1", 0.02),
        "legal_sentences": _value(1 - 0.8 * rise, "1", 0.02),
        "legal_stories": _value(legal / 2, "1", 0.01),
        **{f"broken_{cause}": _value(share, "1", 0.01) for cause, share in broken.items()},
        "broken_word": _value(1 - legal / 2 - sum(broken.values()), "1", 0.01),
        **{f"{kind}_told": _value(number, kind, 1.5) for kind, number in zip(("plots", "endings", "heroes"), told, strict=True)},
        **{f"{kind}_told_expected": _value(number, kind) for kind, number in (("plots", 8.0), ("endings", 58.4), ("heroes", 29.5))},
    }
    edges = (0.0, 0.001, 0.1, 1.0)
    bins = [
        {"low": low, "high": high, "excess": _value(3 * rise * (1 - high), "nats", 0.1), "excess_of_story": _value(20 * generation, "nats", 1.0)}
        for low, high in pairwise(edges)
    ]
    survival = [
        {"first": first, "last": last, "survived": _value(1 - 0.9 * rise / last, "1", 0.02), "predicted": 1 - (1 - 1 / generation) ** last}
        for first, last in ((1, 1), (2, 2), (3, 4), (5, 8))
    ]
    series = {"loss_by_probability": bins, "word_survival": survival, "sizes": [600] * (generation + 1)}
    if generation == 1:
        series |= {"log_probability": [-80.0], "true_losses": [[1.0, 0.5, 0.25]]}
    judged = [["The cat | sat.", 14, None], ["The cat *zat* down.", 9, "non_word"]]
    return metrics, series, {"judged": judged}


def _texture(generation: int, rise: float) -> tuple[dict, dict, dict]:
    """A chain that dissolves: entropy and distinct n-grams rise together."""
    metrics = {
        "unigram_entropy": _value(5.0, "nats", 0.01) | {"counts": {"tokens": 30000, "types": 300}},
        "conditional_entropy": _value(1.0 + 3 * rise, "nats", 0.02),
        "context_information": _value(4.0 - 3 * rise, "nats", 0.02),
        "context_share": _value(0.8 - 0.6 * rise, "1", 0.01),
        **{f"block_distinct_{n}": _value(min(1, 0.1 * n + 0.5 * rise), "1", 0.01) for n in range(1, 5)},
        "above_reference": _value(0.01 + 0.9 * rise**2, "1", 0.005),
        "below_reference": _value(0.5 - 0.4 * rise, "1", 0.03),
        **{f"likelihood_{level}": _value(1.0 + 3 * rise + shift, "nats", 0.01) for level, shift in (("0.5", 0.0), ("0.99", 0.6))},
        "compared_stories": _value(300, "stories") | {"counts": {"tokens": 30000}},
        "self_bleu": _value(0.5 - 0.3 * rise, "1", 0.01),
        "compression_ratio": _value(3.0 - rise, "1", 0.05),
        "text_distance": _value(0.2 + 4 * rise, "1", 0.1),
    }
    if generation == 1:
        metrics |= {f"real_{name}": _value(value, "1") for name, value in (("block_distinct_2", 0.2), ("self_bleu", 0.55))}
    edges = [0.1 * number for number in range(121)]
    middle = 10 * (1.0 + 3 * rise)
    counts = [round(100 * math.exp(-(((number - middle) / 4) ** 2))) for number in range(120)]
    return metrics, {"likelihood_counts": counts, "likelihood_edges": edges}, {}


def answered(right: np.ndarray, recorded: bool = True) -> dict:
    """What a step keeps of a task of two classes: ``right`` [fine-tunings, rows] are the rows that were answered rightly."""
    true = np.arange(right.shape[1]) % 2
    answers = np.where(right, true, 1 - true)
    example = {"labels": ["no", "yes"], "test_balance": np.bincount(true).tolist(), "rows": "of this test"}
    example["confusions"] = [crossed.confusion(true, one, 2).tolist() for one in answers]
    rows = {"true": crossed.packed(true, 2), "answers": [crossed.packed(one, 2) for one in answers]}
    return example | (rows if recorded else {})


def add_classification(folder: Path, generation: int, scores: dict[str, float], seed_sd: float | None = None, examples: dict | None = None) -> None:
    """The ``classification`` step of a generation: a score of accuracy and F1 a task, with an interval of two points; by default one fine-tuning."""
    if examples is None:
        examples = {task: answered(np.arange(400)[None] < 400 * score, recorded=False) for task, score in scores.items()}
    value = {"unit": "1", "definition": "made up"}
    metrics = {"mean_accuracy": value | {"value": 0.5}, "tasks": value | {"value": len(scores)}}
    for task, score in scores.items():
        for measure, shift in (("accuracy", 0.0), ("f1", -0.1)):
            name = f"{task}_{measure}"
            ends = {"": 0.0, "_low": -0.02, "_high": 0.02}
            metrics |= {f"{name}{end}": value | {"value": score + shift + by, "counts": {"test_rows": 408}} for end, by in ends.items()}
            metrics[f"{name}_majority"] = value | {"value": 0.5 + shift}
            if seed_sd is not None:
                metrics[f"{name}_seed_sd"] = value | {"value": seed_sd}
    head = {"step": "classification", "generation": generation}
    place = folder / f"generation-{generation:02d}"
    write_json(place / "metrics" / "classification.json", head | {"metrics": metrics, "series": {}, "examples": examples, "seconds": 1.0})
    more = {
        "protocol_hash": "",
        "parents": {},
        "outputs": {},
        "finished": "",
        "seconds": 1.0,
        "device": "a processor",
        "started": f"2024-01-02T{generation:02d}:00:00+00:00",
        "versions": {},
    }
    write_json(place / "manifests" / "classification.json", head | more)


def write_study(root: Path, study: Study, growths: dict[str, list[float]], generations: int | None = None) -> None:
    """Finished chains of a study: ``growths`` has the factor by which perplexity grows a generation, by arm, one a chain."""
    for arm, of_arm in growths.items():
        for seed, growth in zip(study.seeds_of(arm), of_arm, strict=False):
            folder = write_run(root, f"{study.name}-{arm}-{seed}", generations or study.generations, growth)
            write_text(folder / "protocol.yaml", study.protocol(arm, seed).to_yaml())
            head = {"study": study.name, "arm": arm, "seed": seed, "hash": study.hash}
            write_json(folder / "study.json", head | {"specification": study.model_dump(mode="json")})


def _value(value: float, unit: str, error: float | None = None) -> dict:
    return {"value": value, "unit": unit, "definition": "made up"} | ({} if error is None else {"standard_error": error})


def _write_step(folder: Path, generation: int, step: str, metrics: dict, series: dict | None = None, examples: dict | None = None) -> None:
    place, head = folder / f"generation-{generation:02d}", {"step": step, "generation": generation}
    order = ["corpus", "train", "sample", "perplexity", "free_text", "exact", "texture"].index(step)
    write_json(place / "metrics" / f"{step}.json", head | {"metrics": metrics, "series": series or {}, "examples": examples or {}, "seconds": 1.5})
    manifest = {"protocol_hash": "0", "parents": {}, "outputs": {}, "seed": 1, "seconds": 1.5, "device": "a processor, 2 threads"}
    times = {"started": f"2024-01-01T{generation:02d}:{order:02d}:00+00:00", "finished": f"2024-01-01T{generation:02d}:{order:02d}:01+00:00"}
    write_json(place / "manifests" / f"{step}.json", head | manifest | times | {"versions": {"python": "3.12.1", "torch": "2.11.0"}})
