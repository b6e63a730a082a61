"""Section 5.3.3, step 2: a judge grades the completions; and what a user may want to know before paying one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.experiment.run import Run
from collapse_lib.metrics import gpt_eval as measure
from collapse_lib.metrics.gpt_eval import Exercise
from collapse_lib.steps.frame import Results, Task, perform
from collapse_lib.steps.inputs import Completions, open_artefact

if TYPE_CHECKING:
    from collapse_lib.judge.client import Estimate
    from collapse_lib.judge.ledger import Answer, Body
    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.tokenizer import Tokenizer


def gpt_eval(run: Run, generation: int) -> Results:
    """Have the protocol's judge grade the completions of ``generation``, and control rows beside them (section 5.3.3, step 2).

    Reads the completions; the validation stories and the tokeniser for the control rows. Answers that are known are not asked for again. Returns
    what was measured: mean grades, of the controls too.

    Example: ``steps.gpt_eval(Run.open("demo"), 1)["metrics"]["grammar"]["value"]``
    """

    def grade(task: Task, completions: Completions, validation: TokenCorpus, tokenizer: Tokenizer) -> None:
        grade_completions(task, completions, validation, tokenizer, asker(run))

    return perform(grade, "gpt_eval", run, generation)


def grade_completions(
    task: Task,
    completions: Completions,
    validation: TokenCorpus,
    tokenizer: Tokenizer,
    ask: Callable[[list[Exercise]], list[Answer]],
) -> None:
    """The work of step ``gpt_eval``; ``ask`` gives a judge's answers to exercises."""
    controls = control_rows(task.protocol, validation, tokenizer)
    task.record.metrics, task.record.examples = measure.grade(_to_grade(task.protocol, completions), controls, ask)
    task.record.examples["wording"] = task.protocol.gpt_eval.wording


def asker(run: Run) -> Callable[[list[Exercise]], list[Answer]]:
    """What asks the judge of a run; its answers are kept, and paid for, under the run's name."""
    from collapse_lib.judge import client as judge

    return lambda exercises: judge.ask([_request(run.protocol, exercise) for exercise in exercises], run.protocol.gpt_eval, run.name)


def control_rows(protocol: Protocol, validation: TokenCorpus, tokenizer: Tokenizer) -> dict[str, list[Exercise]]:
    """A run's control rows, the same for every generation."""
    return measure.controls(
        validation, tokenizer, protocol.gpt_eval.controls, protocol.completions.max_new_tokens, protocol.derived_seed(0, "controls")
    )


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
        exercises = [exercise for rows in _stored_controls(run).values() for exercise in rows]
    else:
        exercises = [Exercise(f"control {index}", longest) for index in range(protocol.gpt_eval.controls * len(measure.CONTROLS))]
    estimates = {}
    for generation in generations:
        if (step := run.step(generation, "completions")).manifest():
            graded = _to_grade(protocol, open_artefact(step, "completions"))
            exercises += [Exercise(beginning, text) for beginning, texts in graded for text in texts]
        else:  # the number keeps them apart: equal requests are sent once
            stand_ins = (f"{generation} {sample} {longest}" for sample in range(protocol.completions.samples)[: protocol.gpt_eval.samples])
            exercises += [Exercise(beginning, text) for text in stand_ins for beginning in beginnings]
        estimates[generation] = judge.estimate([_request(protocol, exercise) for exercise in exercises], protocol.gpt_eval, run.name)
        exercises = []
    return estimates


def check(run: Run) -> dict[str, Any]:
    """Have the judge grade the control rows alone; returns metrics. A grading run later finds these answers."""
    _require_judge(run)
    metrics, _ = measure.grade([], _stored_controls(run), asker(run))
    return {name: metric for name, metric in metrics.items() if name.startswith(("control", "judge"))}


def forget(run: Run) -> int:
    """Drop a run's grades, so that another judge can give new ones; completions and the judge's paid answers stay. Returns how many steps."""
    with run.exclusive():
        steps = [step for step in run.steps_named("gpt_eval") if step.manifest_file.is_file()]
        for step in steps:
            step.drop()
    return len(steps)


def _stored_controls(run: Run) -> dict[str, list[Exercise]]:
    """The control rows of a run whose initial corpus is there; their text comes from the validation stories, which are not committed."""
    step = run.step(0, "corpus")
    return control_rows(run.protocol, open_artefact(step, "validation"), open_artefact(step, "tokenizer"))


def _to_grade(protocol: Protocol, completions: Completions) -> Completions:
    """The completions, of which a budget may have only the first few of each beginning graded."""
    return [(beginning, texts[: protocol.gpt_eval.samples]) for beginning, texts in completions]


def _request(protocol: Protocol, exercise: Exercise) -> Body:
    from collapse_lib.judge import client as judge

    return judge.request(protocol.gpt_eval, measure.messages(exercise, protocol.gpt_eval.wording), measure.Grade.model_json_schema())


def _require_judge(run: Run) -> None:
    if run.protocol.gpt_eval.judge is None:
        raise UserError(
            f"Run '{run.name}' has no judge yet: add --set gpt_eval.judge=MODEL to this command, MODEL being what the endpoint in OPENAI_BASE_URL "
            "(OpenAI's if it is not set) calls the model that is to grade."
        )
