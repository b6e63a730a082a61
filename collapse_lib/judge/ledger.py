"""The judge's answers, each of them paid for once: ``<runs>/judge.sqlite``, by the hash of their endpoint and their request."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import sealed
from collapse_lib.experiment.paths import runs_root
from collapse_lib.judge.connection import endpoint, one_line, without_secrets

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import GPTEvalSettings

Body = dict[str, Any]  # of a request, as it is sent

BYTES_PER_TOKEN = 4  # of English text, about; the judge's own tokeniser is not at hand
MOST_TOKENS = 10_000_000  # no model reads or writes more at once: a larger count is none

COLUMNS = ("request", "run", "judge", "model", "text", "prompt_tokens", "answer_tokens")


OF_THE_MACHINE = {  # SQLite's refusals that say nothing against the file
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}


@dataclass(frozen=True)
class Answer:
    """What the judge wrote, by which model under its full name, and the tokens that were billed.

    ``endpoint_known`` is False for an answer from a time when the ledger did not record who gave it.
    """

    text: str
    model: str
    prompt_tokens: int
    answer_tokens: int
    endpoint_known: bool = True


class Ledger:
    """The answers there are, and who paid for them: one SQLite file, safe with threads, processes and kills.

    Each answer carries the hash of all that is recorded of it, as JSON records do (``files.sealed``): SQLite knows a damaged page by its form alone,
    and another digit in a text is well formed. Rows from before that was so are read as they are.

    An answer belongs to the endpoint that gave it. Ledgers written before that was recorded are still read: their answers were paid for, so they
    serve any endpoint that has given none of its own. Only their empty ones do not, which may be what was left of a response that was no answer.
    """

    def __init__(self, path: Path | None = None):
        self.path, self.endpoint = path or runs_root() / "judge.sqlite", endpoint()
        self._do(
            "CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, run TEXT, judge TEXT, model TEXT, text TEXT, "
            "prompt_tokens INTEGER, answer_tokens INTEGER, sha256 TEXT)"
        )
        if "sha256" not in {column[1] for column in self._do("PRAGMA table_info(answers)")}:
            with suppress(UserError):  # another process was quicker
                self._do("ALTER TABLE answers ADD COLUMN sha256 TEXT")

    def find(self, body: Body) -> Answer | None:
        """The answer to a request that was sent to this endpoint before, by whatever run."""
        own, old = request_hash(body, self.endpoint), request_hash(body)
        where = "WHERE request = :own OR (request = :old AND text <> '') ORDER BY request = :own DESC LIMIT 1"
        rows = self._rows(where, {"own": own, "old": old})
        if not rows:
            return None
        answer = rows[0]
        told = (answer["text"], answer["model"], answer["prompt_tokens"], answer["answer_tokens"])
        return sound_answer(body, *told, endpoint_known=answer["request"] == own)

    def add(self, body: Body, run: str, answer: Answer) -> None:
        """Record this endpoint's answer to a request that ``run`` has paid for."""
        values = (request_hash(body, self.endpoint), run, body["model"], answer.model, answer.text, answer.prompt_tokens, answer.answer_tokens)
        row = sealed(dict(zip(COLUMNS, values, strict=True)))
        self._do(f"INSERT OR REPLACE INTO answers ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})", row)

    def paid(self, run: str, settings: GPTEvalSettings) -> float | None:
        """What a run of this name has paid for this judge's answers, at the prices that are set; None where there are none."""
        # All rows are looked at, for one whose run or judge was damaged would go unpaid.
        own = [row for row in self._rows() if (row["run"], row["judge"]) == (run, settings.judge)]
        # Older ledgers hold whatever an endpoint said it had counted.
        prompts, answers = (sum(row[name] for row in own if isinstance(row[name], int) and 0 <= row[name] <= MOST_TOKENS) for name in COLUMNS[5:])
        return cost(prompts, answers, settings)

    def _rows(self, where: str = "", values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Answers by the names of their columns; ``UserError`` if one is not as it was recorded."""
        found = []
        for *content, seal in self._do(f"SELECT {', '.join(COLUMNS)}, sha256 FROM answers {where}", values or {}):
            row = dict(zip(COLUMNS, content, strict=True))
            if seal is not None and (any(isinstance(value, bytes) for value in content) or seal != sealed(row)["sha256"]):
                raise UserError(f"The judge's answers in {self.path} were damaged or changed by hand; move the file away to ask anew.")
            found.append(row)
        return found

    def _do(self, statement: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[tuple]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
                return database.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in OF_THE_MACHINE:
                raise UserError(
                    f"The judge's answers in {self.path} cannot be read or added to ({error}); make room, change permissions or end what else "
                    "uses the file, and give the same command again: what was paid for is kept."
                ) from None
            raise UserError(f"The judge's answers in {self.path} cannot be read ({error}); move the file away to ask anew.") from None


def request_hash(body: Body, endpoint: str = "") -> str:
    """SHA-256 over where a request goes and all that is sent: model, messages, parameters."""
    return hashlib.sha256((endpoint + json.dumps(body, sort_keys=True)).encode()).hexdigest()


def cost(prompt_tokens: int, answer_tokens: int, settings: GPTEvalSettings) -> float | None:
    """What so many tokens cost, in the currency of the prices (per million tokens); None where no prices are given."""
    if settings.price_in is None or settings.price_out is None:
        return None
    return (prompt_tokens * settings.price_in + answer_tokens * settings.price_out) / 1e6


def sound_answer(body: Body, text: str, model: str, prompt_tokens: Any, answer_tokens: Any, endpoint_known: bool = True) -> Answer:
    """An answer rid of secrets and of token counts that cannot be right."""
    tokens = _believable(prompt_tokens, count_prompt_tokens(body)), _believable(answer_tokens, count_tokens(text))
    return Answer(without_secrets(text), without_secrets(one_line(model)), *tokens, endpoint_known=bool(endpoint_known))


def _believable(counted: Any, estimated: int) -> int:
    """An endpoint's count if it can be one and is no less than our own: a bill may be overstated, never understated."""
    return max(counted, estimated) if type(counted) is int and counted <= MOST_TOKENS else estimated


def count_prompt_tokens(body: Body) -> int:
    """Tokens of a request's messages, by our own estimate (``count_tokens``)."""
    return sum(count_tokens(message["content"]) for message in body["messages"])


def count_tokens(text: str) -> int:
    """Tokens of a text, estimated as its UTF-8 bytes / 4."""
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)
