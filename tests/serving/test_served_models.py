"""A server of one model with several quantizations: names, texts, and failures of one of them."""

import functools
import threading

import pytest

from codellama_jax.generation.device import Device
from codellama_jax.generation.engine import Engine
from codellama_jax.generation.quantize import quantized
from codellama_jax.generation.requests import Request
from codellama_jax.generation.settings import Quantization, Sampling
from codellama_jax.generation.text import whole_characters

NAMES = ["toy", "toy:int4"]
BODY = {"prompt": "def name_1(x):\n", "max_tokens": 20, "temperature": 0}


@pytest.fixture(scope="module")
def models(model):
    return [model, quantized(model, Quantization("int4"))]


@pytest.fixture(scope="module")
def both(start_server, models):
    return start_server(load=lambda: models, schemes=("none", "int4"))


@pytest.fixture(scope="module")
def expected(models):
    """The ids and the text of each model, without a server."""
    tokenizer = models[0].tokenizer
    request = Request(
        tokenizer.prompt(BODY["prompt"]), Sampling(max_new_tokens=20), [tokenizer.eos_id]
    )
    ids = [Engine(model, 2).run([request])[0] for model in models]
    assert ids[0] != ids[1]
    decode = functools.partial(tokenizer.decode, leading_space=False)
    texts = [whole_characters(decode, new, tokenizer.unfinished) for new in ids]
    return {name: (ids[n], texts[n]) for n, name in enumerate(NAMES)}


def test_the_field_model_chooses_the_quantization(both, expected):
    listed = both.send("GET", "/v1/models")[1]["data"]
    assert [entry["id"] for entry in listed] == NAMES
    assert both.send("GET", "/v1/models/toy:int4")[1]["id"] == "toy:int4"
    assert both.send("GET", "/props")[1]["models"] == {"toy": "none", "toy:int4": "int4"}
    for name in (*NAMES, None, ""):
        ids, text = expected[name or "toy"]
        answer = both.post("/v1/completions", **BODY, model=name, logprobs=0)
        (choice,) = answer["choices"]
        assert choice["text"] == text
        # The model that drew the tokens scores them: each was its most likely one.
        assert len(choice["logprobs"]["token_logprobs"]) == len(ids)
        body = {"prompt": BODY["prompt"], "n_predict": 20, "temperature": 0, "model": name}
        llama_cpp = both.post("/completion", **body, n_probs=1)
        assert llama_cpp["tokens"] == ids
        for token in llama_cpp["completion_probabilities"]:
            assert token["id"] == token["top_logprobs"][0]["id"]
        assert answer["model"] == llama_cpp["model"] == (name or "toy")
    message = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    texts = [both.post("/v1/chat/completions", **message, model=name) for name in NAMES]
    assert [text["model"] for text in texts] == NAMES


def test_slots_name_their_model(both, paused):
    connection = both.connect_only("/v1/completions", {**BODY, "model": "toy:int4"})
    both.wait_until(lambda worker: worker.unfinished == 1)
    (job,) = both.worker._unfinished
    job.first = job.submitted  # as if its first token had come
    slots = both.send("GET", "/slots")[1]
    paused.set()
    connection.getresponse().read()
    connection.close()
    assert [slot["id"] for slot in slots] == [0, 1, 2, 3]
    assert [slot["model"] for slot in slots] == ["toy", "toy", "toy:int4", "toy:int4"]
    assert [slot["is_processing"] for slot in slots] == [False, False, True, False]
    assert slots[2]["n_prompt"] and "n_prompt" not in slots[3]


def test_the_address_of_models_without_a_name_describes_the_first(both):
    assert both.send("GET", "/v1/models/")[1]["id"] == "toy"


def test_an_unknown_quantization_is_refused(both):
    for path in ("/v1/completions", "/completion"):
        status, answer = both.send("POST", path, {**BODY, "model": "toy:int8"})
        assert status == 404 and answer["error"]["code"] == "model_not_found"
        assert "'toy:int8': this server has 'toy', 'toy:int4'" in answer["error"]["message"]


def test_streams_of_both_at_once_have_the_texts_that_they_have_alone(both, expected):
    texts: dict[str, list[str]] = {name: [] for name in NAMES}

    def ask(name):
        text = ""
        for event in both.stream("/v1/completions", **BODY, model=name)[:-1]:
            text += event["choices"][0]["text"]
        texts[name].append(text)

    threads = [threading.Thread(target=ask, args=(name,)) for name in NAMES * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, (_, text) in expected.items():
        assert texts[name] == [text] * 2


def test_a_model_whose_queue_is_full_leaves_the_slots_of_the_other(both, paused):
    body, statuses = {"prompt": "x", "max_tokens": 2}, []

    def ask(name):
        statuses.append(both.send("POST", "/v1/completions", {**body, "model": name})[0])

    threads = []
    # Two slots and a queue of four, and the slots of the other model.
    for number, name in enumerate(["toy"] * 6 + ["toy:int4"] * 2):
        threads.append(threading.Thread(target=ask, args=(name,)))
        threads[-1].start()
        both.wait_until(lambda worker, number=number: worker.unfinished == number + 1)
    for name in NAMES:
        status, answer = both.send("POST", "/v1/completions", {**body, "model": name})
        assert status == 429 and "full: 4 sequences of 4" in answer["error"]["message"]
    paused.set()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8


def test_memory_that_does_not_suffice_for_one_leaves_the_other(
    both, models, monkeypatch, logged, expected
):
    decode = Device.decode

    def fail(device, *arguments):
        if device.model is models[1]:
            raise RuntimeError("RESOURCE_EXHAUSTED: x")
        return decode(device, *arguments)

    with monkeypatch.context() as context:
        context.setattr(Device, "decode", fail)
        answers = {}

        def ask(name):
            answers[name] = both.send("POST", "/v1/completions", {**BODY, "model": name})[0]

        threads = [threading.Thread(target=ask, args=(name,)) for name in NAMES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {"toy": 200, "toy:int4": 503}
    assert len(logged(1)) == 1
    tokens = both.post("/completion", prompt=BODY["prompt"], n_predict=20, temperature=0)["tokens"]
    assert tokens == expected["toy"][0]
    answer = both.post("/v1/completions", **BODY, model="toy:int4")
    assert answer["choices"][0]["text"] == expected["toy:int4"][1]
