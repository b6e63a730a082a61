"""The steps of a generation, as the notebooks call them: open what the step reads, do the work, record what came out.

Each function returns what the step measured, in the form of its metrics file. A finished step is not done again: its function
then only reads. An unfinished one goes on from its last checkpoint or shard. Figures and prose are the notebooks' business.
"""

from __future__ import annotations

import ast
import math
import shutil
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_json, read_text, replace_folder, sha256, write_json, write_text
from collapse_lib.experiment.machine import choose_device
from collapse_lib.experiment.run import Run, Step

if TYPE_CHECKING:
    from pathlib import Path

    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.tokenizer import Tokenizer

Results = dict[str, Any]

EXCERPTS = 6  # samples that a run shows of each generation
EXCERPT_TOKENS = 80  # and how much of each


def _step(name: str) -> Callable[[Callable[..., None]], Callable[..., Results]]:
    """Wrap a step's work: one worker at a time, and none at all when the step is finished."""

    def decorate(work: Callable[..., None]) -> Callable[..., Results]:
        @wraps(work)
        def run_step(run: Run, generation: int = 0, device: str = "auto") -> Results:
            refuse_unknown_parameters()
            step = run.step(generation, name)
            if step.manifest() is None:
                step.made_from()  # refused here, where nothing is left behind, if a parent is not there
            with step.exclusive():
                if step.results() is None:
                    work(step, choose_device(device))
                return step.results()

        return run_step

    return decorate


def refuse_unknown_parameters() -> None:
    """Raise ``UserError`` if papermill gave this notebook a parameter that it does not have: papermill itself warns, and goes on without it.

    What papermill gives stands in a cell of its own, behind the one with the notebook's defaults.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    cells = shell.user_ns.get("In", []) if shell else []
    given = max((number for number, cell in enumerate(cells) if cell.startswith("# Parameters\n")), default=0)
    if not given:
        return
    known, wanted = _assigned(cells[given - 1]), _assigned(cells[given])
    if "run" in known and (unknown := sorted(wanted - known)):  # else somebody executes cells by hand, in another order
        raise UserError(
            f"This notebook has no parameter '{unknown[0]}', only {', '.join(sorted(known))}; what decides a run's numbers is in its protocol "
            "(`collapse run NAME --set FIELD=VALUE`, or the parameters `preset` and `changes` of corpus.ipynb)."
        )


def _assigned(cell: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


@_step("corpus")
def initial_corpus(step: Step, device: str) -> None:
    """Generation 0: read or write the stories, learn or load the tokeniser, store train, hold-out and validation tokens."""
    from collapse_lib.text import tokenizer as tokenization
    from collapse_lib.text.corpus import build_initial_corpus
    from collapse_lib.text.sources import read_stories

    run, protocol = step.run, step.run.protocol
    with step.recording("cpu") as record:
        seed = run.seed(0, "corpus")
        if protocol.tokenizer.source == "learn":
            tokenizer = tokenization.learn(read_stories(protocol.corpus, "train", seed), protocol.tokenizer.vocabulary)
        else:
            tokenizer = given_tokenizer(protocol.tokenizer.source)
        _publish(run.tokenizer_folder, tokenizer.save)
        build_initial_corpus(protocol, tokenizer, step.folder / "corpus", seed)
        parts = {part: initial_part(run, part) for part in ("train", "holdout", "validation")}
        for part, corpus in parts.items():
            record.measure(f"{part}_stories", corpus.rows, "stories", f"stories of the initial corpus used for {part}")
            record.measure(f"{part}_tokens", corpus.real_tokens, "tokens", f"tokens in them, one '<|endoftext|>' a story included ({part})")
            record.outputs[part] = corpus.hash
        size = text_bytes(parts["validation"], tokenizer)
        record.measure("validation_bytes", size, "bytes", "UTF-8 bytes of the validation stories")
        _words_file(run).unlink(missing_ok=True)
        initial_words(run, tokenizer)
        record.measure("vocabulary", tokenizer.vocabulary, "tokens", "tokens the model can write")
        record.outputs["tokenizer"] = tokenizer.hash
        record.examples["samples"] = _excerpts(parts["train"], tokenizer)


@_step("train")
def train(step: Step, device: str) -> None:
    """Section 5.1.2: a model with fresh weights learns from its predecessor's text alone."""
    from collapse_lib.model.folder import save as save_model
    from collapse_lib.train import loop as training

    run, generation = step.run, step.generation
    settings = run.protocol.training
    corpus = initial_part(run, "train") if generation == 1 else sampled_corpus(run, generation - 1)
    with step.recording(device) as record:
        model = fresh_model(run, generation)
        first = generation == 1 and settings.epochs == "early_stopping"
        result = training.train(
            model,
            corpus,
            settings,
            seed=run.seed(generation, "train"),
            checkpoint_folder=step.folder / "checkpoint",
            device=device,
            holdout=initial_part(run, "holdout") if first else None,
            epochs=None if first else _epochs(run),
        )
        _publish(step.folder / "model", lambda folder: save_model(model, load_tokenizer(run), folder))
        record.measure("loss", result.final_loss, "nats/token", "mean training loss over the last steps")
        record.measure("epochs", result.epochs, "epochs", "passes over the corpus that the final weights have seen")
        record.measure("steps", result.steps, "steps", "optimizer steps taken")
        record.measure("skipped_steps", result.skipped_steps, "steps", "steps not taken, because gradients were beyond fp16")
        record.measure("tokens", result.tokens_seen, "tokens", "training targets seen, repetitions included")
        record.measure("parameters", model.num_parameters(), "parameters", "trained parameters, the tied embedding counted once")
        record.measure("tokens_per_second", round(result.tokens_per_second, 1), "tokens/s", "training targets a second, evaluation left out")
        record.series["loss_curve"] = result.loss_curve
        record.series["holdout_losses"] = result.holdout_losses
        record.outputs["model"] = sha256(step.folder / "model" / "model.safetensors")
    shutil.rmtree(step.folder / "checkpoint", ignore_errors=True)


@_step("sample")
def sample(step: Step, device: str) -> None:
    """Sections 3.1.1 and 5.1.2: the model writes the next generation's corpus, sampling its own distribution from an empty context."""
    from collapse_lib.sample.cpu import DTYPES, sample_corpus
    from collapse_lib.text.corpus import CorpusWriter

    run, settings = step.run, step.run.protocol.sampling
    with step.recording(device) as record:
        tokenizer = load_tokenizer(run)
        model = load_model(run, step.generation).to(device)
        _drop_shards_made_otherwise(step)
        writer = CorpusWriter(
            step.folder / "corpus", tokenizer.eos_id, tokenizer.vocabulary, rows_are_complete=False, has_start=settings.start == "endoftext"
        )
        with writer:
            dtype = DTYPES[run.protocol.training.precision]
            statistics = sample_corpus(model, settings, run.seed(step.generation, "sample"), writer, dtype)
        corpus = sampled_corpus(run, step.generation, recorded=False)
        record.measure("sequences", statistics["sequences"], "sequences", "independent sequences sampled")
        record.measure("tokens", statistics["tokens"], "tokens", "tokens sampled, given start tokens not counted")
        record.measure("stories", statistics["stories"], "stories", "stories that the model brought to an end")
        record.measure(
            "tokens_per_second", round(statistics["tokens_per_second"], 1), "tokens/s", "tokens sampled a second since the last interruption, if any"
        )
        record.outputs["corpus"] = corpus.hash
        record.examples["samples"] = _excerpts(corpus, tokenizer)


@_step("perplexity")
def perplexity(step: Step, device: str) -> None:
    """Section 5.2: how well the model predicts the validation stories, on which no generation was trained."""
    from collapse_lib.metrics.perplexity import other_definition, story_ends
    from collapse_lib.metrics.perplexity import perplexity as measure

    run, settings = step.run, step.run.protocol.evaluation
    with step.recording(device) as record:
        stories = initial_part(run, "validation")
        model = load_model(run, step.generation).to(device)
        found = measure(model, stories, settings.max_context, settings.perplexity)
        counts = {"tokens": found["tokens"], "stories": found["stories"]}
        known = run.step(0, "corpus").results()["metrics"].get("validation_bytes")  # runs begun before it was measured lack it
        size = known["value"] if known else text_bytes(stories, load_tokenizer(run))
        definition = f"e^loss on the validation stories, at most {settings.max_context} tokens of context ({settings.perplexity})"
        record.measure("perplexity", found["perplexity"], "1", definition, counts=counts, standard_error=found["perplexity_standard_error"])
        record.measure(
            "loss",
            found["loss_nats"],
            "nats/token",
            "mean token loss on the validation stories",
            counts=counts,
            standard_error=found["loss_standard_error"],
        )
        bits = found["loss_nats"] * found["tokens"] / (math.log(2) * size)
        record.measure(
            "bits_per_byte",
            bits,
            "bits/byte",
            "the same loss spread over the stories' UTF-8 bytes: comparable across tokenisers",
            counts={"bytes": size},
        )
        for band in found["bands"]:
            first, last = band["first"], band["last"]
            where = f"{first} to {last} tokens" if last > first else "no token"
            record.measure(
                f"loss_at_{first}_{last}" if last > first else f"loss_at_{first}",
                band["loss_nats"],
                "nats/token",
                f"mean loss of the tokens before which the model was shown {where} of the story",
                counts={"tokens": band["tokens"]},
                standard_error=band["loss_standard_error"],
            )
        ends = story_ends(model, stories, settings.max_context, settings.perplexity)
        record.measure(
            "end_probability",
            ends["probability"],
            "1",
            "mean probability of '<|endoftext|>' where a validation story ends",
            counts={"stories": ends["stories"]},
            standard_error=ends["standard_error"],
        )
        # On the same models, so that runs of different protocols can be compared and a definition's share be told from a model's.
        other, context = other_definition(settings.perplexity, model.config.max_position_embeddings)
        found = measure(model, stories, context, other)
        record.measure(
            f"perplexity_{other}",
            found["perplexity"],
            "1",
            f"e^loss by the definition that this run does not follow, at most {context} tokens of context ({other})",
            counts={"tokens": found["tokens"], "stories": found["stories"]},
            standard_error=found["perplexity_standard_error"],
        )


@_step("free_text")
def free_text(step: Step, device: str) -> None:
    """Sections 5.3.1 and 5.3.2: entropy, non-words and repetition of the corpus that the model wrote, and how long its stories are."""
    from collapse_lib.metrics.free_text import free_text as measure
    from collapse_lib.metrics.free_text import padded_metrics
    from collapse_lib.metrics.story_lengths import story_lengths

    run = step.run
    with step.recording("cpu") as record:
        tokenizer, corpus = load_tokenizer(run), sampled_corpus(run, step.generation)
        record.metrics, record.examples = measure(corpus, tokenizer, initial_words(run, tokenizer))
        settings = run.protocol.sampling
        record.metrics |= padded_metrics(corpus, settings.length)
        record.metrics |= story_lengths(corpus, initial_part(run, "train"), settings.length, continues=settings.after_eos == "continue")


@_step("classification")
def classification(step: Step, device: str) -> None:
    """Section 5.4: copies of the model, of an untrained one in generation 0, are fine-tuned on classification tasks."""
    from collapse_lib.metrics.classification import classify, report
    from collapse_lib.text.tasks import read_tasks

    run, settings, unfinished = step.run, step.run.protocol.classification, step.folder / "classification"
    with step.recording(device) as record:
        tasks = read_tasks(settings)
        model = load_model(run, step.generation) if step.generation else fresh_model(run, 0)
        found = classify(
            model.to(device),
            tasks,
            load_tokenizer(run),
            settings,
            # The same new layers and the same orders of rows for every generation: they differ in their pre-training alone.
            seed=lambda purpose: run.seed(0, f"classification/{purpose}"),
            folder=unfinished,
            identity=step.made_from(),
        )
        report(record, tasks, found)
    shutil.rmtree(unfinished)


def fresh_model(run: Run, generation: int) -> GPTNeo:
    """The randomly initialised model that a generation starts from; generation 0 gives the untrained baseline."""
    from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig

    tokenizer = load_tokenizer(run)
    config = GPTNeoConfig.from_settings(run.protocol.model, tokenizer.vocabulary, tokenizer.eos_id)
    return GPTNeo(config, seed=run.seed(generation, "weights"))


def load_model(run: Run, generation: int) -> GPTNeo:
    """The trained model of a generation; ``UserError`` when it is missing or is not the one that the manifest names."""
    from collapse_lib.model.gpt_neo import GPTNeo

    step = run.step(generation, "train")
    expected = step.output_hashes()["model"]
    weights = step.folder / "model" / "model.safetensors"
    if not weights.is_file():
        raise UserError(
            f"The model of generation {generation} of run '{run.name}' is not here (models are not committed); run the preset under another --name."
        )
    if sha256(weights) != expected:
        raise UserError(f"{weights} is not the model that step {step} made; delete {step.folder} and the later generations to remake them.")
    return GPTNeo.from_pretrained(step.folder / "model")


def load_tokenizer(run: Run) -> Tokenizer:
    """The run's tokeniser; ``UserError`` when generation 0 has not been done."""
    from collapse_lib.text import tokenizer as tokenization

    run.step(0, "corpus").output_hashes()
    return tokenization.load(run.tokenizer_folder)


def given_tokenizer(source: str) -> Tokenizer:
    """The tokeniser that a protocol names and does not learn: another run's, a folder's or the hub's."""
    from collapse_lib.text import tokenizer as tokenization

    kind, _, other = source.partition("run:")
    return load_tokenizer(Run.open(other)) if other and not kind else tokenization.load(source)


def initial_part(run: Run, part: str) -> TokenCorpus:
    """The ``train``, ``holdout`` or ``validation`` stories of the initial corpus."""
    from collapse_lib.text.corpus import TokenCorpus

    return TokenCorpus.open(run.generation_folder(0) / "corpus" / part)


def initial_words(run: Run, tokenizer: Tokenizer) -> set[str]:
    """The different words of the initial training stories, kept in a file beside them: to find them takes minutes at full scale."""
    from collapse_lib.metrics.free_text import corpus_word_types

    file = _words_file(run)
    if not file.is_file():  # in runs begun before the corpus step wrote it
        write_text(file, "\n".join(sorted(corpus_word_types(initial_part(run, "train"), tokenizer))))
    return set(read_text(file).split())


def text_bytes(stories: TokenCorpus, tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of complete rows as text, their start tokens left out."""
    return sum(len(tokenizer.decode(row[1:]).encode()) for row in stories.iter_rows())


def sampled_corpus(run: Run, generation: int, recorded: bool = True) -> TokenCorpus:
    """The corpus that a generation wrote; ``recorded=False`` opens it before its step is finished."""
    from collapse_lib.text.corpus import TokenCorpus

    step = run.step(generation, "sample")
    corpus = TokenCorpus.open(step.folder / "corpus")
    if recorded and corpus.hash != step.output_hashes()["corpus"]:
        raise UserError(
            f"{step.folder / 'corpus'} is not the corpus that step {step} made; delete {step.folder} and the later generations to remake them."
        )
    return corpus


def _epochs(run: Run) -> int:
    """The fixed number of epochs, or the one that early stopping found in generation 1."""
    if run.protocol.training.epochs != "early_stopping":
        return run.protocol.training.epochs
    found = run.step(1, "train").results()
    if found is None:
        raise UserError(f"Generation 1 of run '{run.name}' has not been trained yet, and it decides the number of epochs.")
    return found["metrics"]["epochs"]["value"]


def _words_file(run: Run) -> Path:
    return run.generation_folder(0) / "corpus" / "words.txt"


def _drop_shards_made_otherwise(step: Step) -> None:
    """Empty the corpus folder unless its shards, if any, come from the model and the settings that are there now."""
    record = step.folder / "corpus" / "made_from.json"
    if read_json(record) != step.made_from():
        shutil.rmtree(record.parent, ignore_errors=True)
        write_json(record, step.made_from())


def _excerpts(corpus: TokenCorpus, tokenizer: Tokenizer) -> list[str]:
    start = 1 if corpus.has_start else 0
    rows = (corpus.row(index)[start : start + EXCERPT_TOKENS] for index in range(min(EXCERPTS, corpus.rows)))
    return [tokenizer.decode(row) for row in rows]


def _publish(place, save: Callable) -> None:
    """Save into a folder beside its place, then move it there."""
    beside = place.with_name(f"{place.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    save(beside)
    replace_folder(beside, place)
