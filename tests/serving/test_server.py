"""The end of the server: after a signal, or where the model cannot be loaded."""

import os
import signal
import threading
import time

import pytest

from codellama_jax.errors import UserError
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
