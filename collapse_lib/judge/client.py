"""Asking a judge: requests to any endpoint that speaks OpenAI's chat API.

Every answer is kept in the ledger, so an interrupted or repeated grading asks only for what is missing. Only a valid chat completion is an answer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.progress import progress
from collapse_lib.judge.connection import NotAnAnswer, connect, quoted
from collapse_lib.judge.ledger import BYTES_PER_TOKEN, Answer, Body, Ledger, cost, count_prompt_tokens, request_hash, sound_answer

if TYPE_CHECKING:
    from openai import OpenAI

    from collapse_lib.experiment.protocol import GPTEvalSettings

ANSWER_TOKENS = 30  # of a grade, about


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


def estimate(bodies: Sequence[Body], settings: GPTEvalSettings, run: str) -> Estimate:
    """What asking for these answers will take; those that are known cost nothing, equal ones count once."""
    ledger = Ledger()
    different = list({request_hash(body): body for body in bodies}.values())
    known = [ledger.find(body) for body in different]
    missing = [body for body, answer in zip(different, known, strict=True) if answer is None]
    prompt_tokens, answer_tokens = sum(map(count_prompt_tokens, missing)), ANSWER_TOKENS * len(missing)
    return Estimate(
        len(missing),
        len(different) - len(missing),
        prompt_tokens,
        answer_tokens,
        cost(prompt_tokens, answer_tokens, settings),
        ledger.paid(run, settings),
        sum(answer is not None and not answer.endpoint_known for answer in known),
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
        expected = cost(count_prompt_tokens(body), ANSWER_TOKENS, self.settings) or 0.0
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

    progress_kept = "what was answered so far is kept, and the same command goes on from there"
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
                target = quoted(error.response.headers.get("Location"))
                raise UserError(
                    f"{where} sends us elsewhere{target} (HTTP {error.status_code}), and a key goes to no address but its own; "
                    "set OPENAI_BASE_URL to where the endpoint is."
                ) from None
            again = f" after {tries} tries" if error.status_code in (408, 409, 429) or error.status_code >= 500 else ""
            said = error.body.get("message") if isinstance(error.body, dict) else None
            raise UserError(f"{where} answers HTTP {error.status_code}{again}{quoted(said)}; {progress_kept}.") from None
        except openai.APITimeoutError:
            raise UserError(f"{where} gave no answer within {settings.timeout:g} s{times}; {progress_kept}.") from None
        except openai.APIConnectionError as error:
            failed = "cannot be reached" if isinstance(error.__cause__, httpx2.ConnectError) else "sent no whole HTTP response"
            raise UserError(f"{where} {failed}{quoted(str(error.__cause__))}{times}; {progress_kept}.") from None
        except NotAnAnswer as error:  # from a captive portal, a wrong path, another service
            raise UserError(
                f"{where} does not answer as the OpenAI API does{quoted(str(error))}; "
                "nothing of that answer is kept, and OPENAI_BASE_URL usually ends in /v1."
            ) from None
        answers.append(answer)
        ledger.add(body, run, answer)


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
        raise NotAnAnswer(f"no chat completion: {'.'.join(map(str, first['loc']))} {first['msg']}") from None
    usage = completion.usage if isinstance(completion.usage, dict) else {}  # some endpoints do not count
    text, model = completion.choices[0].message.content or "", completion.model
    return sound_answer(body, text, model, usage.get("prompt_tokens"), usage.get("completion_tokens"))
