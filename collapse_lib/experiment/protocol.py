"""Every knob of a run, validated, with the presets that name the interesting combinations.

Where the paper's text and its released code disagree, the point is a field here and the presets ``paper-*`` and ``released-*``
take the two sides (the table is in the book, "Paper against released code").
"""

from __future__ import annotations

import difflib
import hashlib
import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from collapse_lib.experiment.errors import LONGEST_VALUE, UserError
from collapse_lib.experiment.files import read_text
from collapse_lib.experiment.limits import check_learned_vocabulary
from collapse_lib.experiment.regimes import Regime

Count = Annotated[int, Field(ge=1, le=10**12)]
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


@contextmanager
def _as_values_error() -> Iterator[None]:
    """A rule that stands elsewhere refuses with a whole sentence; pydantic passes on what it knows."""
    try:
        yield
    except UserError as refusal:
        raise ValueError(str(refusal).rstrip(".")) from None


class Section(BaseModel):
    """A frozen group of fields that refuses names it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes ``true`` for 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError(f"field '{info.field_name}' is {str(value).lower()}, which is neither a number nor a text")
        return value


class CorpusSettings(Section):
    """Generation 0: the text that the first model learns."""

    source: str = Field("grammar", description="'grammar' (the embedded one), a .txt, .jsonl[.gz] or .parquet file, a folder, or a hub name")
    grammar: Literal["standard", "twin", "small", "small-twin"] = Field(
        "standard", description="language of the embedded story grammar; a twin has the same stories with reversed probabilities"
    )
    stories: Annotated[int, Field(ge=2, le=10**12)] | None = Field(  # one of them to hold out
        None, description="stories taken for training; null takes all (the grammar has no end: give a number)"
    )
    validation_source: str | None = Field(
        None, description="file, folder or hub name of the validation stories; null: the hub's validation split, else carved from the source"
    )
    validation_stories: Count | None = Field(None, description="stories on which perplexity is computed; null takes all of the validation source")
    text_field: str = Field("text", description="column or key that holds the story in JSONL, Parquet and hub data")
    skip: Annotated[int, Field(ge=0)] = Field(0, description="training stories passed over before the first one is taken")
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = Field(
        None, description="what the choice of stories and of the hold-out depends on; null: the run's seed, which decides all the rest too"
    )


class TokenizerSettings(Section):
    """How text becomes tokens; the same for every generation of a run."""

    source: str = Field(
        "learn", description="'learn' (byte-level BPE from the initial corpus), 'run:NAME' (another run's), a folder or tokenizer.json, or a hub name"
    )
    vocabulary: Count = Field(2048, description="tokens in a learned vocabulary, '<|endoftext|>' included")

    @model_validator(mode="after")
    def _can_be_learned(self) -> TokenizerSettings:
        if self.source == "learn":
            with _as_values_error():
                check_learned_vocabulary(self.vocabulary)
        return self


class ModelSettings(Section):
    """GPT-Neo's shape, under the names of its published configuration."""

    num_layers: Annotated[int, Field(ge=1, le=1024)] = 2
    hidden_size: Annotated[int, Field(ge=1, le=2**15)] = 64
    num_heads: Count = 4
    attention_pattern: tuple[Literal["global", "local"], ...] = Field(
        ("global", "local"), min_length=1, description="kinds of attention, repeated over the layers"
    )
    window_size: Count = Field(256, description="keys a local layer sees, the token itself included")
    max_position_embeddings: Annotated[int, Field(ge=1, le=2**20)] = 2048
    initializer_range: Annotated[float, Field(gt=0, le=10)] = 0.02

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> ModelSettings:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"model.hidden_size is {self.hidden_size}, which model.num_heads = {self.num_heads} does not divide; choose a multiple")
        return self


class TrainingSettings(Section):
    """One generation's pre-training (section 5.1.2)."""

    layout: Literal["contiguous", "story_per_row"] = Field("contiguous", description="one stream cut into blocks, or one padded story a row")
    block_size: Count = Field(512, description="tokens of context a training sequence holds")
    batch_size: Count = Field(320, description="effective batch, in sequences, exact over all devices and accumulation steps")
    micro_batch_size: Count | None = Field(
        None, description="sequences a forward pass takes on one device; null: the largest divisor that fits comfortably"
    )
    epochs: Count | Literal["early_stopping"] = Field(
        "early_stopping", description="passes over the corpus, or found on the hold-out in generation 1"
    )
    max_epochs: Count = Field(10, description="most epochs that early stopping tries")
    holdout: Share = Field(0.05, description="share of the initial corpus held out for early stopping")
    learning_rate: Positive = 5e-4
    schedule: Literal["constant", "linear"] = Field(
        "constant", description="the learning rate's, constant as in the paper or falling linearly to zero; the latter needs a number of epochs"
    )
    betas: tuple[Share, Share] = (0.9, 0.95)
    epsilon: Annotated[float, Field(ge=1e-30, le=1)] = 1e-8  # the least that is not 0 in fp32 when it is divided by
    weight_decay: float = Field(0.1, ge=0, description="on matrices and embeddings; biases and LayerNorm are exempt")
    max_grad_norm: Positive | None = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of matrix products; bf16 on a CPU only where it has units for it, else fp32 and a warning; fp16 needs a GPU to train"
    )
    init: Literal["fresh", "previous"] = Field(
        "fresh", description="weights that a generation starts from: newly drawn, as in the paper, or its predecessor's"
    )
    eos_is_target: bool = Field(True, description="false: every '<|endoftext|>' label is ignored, as in the released code")
    data_order: Literal["derived", "repeated"] = Field(
        "derived", description="a fresh shuffle each generation, or the same one every time as in the released code"
    )
    checkpoint_every: Count = Field(500, description="optimizer steps between checkpoints")

    @model_validator(mode="after")
    def _fall_has_an_end(self) -> TrainingSettings:
        if self.schedule == "linear" and self.epochs == "early_stopping":
            raise ValueError("training.schedule is linear, which needs to know the last step: give training.epochs a number")
        return self


class SamplingSettings(Section):
    """How a generation writes the corpus of the next (section 5.1.2)."""

    sequences: Count = 1_000_000
    length: Count = Field(600, description="sampled tokens a sequence")
    batch_size: Count = Field(200, description="sequences decoded at once; the sample does not depend on it")
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0  # logits divided by it must stay finite in fp32
    top_k: Count | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    start: Literal["endoftext", "masked_zero"] = Field(
        "endoftext", description="start token kept in the sequence, or the released code's masked token 0"
    )
    after_eos: Literal["continue", "pad"] = Field("continue", description="go on with the next story, or pad the rest of the sequence")
    max_context: Count = Field(512, description="previous tokens the model may see")
    overflow: Literal["slide", "hop", "extend"] = Field(
        "hop",
        description="past max_context: re-encode a sliding window each token, re-encode half a window each half window, or let positions run on",
    )
    shard_sequences: Count = Field(1024, description="sequences a shard file holds; an interrupted run resumes at the last shard")


class RegimeSettings(Section):
    """What generation 2 and later ones learn from (``regimes`` says what each name means); generation 1 learns from the initial corpus."""

    name: Literal["replace", "fresh", "first_only", "accumulate", "accumulate_subsample", "mix", "select"] = Field(
        "replace", description="how real and synthetic text are arranged; 'replace', the predecessor's text alone, is the paper's"
    )
    share: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="of real text in 'mix'; of the predecessor's stories that 'select' keeps"
    )
    real: Literal["old", "fresh"] = Field("old", description="real text of 'mix': the initial corpus' again, or text that nobody has read yet")
    verifier: Literal["likelihood", "grammar"] = Field(
        "likelihood", description="whose opinion 'select' goes by: generation 1's model, or the grammar's exact law"
    )
    training: Literal["steps", "epochs"] = Field(
        "steps", description="how long 'accumulate' trains on its growing corpus: as many steps as on the predecessor's text, or as many epochs"
    )

    @model_validator(mode="after")
    def _fields_belong_to_the_regime(self) -> RegimeSettings:
        with _as_values_error():
            self.regime  # noqa: B018 - it refuses what does not belong together
        if self.training != "steps" and self.name != "accumulate":
            raise ValueError(f"regime.training is {self.training}, which 'accumulate' alone has")
        return self

    @property
    def regime(self) -> Regime:
        return Regime(self.name, self.share, self.real, self.verifier)


class EvaluationSettings(Section):
    """What is measured on every generation."""

    perplexity: Literal["paper", "released"] = Field("paper", description="section 5.2, or what the released script computes")
    max_context: Count = Field(512, description="previous tokens a scored token may see")


class CompletionsSettings(Section):
    """Story beginnings that generations are asked to complete (section 5.3.3, step 1); always sampled from the model's own distribution."""

    prompts: str = Field(
        "own",
        description="'own' (44 beginnings shipped with the library), 'small' (12 of the small grammar), a .yaml file or a folder with one, "
        "or a hub name (roneneldan/TinyStories)",
    )
    beginnings: Count | None = Field(None, description="how many of the prompts are used, from the first on; null takes all")
    samples: Count = Field(10, description="completions of each beginning")
    max_new_tokens: Count = Field(210, description="most tokens of a completion")
    every: Count | None = Field(5, description="generations 1, 1 + every, ..., the last and the untrained baseline complete stories; null: none does")


class ContinuationsSettings(Section):
    """The few beginnings that every generation continues once, for the viewer of the book (step ``continuations``)."""

    beginnings: Annotated[int, Field(ge=0)] = Field(4, description="of ``completions.prompts``, from the first on; the empty one comes beside them")
    tokens: Count = Field(60, description="most tokens of a continuation")


class GPTEvalSettings(Section):
    """Grades that a language model, the judge, gives to the completions (section 5.3.3, step 2).

    The endpoint and its key are no fields: they come from OPENAI_BASE_URL and OPENAI_API_KEY, so that a protocol from elsewhere cannot send
    a key anywhere.
    """

    judge: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="model that grades, under its endpoint's name; null: nothing is graded"
    )
    wording: Literal["paper", "strict"] = Field(
        "paper", description="of the question; 'strict' is for small judges, which give everything the same grades in the paper's"
    )
    answer_format: Literal["json_schema", "json_object", "text"] = Field(
        "json_schema", description="how the judge is held to the form of a grade; models without structured output need 'text'"
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(0.0, description="of the judge; null leaves it to the endpoint")
    max_answer_tokens: Count = Field(100, description="most tokens of a judge's answer")
    samples: Count | None = Field(None, description="of each beginning's completions, how many are graded, the first ones; null: all")
    controls: Annotated[int, Field(ge=2)] = Field(
        20, description="real stories of which a continuation, another story's, its words shuffled, and random tokens are graded too"
    )
    concurrency: Count = Field(4, description="requests under way at once")
    retries: Annotated[int, Field(ge=0)] = Field(6, description="times a request is sent again after 429, 5xx or no answer")
    timeout: Annotated[float, Field(gt=0, le=86_400)] = Field(60.0, description="seconds to wait for an answer")
    price_in: Annotated[float, Field(ge=0)] | None = Field(None, description="price of a million prompt tokens; null: unknown")
    price_out: Annotated[float, Field(ge=0)] | None = Field(None, description="price of a million answer tokens; null: unknown")
    max_cost: Annotated[float, Field(ge=0)] | None = Field(
        None, description="most that grading this run may cost, in the prices' currency; null: no limit"
    )

    @model_validator(mode="after")
    def _limit_has_prices(self) -> GPTEvalSettings:
        if self.max_cost is not None and (self.price_in is None or self.price_out is None):
            raise ValueError("gpt_eval.max_cost needs gpt_eval.price_in and gpt_eval.price_out (per million tokens) to count with")
        return self


# The tasks of ``tasks.TASKS``, in the paper's order.
TaskName = Literal["imdb", "sst2", "yelp", "yelp_full", "qqp", "qnli", "mrpc", "rte", "cola", "grammar_fits", "grammar_happy"]


class ClassificationSettings(Section):
    """Fine-tuning on classification tasks (section 5.4); without tasks a run has no such step."""

    tasks: tuple[TaskName, ...] = Field((), description="tasks to fine-tune on; 'grammar_fits' and 'grammar_happy' need no data")
    grammar: Literal["standard", "small"] = Field("standard", description="language of the stories in 'grammar_fits' and 'grammar_happy'")
    data: str | None = Field(None, description="folder with the tasks' files, such as glue/sst2/train.jsonl.gz; null: the dataset hub")
    every: Count = Field(1, description="generations from one that is fine-tuned to the next: 1, 1 + every, ...; also the last and the untrained one")
    seeds: Count = Field(
        3, description="fine-tunings of each model on each task: new layer, order and draw of the training rows differ; below 3 no verdict is given"
    )
    train_rows: Count | dict[TaskName, Count] | None = Field(
        None, description="training rows drawn of each task for every fine-tuning, or by task; null takes all"
    )
    test_rows: Count | dict[TaskName, Count] | None = Field(None, description="test rows taken of each task, or by task; null takes all")
    epochs: Positive | dict[TaskName, Positive] = Field(
        {"yelp": 0.1, "yelp_full": 0.1}, description="passes over the training rows, or by task with 1 for those not named"
    )
    learning_rate: Positive = Field(5e-5, description="at the start; it falls linearly to zero")
    batch_size: Count = 8
    max_length: Annotated[int, Field(ge=2, le=10**12)] = Field(
        128, description="tokens of a row, both texts of a pair together; the longer text is cut at its end"
    )
    separator: str = Field("", description="text between the texts of a pair; the released code has none")
    notes: str = Field("", description="what a reader must know of the tasks' rows; stands beside their figures")

    @model_validator(mode="after")
    def _each_task_once(self) -> ClassificationSettings:
        if twice := [task for task in self.tasks if self.tasks.count(task) > 1]:
            raise ValueError(f"classification.tasks names '{twice[0]}' more than once")
        return self

    def rows_of(self, task: str) -> tuple[int | None, int | None]:
        """Training and test rows to take of a task; None takes all."""
        train, test = (limit.get(task) if isinstance(limit, dict) else limit for limit in (self.train_rows, self.test_rows))
        return train, test

    def epochs_of(self, task: str) -> float:
        """Passes over a task's training rows."""
        return self.epochs.get(task, 1.0) if isinstance(self.epochs, dict) else self.epochs


class AlphaSettings(Section):
    """Where and how the errors of section 2 are measured (step ``alpha``)."""

    contexts: Count = Field(64, description="most story beginnings that are used as contexts with exact counts, the empty one included")
    longest: Annotated[int, Field(ge=0)] = Field(24, description="tokens of the longest such beginning")
    minimum_count: Count = Field(50, description="stories of the initial corpus that must begin that way")
    positions: Count = Field(256, description="positions of validation stories where generations are compared with each other")
    smoothing: tuple[Share, ...] = Field((0.001, 0.01, 0.1), description="masses of probability that the smoothed divergence may leave out")
    truth_stories: Annotated[int, Field(ge=0)] = Field(
        30_000, description="stories of the grammar, where it is the source, in which its own law is counted; 0: none"
    )


class ExactSettings(Section):
    """What is held against the exact law of the embedded grammar (step ``exact``), where the stories come from it."""

    stories: Count = Field(300, description="of each generation's complete stories, how many the grammar judges")
    loss_stories: Count = Field(60, description="validation stories whose tokens' true probabilities are worked out")


class TextureSettings(Section):
    """The sample on which a text is looked at as a whole (step ``texture``)."""

    rows: Count = Field(600, description="sampled rows whose next-token laws and likelihoods are worked out")
    stories: Count = Field(300, description="complete stories that are compared with each other")
    block_tokens: Count = Field(20_000, description="tokens in which distinct n-grams are counted, the same number for every generation")
    block_stories: Annotated[int, Field(ge=2)] = Field(100, description="stories among which self-BLEU, compression and distances are taken")


class RetentionSettings(Section):
    """What is deleted of a run as soon as nothing needs it (``retention``); its numbers and notebooks always stay."""

    drop: tuple[Literal["corpus", "composition", "model"], ...] = Field(
        (), description="what `collapse run` and the workflow let go of once no step of the run, or of one more generation, needs it; none: keep all"
    )


# Fields that say how the work is done and how far, never what comes out: a run may go on with others.
FREE_FIELDS = (
    "description",
    "generations",
    "sampling.batch_size",
    "training.checkpoint_every",
    "classification.notes",
    "gpt_eval.concurrency",
    "gpt_eval.retries",
    "gpt_eval.timeout",
    "gpt_eval.price_in",
    "gpt_eval.price_out",
    "gpt_eval.max_cost",
    "retention.drop",
)


# Fields that came when there were runs already: with these values they change nothing, and those runs' hashes stay what they were.
LATER_FIELDS: dict[str, Any] = {
    "corpus.skip": 0,
    "corpus.seed": None,
    "training.init": "fresh",
    "training.schedule": "constant",
    "classification.grammar": "standard",
    "gpt_eval.samples": None,
    "gpt_eval.wording": "paper",
    **{f"regime.{name}": field.default for name, field in RegimeSettings.model_fields.items()},
}


class Protocol(Section):
    """Everything that decides what a run computes."""

    description: str = ""
    generations: Annotated[int, Field(ge=1, le=1000)] = 40  # what pages, tables and `collapse status` still serve; forty are the paper's
    seed: int = Field(1, ge=0, lt=2**32)
    corpus: CorpusSettings = CorpusSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    sampling: SamplingSettings = SamplingSettings()
    regime: RegimeSettings = RegimeSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    alpha: AlphaSettings = AlphaSettings()
    exact: ExactSettings = ExactSettings()
    texture: TextureSettings = TextureSettings()
    classification: ClassificationSettings = ClassificationSettings()
    completions: CompletionsSettings = CompletionsSettings()
    continuations: ContinuationsSettings = ContinuationsSettings()
    gpt_eval: GPTEvalSettings = GPTEvalSettings()
    retention: RetentionSettings = RetentionSettings()

    def continued_lengths(self) -> dict[str, tuple[int, int | None]]:
        """How far story beginnings are continued, by the field that says so: at most how many tokens, and how many beginnings (None: all)."""
        lengths: dict[str, tuple[int, int | None]] = {}
        if self.completions.every:
            lengths["completions.max_new_tokens"] = self.completions.max_new_tokens, self.completions.beginnings
        if self.continuations.beginnings:
            lengths["continuations.tokens"] = self.continuations.tokens, self.continuations.beginnings
        return lengths

    @model_validator(mode="after")
    def _fits_together(self) -> Protocol:
        positions = self.model.max_position_embeddings
        longest = {"training.block_size": self.training.block_size, "sampling.max_context": self.sampling.max_context}
        if self.sampling.overflow == "extend":
            extending = {"sampling.length": self.sampling.length} | {name: tokens for name, (tokens, _) in self.continued_lengths().items()}
            longest |= {f"{name} (with sampling.overflow = extend)": tokens for name, tokens in extending.items()}
        longest["evaluation.max_context"] = self.evaluation.max_context
        if self.classification.tasks:
            longest["classification.max_length"] = self.classification.max_length
        for name, tokens in longest.items():
            if tokens > positions:
                raise ValueError(f"{name} is {tokens}, more than model.max_position_embeddings = {positions}")
        if self.corpus.source == "grammar" and self.corpus.stories is None:
            raise ValueError("corpus.stories is null, but the grammar has no end: give a number of stories")
        regime, is_grammar = self.regime.regime, self.corpus.source == "grammar"
        written = self.sampling.sequences * (self.sampling.length + 1)  # at most, start tokens included
        if self.generations > 1 and regime.name == "replace" and self.training.layout == "contiguous" and written <= self.training.block_size:
            raise ValueError(
                f"sampling.sequences = {self.sampling.sequences} of sampling.length = {self.sampling.length} are fewer tokens than one block of "
                f"training.block_size = {self.training.block_size}, from which the next generation is to learn"
            )
        if self.gpt_eval.judge and self.corpus.validation_stories == 1:
            raise ValueError("corpus.validation_stories is 1, and the judge's control rows need at least two of them")
        if regime.needs_fresh_text and not is_grammar:
            raise ValueError(f"regime.name is {regime.name}, whose fresh text corpus.source = '{self.corpus.source}' cannot give; take the grammar")
        if regime.needs_scores and regime.verifier == "grammar" and not is_grammar:
            raise ValueError(f"regime.verifier is 'grammar', whose law says nothing about corpus.source = '{self.corpus.source}'; choose likelihood")
        if self.training.micro_batch_size and self.training.batch_size % self.training.micro_batch_size:
            raise ValueError(
                f"training.batch_size = {self.training.batch_size} is not a multiple of training.micro_batch_size = {self.training.micro_batch_size}"
            )
        return self

    def deciding(self, names: Iterable[str]) -> dict[str, Any]:
        """The fields, under their dotted names, of some sections or with some names; ``FREE_FIELDS`` decide nothing and are left out."""
        wanted = set(names)
        fields = self.flat().items()
        return {name: value for name, value in fields if name not in FREE_FIELDS and (name in wanted or name.partition(".")[0] in wanted)}

    def derived_seed(self, generation: int, purpose: str) -> int:
        """A 63-bit seed that depends on ``seed`` (the ``corpus`` on ``corpus.seed``, if given), the generation and the purpose alone."""
        own = self.corpus.seed if purpose == "corpus" else None
        text = f"{self.seed if own is None else own}/{generation}/{purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def hash(self, names: Iterable[str]) -> str:
        """SHA-256 (16 hex digits) over the fields of ``deciding``, ``LATER_FIELDS`` left out where they change nothing."""
        fields = {name: value for name, value in self.deciding(names).items() if name not in LATER_FIELDS or value != LATER_FIELDS[name]}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    def flat(self) -> dict[str, Any]:
        """Every field under its dotted name, as plain JSON values."""
        flat: dict[str, Any] = {}
        for name, value in self.model_dump(mode="json").items():
            if isinstance(value, dict):
                flat.update({f"{name}.{field}": inner for field, inner in value.items()})
            else:
                flat[name] = value
        return flat

    def differences(self, other: Protocol) -> list[str]:
        """Dotted names of the result-deciding fields in which two protocols differ."""
        mine, theirs = self.flat(), other.flat()
        return [name for name in mine if name not in FREE_FIELDS and mine[name] != theirs[name]]

    def to_yaml(self) -> str:
        """The protocol as YAML text that ``from_yaml`` reads back to an equal protocol."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @classmethod
    @lru_cache(maxsize=64)  # a book asks for the protocols of its runs a hundred times, and parsing one takes 20 ms
    def from_yaml(cls, text: str, where: str = "the protocol") -> Protocol:
        """Read and validate YAML; anything wrong is a ``UserError`` of one sentence."""
        try:
            fields = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that cannot be
            raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from None
        except RecursionError:
            raise UserError(f"{where} is nested too deeply to be a protocol.") from None
        if fields is None:
            raise UserError(f"{where} is empty; `collapse presets demo` shows what a protocol holds.")
        if not isinstance(fields, dict):
            raise UserError(f"{where} holds {type(fields).__name__}, not fields by name.")
        return cls.from_fields(fields, where)

    @classmethod
    def from_fields(cls, fields: dict[str, Any], where: str = "the protocol") -> Protocol:
        """Validate nested fields; anything wrong is a ``UserError`` of one sentence."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise UserError(f"{where}: {_one_sentence(error)}") from None

    def with_changes(self, changes: Mapping[str, Any]) -> Protocol:
        """The protocol with some fields set: ``{"seed": 2, "sampling.temperature": "0.9", "model": {"num_layers": 4}}``.

        Text is read as YAML, as ``--set field=value`` gives it, so ``null``, ``1e-3``, ``true`` and ``[global, local]`` mean what they say;
        other values are taken as they are. Raises ``UserError`` for a field that there is not and a value that it cannot have.
        """
        if not isinstance(changes, Mapping):
            raise UserError(f"Changes of a protocol are values by field, such as {{sampling.temperature: 0.9}}, not {_shown(changes)}.")
        fields = self.model_dump(mode="json")
        known = self.flat()
        for name, value in _flattened(changes, fields).items():
            if name not in known:
                raise UserError(f"There is no field '{name}'; {_nearest(name, known)}.")
            if isinstance(value, str):
                value = _read_value(name, value)
            section, _, field = name.rpartition(".")
            (fields[section] if section else fields)[field or name] = value
        return type(self).from_fields(fields, "The changed protocol")


def preset_names() -> list[str]:
    """Names of the presets shipped with the library, smallest first."""
    of_stories = ["tinystories-small", "reference-small", "reference-large"]
    order = ["smoke", "demo", "laboratory", *of_stories, "paper-1m", "paper-33m", "released-1m", "released-33m"]
    found = {Path(str(entry)).stem for entry in _preset_folder().iterdir() if str(entry).endswith(".yaml")}
    return [name for name in order if name in found] + sorted(found - set(order))


def load_preset(name: str) -> Protocol:
    """A preset by name, or a protocol from a ``.yaml`` file of the user's."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"There is no protocol file '{name}'.")
        return Protocol.from_yaml(read_text(path), f"Protocol file '{name}'")
    if name not in preset_names():
        raise UserError(f"There is no preset '{name}'; there are {', '.join(preset_names())}, or give a .yaml file.")
    return Protocol.from_yaml(read_text(_preset_folder() / f"{name}.yaml"), f"Preset '{name}'")


def _preset_folder():
    return resources.files("collapse_lib.experiment") / "presets"


def _flattened(changes: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Changes by dotted name; a section's may be given together, ``{"sampling": {"length": 300}}``."""
    flat: dict[str, Any] = {}
    for name, value in changes.items():
        is_section = isinstance(value, Mapping) and isinstance(fields.get(name), dict)
        flat |= {f"{name}.{field}": inner for field, inner in value.items()} if is_section else {str(name): value}
    return flat


def _read_value(name: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"The value {text!r} for field '{name}' is not a plain value.") from None
    if isinstance(value, str):
        with suppress(ValueError):  # YAML 1.1 reads '5e-4' as text; a person means a number
            return float(value)
    return value


def _nearest(name: str, known: dict[str, Any]) -> str:
    section, _, field = name.rpartition(".")
    namesakes = [other for other in known if other.endswith(f".{field or name}")]
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.85) or namesakes:
        return f"did you mean {' or '.join(near)}"
    inside = [other.rpartition(".")[2] for other in known if section and other.startswith(f"{section}.")]
    return f"section '{section}' has {', '.join(inside)}" if inside else "`collapse presets --fields` lists them all"


def _one_sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and "[" not in part and "-" not in part)
    if first["type"] == "value_error":  # raised by a validator above: already a sentence
        return f"{first['ctx']['error']}."
    if first["type"] == "extra_forbidden":
        return f"there is no field '{name}'; `collapse presets --fields` lists them all."
    others = sorted({e["msg"] for e in error.errors() if e["loc"][:2] == first["loc"][:2]})
    allowed = " or ".join(message[0].lower() + message[1:] for message in others)
    return f"field '{name}' is {_shown(first['input'])}, which is not allowed: {allowed}."


def _shown(value: Any) -> str:
    """A value as Python writes it, shortened where it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = LONGEST_VALUE
    return short.repr(value)
