"""How much work each step of a generation is, in the units that ``calibration.RATES`` has seconds for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from collapse_lib.cost.workload import PROMPT_TOKENS, Workload
from collapse_lib.metrics.gpt_eval import CONTROLS

Amounts = dict[str, float]

# Training and test rows of the tasks, their mean tokens, and those of the longest of eight, up to 128 each. The hub's are not downloaded for a plan.
# The grammar's rows are of the standard one, in as many tokens as its own tokenizer makes of them.
TASK_ROWS = {
    "imdb": (25_000, 25_000, 123, 128),
    "sst2": (67_349, 872, 12, 28),
    "yelp": (560_000, 38_000, 86, 127),
    "yelp_full": (650_000, 50_000, 98, 128),
    "qqp": (363_846, 40_430, 27, 48),
    "qnli": (104_743, 5_463, 47, 76),
    "mrpc": (3_668, 408, 50, 68),
    "rte": (2_490, 277, 70, 110),
    "cola": (8_551, 1_043, 11, 16),
    "grammar_fits": (2_000, 1_000, 128, 128),
    "grammar_happy": (2_000, 1_000, 128, 128),
}


def _corpus(work: Workload, generation: int) -> Amounts:
    size, learns = work.initial, work.protocol.tokenizer.source == "learn"
    read = size.stories * (1 + learns) + size.validation_stories  # once to learn from them, once to keep them
    return {
        "write_story": read if work.protocol.corpus.source == "grammar" else 0,
        "learn_story": size.stories if learns else 0,
        "tokenise": size.tokens + 2 * size.validation_stories * size.mean_tokens,  # the validation stories' bytes are counted too
        "load_words": 1,
        **_words(work.corpus(0)[1]),
    }


def _compose(work: Workload, generation: int) -> Amounts:
    regime, settings = work.protocol.regime.regime, work.protocol.sampling
    if regime.name == "first_only":
        return work.decoding(settings.sequences, settings.length)
    amounts = Counter[str]()
    if regime.needs_fresh_text:
        stories = work.initial.stories * (1.0 if regime.name == "fresh" else regime.share or 0)
        amounts += {"write_story": stories, "tokenise": stories * work.initial.mean_tokens}
    if regime.needs_scores:
        rows, tokens = work.corpus(generation - 1)
        amounts += {"read_story": rows} if regime.verifier == "grammar" else {"encode_token": tokens, "score_token": tokens}
    return dict(amounts)


def _train(work: Workload, generation: int) -> Amounts:
    settings, (tokens, steps), tries = work.protocol.training, work.epoch(generation), work.epochs_tried(generation)
    held_out = work.initial.tokens * settings.holdout / 3 if work.stops_early and generation == 1 else 0  # forward alone
    return {
        "train_token": tries * (tokens + held_out),
        "checkpoint": tries * math.ceil(steps / settings.checkpoint_every),
    }


def _sample(work: Workload, generation: int) -> Amounts:
    settings = work.protocol.sampling
    return work.decoding(work.protocol.regime.regime.tokens_to_sample(settings.sequences), settings.length)


def _perplexity(work: Workload, generation: int) -> Amounts:
    encoded, scored = work.scoring
    return {"encode_token": work.initial.validation_stories * encoded, "score_token": work.initial.validation_stories * scored}


def _free_text(work: Workload, generation: int) -> Amounts:
    return _words(work.corpus(generation)[1])


def _words(tokens: float) -> Amounts:
    return {"text_token": tokens, "text_root": math.sqrt(tokens)}


def _alpha(work: Workload, generation: int) -> Amounts:
    settings = work.protocol.alpha
    sampled = work.corpus(generation - 1)[1] / work.initial.mean_tokens if generation > 1 else 0
    compared = settings.contexts * min(generation, 2) + settings.positions * min(generation, 3)
    law = settings.truth_stories if generation == 1 and work.protocol.corpus.source == "grammar" else 0  # stories that show the grammar's law
    return {
        "scan_story": work.initial.stories + sampled,
        "compare_context": compared,
        "write_story": law,
        "tokenise": law * work.initial.mean_tokens,
    }


def _exact(work: Workload, generation: int) -> Amounts:
    settings, tokens = work.protocol.exact, work.initial.validation_stories * work.initial.mean_tokens
    truth = settings.loss_stories + work.initial.validation_stories if generation == 1 else 0
    words = _words(work.corpus(0)[1]) if generation == 1 else _words(work.corpus(0)[1] + work.corpus(generation)[1])
    return {"encode_token": tokens, "score_token": tokens, "read_story": settings.stories, "truth_story": truth, **words}


def _texture(work: Workload, generation: int) -> Amounts:
    settings = work.protocol.texture
    rows, tokens = work.corpus(generation)
    sampled = 3 * settings.rows * tokens / rows + 2 * settings.stories * work.initial.mean_tokens  # by this model, and by the first, two texts
    return {"encode_token": sampled, "score_token": sampled}


def _completions(work: Workload, generation: int) -> Amounts:
    return work.decoding(work.completions, PROMPT_TOKENS + work.protocol.completions.max_new_tokens)


def _continuations(work: Workload, generation: int) -> Amounts:
    settings = work.protocol.continuations
    return work.decoding(settings.beginnings, PROMPT_TOKENS + settings.tokens) if settings.beginnings else {}


def _gpt_eval(work: Workload, generation: int) -> Amounts:
    settings = work.protocol.gpt_eval
    return {"judge": (work.completions + (len(CONTROLS) * settings.controls if generation == 0 else 0)) / settings.concurrency}


def _classification(work: Workload, generation: int) -> Amounts:
    settings, total = work.protocol.classification, Counter[str]()
    for task in settings.tasks:
        all_train, all_test, *lengths = TASK_ROWS[task]
        most_train, most_test = settings.rows_of(task)
        train, test = min(all_train, most_train or all_train), min(all_test, most_test or all_test)
        if task.startswith("grammar") and work.protocol.corpus.source == "grammar" and settings.grammar == work.protocol.corpus.grammar:
            lengths = [work.initial.mean_tokens, work.initial.longest_of(settings.batch_size, settings.max_length)]  # a row is about a story
        mean, longest = (min(length, settings.max_length) for length in lengths)
        steps = settings.seeds * math.ceil(settings.epochs_of(task) * math.ceil(train / settings.batch_size))
        answered = settings.seeds * test * mean / 3  # forward alone
        total["finetune_step"] += steps
        total["finetune_token"] += steps * settings.batch_size * longest + answered
        total["tokenise"] += (settings.seeds * train + test) * mean  # each fine-tuning draws its own training rows
        if task.startswith("grammar"):  # all rows are written, however many are used; about every second story is of the kind that is wanted
            total["write_story"] += 2 * (all_train + all_test)
    return dict(total)


# Of each of ``lineage.STEPS``, in a generation that has it.
AMOUNTS: dict[str, Callable[[Workload, int], Amounts]] = {
    "corpus": _corpus,
    "compose": _compose,
    "train": _train,
    "sample": _sample,
    "perplexity": _perplexity,
    "free_text": _free_text,
    "alpha": _alpha,
    "exact": _exact,
    "texture": _texture,
    "continuations": _continuations,
    "completions": _completions,
    "gpt_eval": _gpt_eval,
    "classification": _classification,
}
