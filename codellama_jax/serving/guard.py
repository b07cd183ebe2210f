"""Checks of every request before an endpoint sees it, as middleware around the application.

The API key, the size of the body and the time that it takes, web pages of other origins, and
answers to errors that no endpoint handled.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from codellama_jax.generation.options import note
from codellama_jax.serving.errors import ApiError, one_line
from codellama_jax.serving.streaming import ClientGone

BODY_SECONDS = 30.0  # that a client has to send a body
# Of a refused body, read before the answer: a client that is still sending reads no answer.
DISCARD_SECONDS, DISCARD_PAUSE, DISCARD_BYTES = 5.0, 0.5, 64_000_000
# Paths that need no key: probes of health, and the static page, which sends the key by itself.
OPEN_PATHS = ("/", "/health", "/v1/health")
OPEN_FOLDER = "/page/"
GONE = 499  # the status, in the metrics, of a request whose client has left
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


@dataclass(frozen=True)
class Rules:
    """Who may send requests, and how large they may be.

    Attributes:
      api_key: the key; "" for none.
      most_bytes: of a body.
      hosts: names that the header Host may hold; empty for any. It keeps web pages from reaching a
        server without a key through a name that they let point to this machine.
      origins: web pages that may send requests.
    """

    api_key: str = ""
    most_bytes: int = 4_000_000
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()


class Guard:
    """The middleware.

    Attributes:
      requests: counts of answers by path and status.
    """

    def __init__(self, app: ASGIApp, rules: Rules, paths: Sequence[str]) -> None:
        """Guards an application whose endpoints have these paths."""
        self.app, self.rules, self.paths = app, rules, frozenset(paths)
        self.requests: Counter[tuple[str, int]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            await self._check(scope, receive)
            # The body is read here, before an endpoint runs: endpoints may then trust that it is
            # complete and within its bounds, and nothing is computed for a client that is still
            # sending.
            body = await self._body(scope, receive)
            await self.app(scope, _replayed(body, receive), answer.send)
        # No answer is sent, but the request is counted.
        except ClientGone:
            answer.status = GONE
        except ApiError as error:
            await answer.refuse(error, scope, receive)
        except Exception as error:
            note(f"error: {scope['path'][:100]!a}: {one_line(error)}")
            await answer.refuse(ApiError(500, "internal error"), scope, receive)
        finally:
            # Only known paths are labels of the metric: a scanner would otherwise create one per
            # request.
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.requests[path, answer.status] += 1

    async def _check(self, scope: Scope, receive: Receive) -> None:
        """Raises ApiError, once its body is read, for a request that its client may not send."""
        try:
            self._check_client(scope)
        except ApiError:
            await _discard(scope, receive)
            raise

    def _check_client(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        # The port is left out; a bare IPv6 address in brackets holds colons but no port.
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self.rules.hosts and name.lower() not in self.rules.hosts:
            raise ApiError(403, f"the header Host is {host[:60]!r}: it must be this machine")
        origin = headers.get("origin")
        # Browsers send Origin with every cross-site POST, even one that needs no CORS preflight.
        # Without this check any web page could use the model of whoever opens it.
        is_same = origin in (f"http://{host}", f"https://{host}")
        if origin and not is_same and not {origin, "*"} & set(self.rules.origins):
            raise ApiError(403, f"the origin {origin[:60]!r} is not allowed: see --cors")
        path = scope["path"]
        is_open = path in OPEN_PATHS or path.startswith(OPEN_FOLDER)
        # A browser sends OPTIONS without a key, to learn whether it may send one.
        if not self.rules.api_key or is_open or scope["method"] == "OPTIONS":
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = headers.get("x-api-key", "")
        # In constant time, so that the time does not reveal how much of a key is right.
        if not hmac.compare_digest(key.strip().encode(), self.rules.api_key.encode()):
            message = "the API key is missing or wrong: send Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Returns the body. Raises ApiError for one that is too large or comes too slowly."""
        most = self.rules.most_bytes
        length = Headers(scope=scope).get("content-length", "0")
        too_large = ApiError(413, f"the body is too large: at most {most:,} bytes are read")
        # The header lets a large body be refused before it is read. It may be missing or wrong, so
        # that the bytes are counted below as well.
        if length.isdigit() and int(length[:20]) > most:
            await _discard(scope, receive)
            raise too_large
        parts, size = [], 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        parts.clear()
                        if message.get("more_body"):
                            await _discard(scope, receive)
                        raise too_large
                    if not message.get("more_body"):
                        return b"".join(parts)
        raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:g} seconds")


async def _discard(scope: Scope, receive: Receive) -> None:
    """Reads the rest of a body, within bounds. Raises ClientGone if the client leaves."""
    if "expect" in Headers(scope=scope):
        return  # the client waits for the answer before it sends the body
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while size < DISCARD_BYTES:
                async with asyncio.timeout(DISCARD_PAUSE):
                    message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


class _Answer:
    """The answer to one request: its status, and headers that every answer has."""

    def __init__(self, send: Send) -> None:
        self._send, self.status, self.has_started = send, 0, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.has_started = message["status"], True
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY.items():
                headers.setdefault(name, value)
        await self._send(message)

    async def refuse(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Sends an error, unless an answer has begun."""
        # The status is sent already: a second one would break the protocol.
        if self.has_started:
            return
        headers = dict(error.headers)
        if error.status in (408, 413):
            headers["connection"] = "close"  # the rest of the body is not read
        await error_response(error, headers)(scope, receive, self.send)


def error_response(error: ApiError, headers: dict[str, str] | None = None) -> JSONResponse:
    """Returns an error as an answer."""
    return JSONResponse(error.body(), error.status, headers or error.headers)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that yields a body that has been read, then what comes after it."""
    # Starlette reads a body from `receive`, which can be consumed once only.
    remaining: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return remaining.pop() if remaining else await receive()

    return replay
