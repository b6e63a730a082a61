"""The paper's claims in a table: what it says, what theory says, what runs and studies say, at which scale, with which verdict, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from IPython.display import Markdown

from collapse_lib.book.studies import study_link
from collapse_lib.book.wording.numbers import number, pipe_table
from collapse_lib.studies.claims import Answer, Evidence, Outcome, Part, Source
from collapse_lib.text.display import plain

if TYPE_CHECKING:
    from pandas import DataFrame, Series

LINE = "<br>"


class Said(NamedTuple):
    """A claim in words: ``title``, what the ``paper`` says and where, what ``theory`` says and in which chapter, and what bears on the verdict."""

    title: str
    paper: str
    theory: str
    note: str


CLAIMS = {
    "cause": Said(
        "The cause (key finding 1)",
        "Training on generated text introduces errors that are never negative; they add up over generations, and that is the cause "
        "(sections 1, 2.1 to 2.3; eqs. 1 to 3).",
        "Any sequence of positive distributions can be written in this way, improving ones too; the smallest errors can be measured "
        "([one generation](../theory/1_one_generation), [many](../theory/2_many_generations)).",
        "Asked as an experiment, which the paper did not make: is recursion worse than training again on real text, and than one generation's text "
        "again and again? That one step on generated text costs something, too, the study's own page shows.",
    ),
    "inevitable": Said(
        "Inevitability (key finding 2)",
        "All auto-regressive language models will definitely collapse, in one of two ways (abstract, sections 1, 2.3).",
        "The argument fails: sequences of the proof's own form have errors that diverge, or converge, and a corpus that comes back or stays "
        "([two ways](../theory/3_two_ways), T4, T5, T7). The conclusion holds where no probability is zero and one recipe with fresh randomness "
        "makes a Markov chain (sections 2.1, 5.1.1): information about the corpus goes to zero, without a usable rate "
        "([drift](../theory/4_drift)).",
        "A statement about all models and about a limit, which no number of chains of finite length can decide. How fast a network's chain forgets "
        "is asked in the rows above and below; of forty generations the theorem says nothing.",
    ),
    "finding_1": Said(
        "Finding 1",
        "Perplexity on validation stories of the initial corpus's kind rises monotonously, over all 40 generations (section 3.2.1, Fig. 1).",
        "Information about the initial corpus cannot grow along the chain; perplexity may still go either way "
        "([many generations](../theory/2_many_generations)).",
        "Two parts: does it rise over the generations, and does it in every step?",
    ),
    "finding_2": Said(
        "Finding 2",
        "Text comes to repeat itself a great deal, and what repeats is often a frequent token of the initial corpus (section 3.2.2, Table A1).",
        "Drift alone fixes one token in the end, most likely a frequent one ([drift](../theory/4_drift)).",
        "Its two parts have rows of their own below.",
    ),
    "finding_3": Said(
        "Finding 3",
        "Completions become less grammatical and less consistent with their prompts, the latter faster (section 3.2.2, Fig. 3, Table A2).",
        "Nothing is derived about it.",
        "Two parts, grammar and consistency; which falls faster is not tested. A grade counts only where the judge ranks its controls in it and "
        "gives generation 1 more than random tokens. Where the stories are the grammar's, legality stands for grammar.",
    ),
    "finding_4": Said(
        "Finding 4",
        "Fine-tuned on real data, late generations do no better than a model with random weights that is fine-tuned alike "
        "(section 3.2.3, Figs. 4, A3 to A5).",
        "Nothing is derived about it.",
        "Two parts: does accuracy fall, and is the last generation's benefit over the untrained baseline ruled out? Of the tasks that generation 1 "
        "learns: the others have nothing to lose. Being chosen by generation 1 makes a fall likelier, most of all for borderline tasks.",
    ),
    "larger": Said(
        "The larger model is more resilient",
        "The perplexity of the 1M model rises more sharply than that of the 33M; more parameters may be more resilient (section 3.2.1, Fig. 1).",
        "Drift depends on how much text there is and not on the model; an error that each generation adds may depend on both "
        "([drift](../theory/4_drift)).",
        "The paper's larger model is half as deep and twelve times as wide; an arm that is only deeper tests something else. Slopes of log "
        "perplexity are compared.",
    ),
    "entropy": Said(
        "Entropy rises, then falls",
        "The entropy of free text rises until generation 25 and then falls sharply; that of the 1M models generally declines late "
        "(sections 3.2.2, 4, Figs. 2, A2).",
        "Drift alone lowers it on average; a rise needs errors that spread probability ([drift](../theory/4_drift)).",
        "Two parts, on either side of the paper's turning point, generation 25.",
    ),
    "repetition": Said(
        "Repetition grows",
        "Tokens are repeated more and more from generation to generation, which brings entropy down (sections 3.2.2, 4, Table A1).",
        "Drift loses rare tokens and contexts; that one token follows itself is not derived ([drift](../theory/4_drift)).",
        "Measured as the share of tokens equal to the one before them. The paper gives no number, so any rise that the test sees counts, however "
        "small: look at its size.",
    ),
    "concentration": Said(
        "What repeats is frequent",
        "Repetitions are often concentrated around high-frequency tokens of the initial corpus (Finding 2, section 3.2.2).",
        "The token that drift fixes is i with probability p(i) ([drift](../theory/4_drift)).",
        "Measured as the share, among repeated tokens, of those that make half of the initial corpus.",
    ),
    "corpus": Said(
        "Unaffected by the initial corpus",
        "Where the errors diverge, the output distribution is unaffected by the initial corpus's for a sufficiently large n (section 2.3.1).",
        "Not because errors diverge: there is a sequence whose errors do and which converges to its corpus ([two ways](../theory/3_two_ways), T5). "
        "True under the assumptions of the row on inevitability, as of drift with mutation; in pure drift the corpus decides which token wins "
        "([drift](../theory/4_drift)).",
        "As a theorem it is the theory's to decide. Whether it describes networks, twins ask, which differ in their initial corpora: one pair is one "
        "chain of each kind, whatever its distance.",
    ),
    "proportion": Said(
        "Keep a proper proportion",
        "It is crucial to keep a proper proportion of generated data to all training data (section 4).",
        "A share of real text gives a fixed point, which a larger share brings nearer to the corpus ([ways out](../theory/5_ways_out)).",
        "The paper tests no proportion. An arm that mixes real text in is held against the paper's recursion. Three chains against five reach p = "
        "0.018 at best, before the adjustment.",
    ),
}
SHORT = {  # the claims that the landing page lists
    "inevitable": "Whatever the model, the initial corpus is forgotten in the end.",
    "finding_1": "Each generation predicts stories of the source worse.",
    "cause": "Errors add up: recursion costs more than learning from generated text once.",
    "finding_2": "Text repeats itself more, in its commonest tokens.",
    "finding_3": "Stories lose their grammar and their sense.",
    "finding_4": "Late models are worth no more than untrained ones.",
    "proportion": "A share of real text helps.",
}
WHY: dict[Outcome, str] = {
    "reproduced": "the test sees it",
    "contradicted": "the test sees the opposite",
    "opposite so far": "the test sees the opposite, in chains that end before the generation at which the paper sees it",
    "not at this scale": "not seen, and these chains end before the generation at which the paper sees it",
    "underpowered": "the test sees nothing, and does not rule it out",
    "not tested": "not measured",
}
COUNTED = {True: "every step did, which is a count and no test", False: "not every step did, which is a count and no test"}
FEW = {1: "one chain", 2: "two chains"}
HEADER = ("Claim: what the paper says", "Verdict", "What our runs and studies say", "Why", "What theory says", "Scale")


def claims_table(answers: Sequence[Answer]) -> Markdown:
    """One row a claim."""
    return Markdown(pipe_table(HEADER, [_row(answer) for answer in answers]))


def verdicts_in_words(answers: Sequence[Answer]) -> Markdown:
    """How many claims have which verdict."""
    counts: dict[str, int] = {}
    for answer in answers:
        counts[answer.verdict] = counts.get(answer.verdict, 0) + 1
    listed = "; ".join(f"**{verdict}**: {count}" for verdict, count in sorted(counts.items(), key=lambda pair: -pair[1]))
    return Markdown(f"Of {len(answers)} claims: {listed}.")


def verdict_lines(answers: Sequence[Answer]) -> str:
    """The main claims as a list in Markdown, each with its verdict and the number that decides it."""
    by_key = {answer.claim.key: answer for answer in answers}
    return "\n".join(f"- **{title}** {_verdict_line(by_key[key])}" for key, title in SHORT.items())


def _verdict_line(answer: Answer) -> str:
    """The verdict with the part that decides it: of what is reproduced in part, a part, or a source, that is and one that is not."""
    if answer.claim.by_theory:
        return f"*{_capital(answer.verdict)}, by theory*: [the argument fails, the conclusion holds](theory/6_fates)."
    shown: dict[bool, str] = {}
    for one in [*answer.evidence[:1], *answer.disputing]:
        for part, outcome in one.tested:
            decides = answer.verdict in (outcome, "partly")
            if decides and (outcome == "reproduced") not in shown:
                shown[outcome == "reproduced"] = f"{_capital(_part(part))}, {_name(one.source, root='')}."
    return " ".join([f"*{_capital(answer.verdict)}.*", *(shown[seen] for seen in (True, False) if seen in shown)])


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def limits_of_ours(sources: Sequence[Source]) -> Markdown:
    """What the scale of these runs and studies leaves open, in their numbers."""
    lines = [f"- {_name(source)}: {_scale(source)}, {_chains(source)}." for source in sources]
    return Markdown("\n".join(lines) or "There are no runs and no studies.")


def _row(answer: Answer) -> tuple[str, ...]:
    said = CLAIMS[answer.claim.key]
    numbers = LINE.join(line for evidence in answer.evidence for line in _numbers(evidence)) or "–"
    scale = LINE.join(f"{_name(evidence.source)}: {_scale(evidence.source)}" for evidence in answer.evidence[:1]) or "–"
    verdict = f"**{answer.verdict}**" + " by theory" * (answer.claim.by_theory is not None)
    return (f"**{said.title}.** {said.paper}", verdict, numbers, f"{_why(answer)} {said.note}".strip(), said.theory, scale)


def _numbers(evidence: Evidence) -> list[str]:
    return [f"{_name(evidence.source)}: {_part(part)}" for part, _ in evidence.tested]


def _part(part: Part) -> str:
    interval = "" if part.low is None or part.high is None else f" [{number(part.low)}, {number(part.high)}]"
    p = "" if part.p is None else f", p (Holm) = {part.p:.2g}"
    chains = f"{' and '.join(map(str, part.chains))} chain{'s' * (part.chains != (1,))} to generation {part.last}"
    test = "" if part.is_early else f", {plain(part.test)}"
    return f"{plain(part.what)}: **{number(part.estimate)}**{interval}{p} ({chains}{test})"


def _why(answer: Answer) -> str:
    """The outcome of each part of the evidence that decides."""
    if not answer.evidence:
        return "" if answer.claim.by_theory else "No run and no study here has measured it."
    first = answer.evidence[0]
    pairs = zip(first.parts, first.outcomes, strict=True)
    reasons = [f"{plain(part.what) if part else 'a part of it'}: {_reason(part, outcome)}" for part, outcome in pairs]
    disputed = "".join(f" {_name(one.source)} has enough chains as well and says: {one.verdict}." for one in answer.disputing)
    return "; ".join(reasons).capitalize() + "." + disputed


def _reason(part: Part | None, outcome: Outcome) -> str:
    if part is None or not part.is_early:
        return WHY[outcome] if part is None or part.test != "count of steps" else COUNTED[part.agrees]
    count = FEW.get(min(part.chains), "fewer chains than were planned")
    return f"{count}, which went {'the way of the paper' if part.agrees else 'another way'}: no verdict"


def _name(source: Source, root: str = "../") -> str:
    """A source by its name; a study's leads to its page, seen from a folder of the book or, with another ``root``, from elsewhere."""
    name = f"`{source.name}`"
    return study_link(source.name, name, root) if source.is_study else name


def _own(source: Source) -> DataFrame:
    """The numbers of the paper's recursion, where other arms stand beside it."""
    return source.table[source.table["arm"].isin(source.arms("recursion") or source.table["arm"])]


def _scale(source: Source) -> str:
    """Parameters, tokens a generation, generations."""
    own = _own(source)
    found = []
    for step, metric, unit in (("train", "parameters", "parameters"), ("sample", "tokens", "tokens a generation")):
        values = own[(own["step"] == step) & (own["metric"] == metric)]["value"]
        if len(values):
            found.append(f"{number(float(values.median()))} {unit}")
    return ", ".join([*found, f"{int(_written(own).max())} generations"])


def _written(numbers: DataFrame) -> Series:
    """The last generation of each chain, by run: the last that wrote its text, where texts are measured."""
    written = numbers[numbers["step"] == "sample"]
    return (written if len(written) else numbers).groupby("run")["generation"].max()


def _chains(source: Source) -> str:
    ends = sorted(_written(_own(source)), reverse=True)
    several = f" to generations {', '.join(map(str, ends))}" if len(set(ends)) > 1 else ""
    return f"{len(ends)} chain{'s' * (len(ends) > 1)}{several}"
