"""Server-sent events, and the end of the work for a client that leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from codellama_jax.serving.errors import ApiError

Result = TypeVar("Result")
# The second header stops nginx from collecting events until the answer is complete.
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class ClientGone(Exception):
    """The client has left: nobody reads an answer."""


class EventStream(Response):
    """Sends JSON objects as server-sent events.

    The source yields lists of objects, whose events are written at once. The first is computed
    before the status is sent, so that an error has its own status. A later one becomes an event.
    The source is closed when the client leaves.
    """

    media_type = "text/event-stream"

    def __init__(self, source: AsyncIterator[list[Any]], last: str = "") -> None:
        """Takes the source, and the data of an event after the last one; "" for none."""
        super().__init__(headers=HEADERS)
        # The length of a stream is not known when its head is sent.
        del self.headers["content-length"]
        self.source, self.last = source, last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events until the source or the client ends."""
        # Sending and waiting for the client to leave run side by side: without the second, a
        # sequence would be decoded to its end for nobody.
        sending = asyncio.ensure_future(self._send(send))
        try:
            await until_gone(sending, receive)
        except ClientGone:
            return
        finally:
            with contextlib.suppress(RuntimeError):
                # Leaves the `async with generation` of the source, which cancels its sequences.
                await self.source.aclose()  # type: ignore[attr-defined]

    async def _send(self, send: Send) -> None:
        # An ApiError here propagates to Starlette, which still can answer with the error's status.
        first: list[Any] = await anext(self.source, [])
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        try:
            await self._events(send, first)
            async for items in self.source:
                await self._events(send, items)
        except ApiError as error:
            await self._events(send, [error.body()])
        last = f"data: {self.last}\n\n".encode() if self.last else b""
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _events(self, send: Send, items: Sequence[Any]) -> None:
        if not items:
            return
        events = [f"data: {json.dumps(item, ensure_ascii=False)}\n\n" for item in items]
        body = "".join(events).encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def at_once(items: list[Any]) -> AsyncIterator[list[Any]]:
    """Yields the objects of a stream that are all there."""
    yield items


async def until_gone(work: Awaitable[Result], receive: Receive) -> Result:
    """Returns the result of some work. Raises ClientGone, and cancels it, if the client leaves."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        # `wait` and not `gather`: whichever ends first decides, and the other is cancelled below.
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for waiting in (task, gone):
            # Awaiting a cancelled task lets its `finally` blocks run before the answer is given up.
            if not waiting.done():
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiting


async def answered(request: Request, work: Awaitable[Result]) -> Result:
    """Returns the result of the work for a request whose body has been read."""
    return await until_gone(work, request.receive)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
