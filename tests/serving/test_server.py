"""The end of the server: after a signal, or where the model cannot be loaded."""

import json
import os
import signal
import socket
import threading
import time

import pytest

from codellama_jax.errors import UserError
from codellama_jax.generation.engine import Engine
from codellama_jax.serving import server
from codellama_jax.serving.server import Address, Server, listen, serve
from codellama_jax.serving.worker import Sizes, Worker


async def nothing(scope, receive, send):
    """An application that is never called."""


def worker_of(load):
    return Worker(load, Sizes(1, 64, 1, 1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_is_not_raised_again(number):
    raised = []
    before = signal.signal(number, lambda *_: raised.append(number))
    threading.Timer(0.3, os.kill, [os.getpid(), number]).start()
    start = time.monotonic()
    try:
        Server(nothing, worker_of(None), grace=5).run([listen(Address("127.0.0.1", 0))])
    finally:
        signal.signal(number, before)
    assert not raised and time.monotonic() - start < 5


def test_a_model_that_cannot_be_loaded_ends_it():
    def load():
        raise UserError("no checkpoint can be read")

    with pytest.raises(UserError, match="no checkpoint can be read"):
        serve(nothing, worker_of(load), listen(Address("127.0.0.1", 0)), 0)


def read_all(connection):
    """Returns what the server sends until it closes the connection."""
    data = b""
    while part := connection.recv(65_536):
        data += part
    return data


@pytest.mark.parametrize("first", [b"", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"])
def test_a_head_that_comes_too_slowly_ends_its_connection(client, monkeypatch, first):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", client.port), 5) as connection:
        if first:
            connection.sendall(first)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
            time.sleep(0.15)
        connection.sendall(b"GET /he")
        assert read_all(connection) == b""  # recv raises an error after 5 seconds


def test_a_broken_body_after_its_answer_is_no_traceback(client, logged):
    head = b"POST /tokenize HTTP/1.1\r\nHost: evil\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", client.port), 5) as connection:
        connection.sendall(head)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 403")
        connection.sendall(b"no length\r\n")
        read_all(connection)
    assert client.send("GET", "/health")[0] == 200
    assert not logged()


@pytest.fixture
def small_buffers(monkeypatch):
    """Lets the buffers of connections hold a few events, and shortens the time to read them."""
    made = server._Protocol.connection_made

    def connection_made(protocol, transport):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        transport.set_write_buffer_limits(high=512, low=0)
        made(protocol, transport)

    monkeypatch.setattr(server._Protocol, "connection_made", connection_made)
    monkeypatch.setattr(server, "WRITE_SECONDS", 0.2)


def connect_with_small_buffer(client, body):
    """Returns a connection that has sent a request and holds a few events unread."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", client.port))
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_client_that_never_reads_its_stream_frees_its_slot(
    client, monkeypatch, small_buffers, logged, is_slow
):
    advance, slept = Engine.advance, 0.02
    cancelled = client.worker.counts["cancelled"]

    def slow(engine):
        time.sleep(slept)
        return advance(engine)

    monkeypatch.setattr(Engine, "advance", slow)
    body = {"prompt": "def f(x):\n", "max_tokens": 100, "temperature": 0, "stream": True}
    with connect_with_small_buffer(client, body) as connection:
        client.wait_until(lambda worker: worker.unfinished)
        data = b""
        while is_slow and b"[DONE]" not in data:
            time.sleep(0.01)
            data += connection.recv(256)
        client.wait_until(lambda worker: not worker.unfinished and not worker._jobs)
    lines = logged(0 if is_slow else 1)
    if is_slow:
        assert not lines and client.worker.counts["cancelled"] == cancelled
    else:
        assert lines == ["a client read nothing of its answer for 0.2 seconds: it ends"]
        assert client.worker.counts["cancelled"] == cancelled + 1


def test_the_number_of_connections_follows_the_limit_of_files(monkeypatch):
    limits = [(256, 512)]
    monkeypatch.setattr(server.resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(server.resource, "setrlimit", lambda _, pair: limits.append(pair))
    assert server._most_connections() == 256 and limits[-1] == (512, 512)
    limits[:] = [(1024, 1_000_000)]
    assert server._most_connections() == server.MOST_CONNECTIONS


def test_an_error_of_the_loop_is_one_line(capsys):
    server._note_error(None, {"message": "accept", "exception": OSError("a\nb")})
    server._note_error(None, {"message": "accept"})
    assert capsys.readouterr().err == "error: accept: OSError: a\nerror: accept\n"
