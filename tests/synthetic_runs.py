"""Runs whose numbers are made up: they test reading and drawing, and nothing of them is shown to a reader."""

from __future__ import annotations

import math
from pathlib import Path

from collapse_lib.experiment.files import write_json, write_text
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.studies.design import Study

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
            "perplexity": ({"perplexity": _value(perplexity, "1") | {"standard_error": perplexity * 0.03}}, {}, {}),
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
        for step in steps:
            _write_step(folder, generation, step, *measured[step])
    return folder


def write_study(root: Path, study: Study, growths: dict[str, list[float]], generations: int | None = None) -> None:
    """Finished chains of a study: ``growths`` has the factor by which perplexity grows a generation, by arm, one a chain."""
    for arm, of_arm in growths.items():
        for seed, growth in zip(study.seeds_of(arm), of_arm, strict=False):
            folder = write_run(root, f"{study.name}-{arm}-{seed}", generations or study.generations, growth)
            write_text(folder / "protocol.yaml", study.protocol(arm, seed).to_yaml())
            head = {"study": study.name, "arm": arm, "seed": seed, "hash": study.hash}
            write_json(folder / "study.json", head | {"specification": study.model_dump(mode="json")})


def _value(value: float, unit: str) -> dict:
    return {"value": value, "unit": unit, "definition": "made up"}


def _write_step(folder: Path, generation: int, step: str, metrics: dict, series: dict | None = None, examples: dict | None = None) -> None:
    place, head = folder / f"generation-{generation:02d}", {"step": step, "generation": generation}
    order = ["corpus", "train", "sample", "perplexity", "free_text"].index(step)
    write_json(place / "metrics" / f"{step}.json", head | {"metrics": metrics, "series": series or {}, "examples": examples or {}, "seconds": 1.5})
    manifest = {"protocol_hash": "0", "parents": {}, "outputs": {}, "seed": 1, "seconds": 1.5, "device": "a processor, 2 threads"}
    times = {"started": f"2024-01-01T{generation:02d}:{order:02d}:00+00:00", "finished": f"2024-01-01T{generation:02d}:{order:02d}:01+00:00"}
    write_json(place / "manifests" / f"{step}.json", head | manifest | times | {"versions": {"python": "3.12.1", "torch": "2.11.0"}})
