"""Runs the application with uvicorn until a signal ends it.

The model is loaded while the server already answers, with 503. A signal refuses new requests, lets
streams finish within a bound, ends the others with the text that they have, and exits with 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from codellama_jax.errors import UserError
from codellama_jax.generation.options import note
from codellama_jax.serving.errors import MOST_LOGGED, one_line
from codellama_jax.serving.worker import FAILED, READY, STARTING, Worker

HEADER_SECONDS = 10  # that a client has to send the head of a request
WRITE_SECONDS = 30  # without a byte read by its client, after which an answer ends
KEEP_ALIVE_SECONDS = 30
JOIN_SECONDS = 2.0  # that the engine's thread gets to end a chunk
LAST_SECONDS = 3  # that answers get to be sent once their sequences have ended
BACKLOG = 2048
MOST_CONNECTIONS = 2048
REFUSED_CONNECTIONS = 64  # beyond them, whose requests are answered with 503
SPARE_FILES = 256  # that the process opens apart from connections


@dataclass(frozen=True)
class Address:
    """Where to listen, and for how many seconds streams may continue after a signal."""

    host: str
    port: int
    grace: float = 10.0


def listen(address: Address) -> socket.socket:
    """Returns a socket that listens. Raises UserError where the address cannot be used."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    # A restarted server can bind while connections of the last one are in TIME_WAIT.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            problem = f"--port is {address.port}: another program uses it"
            raise UserError(f"{problem}; stop it, or choose another port") from None
        problem = f"cannot listen at {address.host}, port {address.port}"
        raise UserError(f"{problem}: {error.strerror or error}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Returns the address at which browsers reach a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: ASGIApp, worker: Worker, listener: socket.socket, grace: float) -> None:
    """Serves until a signal.

    Raises the error that ended the start of the worker.

    Args:
      app: the application.
      worker: loads the model and generates; it is started here.
      listener: the socket.
      grace: seconds that streams may continue after the signal.
    """
    worker.start()
    Server(app, worker, grace).run([listener])
    has_ended = worker.stop(JOIN_SECONDS)
    if worker.failure:
        raise worker.failure
    note("stopped")
    if not has_ended:
        # The thread compiles; the interpreter's end would break off in the middle of it.
        sys.stdout.flush()
        os._exit(0)


def serve_in_background(app: ASGIApp, worker: Worker) -> str:
    """Serves on a free port of loopback in threads that end with the process, as scripts do.

    Returns the URL once the worker is ready. Raises the error that ended its start.
    """
    listener = listen(Address("127.0.0.1", 0))
    worker.start()
    run = Server(app, worker, grace=1).run
    threading.Thread(target=run, args=([listener],), daemon=True).start()
    while worker.state == STARTING:
        time.sleep(0.1)
    if worker.failure:
        raise worker.failure
    return url_of(listener)


def _config(app: ASGIApp, grace: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(grace) + LAST_SECONDS,
        limit_concurrency=_most_connections(),
        backlog=BACKLOG,
    )


def _most_connections() -> int:
    """Returns how many connections fit in the files of the process, whose limit it raises."""
    # Every connection is an open file. At the limit no connection can be accepted, and no other
    # file opened.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_CONNECTIONS + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < most:
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(OSError, ValueError):  # some systems allow less than they state
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return min(MOST_CONNECTIONS, max(soft - SPARE_FILES, soft // 2))


def _note_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Prints as one line what asyncio prints with a traceback, as that no file is left to open."""
    error = context.get("exception")
    problem = str(context.get("message", ""))[:MOST_LOGGED]
    note(f"error: {problem}: {one_line(error)}" if error else f"error: {problem}")


class Server(uvicorn.Server):
    """Ends when the worker fails to start, or after a signal, which it does not raise again."""

    def __init__(self, app: ASGIApp, worker: Worker, grace: float) -> None:
        """Serves an application. `grace`: seconds that streams may continue after a signal."""
        super().__init__(_config(app, grace))
        self.worker, self.grace, self._was_ready = worker, grace, False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts connections."""
        asyncio.get_running_loop().set_exception_handler(_note_error)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Returns whether to end."""
        # uvicorn calls this ten times a second, which is often enough to report the worker's state.
        if self.worker.state == READY and not self._was_ready:
            self._was_ready = True
            note("ready")
        return await super().on_tick(counter) or self.worker.state == FAILED

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuses requests, and ends those that run within the grace."""
        # New requests get 503 from here on, while uvicorn waits for the open answers to end.
        self.worker.drain()
        if self.worker.unfinished:
            note(f"stopping: {self.worker.unfinished} sequences end within {self.grace:g} seconds")
        # After the grace the worker ends all sequences, so that uvicorn's own wait, LAST_SECONDS
        # longer, finds answers that are complete rather than broken off.
        ending = asyncio.ensure_future(self._end_later())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_later(self) -> None:
        await asyncio.sleep(self.grace)
        self.worker.end_all()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends at a signal, as uvicorn does."""
        with super().capture_signals():
            yield
            # uvicorn raises the signals again, which would end the process with their code.
            self._captured_signals.clear()


class _Protocol(H11Protocol):
    """Closes connections that would take the place of others.

    Those that do not send the head of a request in time, or the rest of a body that has been
    answered; those that do not read their answer; those beyond a number; and those that break the
    protocol.
    """

    _limited: Any = None  # the last request when the time for the next head began
    _unread: asyncio.TimerHandle | None = None  # runs while the buffer of an answer is full

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > (self.limit_concurrency or 0) + REFUSED_CONNECTIONS:
            transport.close()
        self._limit_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._limit_write()

    def resume_writing(self) -> None:
        self._stop_timer()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.LocalProtocolError:
            # uvicorn answers a defect in what follows a request although its answer has begun.
            self.transport.close()
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._limited is not self.cycle:
            self._limit_head()

    def _limit_head(self) -> None:
        self._limited = self.cycle
        self.loop.call_later(HEADER_SECONDS, self._close_without_request, self.cycle)

    def _close_without_request(self, last: Any) -> None:
        # The cycle changes with each request, so an unchanged one means that no head has arrived.
        if self.cycle is last and not self.transport.is_closing():
            self.transport.close()

    def _limit_write(self) -> None:
        # The answer is not continued while the buffer is full: the client alone changes its size.
        self._stop_timer()
        size = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(WRITE_SECONDS, self._close_unread, size)

    def _stop_timer(self) -> None:
        if self._unread:
            self._unread.cancel()
            self._unread = None

    def _close_unread(self, size: int) -> None:
        if self.transport.get_write_buffer_size() < size:
            self._limit_write()  # it reads, if slowly
            return
        note(f"a client read nothing of its answer for {WRITE_SECONDS:g} seconds: it ends")
        # Closing would wait until the client has read the buffer.
        self.transport.abort()
