"""What pages say about other works on recursive training, beside what the same questions gave here."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from collapse_lib.book.wording.numbers import number, pipe_table
from collapse_lib.studies.analysis import Analysis, analyse
from collapse_lib.studies.study import open_study, studies_with_results, table

if TYPE_CHECKING:
    from IPython.display import Markdown
    from pandas import DataFrame

    from collapse_lib.studies.inference import Comparison, Permutation


class Work(NamedTuple):
    """A published experiment, and the contrasts here that ask its question, or comparisons with the control: (study, arm, against)."""

    name: str
    scale: str
    found: str
    asked_here: tuple[tuple[str, str, str], ...]


WORKS = (
    Work(
        "Shumailov et al. 2024",
        "OPT-125m, pre-trained, fine-tuned on WikiText-2 from generation to generation; 5 epochs without the original text, or 10 with a tenth of it",
        "perplexity on real text rises with the generations; with a tenth of the original text it hardly does",
        (("shumailov-2024", "replace", "real-10"), ("regimes", "mix-0.1", "replace")),
    ),
    Work(
        "Gerstgrasser et al. 2024",
        "GPT-2 (9M) and Llama-2 (12M to 126M) trained anew on TinyStories, a handful of generations, each of the size of the corpus",
        "test loss rises where text is replaced, and stays level or falls where it accumulates",
        (("gerstgrasser-2024", "replace", "accumulate"), ("regimes", "replace", "accumulate")),
    ),
    Work(
        "Kazdan et al. 2025",
        "Gaussians, kernel density estimates, and language models that are fine-tuned",
        "with a fixed budget drawn from all text so far, test loss worsens slowly, between replacing and accumulating",
        (
            ("kazdan-2024", "replace", "accumulate_subsample"),
            ("kazdan-2024", "accumulate_subsample", "accumulate"),
            ("regimes", "accumulate_subsample", "replace"),
        ),
    ),
)


def literature(works: str = "all") -> Markdown:
    """A table: each work's scale and outcome, our scale and ours; "not run" where the study has no results. ``works`` may name one alone."""
    from IPython.display import Markdown

    @cache  # several works ask the same study
    def found(name: str) -> tuple[Analysis, DataFrame] | None:
        if name not in studies_with_results():
            return None
        study = open_study(name)
        numbers = table(study)
        return analyse(study, numbers), numbers

    rows = []
    for work in (work for work in WORKS if works in ("all", work.name)):
        said = {(name, arm, against): _said(of[0], arm, against) if (of := found(name)) else "" for name, arm, against in work.asked_here}
        scales = dict.fromkeys(_scale(*found(study), arm) for (study, arm, _), words in said.items() if words)
        missing = dict.fromkeys(f"`{study}`: not run" for (study, _, _), words in said.items() if not words)
        rows.append((work.name, work.scale, work.found, "; ".join(scales) or "not run", "; ".join([*filter(None, said.values()), *missing])))
    return Markdown(pipe_table(("work", "its scale", "what it found", "scale here", "what came out here"), rows))


def _said(found: Analysis, arm: str, against: str) -> str:
    """The answer to a study's contrast, or a comparison with its control, in words; "" as long as no chain can answer."""
    study = found.study
    what = f"`{study.name}`: {arm} − {against}, "
    for answer in found.contrasts:
        if (answer.question.arm, answer.question.against) == (arm, against):
            difference = f"{_difference(answer.test)}, {_chains(answer.test)}, " if answer.test else ""
            return f"{what}{answer.question.measure} in generation {answer.generation}: {difference}**{answer.verdict}**"
    if not (one := found.comparisons.get(arm)):
        return ""
    tested = "" if one.p is None else f", p = {one.p:.2g} (Dunnett)"
    return f"{what}{study.primary_measure} in generation {study.generations}: {_difference(one)}{tested}, {_chains(one)}"


def _difference(test: Permutation | Comparison) -> str:
    return number(test.difference) + ("" if test.low is None else f" [{number(test.low)}, {number(test.high)}]")


def _chains(test: Permutation | Comparison) -> str:
    return f"{' and '.join(map(str, test.chains))} chains"


def _scale(found: Analysis, numbers: DataFrame, arm: str) -> str:
    measured = numbers[numbers["arm"] == arm].drop_duplicates("metric").set_index("metric")["value"]
    parameters, tokens = (number(measured[name]) for name in ("parameters", "train_tokens"))
    return f"{parameters} parameters, {tokens} tokens in the initial corpus, {found.study.generations} generations"
