"""The two steps of GPT-Eval (section 5.3.3) and what a user may want to know before paying a judge.

``completions`` needs the model and writes ``generation-NN/completions.jsonl``; ``gpt_eval`` reads that file and the validation stories. So a
first judge, or another one, can grade a run whose models are gone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_text, sha256, write_text
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.run import Run, Step
from collapse_lib.metrics import gpt_eval as measure
from collapse_lib.metrics.gpt_eval import Exercise
from collapse_lib.steps.frame import _step, fresh_model, initial_part, load_model, load_tokenizer

if TYPE_CHECKING:
    from IPython.display import Markdown

    from collapse_lib.judge.client import Estimate
    from collapse_lib.judge.ledger import Answer, Body

SHOWN = 6  # completions that a run shows of each generation


@_step("completions")
def completions(step: Step, device: str) -> None:
    """Section 5.3.3, step 1: complete story beginnings by sampling; generation 0 stands for the untrained baseline."""
    from collapse_lib.sample.generate import complete

    run, generation, settings = step.run, step.generation, step.run.protocol.completions
    with step.recording(device) as record:
        beginnings = measure.read_prompts(settings.prompts)[: settings.beginnings]
        tokenizer = load_tokenizer(run)
        model = (load_model(run, generation) if generation else fresh_model(run, 0)).to(device)
        pure = run.protocol.sampling.model_copy(update={"temperature": 1.0, "top_k": None, "top_p": None})
        start = [tokenizer.eos_id] if pure.start == "endoftext" else []
        given = [np.array([*start, *tokenizer.encode(text)]) for text in beginnings]
        sampled = complete(model, given, pure, settings.max_new_tokens, settings.samples, run.seed(generation, "completions"))
        texts = [[tokenizer.decode(tokens) for tokens in of_one] for of_one in sampled]
        lines = [{"beginning": beginning, "completions": of_one} for beginning, of_one in zip(beginnings, texts, strict=True)]
        write_text(_file(step), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        lengths = [len(tokens) for of_one in sampled for tokens in of_one]
        record.measure("beginnings", len(beginnings), "beginnings", "story beginnings that were completed")
        record.measure("completions", len(lengths), "completions", f"completions of them, {settings.samples} each")
        record.measure(
            "tokens", sum(lengths), "tokens", f"tokens sampled, at most {settings.max_new_tokens} a completion, ends of stories not counted"
        )
        ended = sum(length < settings.max_new_tokens for length in lengths)
        record.measure("ended", ended, "completions", "completions that the model brought to an end by itself")
        record.measure("empty", sum(not text.strip() for of_one in texts for text in of_one), "completions", "completions without text")
        record.examples["completions"] = [[line["beginning"], line["completions"][0]] for line in lines[:SHOWN]]
        record.outputs["completions"] = sha256(_file(step))


@_step("gpt_eval")
def gpt_eval(step: Step, device: str) -> None:
    """Section 5.3.3, step 2: the judge grades the completions, and control rows beside them; the answers that are known are not asked for again."""
    from collapse_lib.judge import client as judge

    run, settings = step.run, step.run.protocol.gpt_eval

    def ask(exercises: list[Exercise]) -> list[Answer]:
        return judge.ask([_request(run, exercise) for exercise in exercises], settings, run.name)

    with step.recording("cpu") as record:
        record.metrics, record.examples = measure.grade(_to_grade(run, step.generation), control_rows(run), ask)


def read_completions(run: Run, generation: int) -> list[tuple[str, list[str]]]:
    """Each beginning with its completions; ``UserError`` where they are not those that the manifest names."""
    step = run.step(generation, "completions")
    expected = step.output_hashes()["completions"]
    file = _file(step)
    if not file.is_file() or sha256(file) != expected:
        raise UserError(f"{file} is not what step {step} wrote; delete {step.manifest_file} to have the completions sampled again.")
    # Not splitlines: random tokens spell characters that it takes for line ends.
    lines = [json.loads(line) for line in read_text(file).split("\n") if line]
    return [(line["beginning"], line["completions"]) for line in lines]


def _to_grade(run: Run, generation: int) -> list[tuple[str, list[str]]]:
    """``read_completions``, of which a budget may have only the first few of each beginning graded."""
    return [(beginning, texts[: run.protocol.gpt_eval.samples]) for beginning, texts in read_completions(run, generation)]


def control_rows(run: Run) -> dict[str, list[Exercise]]:
    """The run's control rows, the same for every generation; their text comes from the validation stories, which are not committed."""
    protocol = run.protocol
    stories, seed = initial_part(run, "validation"), run.seed(0, "controls")
    return measure.controls(stories, load_tokenizer(run), protocol.gpt_eval.controls, protocol.completions.max_new_tokens, seed)


def estimate(run: Run) -> dict[int, Estimate]:
    """What grading the unfinished generations will take, by generation; control rows count in the first, later ones find them answered.

    Completions that have not been sampled yet count as if they were as long as they may get. Raises ``UserError`` when the run has no judge.
    """
    from collapse_lib.judge import client as judge
    from collapse_lib.judge.ledger import BYTES_PER_TOKEN

    protocol = run.protocol
    _require_judge(run)
    generations = [generation for generation in range(protocol.generations + 1) if STEPS["gpt_eval"].done_in(protocol, generation)]
    generations = [generation for generation in generations if run.step(generation, "gpt_eval").results() is None]
    if not generations:
        return {}
    longest = "x" * BYTES_PER_TOKEN * protocol.completions.max_new_tokens
    beginnings = measure.read_prompts(protocol.completions.prompts)[: protocol.completions.beginnings]
    if run.step(0, "corpus").manifest():
        exercises = [exercise for rows in control_rows(run).values() for exercise in rows]
    else:
        exercises = [Exercise(f"control {index}", longest) for index in range(protocol.gpt_eval.controls * len(measure.CONTROLS))]
    found = {}
    for generation in generations:
        if run.step(generation, "completions").manifest():
            exercises += [Exercise(beginning, text) for beginning, texts in _to_grade(run, generation) for text in texts]
        else:  # the number keeps them apart: equal requests are sent once
            stand_ins = (f"{generation} {sample} {longest}" for sample in range(protocol.completions.samples)[: protocol.gpt_eval.samples])
            exercises += [Exercise(beginning, text) for text in stand_ins for beginning in beginnings]
        found[generation] = judge.estimate([_request(run, exercise) for exercise in exercises], protocol.gpt_eval, run.name)
        exercises = []
    return found


def check(run: Run) -> dict[str, Any]:
    """Have the judge grade the control rows alone; returns metrics. A grading run later finds these answers."""
    from collapse_lib.judge import client as judge

    _require_judge(run)

    def ask(exercises: list[Exercise]) -> list[Answer]:
        return judge.ask([_request(run, exercise) for exercise in exercises], run.protocol.gpt_eval, run.name)

    metrics, _ = measure.grade([], control_rows(run), ask)
    return {name: metric for name, metric in metrics.items() if name.startswith(("control", "judge"))}


def forget(run: Run) -> int:
    """Drop a run's grades, so that another judge can give new ones; completions and the judge's paid answers stay. Returns how many steps."""
    with run.exclusive():
        manifests = list(run.folder.glob("generation-*/manifests/gpt_eval.json"))
        for manifest in manifests:
            folder = manifest.parents[1]
            for file in (manifest, folder / "metrics" / "gpt_eval.json", folder / "gpt_eval.ipynb"):
                file.unlink(missing_ok=True)
    return len(manifests)


def how_to_grade(run: Run) -> Markdown:
    """One sentence: who grades these completions, or how to have them graded."""
    from IPython.display import Markdown

    from collapse_lib.text.display import literal

    if run.protocol.gpt_eval.judge:
        return Markdown(f"The judge {literal(run.protocol.gpt_eval.judge)} grades these completions in the step `gpt_eval`.")
    return Markdown(
        f"No judge had been chosen when this was sampled, so nothing is graded here: `collapse run {run.name} --set gpt_eval.judge=MODEL` "
        "has a model of the endpoint in `OPENAI_BASE_URL` grade them, and `collapse judge serve` offers a weak local one."
    )


def _request(run: Run, exercise: Exercise) -> Body:
    from collapse_lib.judge import client as judge

    return judge.request(run.protocol.gpt_eval, measure.messages(exercise), measure.Grade.model_json_schema())


def _file(step: Step) -> Path:
    return step.folder / "completions.jsonl"


def _require_judge(run: Run) -> None:
    if run.protocol.gpt_eval.judge is None:
        raise UserError(
            f"Run '{run.name}' has no judge yet: add --set gpt_eval.judge=MODEL to this command, MODEL being what the endpoint in OPENAI_BASE_URL "
            "(OpenAI's if it is not set) calls the model that is to grade."
        )
