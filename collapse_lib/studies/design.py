"""A study's specification: chains that differ in named ways, and what is asked of them, declared before the first of them runs.

    name: mine
    base: demo                                   # a preset, or a protocol's .yaml file
    common: {corpus.source: stories.txt, corpus.stories: null}
    generations: 5
    seeds: 3                                     # chains an arm: 3 means the seeds 1, 2, 3
    arms:
      replace: {}
      warm: {sampling.temperature: 1.2}          # fields of the protocol, dotted or nested
    measures: {loss: {metric: perplexity.perplexity, log: true}}
    contrasts: [{arm: warm, against: replace, measure: loss, expected: greater}]

Seeds change weights, order and sampling; they are drawn anew for every arm, so that all chains are independent and an exact test may deal them to
arms as it likes. The initial corpus is shared by all chains of a study, so that what is inferred holds for this corpus, unless an arm says that it
``changes_data``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_text
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.paths import RUN_NAME, check_run_name
from collapse_lib.experiment.protocol import Protocol, Section, load_preset

CHAIN_STEPS = ("corpus", "compose", "train", "sample")  # what makes a chain; all others look at it
DATA = tuple(name for name in (*STEPS["corpus"].decided_by, "evaluation") if name != "seed")  # what two arms must share to be compared
RESERVED = {"seed": "a chain's seed is one of 'seeds', and the initial corpus has 'corpus.seed'", "generations": "all arms have the study's"}
ARM_WORDS = ("seeds", "changes_data", "note")  # beside them an arm holds fields of the protocol

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]
Sign = Literal["greater", "less"]


def _expanded(seeds: Any) -> Any:
    """A number of chains as that many seeds, from 1 on; a list as it is."""
    is_count = isinstance(seeds, int) and not isinstance(seeds, bool) and 1 <= seeds <= 10_000
    return tuple(range(1, seeds + 1)) if is_count else seeds


def _dotted(fields: Any) -> Any:
    """Fields of a protocol, sections nested or dotted, under their dotted names."""
    if not isinstance(fields, dict):
        return fields
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        is_section = isinstance(value, dict) and "." not in str(name)
        pairs = [(f"{name}.{field}", inner) for field, inner in value.items()] if is_section else [(str(name), value)]
        for field, inner in pairs:
            if field in flat:
                raise ValueError(f"field '{field}' is given twice")
            flat[field] = inner
    for name, reason in RESERVED.items():
        if name in flat:
            raise ValueError(f"'{name}' cannot be set here: {reason}")
    return flat


class Arm(Section):
    """A way in which chains differ from the base: ``fields`` of the protocol under their dotted names."""

    fields: dict[str, Any] = Field({}, description="of the protocol, otherwise than in the base")
    seeds: Seeds | None = Field(None, description="of this arm alone; null: the study's")
    changes_data: bool = Field(False, description="whether it may have another initial corpus, tokenizer or validation set than the base")
    note: str = ""

    @model_validator(mode="before")
    @classmethod
    def _sorted_out(cls, arm: Any) -> Any:
        if arm is None:
            return {}
        if not isinstance(arm, dict) or "fields" in arm:
            return arm
        return {"fields": {name: value for name, value in arm.items() if name not in ARM_WORDS}} | {
            name: arm[name] for name in ARM_WORDS if name in arm
        }

    _dot = field_validator("fields", mode="before")(_dotted)
    _expand = field_validator("seeds", mode="before")(_expanded)


class Measure(Section):
    """A number of each generation: a step's metric, or its logarithm."""

    metric: Annotated[str, Field(pattern=r"^\w+\.\w+$")] = Field(description="step.metric, e.g. perplexity.perplexity")
    log: bool = Field(False, description="its natural logarithm is compared and drawn")
    across_data: bool = Field(False, description="whether it means the same where tokenizer or validation stories are others")
    label: str = ""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, measure: Any) -> Any:
        return {"metric": measure} if isinstance(measure, str) else measure

    @property
    def step(self) -> str:
        return self.metric.partition(".")[0]

    @property
    def name(self) -> str:
        return self.metric.partition(".")[2]


class Contrast(Section):
    """A primary question: does ``arm`` differ from ``against`` in the mean over chains?"""

    arm: str
    against: str
    measure: str
    generation: Annotated[int, Field(ge=0)] | None = Field(None, description="null: the last")
    expected: Sign | None = Field(None, description="how the arm is expected to compare; null: no expectation")
    smallest: Annotated[float, Field(gt=0)] | None = Field(
        None, description="smallest difference worth speaking of: if the interval rules it out, so is the expectation"
    )
    expectation: str = ""


class Equivalence(Section):
    """A claim that two things differ by less than a margin.

    With ``against`` they are two arms at one generation (two samples); without, one arm's generations ``since`` and ``generation`` (paired by chain).
    """

    arm: str
    measure: str
    margin: Annotated[float, Field(gt=0)]
    against: str | None = None
    since: Annotated[int, Field(ge=0)] = 1
    generation: Annotated[int, Field(ge=0)] | None = None
    expectation: str = ""


class Study(Section):
    """Everything that a study declares."""

    name: str
    description: str = ""
    base: str
    common: dict[str, Any] = Field({}, description="fields of the protocol that all arms have otherwise than the base")
    generations: Annotated[int, Field(ge=1, le=1000)]
    seeds: Seeds = (1, 2, 3)
    arms: Annotated[dict[str, Arm], Field(min_length=1)]
    evaluate: tuple[str, ...] = Field(("perplexity", "free_text"), description="steps beside those that make a chain")
    measures: Annotated[dict[str, Measure], Field(min_length=1)] = Field(description="by name; the first is the one on which all arms are compared")
    control: str | None = Field(None, description="arm with which all others are compared; null: the first")
    level: Annotated[float, Field(gt=0, lt=1)] = Field(0.05, description="of all tests; intervals cover with one less this")
    contrasts: tuple[Contrast, ...] = ()
    equivalences: tuple[Equivalence, ...] = ()
    expectations: tuple[str, ...] = ()
    citations: tuple[str, ...] = ()

    _dot = field_validator("common", mode="before")(_dotted)
    _expand = field_validator("seeds", mode="before")(_expanded)

    @model_validator(mode="after")
    def _fits_together(self) -> Study:
        for kind, name in (("study", self.name), *(("arm", arm) for arm in self.arms)):
            if not RUN_NAME.fullmatch(name):
                raise ValueError(f"no {kind} can be called {name!r}; names become part of runs' names, and have letters, digits, '.', '_' and '-'")
        for arm in self.arms:
            seeds = self.seeds_of(arm)
            if again := [seed for seed in seeds if seeds.count(seed) > 1]:
                raise ValueError(f"the seeds of arm '{arm}' repeat {again[0]}, and a chain made twice is one chain")
        for step in self.evaluate:
            if step not in STEPS or step in CHAIN_STEPS:
                raise ValueError(f"evaluate names '{step}'; the steps are {', '.join(name for name in STEPS if name not in CHAIN_STEPS)}")
        for name, measure in self.measures.items():
            if measure.step not in self.steps:
                raise ValueError(f"measure '{name}' needs step '{measure.step}', and this study has {', '.join(self.steps)}")
        if self.control is not None:
            self._known("control", self.control, self.arms)
        for kind, questions in (("contrast", self.contrasts), ("equivalence", self.equivalences)):
            for number, question in enumerate(questions, 1):
                self._answerable(f"{kind} {number}", question)
        return self

    def _answerable(self, where: str, question: Contrast | Equivalence) -> None:
        """Raise ``ValueError`` for a question about what there is not, or of what cannot be compared."""
        arms = [question.arm, *([question.against] if question.against else [])]
        for arm in arms:
            self._known(where, arm, self.arms)
        if len(set(arms)) < len(arms):
            raise ValueError(f"{where} sets arm '{question.arm}' against itself")
        if question.measure not in self.measures:
            raise ValueError(f"{where} names measure '{question.measure}'; there are {', '.join(self.measures)}")
        if not self.comparable(question.measure, *arms):
            changed = next(arm for arm in arms if self.arms[arm].changes_data)
            raise ValueError(
                f"{where} compares '{question.measure}' across data, for arm '{changed}' changes them; "
                "give the measure across_data: true if it means the same there"
            )
        late = [number for number in (question.generation, getattr(question, "since", None)) if number is not None and number > self.generations]
        if late:
            raise ValueError(f"{where} asks for generation {late[0]} of {self.generations}")

    @staticmethod
    def _known(where: str, arm: str, arms: dict[str, Arm]) -> None:
        if arm not in arms:
            raise ValueError(f"{where} names arm '{arm}'; there are {', '.join(arms)}")

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that chains have, in the order of execution; ``compose`` where there is anything to compose."""
        return tuple(name for name in STEPS if name in CHAIN_STEPS or name in self.evaluate)

    @property
    def control_arm(self) -> str:
        return self.control or next(iter(self.arms))

    @property
    def primary_measure(self) -> str:
        return next(iter(self.measures))

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        own = self.arms[arm].seeds
        return self.seeds if own is None else own

    def comparable(self, measure: str, *arms: str) -> bool:
        """Whether a measure means the same in these arms: their data are the base's, or it does not depend on them."""
        return len(arms) < 2 or self.measures[measure].across_data or not any(self.arms[arm].changes_data for arm in arms)

    @property
    def hash(self) -> str:
        """SHA-256 (16 hex digits) over all that the file says; comments and the order of keys are no part of it."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]

    def chains(self) -> list[Chain]:
        """All chains: every arm's first, then every arm's second, and so on. An early look has something of each arm."""
        longest = max(len(self.seeds_of(arm)) for arm in self.arms)
        return [Chain(self, arm, self.seeds_of(arm)[turn]) for turn in range(longest) for arm in self.arms if turn < len(self.seeds_of(arm))]

    @cached_property
    def base_protocol(self) -> Protocol:
        """The base with the ``common`` fields; the seed of its initial corpus is written down."""
        where = f"Study '{self.name}', common fields"
        protocol = _changed(load_preset(self.base), self.common, where)
        own = protocol.seed if protocol.corpus.seed is None else protocol.corpus.seed
        return _changed(protocol, {"corpus.seed": own, "generations": self.generations}, where)

    def protocol(self, arm: str, seed: int) -> Protocol:
        """The protocol of one chain; ``UserError`` for fields that there are not and for data changed without a word."""
        where = f"Study '{self.name}', arm '{arm}'"
        protocol = _changed(self.base_protocol, self.arms[arm].fields, where)
        own, shared = protocol.deciding(DATA), self.base_protocol.deciding(DATA)
        other = [name for name in own if own[name] != shared[name]]
        if other and not self.arms[arm].changes_data:
            raise UserError(
                f"{where} changes '{other[0]}', after which its numbers need not mean what those of other arms do; say changes_data: true."
            )
        independent = int.from_bytes(hashlib.sha256(f"{arm}/{seed}".encode()).digest()[:4], "big")
        return _changed(protocol, {"seed": independent}, where)

    def differences(self, earlier: Study) -> str | None:
        """The dotted name of the first field in which this study is not ``earlier`` with arms or seeds added; None if there is none."""
        mine, theirs = self._fixed(), earlier._fixed()
        if field := _first_difference(mine, theirs):
            return field
        for arm in earlier.arms:
            if arm not in self.arms or not set(earlier.seeds_of(arm)) <= set(self.seeds_of(arm)):
                return f"arms.{arm}" + (".seeds" if arm in self.arms else "")
            if field := _first_difference(self._fixed_of(arm), earlier._fixed_of(arm), f"arms.{arm}"):
                return field
        return None

    def _fixed(self) -> dict[str, Any]:
        """What may not change once there are chains; the control by its name, which an arm put first would change."""
        return self.model_dump(mode="json", exclude={"arms", "seeds"}) | {"control": self.control_arm}

    def _fixed_of(self, arm: str) -> dict[str, Any]:
        return self.arms[arm].model_dump(mode="json", exclude={"seeds"})


@dataclass(frozen=True)
class Chain:
    """One chain of a study: an arm and a seed."""

    study: Study
    arm: str
    seed: int

    @property
    def label(self) -> str:
        return f"{self.arm}-{self.seed}"

    @property
    def name(self) -> str:
        """The name of its run."""
        name = f"{self.study.name}-{self.label}"
        check_run_name(name)
        return name

    @cached_property
    def protocol(self) -> Protocol:
        return self.study.protocol(self.arm, self.seed)


def study_names() -> list[str]:
    """Names of the studies that travel with the library."""
    return sorted(Path(str(entry)).stem for entry in _folder().iterdir() if str(entry).endswith(".yaml"))


def read_study(source: str) -> Study:
    """A study that travels with the library, by name, or one from a ``.yaml`` file."""
    if source.endswith((".yaml", ".yml")):
        if not Path(source).is_file():
            raise UserError(f"There is no study file '{source}'.")
        return study_from_yaml(read_text(Path(source)), f"Study file '{source}'")
    if source not in study_names():
        raise UserError(f"There is no study '{source}'; there are {', '.join(study_names())}, or give a .yaml file.")
    return study_from_yaml(read_text(_folder() / f"{source}.yaml"), f"Study '{source}'")


def study_from_yaml(text: str, where: str = "the study") -> Study:
    """Read and validate a study; anything wrong is a ``UserError`` of one sentence."""
    try:
        fields = yaml.load(text, _UniqueKeys)  # a safe loader with one thing more to refuse
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be a study.") from None
    return study_from_fields(fields, where)


def study_from_fields(fields: Any, where: str = "the study") -> Study:
    """Validate a study's fields; anything wrong is a ``UserError`` of one sentence."""
    try:
        return Study.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"{where}: {_one_sentence(error)}") from None


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys: one of two arms of a name would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if again := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"'{again[0]}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


@cache
def _folder() -> Any:
    return resources.files("collapse_lib.studies") / "presets"


def _changed(protocol: Protocol, fields: dict[str, Any], where: str) -> Protocol:
    try:
        return protocol.with_changes({name: json.dumps(value, ensure_ascii=False, default=str) for name, value in fields.items()})
    except UserError as refusal:
        raise UserError(f"{where}: {refusal}") from None


def _first_difference(mine: Any, theirs: Any, place: str = "") -> str | None:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in [*mine, *(key for key in theirs if key not in mine)]:
            inner = f"{place}.{key}" if place else str(key)
            if key not in mine or key not in theirs:
                return inner
            if found := _first_difference(mine[key], theirs[key], inner):
                return found
        return None
    return None if mine == theirs else place


def _one_sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "value_error":
        return f"{f'{place}: ' if place else ''}{first['ctx']['error']}."
    if first["type"] == "extra_forbidden":
        return f"there is no field '{place}' in a study."
    if first["type"] == "missing":
        return f"field '{place}' is missing."
    return f"field '{place or 'the whole'}' is not allowed as it is: {first['msg'][0].lower()}{first['msg'][1:]}."
