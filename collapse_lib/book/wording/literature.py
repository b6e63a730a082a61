"""What pages say about other works on recursive training, beside what the same questions gave here."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from collapse_lib.book.wording.numbers import number, pipe_table
from collapse_lib.studies.analysis import ContrastAnswer, analyse
from collapse_lib.studies.study import open_study, studies_with_results, table

if TYPE_CHECKING:
    from IPython.display import Markdown
    from pandas import DataFrame


class Work(NamedTuple):
    """A published experiment, and the contrasts here that ask its question: (study, arm, against)."""

    name: str
    scale: str
    found: str
    asked_here: tuple[tuple[str, str, str], ...]


WORKS = (
    Work(
        "Shumailov et al. 2024",
        "OPT-125m, pre-trained, fine-tuned on WikiText-2 from generation to generation; 5 epochs without the original text, or 10 with a tenth of it",
        "perplexity on real text rises with the generations; with a tenth of the original text it hardly does",
        (("shumailov-2024", "replace", "real-10"),),
    ),
    Work(
        "Gerstgrasser et al. 2024",
        "GPT-2 (9M) and Llama-2 (12M to 125M) trained anew on TinyStories, a handful of generations, each of the size of the corpus",
        "test loss rises where text is replaced, and stays level or falls where it accumulates",
        (("gerstgrasser-2024", "replace", "accumulate"), ("regimes", "replace", "accumulate")),
    ),
    Work(
        "Kazdan et al. 2024",
        "Gaussians, kernel density estimates, and language models that are fine-tuned",
        "with a fixed budget drawn from all text so far, test loss worsens slowly, between replacing and accumulating",
        (("kazdan-2024", "replace", "accumulate_subsample"), ("kazdan-2024", "accumulate_subsample", "accumulate")),
    ),
)


def literature(works: str = "all") -> Markdown:
    """A table: each work's scale and outcome, our scale and ours; "not run" where the study has no results. ``works`` may name one alone."""
    from IPython.display import Markdown

    rows = []
    for work in (work for work in WORKS if works in ("all", work.name)):
        asked = [(study, _answer(study, arm, against)) for study, arm, against in work.asked_here]
        scales = dict.fromkeys(_scale(study) for study, answer in asked if answer)
        rows.append((work.name, work.scale, work.found, "; ".join(scales) or "not run", "; ".join(_said(study, answer) for study, answer in asked)))
    return Markdown(pipe_table(("work", "its scale", "what it found", "scale here", "what came out here"), rows))


def _answer(name: str, arm: str, against: str) -> ContrastAnswer | None:
    """The answer to a study's contrast, as long as the study has results."""
    if name not in studies_with_results():
        return None
    study = open_study(name)
    return next(answer for answer in analyse(study, table(study)).contrasts if (answer.question.arm, answer.question.against) == (arm, against))


def _scale(name: str) -> str:
    study = open_study(name)
    measured: DataFrame = table(study).drop_duplicates("metric").set_index("metric")["value"]
    chains = sorted({len(study.seeds_of(arm)) for contrast in study.contrasts for arm in (contrast.arm, contrast.against)})
    return (
        f"{number(measured['parameters'])} parameters, {number(measured['train_tokens'])} tokens, {study.generations} generations, "
        f"{' to '.join(map(str, chains))} chains per arm"
    )


def _said(name: str, answer: ContrastAnswer | None) -> str:
    if answer is None:
        return f"`{name}`: not run"
    question, test = answer.question, answer.test
    what = f"`{name}`: {question.arm} − {question.against}, {question.measure} in generation {answer.generation}"
    if test is None:
        return f"{what}: **{answer.verdict}**"
    interval = "" if test.low is None else f" [{number(test.low)}, {number(test.high)}]"
    return f"{what}: {number(test.difference)}{interval}, **{answer.verdict}**"
