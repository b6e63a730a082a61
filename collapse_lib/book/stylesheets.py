"""Style sheets without the rules that no page of a site can use.

The theme's carry all of Bootstrap, 540 kB in all. No page is painted before it has them, and this book uses a third: on a slow line readers
would wait for the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import tinycss2

NAME = re.compile(r"[\w-]+")
CONDITIONAL = ("media", "supports", "container", "layer")


def slim(site: Path, kept: Iterable[str] = ()) -> None:
    """Rewrite the style sheets in ``site`` without what nothing in it can use; those named in ``kept`` stay as they are.

    A selector goes if it asks for a class or an id that stands in no page and no script. Scripts may put names together, so one that begins with a
    name ending in "-" that stands in a script counts as there. All else stays: elements, attributes, what functions such as ``:not()`` hold.
    """
    words, beginnings = _names(site)
    for file in sorted(site.rglob("*.css")):
        if file.name not in kept:
            rules = tinycss2.parse_stylesheet(file.read_text(encoding="utf-8"), skip_comments=True, skip_whitespace=True)
            file.write_text("\n".join(_used(rules, words, beginnings)), encoding="utf-8")


def _names(site: Path) -> tuple[set[str], tuple[str, ...]]:
    """Everything in pages and scripts that may be a name, and those in scripts that may be a name's beginning."""
    words: set[str] = set()
    scripts: set[str] = set()
    for file in site.rglob("*.html"):
        words.update(NAME.findall(file.read_text(encoding="utf-8")))
    for file in (site / "_static").rglob("*.js"):
        scripts.update(NAME.findall(file.read_text(encoding="utf-8")))
    return words | scripts, tuple(word for word in scripts if re.fullmatch("[a-z][a-z-]{2,}-", word))


def _used(rules: Iterable[Any], words: set[str], beginnings: tuple[str, ...]) -> Iterator[str]:
    for rule in rules:
        if rule.type == "qualified-rule":
            selectors = [tinycss2.serialize(one).strip() for one in _selectors(rule.prelude) if _is_possible(one, words, beginnings)]
            if selectors:
                yield f"{','.join(selectors)}{{{tinycss2.serialize(rule.content).strip()}}}"
        elif rule.type == "at-rule" and rule.lower_at_keyword in CONDITIONAL and rule.content is not None:
            inside = "\n".join(_used(tinycss2.parse_blocks_contents(rule.content, skip_comments=True, skip_whitespace=True), words, beginnings))
            if inside:
                yield f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{inside}}}"
        else:
            yield rule.serialize()


def _selectors(prelude: list[Any]) -> list[list[Any]]:
    parts: list[list[Any]] = [[]]
    for token in prelude:
        if token == ",":
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _is_possible(selector: list[Any], words: set[str], beginnings: tuple[str, ...]) -> bool:
    asked = [token.value for token in selector if token.type == "hash"]
    asked += [name.value for dot, name in pairwise(selector) if dot == "." and name.type == "ident"]
    return all(name in words or name.startswith(beginnings) for name in asked)
