"""What a step's notebook shows of its results, as Markdown that Jupyter, papermill and the book render alike."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.display import Markdown

LINE_END = "⏎"
METRICS_HEADING = "| measure | value | unit | what it is |"  # of a ``metrics_table``, by which a page knows one
_LINE_ENDS = re.compile("\r\n?|\n")


def metrics_table(results: dict[str, Any]) -> Markdown:
    """A step's metrics as a table of value, unit and definition."""
    from IPython.display import Markdown

    rows = []
    for name, metric in results["metrics"].items():
        unit = "" if metric["unit"] == "1" else metric["unit"]
        rows.append(f"| {plain(name.replace('_', ' '))} | {with_error(metric)} | {plain(unit)} | {plain(metric['definition'])} |")
    return Markdown("\n".join([METRICS_HEADING, "|:--|--:|:--|:--|", *rows]))


def with_error(metric: dict[str, Any]) -> str:
    """A metric's value, with its standard error where it has one."""
    error = f" ± {metric['standard_error']:.2g}" if metric.get("standard_error") else ""
    return number(metric["value"]) + error


def early_stopping(training: dict[str, Any]) -> str:
    """What ended a training, as a sentence of Markdown: the hold-out loss, the most epochs allowed, or a number known beforehand."""
    losses, epochs = training["series"].get("holdout_losses", []), training["metrics"]["epochs"]["value"]
    if not losses:
        return f"No hold-out loss decided when to stop here: the epochs, {epochs}, were given or had been decided in generation 1."
    if epochs < len(losses):
        lowest = losses[epochs - 1]
        return (
            f"Early stopping: the loss on held-out stories was lowest after epoch {epochs}, {lowest:.3f} nats a token, and did not fall in the next."
        )
    # Were it not for the limit, another epoch would have been tried: the last one was the best.
    what = f"falling by {losses[-2] - losses[-1]:.3f} nats an epoch" if epochs > 1 else "not seen to have stopped falling"
    return (
        f"**Cap reached, hold-out still {what}**: `training.max_epochs` = {epochs} ended the training, not early stopping, "
        "and every generation trains for that many epochs."
    )


def excerpts(texts: list[str]) -> Markdown:
    """Generated text as a numbered list; nothing in it is taken for markup."""
    from IPython.display import Markdown

    return Markdown("\n".join(f"{index}. {literal(text)}" for index, text in enumerate(texts, 1)))


def word_list(counts: list[list[Any]]) -> Markdown:
    """Words with their counts in one line; nothing in them is taken for markup."""
    from IPython.display import Markdown

    return Markdown(", ".join(f"{literal(word)} ({count:,})" for word, count in counts) or "*none*")


def completed(pairs: list[list[str]]) -> Markdown:
    """Beginnings with what a model wrote after them."""
    from IPython.display import Markdown

    return Markdown("\n".join(f"{index}. {literal(beginning)} **▸** {literal(text)}" for index, (beginning, text) in enumerate(pairs, 1)))


def graded(cases: list[dict[str, Any]]) -> Markdown:
    """Completions with their grades, or with the answer that could not be read as grades."""
    from IPython.display import Markdown

    lines = []
    for index, case in enumerate(cases, 1):
        grades = [f"{name} **{case[name]}**" for name in ("grammar", "creativity", "consistency") if name in case]
        said = ", ".join(grades) or f"malformed answer: {literal(case['malformed'])}"
        lines.append(f"{index}. {literal(case['beginning'])} **▸** {literal(case['completion'])} \\\n   {said}")
    return Markdown("\n".join(lines))


def literal(text: str) -> str:
    """Text that a corpus, a prompt, a judge or a model wrote, as inline HTML: a page shows it and is not shaped by it. Line ends show as ⏎."""
    return f'<span class="sample">{plain(_LINE_ENDS.sub(f" {LINE_END} ", text)) or "(nothing)"}</span>'


def quotation(text: str) -> str:
    """The same as a block of its own, in which line ends are line ends."""
    return f'<blockquote class="sample">{"<br>".join(map(plain, _LINE_ENDS.split(text))) or "(nothing)"}</blockquote>'


def plain(text: str) -> str:
    """A line of text for a place where Markdown is read: its letters and none of its markup.

    Every sign but letters, digits and single spaces is a character reference, which no parser between here and the reader takes for anything
    but that sign: not HTML, Markdown, mathematics, tables or templates. What would not be seen is named (``visible``).
    """
    return "".join(char if char.isalnum() or char == " " else f"&#{ord(char)};" for char in visible(text))


def sentence(text: str) -> str:
    """The same of a sentence from a study's file, where what stands between backticks is code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick without its partner is a sign like any other
        return plain(text)
    return "".join(f"<code>{plain(part)}</code>" if index % 2 else plain(part) for index, part in enumerate(parts))


def figure_text(text: str) -> str:
    """Any text as a label in a matplotlib figure, which would take what stands between dollars for mathematics."""
    return visible(text).replace("$", r"\$")


def visible(text: str, keep: str = "") -> str:
    """Text with a stand-in, ⟨U+XXXX⟩, for what has no shape of its own or changes that of others; ``keep`` names exceptions.

    That is all that Unicode calls control, format (directions, zero width), surrogate, private or unassigned, and its separators of lines. (It
    has pictures of the ASCII ones, which few fonts have.)
    """
    return "".join(char if char.isprintable() or char in keep or unicodedata.category(char) == "Zs" else f"⟨U+{ord(char):04X}⟩" for char in text)


def number(value: float | int) -> str:
    """A number as a table shows it: integers grouped, others to five significant digits."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.5g}"
