"""Requests that wait, leave, fail, or come while the server starts or stops."""

import json
import threading
import time
from types import SimpleNamespace

import pytest

from codellama_jax.errors import UserError
from codellama_jax.generation.device import Device
from codellama_jax.generation.engine import Engine
from codellama_jax.serving import llama_cpp
from codellama_jax.serving.errors import ApiError
from codellama_jax.serving.jobs import Call
from codellama_jax.serving.worker import FAILED, READY, STOPPING, Sizes, Worker

LONG = {"prompt": "def name_1(x):\n", "max_tokens": 100, "temperature": 0}
SHORT = {"prompt": "x", "max_tokens": 2}


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_leaves_frees_its_slot(client, monkeypatch, is_streamed):
    advance, cancelled = Engine.advance, client.worker.counts["cancelled"]

    def slow(engine):
        time.sleep(0.02)
        return advance(engine)

    monkeypatch.setattr(Engine, "advance", slow)
    connection = client.connect_only("/v1/completions", {**LONG, "stream": is_streamed})
    client.wait_until(lambda worker: worker.running())
    (job,) = client.worker.running()
    if is_streamed:
        response = connection.getresponse()
        assert response.read(5) == b"data:"
        response.close()
    connection.close()
    client.wait_until(lambda worker: not worker.unfinished and not worker._jobs)
    assert client.worker.counts["cancelled"] == cancelled + 1 and job.count < 100


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
    first = client.connect_only("/completion", {"prompt": "x", "n_predict": 5})
    client.wait_until(lambda worker: worker.unfinished == 1)
    late = {"prompt": "x", "n_predict": 5, "t_max_prompt_ms": 1}
    second = client.connect_only("/completion", late)
    client.wait_until(lambda worker: worker.unfinished == 2)
    paused.set()
    answers = [json.loads(waiting.getresponse().read()) for waiting in (first, second)]
    assert [answer["tokens_predicted"] for answer in answers] == [5, 0]
    assert answers[1]["content"] == "" and answers[1]["stop_type"] == "limit"
    for waiting in (first, second):
        waiting.close()


@pytest.mark.parametrize("error", [UserError("needs 9 GB"), RuntimeError("RESOURCE_EXHAUSTED: x")])
def test_a_request_that_does_not_fit_in_memory_fails_alone(client, monkeypatch, logged, error):
    """The other sequence runs already, and gets the text that it gets alone."""
    expected = client.post("/v1/completions", **LONG)["choices"][0]["text"]
    read, has_failed = Device.read, []

    def fail(device, group, longest):
        if any(len(sequence.prompt) > 30 for sequence, _ in group):
            has_failed.append(True)
            raise error
        read(device, group, longest)

    monkeypatch.setattr(Device, "read", fail)
    connection, response = client.connect("POST", "/v1/completions", {**LONG, "stream": True})
    body = {"prompt": "x = 1\n" * 8, "max_tokens": 4}
    status, answer = client.send("POST", "/v1/completions", body)
    assert status == 503 and answer["error"]["code"] == "out_of_memory" and has_failed == [True]
    pieces = response.read().decode().split("data: ")
    connection.close()
    text = ""
    for piece in pieces[1:-1]:
        text += json.loads(piece)["choices"][0]["text"]
    assert text == expected
    lines = logged(1)
    assert len(lines) == 1 and lines[0].startswith("out of memory, a request is answered with 503")
    client.post("/v1/completions", **SHORT)


def test_requests_are_refused_until_the_model_is_loaded_and_while_it_stops(start_server, model):
    stopping = start_server()
    release = threading.Event()
    starting = start_server(wait=False, load=lambda: release.wait(30) and [model])
    status, answer = starting.send("POST", "/v1/completions", SHORT)
    assert status == 503 and "loading model" in answer["error"]["message"]
    assert starting.send("GET", "/health")[0] == 503
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


def test_a_defect_in_the_thread_answers_its_requests_and_ends_the_server(
    start_server, monkeypatch, capsys
):
    broken = start_server()

    def fail():
        raise KeyError("defect")

    monkeypatch.setattr(broken.worker, "_end_late", fail)
    status, answer = broken.send("POST", "/v1/completions", SHORT)
    assert status == 503 and answer["error"]["code"] == "engine_error"
    broken.thread.join(10)
    assert not broken.thread.is_alive()
    assert isinstance(broken.worker.failure, UserError)
    assert str(broken.worker.failure) == "the engine ended: KeyError: 'defect'"
    assert "Traceback" not in capsys.readouterr().err


def test_calls_that_the_thread_did_not_begin_are_refused_when_it_ends():
    """A client that waits for the log-probabilities of its answer would wait for ever."""
    worker, refused, release = Worker(list, Sizes(2, 64, 100, 1)), [], threading.Event()

    def fail():
        assert release.wait(10)
        raise KeyError("defect")

    worker.start()
    while worker.state != READY:
        time.sleep(0.002)
    worker.call(Call(fail, refused.append))
    worker.call(Call(lambda: pytest.fail("the thread has ended"), refused.append))
    release.set()
    worker._thread.join(10)
    assert [(error.status, error.code) for error in refused] == [(503, "engine_error")]
    worker.drain()  # as the server does when it finds that the worker has failed
    worker.check_ready = lambda: None  # the thread ends just after this check
    for late in (
        lambda: worker.call(Call(pytest.fail, refused.append)),
        lambda: worker.submit([SimpleNamespace(settings=SimpleNamespace(model=0))]),
    ):
        with pytest.raises(ApiError, match="not ready"):
            late()
    assert not worker.unfinished


def test_answers_are_scored_while_the_server_stops(client, paused, monkeypatch):
    body = {"prompt": "x", "n_predict": 2, "n_probs": 1}
    connection = client.connect_only("/completion", body)
    client.wait_until(lambda worker: worker.unfinished == 1)
    monkeypatch.setattr(client.worker, "state", STOPPING)
    paused.set()
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert len(answer["completion_probabilities"]) == answer["tokens_predicted"] == 2


def test_a_stream_has_all_its_text_before_its_scores_fail(client, monkeypatch):
    body = {"prompt": "x = ", "n_predict": 12, "temperature": 0}
    expected = client.post("/completion", **body)["content"]

    def fail(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: x")

    monkeypatch.setattr(llama_cpp.logprobs, "score", fail)
    # The last character may begin the stop string, so that it is held back until the end.
    body |= {"stop": [expected[-1] + "\0"], "n_probs": 1}
    *events, last = client.stream("/completion", **body)
    assert "".join(event["content"] for event in events) == expected
    assert last["error"]["code"] == "out_of_memory"


def test_the_old_engine_is_freed_before_its_replacement(client, monkeypatch):
    new_engine, advance, has_failed = client.worker._new_engine, Engine.advance, []

    def fail_once(engine):
        if not has_failed:
            has_failed.append(True)
            raise RuntimeError("RESOURCE_EXHAUSTED: x")
        return advance(engine)

    def replacement(number):
        assert number not in client.worker._engines
        return new_engine(number)

    monkeypatch.setattr(Engine, "advance", fail_once)
    monkeypatch.setattr(client.worker, "_new_engine", replacement)
    assert client.send("POST", "/v1/completions", SHORT)[0] == 503
    client.post("/v1/completions", **SHORT)


def test_sequences_that_are_cancelled_together_are_not_searched_one_by_one():
    class Walked(list):
        def __contains__(self, job):
            pytest.fail("searches all jobs for each job")

    cancelled = []
    worker = Worker(list, Sizes(2, 64, 100, 1))
    worker._engines = {0: SimpleNamespace(cancel=cancelled.append)}
    worker._jobs = {(0, number): object() for number in range(6)}
    worker._cancel(Walked(list(worker._jobs.values())[::2]))
    assert cancelled == [0, 2, 4] and [number for _, number in worker._jobs] == [1, 3, 5]
