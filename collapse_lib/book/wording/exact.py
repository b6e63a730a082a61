"""What pages say about stories that the grammar has judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from collapse_lib.metrics.legality import CAUSES
from collapse_lib.text.display import literal

if TYPE_CHECKING:
    from IPython.display import Markdown


def judged_stories(measured: dict[str, Any]) -> Markdown:
    """Stories of a generation, each with a mark where it stops being legal and the reason."""
    from IPython.display import Markdown

    lines = []
    for index, (story, legal, cause) in enumerate(measured["examples"].get("judged", []), 1):
        if cause is None:
            lines.append(f"{index}. {literal(story)} \\\n   *legal from beginning to end*")
        else:
            lines.append(f"{index}. {literal(story[:legal]) if legal else ''} **▸** {literal(story[legal:])} \\\n   *{CAUSES[cause]}*")
    return Markdown("\n".join(lines) or "*No complete story was sampled, so there was none to judge.*")
