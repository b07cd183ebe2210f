"""Requests that wait, leave, fail, or come while the server starts or stops."""

import threading

import pytest

from codellama_jax.errors import UserError
from codellama_jax.generation import text as texts
from codellama_jax.generation.engine import Engine
from codellama_jax.generation.settings import Sampling
from codellama_jax.serving.worker import FAILED

LONG = {"prompt": "def name_1(x):\n", "max_tokens": 100, "temperature": 0}
SHORT = {"prompt": "x", "max_tokens": 2}


@pytest.fixture
def paused(client, monkeypatch):
    """Lets the engine decode only while the event is set, so that tests decide what waits."""
    running, advance = threading.Event(), Engine.advance

    def wait(engine):
        assert running.wait(30)
        return advance(engine)

    monkeypatch.setattr(Engine, "advance", wait)
    yield running
    running.set()
    client.wait_until(lambda worker: not worker.unfinished)


def test_a_client_that_leaves_frees_its_slot(client):
    for is_streamed in (True, False):
        cancelled = client.worker.counts["cancelled"]
        connection, response = None, None
        if is_streamed:
            connection, response = client.connect(
                "POST", "/v1/completions", {**LONG, "stream": True}
            )
            response.read(10)
        else:
            connection = client.connect_only("/v1/completions", LONG)
            client.wait_until(lambda worker: worker.running())
        connection.sock.close() if connection.sock else response.close()
        connection.close()
        seconds = client.wait_until(lambda worker: not worker.unfinished)
        if client.worker.counts["cancelled"] > cancelled:
            assert seconds < 5
    client.wait_until(lambda worker: not worker._jobs)


def test_a_full_queue_refuses_and_recovers(client, paused):
    answers = []

    def ask():
        answers.append(client.send("POST", "/v1/completions", SHORT)[0])

    threads = [threading.Thread(target=ask) for _ in range(6)]  # two slots and a queue of four
    for thread in threads:
        thread.start()
    client.wait_until(lambda worker: worker.unfinished == 6)
    connection, response = client.connect("POST", "/v1/completions", SHORT)
    assert response.status == 429 and response.headers["retry-after"] == "1"
    assert b'"rate_limit_error"' in response.read()
    connection.close()
    paused.set()
    for thread in threads:
        thread.join()
    assert answers == [200] * 6
    client.post("/v1/completions", **SHORT)


def test_a_prompt_that_comes_too_late_ends_without_text(client, paused):
    answers = []

    def ask():
        answers.append(client.post("/completion", prompt="x", n_predict=5, t_max_prompt_ms=1))

    thread = threading.Thread(target=ask)
    thread.start()
    client.wait_until(lambda worker: worker._jobs)
    # The chunk that was waited for still runs; a second request has the time for another one.
    paused.set()
    thread.join()
    assert answers[0]["tokens_predicted"] <= 5


@pytest.mark.parametrize("error", [UserError("needs 9 GB"), RuntimeError("RESOURCE_EXHAUSTED: x")])
def test_a_request_that_does_not_fit_in_memory_fails_alone(
    client, model, monkeypatch, capsys, error
):
    """The other sequence runs already, and gets the text that it gets alone."""
    (expected,) = texts.complete(model, [LONG["prompt"]], Sampling(max_new_tokens=100))
    read, has_failed = Engine._read, []

    def fail(engine, group):
        if any(len(sequence.prompt) > 30 for sequence, _ in group):
            has_failed.append(True)
            raise error
        read(engine, group)

    monkeypatch.setattr(Engine, "_read", fail)
    connection, response = client.connect("POST", "/v1/completions", {**LONG, "stream": True})
    body = {"prompt": "x = 1\n" * 8, "max_tokens": 4}
    status, answer = client.send("POST", "/v1/completions", body)
    assert status == 503 and answer["error"]["code"] == "out_of_memory" and has_failed == [True]
    pieces = response.read().decode().split("data: ")
    connection.close()
    import json

    text = ""
    for piece in pieces[1:-1]:
        text += json.loads(piece)["choices"][0]["text"]
    assert text == expected
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("out of memory, a request is answered with 503")
    client.post("/v1/completions", **SHORT)


def test_requests_are_refused_until_the_model_is_loaded_and_while_it_stops(start_server, model):
    stopping = start_server()
    release = threading.Event()
    starting = start_server(wait=False)
    starting.worker._load = lambda: release.wait(30) and model
    status, answer = starting.send("POST", "/v1/completions", SHORT)
    assert status in (200, 503)
    release.set()
    assert stopping.send("GET", "/health")[0] == 200
    connection, response = stopping.connect("POST", "/v1/completions", {**LONG, "stream": True})
    stopping.server.should_exit = True
    assert response.read().endswith(b"data: [DONE]\n\n")  # the stream ends as it would
    connection.close()
    stopping.thread.join(10)
    assert not stopping.thread.is_alive()
    with pytest.raises(OSError):
        stopping.send("GET", "/health")
    assert stopping.worker.stop(10) and stopping.worker.state == FAILED
