"""A server on loopback with one small random model that infills and chats, for all its tests."""

import dataclasses
import http.client
import json
import threading
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from toy import MODEL

from codellama_jax.generation.engine import Engine
from codellama_jax.generation.middle import Order
from codellama_jax.models.llama.model import Llama
from codellama_jax.models.trained import TrainedModel
from codellama_jax.serving.app import make_app
from codellama_jax.serving.guard import Rules
from codellama_jax.serving.server import Address, Server, listen
from codellama_jax.serving.service import Features, Service
from codellama_jax.serving.worker import READY, Sizes, Worker
from codellama_jax.tokenizers import sentencepiece
from codellama_jax.tokenizers.chat import FORMATS

SIZES = Sizes(slots=2, context=128, queue=4, warm_up=1)
RULES = Rules(most_bytes=100_000, hosts=("127.0.0.1",))


class Client:
    """Sends requests to one server."""

    def __init__(self, port, worker):
        self.port, self.worker = port, worker

    def connect(self, method, path, body=None, **headers):
        """Returns a connection that has sent a request, and the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, None if body is None else data, headers)
        return connection, connection.getresponse()

    def connect_only(self, path, body):
        """Returns a connection that has sent a request and reads nothing."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, json.dumps(body).encode())
        return connection

    def send(self, method, path, body=None, **headers):
        """Returns the status and the JSON of an answer."""
        connection, response = self.connect(method, path, body, **headers)
        data = response.read()
        connection.close()
        is_json = response.headers["content-type"] == "application/json"
        return response.status, json.loads(data) if is_json else data.decode()

    def post(self, path, **body):
        """Returns the JSON of an answer that must be right."""
        status, answer = self.send("POST", path, body)
        assert status == 200, answer
        return answer

    def stream(self, path, **body):
        """Returns the events of a stream; "[DONE]" stays text."""
        connection, response = self.connect("POST", path, {**body, "stream": True})
        assert response.headers["content-type"].startswith("text/event-stream"), response.read()
        events = []
        for line in response.read().decode().split("\n\n")[:-1]:
            assert line.startswith("data: ")
            data = line.removeprefix("data: ")
            events.append(data if data == "[DONE]" else json.loads(data))
        connection.close()
        return events

    def wait_until(self, is_so, seconds=10):
        """Waits until something about the worker is so; returns the seconds that it took."""
        start = time.monotonic()
        while not is_so(self.worker):
            assert time.monotonic() - start < seconds
            time.sleep(0.002)
        return time.monotonic() - start


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A random model with a real tokenizer, whose texts hold characters of several bytes."""
    words = []
    for i in range(300):
        words.append(f"def name_{i}(x):\n    return x + {i}\n\n\nclass T{i}:\n    é = '日本'\n")
    tokenizer = sentencepiece.train(words, 360, tmp_path_factory.mktemp("tokenizer"))
    config = dataclasses.replace(MODEL, vocab_size=tokenizer.vocab_size)
    tokens = jnp.zeros((1, 2), jnp.int32)

    def init():
        params = nn.unbox(Llama(config).init(jax.random.key(0), tokens, tokens))["params"]
        return jax.tree.map(lambda p: 6 * p, params)

    return TrainedModel(config, jax.jit(init)(), tokenizer, "toy")


@pytest.fixture(scope="session")
def features(model):
    order, chat = Order(False, "as given"), FORMATS["llama2"]
    return Features("toy", model.tokenizer, order, True, chat)


@pytest.fixture(scope="session")
def start_server(model, features):
    """Returns a function that starts a server with other rules or sizes, and waits until ready."""
    servers = []

    def start(rules=RULES, sizes=SIZES, wait=True, load=lambda: [model], **changes):
        worker = Worker(load, sizes)
        service = Service(dataclasses.replace(features, **changes), worker)
        server = Server(make_app(service, rules), worker, grace=1)
        listener = listen(Address("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        port = listener.getsockname()[1]
        worker.start()
        thread.start()
        servers.append((server, thread, worker))
        client = Client(port, worker)
        client.server, client.thread = server, thread
        if wait:
            client.wait_until(lambda worker: worker.state == READY, seconds=60)
        return client

    yield start
    for server, thread, worker in servers:
        server.should_exit = True
        thread.join(10)
        worker.stop(10)


@pytest.fixture(scope="session")
def client(start_server):
    """A client of the server that most tests share."""
    return start_server()


@pytest.fixture
def paused(monkeypatch):
    """Lets engines decode only while the event is set, so that tests decide what waits."""
    running, advance = threading.Event(), Engine.advance

    def wait(engine):
        assert running.wait(30)
        return advance(engine)

    monkeypatch.setattr(Engine, "advance", wait)
    yield running
    running.set()


@pytest.fixture
def logged(capfd):
    """Returns a function with the lines on stderr, without the "ready" of a server's start.

    It waits for as many lines as the test expects: an answer may come before its line.
    """

    def lines(expected=0):
        found, start = [], time.monotonic()
        while True:
            err = capfd.readouterr().err
            found += [line for line in err.splitlines() if line != "ready"]
            if len(found) >= expected or time.monotonic() - start > 5:
                return found
            time.sleep(0.01)

    return lines
