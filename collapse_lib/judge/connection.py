"""The connection to a judge: where it is, the key, and an HTTP client that trusts what comes back with nothing.

The endpoint and its key come from the environment, ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``, and the key goes to no file, message or log, not
even where an endpoint quotes it.
"""

from __future__ import annotations

import ipaddress
import math
import os
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pydantic import HttpUrl

from collapse_lib.experiment.errors import UserError

if TYPE_CHECKING:
    from httpx2 import Client
    from openai import OpenAI

    from collapse_lib.experiment.protocol import GPTEvalSettings

OPENAI = "https://api.openai.com/v1"
LONGEST_RESPONSE = 1 << 20  # bytes; a grade's is about a thousand
SHORTEST_SECRET = 8  # characters: "none" or "EMPTY", as some put for a key, is no secret, and taking it out would spoil what was said
HEADERS = ("Location", "Retry-After", "Retry-After-Ms", "X-Should-Retry")  # that we or the client act on; a charset is not among them


class NotAnAnswer(Exception):
    """What came is no response of the API; says why."""


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


def connect(settings: GPTEvalSettings) -> OpenAI:
    """A client for the endpoint in the environment. Raises ``UserError`` without a key, except for an endpoint on this machine."""
    from openai import OpenAI

    key = _key()
    if not key and not _is_local(_base_url()):
        raise UserError(
            f"The judge '{settings.judge}' cannot be asked without a key: set OPENAI_API_KEY (and OPENAI_BASE_URL for another endpoint), "
            "or serve one on this machine with `collapse judge serve`."
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
                    raise NotAnAnswer("compressed, and a few bytes can be made to fill the memory")
                for part in response.iter_raw():
                    content += part
                    if len(content) > LONGEST_RESPONSE:
                        raise NotAnAnswer(f"more than {LONGEST_RESPONSE:,} bytes")
                    if time.monotonic() > latest:
                        raise httpx2.ReadTimeout("no end", request=request)
            headers = {name: response.headers[name] for name in HEADERS if name in response.headers}
            return httpx2.Response(response.status_code, headers=headers, content=bytes(content), request=request)

    return Bounded(follow_redirects=False, headers={"Accept-Encoding": "identity"})


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


def without_secrets(said: str) -> str:
    """Text in which the key, and what else of the environment may be secret, stands as [key], however it was spelt."""
    url = urlsplit(_base_url())
    secrets = [_key(), unquote(url.password or ""), *(value for _, value in parse_qsl(url.query))]
    spellings = {spelling for secret in secrets if len(secret) >= SHORTEST_SECRET for spelling in _spellings(secret)}
    for spelling in sorted(spellings, key=len, reverse=True):
        said = said.replace(spelling, "[key]")
    return said


def _spellings(secret: str) -> Iterator[str]:
    """A secret as it is, in a URL, and in Base64 after anything ("Bearer ", a user name): the letters that it alone decides."""
    yield from (secret, quote(secret, safe=""))
    for before in range(3):
        data = bytes(before) + secret.encode()
        own = slice(math.ceil(before * 8 / 6), len(data) * 8 // 6)
        yield from (encode(data).decode()[own] for encode in (b64encode, urlsafe_b64encode))


def one_line(said: str) -> str:
    """One line of it, and nothing that a terminal would take for a command."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in said).split())


def quoted(said: Any) -> str:
    """What an endpoint said, for a message: in parentheses, without secrets, cut short; nothing of what is no text."""
    line = without_secrets(one_line(said)).rstrip(".") if isinstance(said, str) else ""
    return f" ({line[:200]})" if line else ""
