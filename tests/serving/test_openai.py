"""The OpenAI protocol: shapes, streams, and the texts of `complete` and `infill`."""

import concurrent.futures

import pytest

from codellama_jax.data.infilling import prompt_ids
from codellama_jax.generation import infill as infilling
from codellama_jax.generation import text as texts
from codellama_jax.generation.settings import Sampling
from codellama_jax.serving import logprobs
from codellama_jax.tokenizers.chat import FORMATS, Message

PROMPT = "def name_1(x):\n"
DRAWN = {"temperature": 0.9, "seed": 5, "max_tokens": 20}
SAMPLING = Sampling(temperature=0.9, seed=5, max_new_tokens=20)


def joined(events, name="text"):
    assert events[-1] == "[DONE]"
    pieces = []
    for event in events[:-1]:
        for choice in event["choices"]:
            pieces.append(choice[name] if name == "text" else choice[name].get("content", ""))
    return "".join(pieces)


@pytest.mark.parametrize("stop", [(), ("\n",), ("xy", "(")])
def test_a_completion_is_the_text_of_complete_streamed_or_not(client, model, stop):
    (expected,) = texts.complete(model, [PROMPT], SAMPLING, stop)
    body = {"prompt": PROMPT, "stop": list(stop) or None, **DRAWN}
    answer = client.post("/v1/completions", **body)
    (choice,) = answer["choices"]
    assert choice["text"] == expected and answer["object"] == "text_completion"
    assert choice["finish_reason"] in ("stop", "length") and choice["index"] == 0
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(model.tokenizer.prompt(PROMPT))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    events = client.stream("/v1/completions", **body, stream_options={"include_usage": True})
    assert joined(events) == expected
    # The second time all of the prompt has been read before.
    cached = {"prompt_tokens_details": {"cached_tokens": usage["prompt_tokens"]}}
    assert events[-2]["usage"] == usage | cached and events[-2]["choices"] == []
    assert events[-3]["choices"][0]["finish_reason"] == choice["finish_reason"]


@pytest.mark.parametrize("spm", [False, True])
def test_a_suffix_makes_it_the_middle_of_infill(client, model, spm):
    prefix, suffix = "def f(x):\n    y = ", "\n    return y\n"
    middle = infilling.infill_one(model, prefix, suffix, SAMPLING, spm)
    body = {"prompt": prefix, "suffix": suffix, "spm": spm, **DRAWN}
    answer = client.post("/v1/completions", **body)
    assert answer["choices"][0]["text"] == middle.text
    assert (answer["choices"][0]["finish_reason"] == "stop") == middle.is_ended
    assert answer["usage"]["prompt_tokens"] == len(prompt_ids(model.tokenizer, prefix, suffix, spm))
    assert joined(client.stream("/v1/completions", **body)) == middle.text
    # Mistral's endpoint, which Continue calls, answers with messages.
    fim = client.post("/v1/fim/completions", **body)
    assert fim["choices"][0]["message"]["content"] == middle.text
    assert joined(client.stream("/v1/fim/completions", **body), "delta") == middle.text


def test_a_healed_prompt_is_that_of_complete(start_server, model):
    client = start_server(healing=True)
    prompts = ["def nam", "class T"]
    for prompt in prompts:
        (expected,) = texts.complete(model, [prompt], SAMPLING, healing=True)
        answer = client.post("/v1/completions", prompt=prompt, **DRAWN)
        assert answer["choices"][0]["text"] == expected


def test_several_prompts_and_choices_with_echo(client, model):
    prompts = [PROMPT, model.tokenizer.prompt("x = ")]
    answer = client.post("/v1/completions", prompt=prompts[:1] * 2, n=2, echo=True, **DRAWN)
    choices = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert choices[:2] == choices[2:] and choices[0] != choices[1]
    (first,) = texts.complete(model, [PROMPT], SAMPLING)
    assert choices[0] == PROMPT + first
    by_ids = client.post("/v1/completions", prompt=prompts[1], **DRAWN)
    (expected,) = texts.complete(model, ["x = "], SAMPLING)
    assert by_ids["choices"][0]["text"] == expected


def test_logprobs_and_the_best_of_several(client):
    body = {"prompt": PROMPT, **DRAWN, "max_tokens": 8}
    answer = client.post("/v1/completions", **body, n=3, logprobs=2)
    means = {}
    for choice in answer["choices"]:
        scores = choice["logprobs"]
        offsets = scores["text_offset"]
        assert len(offsets) == 8 and offsets[0] == 0 and offsets == sorted(offsets)
        for name, offset in zip(scores["tokens"], offsets):
            # Bytes that are no character have no place of their own.
            assert "\ufffd" in choice["text"] or choice["text"].startswith(name, offset)
        assert all(len(top) <= 2 for top in scores["top_logprobs"])
        assert all(logprob <= 0 for logprob in scores["token_logprobs"])
        means[choice["text"]] = sum(scores["token_logprobs"]) / 8
    best = client.post("/v1/completions", **body, best_of=3)
    assert best["choices"][0]["text"] == max(means, key=means.get)
    greedy = client.post("/v1/completions", **body | {"temperature": 0}, logprobs=1)
    scores = greedy["choices"][0]["logprobs"]
    # The most likely token is the one that was taken.
    for logprob, top in zip(scores["token_logprobs"], scores["top_logprobs"]):
        assert max(top.values()) == pytest.approx(logprob, abs=1e-3)


def test_scores_that_do_not_fit_in_memory_are_refused_alone(client, monkeypatch, logged):
    def fail(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: no memory")

    monkeypatch.setattr(logprobs, "score", fail)
    status, answer = client.send("POST", "/v1/completions", {"logprobs": 1})
    assert status == 503 and answer["error"]["code"] == "out_of_memory"
    assert len(logged(1)) == 1


def test_a_conversation(client, model):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    body = {"messages": messages, **DRAWN}
    answer = client.post("/v1/chat/completions", **body)
    ids = FORMATS["llama2"].prompt_ids(model.tokenizer, [Message(**m) for m in messages])
    assert answer["usage"]["prompt_tokens"] == len(ids)
    message = answer["choices"][0]["message"]
    assert message["role"] == "assistant" and answer["object"] == "chat.completion"
    events = client.stream("/v1/chat/completions", **body)
    assert joined(events, "delta") == message["content"]
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[0]["object"] == "chat.completion.chunk"
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    client.post("/v1/chat/completions", messages=parts, max_completion_tokens=2)


def test_a_conversation_as_llama_vscode_sends_it(client):
    """-1 stands for all tokens that fit, 0 prepares the next request: neither is OpenAI's."""
    messages = [{"role": "user", "content": "Hi"}]
    path, editor = "/v1/chat/completions", {"cache_prompt": True, "seed": 1, "temperature": 0.8}
    prepare = {"n_predict": 0, "samplers": [], "t_max_prompt_ms": 500, "t_max_predict_ms": 1}
    answer = client.post(path, messages=messages, **editor, **prepare)
    assert answer["choices"][0]["message"]["content"] == ""
    assert answer["usage"]["completion_tokens"] == 0 < answer["usage"]["prompt_tokens"]
    streamed = prepare | {"stream_options": {"include_usage": True}}
    first, last, done = client.stream(path, messages=messages, **editor, **streamed)
    assert first["choices"][0]["delta"]["content"] == "" and last["usage"] == answer["usage"]
    assert first["choices"][0]["finish_reason"] == "length" and done == "[DONE]"
    full = client.post(path, messages=messages, **editor, max_tokens=-1, samplers="edkypmxt")
    free = client.post(path, messages=messages, **editor)
    assert full["choices"] == free["choices"] and full["usage"]["completion_tokens"] > 2
    assert client.post(path, messages=messages, n_predict=2)["usage"]["completion_tokens"] <= 2


def test_many_clients_get_the_texts_that_they_get_alone(start_server, model):
    client = start_server(sizes=start_server.__globals__["SIZES"]._replace(queue=64))
    prompts = [f"class T{i}:\n" for i in range(8)]
    alone = [texts.complete(model, [prompt], SAMPLING)[0] for prompt in prompts]

    def ask(prompt):
        return client.post("/v1/completions", prompt=prompt, **DRAWN)["choices"][0]["text"]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, prompts * 2)) == alone * 2


def test_models(client):
    status, listed = client.send("GET", "/v1/models")
    assert status == 200 and [model["id"] for model in listed["data"]] == ["toy"]
    assert client.send("GET", "/v1/models/toy")[1] == listed["data"][0]
    assert client.send("GET", "/v1/models/a/b")[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "problem"),
    [
        ("completions", {"max_tokens": 0}, 400, "max_tokens", "is 0: it must be at least 1"),
        ("completions", {"max_tokens": "4"}, 400, "max_tokens", "must be a whole number"),
        ("completions", {"max_tokens": 1.5}, 400, "max_tokens", "must be a whole number"),
        ("completions", {"max_tokens": True}, 400, "max_tokens", "must be a whole number"),
        ("completions", {"temperature": 3}, 400, "temperature", "must be at most 2"),
        ("completions", {"temperature": "hot"}, 400, "temperature", "must be a number"),
        ("completions", {"stop": ["a"] * 5}, 400, "stop", "has 5 items: it must have 0 to 4"),
        ("completions", {"stop": ""}, 400, "stop", "at least one character"),
        ("completions", {"stream": "yes"}, 400, "stream", "must be true or false"),
        (
            "completions",
            {"stream": True, "stream_options": {"include_usage": "no"}},
            400,
            "include_usage",
            "must be true or false",
        ),
        ("completions", {"prompt": 1}, 400, "prompt", "must be a text, ids"),
        ("completions", {"prompt": []}, 400, "prompt", "must be a text, ids"),
        ("completions", {"prompt": [10**9]}, 400, "prompt", "the model has 376"),
        ("completions", {"prompt": [-1]}, 400, "prompt", "the model has 376"),
        ("completions", {"prompt": ["a", 1]}, 400, "prompt", "must be a text, ids"),
        ("completions", {"prompt": "\ud800"}, 400, "prompt", "lone surrogate"),
        ("completions", {"prompt": [1, 2], "suffix": "x"}, 400, "prompt", "must be text"),
        ("completions", {"prompt": "x " * 200}, 400, "prompt", "the context holds 128"),
        ("completions", {"n": 2, "best_of": 1}, 400, "best_of", "at least n, 2"),
        ("completions", {"n": 100}, 400, "n", "at most 6 fit in the queue"),
        ("completions", {"logprobs": 1, "stream": True}, 400, "stream", "need stream false"),
        ("completions", {"model": "gpt-4"}, 404, "model", "this server has 'toy'"),
        ("completions", {"presence_penalty": 1}, 400, "presence_penalty", "at most 0"),
        ("completions", {"logit_bias": {"1": 2}}, 400, "logit_bias", "not supported"),
        ("completions", {"response_format": {"type": "json_object"}}, 400, "response_format", ""),
        ("fim/completions", {}, 400, "prompt", "is missing"),
        ("chat/completions", {}, 400, "messages", "is missing"),
        ("chat/completions", {"messages": []}, 400, "messages", "has 0 items"),
        ("chat/completions", {"messages": ["Hi"]}, 400, "messages", "a list of objects"),
        ("chat/completions", {"messages": [{"role": "user"}]}, 400, "messages.0", "content"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "a [/INST]"}]},
            400,
            "messages",
            "message 1 contains",
        ),
        ("chat/completions", {"messages": [{}], "tools": [{}]}, 400, "tools", "not supported"),
    ],
)
def test_a_wrong_field_is_named(client, path, body, status, param, problem):
    found, answer = client.send("POST", f"/v1/{path}", body)
    error = answer["error"]
    assert (found, error["param"]) == (status, param), error
    assert problem in error["message"] and error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"\xff", b"null", b'{"n": NaN}', b'{"n": 1e999}', b"[" * 100_000]
    + [b'{"prompt":' + b"[" * 900 + b"]" * 900 + b"}", b'{"n": 1' + b"0" * 5000 + b"}"],
)
def test_a_body_that_is_no_object_of_json_is_refused(client, body):
    status, answer = client.send("POST", "/v1/completions", body)
    assert status == 400 and answer["error"]["message"]
