"""The shapes of the JSON files that a run, a bench and a comparison of runs consist of, for ``files.read_json``.

They name what is read and nothing else: whatever more a file holds is left alone.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12


class Metric(TypedDict):
    value: float
    unit: str
    definition: str
    standard_error: NotRequired[float | None]


class Measured(TypedDict):
    """``metrics/<step>.json``"""

    step: str
    generation: int
    metrics: dict[str, Metric]
    series: dict[str, list[Any]]
    examples: dict[str, Any]
    seconds: float


class Manifest(TypedDict):
    """``manifests/<step>.json``"""

    step: str
    generation: int
    protocol_hash: str
    parents: dict[str, dict[str, str]]
    outputs: dict[str, str]
    seconds: float
    device: str
    started: str
    finished: str
    versions: dict[str, str]
    format: NotRequired[int]  # 2 and later record also
    metrics: NotRequired[str]  # the hash of the metrics file,
    notebook: NotRequired[str]  # that of the executed notebook, as soon as there is one,
    sha256: NotRequired[str]  # and their own
    processes: NotRequired[int]  # that shared the work, on a device each; 1 where it is not named


class LetGo(TypedDict):
    """``<artefact>.let_go.json``"""

    artefact: str
    content: str
    bytes: int
    when: str


class CodeCell(TypedDict):
    cell_type: Literal["code"]
    source: str | list[str]
    execution_count: int | None
    outputs: list[dict[str, Any]]


class TextCell(TypedDict):
    cell_type: Literal["markdown", "raw"]


class NotebookMetadata(TypedDict):
    papermill: NotRequired[dict[str, Any]]


class Notebook(TypedDict):
    cells: list[CodeCell | TextCell]
    metadata: NotebookMetadata


class Shard(TypedDict):
    file: str
    rows: int
    tokens: int
    sha256: str


class Corpus(TypedDict):
    """``corpus.json``"""

    rows: int
    tokens: int
    eos_id: int
    vocabulary: int
    rows_are_complete: bool
    has_start: bool
    shards: list[Shard]


class CompositionPart(TypedDict):
    text: int | None
    rows: str | None
    are_stories: bool
    sha256: NotRequired[str]
    rows_sha256: NotRequired[str]


class Composition(TypedDict):
    """``composition/composition.json``"""

    parts: list[CompositionPart]


class FineTuning(TypedDict):
    """What an interrupted step ``classification`` keeps of a task."""

    made_from: dict[str, Any]
    answers: str
    loss: float


class Estimate(TypedDict):
    value: float
    standard_error: float | None


class Distances(TypedDict):
    generation: int
    made_from: str
    unigram_tv: dict[str, float]
    positions: NotRequired[dict[str, dict[str, int | dict[str, Estimate]]]]


class Comparison(TypedDict):
    """``twins.json``"""

    runs: dict[str, str]
    fields: dict[str, dict[str, Any]]
    train_stories: dict[str, int]
    epochs: dict[str, int]
    positions_wanted: int
    max_context: int
    generations: list[Distances]


class Membership(TypedDict):
    """``study.json``"""

    study: str
    arm: str
    seed: int
    hash: str
    specification: dict[str, Any]


class RecordedChain(TypedDict):
    generations: int
    seconds: float
    manifests: str


class StudyRecord(TypedDict):
    """``studies/<study>/study.json``"""

    study: str
    hash: str
    specification: dict[str, Any]
    chains: dict[str, RecordedChain]


class Attack(TypedDict):
    part: str
    planned: int | None  # nobody knows as long as its cases are still being found
    seed: int
    source: str  # a hash of all that decides what comes of a case
    commit: str
    date: str
    machine: str
    versions: dict[str, str]
    seconds: float
    verdicts: dict[str, list[str]]  # the cases that came to each
    said: dict[str, str]  # of the cases whose sentences are kept


class CampaignRecord(TypedDict):
    """``torture.json``: each attack as it was last tried, which may be at another time than the others."""

    meaning: dict[str, str]  # of the verdicts with which the project held
    titles: dict[str, str]  # of all attacks that there are
    parts: list[Attack]


class Side(TypedDict):
    rate: float
    peak_memory_bytes: float


class Ratio(TypedDict):
    median: float
    least: float
    most: float


class Check(TypedDict):
    what: str
    passed: bool


class Limit(TypedDict):
    name: str
    measured: str
    limit_rate: float
    share: float


class BenchReport(TypedDict):
    """``papermill_runs/bench/*.json``"""

    bench: Literal["sampling", "training", "perplexity", "free-text", "ngram"]
    config: Literal["demo", "1m", "3.7m", "33m"]
    device: str
    date: str
    unit: str
    sides: dict[str, Side]
    ratios: dict[str, Ratio]
    bf16_gain: NotRequired[Ratio]
    checks: list[Check]
    floors: NotRequired[list[Limit]]
