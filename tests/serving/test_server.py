"""The end of the server: after a signal, or where the model cannot be loaded."""

import os
import signal
import socket
import threading
import time

import pytest

from codellama_jax.errors import UserError
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


def test_a_broken_body_after_its_answer_is_no_traceback(client, capfd):
    head = b"POST /tokenize HTTP/1.1\r\nHost: evil\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", client.port), 5) as connection:
        connection.sendall(head)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 403")
        connection.sendall(b"no length\r\n")
        read_all(connection)
    assert client.send("GET", "/health")[0] == 200
    assert capfd.readouterr().err == ""


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
