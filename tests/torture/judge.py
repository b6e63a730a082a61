"""The judge's endpoint means ill: nothing false is kept as an answer, no key is kept or shown, and a sound endpoint is asked afterwards.

A sound answer with each of its parts replaced by each of many things, and transports that break in every way. The tests of the client have the
cases that went wrong once, each with the sentence that it gets.
"""

from __future__ import annotations

import base64
import copy
import gzip
import io
import json
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scripted_judge import GOOD, KEY, Handler, Scripted

from collapse_lib.experiment.errors import UserError, explained
from collapse_lib.experiment.protocol import GPTEvalSettings
from collapse_lib.judge import client
from collapse_lib.judge.ledger import MOST_TOKENS, Answer, Ledger, count_prompt_tokens, count_tokens
from collapse_lib.metrics.gpt_eval import Exercise, Grade, messages
from torture.campaign import Case, Outcome

TITLE = "A hostile judge"
SOUND = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": GOOD, "refusal": None}}],
    "usage": {"prompt_tokens": 400, "completion_tokens": 20, "total_tokens": 420},
}
PLACES = [
    (),
    ("id",),
    ("object",),
    ("created",),
    ("model",),
    ("choices",),
    ("choices", 0),
    ("choices", 0, "index"),
    ("choices", 0, "finish_reason"),
    ("choices", 0, "message"),
    ("choices", 0, "message", "role"),
    ("choices", 0, "message", "content"),
    ("choices", 0, "message", "refusal"),
    ("usage",),
    ("usage", "prompt_tokens"),
    ("usage", "completion_tokens"),
    ("error",),
]
JUNK: list[Any] = [
    None,
    True,
    -1,
    10**30,
    1e308,
    "",
    "error",
    "x" * 70_000,
    "\x1b]0;title\x07\r\n\u202e\0",
    "\ud800",
    f"your key is {KEY}",
    base64.b64encode(f"Bearer {KEY}".encode()).decode(),
    quote(f"{KEY}/"),
    [],
    {},
    [[[[]]]],
    {"message": f"denied to {KEY}"},
    {"grammar": 9},
]


def _drip(handler: Handler) -> None:
    """A byte now and then, for ever."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def _endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(64):
        handler.wfile.write(b"[" * 65536)


def _short(handler: Handler) -> None:
    """Less than was promised."""
    content = json.dumps(SOUND).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(2 * len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def _headers(**headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.send(200, json.dumps(SOUND).encode(), **headers)


TRANSPORTS: dict[str, Any] = {
    "hangs": "hang",
    "drips": _drip,
    "never ends": _endless,
    "breaks off": _short,
    "hangs up": lambda handler: handler.connection.close(),
    "speaks no HTTP": lambda handler: handler.wfile.write(b"\0\xff 200 hello\r\n\r\n"),
    "sends no headers": lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\n"),
    "is a page": "page",
    "is compressed": lambda handler: handler.send(200, gzip.compress(json.dumps(SOUND).encode()), Content_Encoding="gzip"),
    "says it is compressed": _headers(Content_Encoding="br"),
    "is no UTF-8": json.dumps(SOUND).replace(GOOD[2:5], "\xff\xfe").encode("latin-1"),
    "is UTF-16": json.dumps(SOUND).encode("utf-16"),
    "is nested too deeply": b"[" * 300_000,
    "is not a number": b'{"usage": NaN}',
    "redirects": lambda handler: handler.send(302, b"", Location="http://127.0.0.1:9/v1/chat/completions"),
    "redirects to a file": lambda handler: handler.send(307, b"", Location="file:///etc/passwd"),
    "bids to wait for ever": lambda handler: handler.send(429, b"{}", Retry_After="1e308"),
    "quotes the key in an error": 400,
    **{f"answers {status}": status for status in (401, 402, 404, 409, 418, 500, 503, 529)},
}


def cases(place: Path, order: random.Random) -> list[Case]:
    found = [Case(f"the endpoint {name}", _attempt(step)) for name, step in TRANSPORTS.items()]
    for where in PLACES:
        for junk in JUNK:
            name = ".".join(map(str, where)) or "all of it"
            found.append(Case(f"{name} is {ascii(junk)[:60]}", _attempt(json.dumps(_with(where, junk)).encode())))
    order.shuffle(found)
    return found


def _with(where: tuple[str | int, ...], junk: Any) -> Any:
    """A sound answer with one part of it replaced."""
    if not where:
        return junk
    answer: Any = copy.deepcopy(SOUND)
    inner = answer
    for step in where[:-1]:
        inner = inner[step]
    inner[where[-1]] = junk
    return answer


def _attempt(step: Any) -> Callable[[Path], Outcome]:
    def attempt(scratch: Path) -> Outcome:
        with Scripted() as server:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            os.environ |= {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY, "COLLAPSE_RUNS": str(scratch)}
            try:
                with redirect_stdout(io.StringIO()):  # estimates
                    return _judged(server, step, scratch)
            finally:
                server.shutdown()

    return attempt


def _judged(server: Scripted, step: Any, scratch: Path) -> Outcome:
    once = GPTEvalSettings(judge="scripted", concurrency=1, retries=0, timeout=0.5)
    body = client.request(once, messages(Exercise("The cat", " sat.")), Grade.model_json_schema())
    server.script = [step] * 3
    said, answer = "", None
    try:
        (answer,) = client.ask([body], once, "run")
    except UserError as refusal:
        said = str(refusal)
    except Exception as error:
        return Outcome("traceback", f"{type(error).__name__}: {error}; {explained(error)}")
    kept = b"".join(path.read_bytes() for path in scratch.iterdir()) + said.encode(errors="replace") + repr(answer).encode()
    for secret in (KEY, quote(KEY, safe=""), base64.b64encode(KEY.encode()).decode()[:-4]):
        if secret.encode() in kept:
            return Outcome("the key is kept", f"{said} {answer}")
    if answer is not None:
        return Outcome("right", f"{answer}"[:200]) if _is_sound(answer, body) else Outcome("used", f"{answer}")
    if "\n" in said or len(said) > 600 or not said.isprintable():
        return Outcome("not one sentence", said)
    if Ledger().find(body) is not None:
        return Outcome("used", "what was refused is in the ledger")
    server.script = []
    (answer,) = client.ask([body], once, "run")
    return Outcome("refused", said) if answer.text == GOOD else Outcome("used", f"afterwards: {answer}")


def _is_sound(answer: Answer, body: dict[str, Any]) -> bool:
    counts = (answer.prompt_tokens, count_prompt_tokens(body)), (answer.answer_tokens, count_tokens(answer.text))
    tokens_are = all(isinstance(count, int) and least <= count <= MOST_TOKENS for count, least in counts)
    return tokens_are and isinstance(answer.text, str) and bool(answer.model) and answer.model.isprintable()
