"""The protocol of llama.cpp's server, as editors send it."""

import pytest

from codellama_jax.data.infilling import prompt_ids
from codellama_jax.generation import infill as infilling
from codellama_jax.generation import text as texts
from codellama_jax.generation.settings import Sampling
from codellama_jax.serving import llama_cpp
from codellama_jax.serving.jobs import Job
from codellama_jax.serving.texts import Prompt, Settings, Text

GREEDY = Sampling(max_new_tokens=12)
# As llama.vim sends it.
EDITOR = {
    "input_prefix": "def f(x):\n",
    "prompt": "    y = ",
    "input_suffix": "\n    return y\n",
    "input_extra": [],
    "n_predict": 12,
    "n_indent": 0,
    "top_k": 40,
    "top_p": 0.99,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 60_000,
    "t_max_predict_ms": 60_000,
}


def test_infill_continues_the_line_after_the_middle_token(client, model):
    answer = client.post("/infill", **EDITOR)
    ids = prompt_ids(model.tokenizer, EDITOR["input_prefix"], EDITOR["input_suffix"], False)
    ids += model.tokenizer.encode("    y = ", leading_space=False)
    timings = answer["timings"]
    assert answer["tokens_evaluated"] == timings["prompt_n"] + timings["cache_n"] == len(ids)
    assert answer["stop"] and not answer["truncated"]
    assert answer["timings"]["predicted_n"] == answer["tokens_predicted"] <= 12
    timings = answer["timings"]
    assert timings["prompt_ms"] > 0
    # The first ids come with the prompt: they are not of the time of decoding.
    assert (
        0 < timings["predicted_per_second"] < 1e3 * timings["predicted_n"] / timings["predicted_ms"]
    )
    assert answer["tokens_cached"] == len(ids) + answer["tokens_predicted"]
    assert answer["generation_settings"]["top_k"] == 40
    # In SPM order the line is a part of the prefix.
    middle = infilling.infill_one(model, "def f(x):\n    y = ", "\n    return y\n", GREEDY, True)
    assert client.post("/infill", **EDITOR, spm=True)["content"] == middle.text


def test_chunks_of_other_files_precede_the_prompt_and_the_oldest_are_left_out(client, model):
    extra = [{"filename": "a.py", "text": "x = 1\n"}, {"filename": "b.py", "text": "y = 2\n"}]
    alone = client.post("/infill", **EDITOR)["tokens_evaluated"]
    both = client.post("/infill", **EDITOR | {"input_extra": extra})
    added = sum(len(model.tokenizer.encode(chunk["text"] + "\n\n")) for chunk in extra)
    assert both["tokens_evaluated"] == alone + added and not both["truncated"]
    extra = [{"text": "z = 3\n" * 30}, *extra]
    many = client.post("/infill", **EDITOR | {"input_extra": extra})
    assert many["tokens_evaluated"] == alone + added and many["truncated"]


def test_a_long_file_is_shortened_around_the_cursor(client):
    long = EDITOR | {"input_prefix": "x = 1\n" * 500, "input_suffix": "y = 2\n" * 500}
    answer = client.post("/infill", **long)
    assert answer["truncated"] and 90 < answer["tokens_evaluated"] <= 128 - 12


def test_an_editor_names_the_parts_of_the_answer(client):
    names = ["content", "timings/prompt_n", "timings/cache_n", "truncated", "absent"]
    answer = client.post("/infill", **EDITOR, response_fields=names)
    assert list(answer) == names[:-1] and answer["truncated"] is False
    assert answer["timings/prompt_n"] + answer["timings/cache_n"] > 10


def test_no_tokens_prepare_the_next_request(client):
    prepare = {"input_extra": [{"filename": "a", "text": "x", "time": [1, 2]}], "n_predict": 0}
    # As llama.vim sends it, which reads no answer.
    assert client.post("/infill", **prepare, samplers=[], response_fields=[""]) == {}
    answer = client.post("/infill", **prepare)
    assert answer["content"] == "" and answer["stop"] and answer["tokens_predicted"] == 0
    (event,) = client.stream("/infill", **prepare)
    assert event["content"] == "" and event["stop"] and event["tokens_predicted"] == 0


def test_a_completion_streams_its_tokens(client, model):
    (expected,) = texts.complete(model, ["x = "], GREEDY)
    body = {"prompt": "x = ", "n_predict": 12, "temperature": 0}
    answer = client.post("/completion", **body, n_probs=2)
    assert answer["content"] == expected and answer["stop_type"] in ("limit", "eos")
    scored = answer["completion_probabilities"]
    assert [token["id"] for token in scored] == answer["tokens"]
    assert all(len(token["top_logprobs"]) == 2 for token in scored)
    *events, last = client.stream("/completion", **body)
    assert "".join(event["content"] for event in events) == expected
    assert [i for event in events for i in event["tokens"]] == answer["tokens"]
    assert last["stop"] and last["content"] == "" and last["timings"]["predicted_n"] == 12


def test_a_stop_string_over_several_tokens_is_never_shown(client, model):
    (free,) = texts.complete(model, ["x = "], Sampling(max_new_tokens=24))
    stop = free[5:9]
    body = {"prompt": "x = ", "n_predict": 24, "temperature": 0, "stop": [stop]}
    answer = client.post("/completion", **body)
    assert answer["content"] == free[: free.index(stop)] and answer["stopping_word"] == stop
    events = client.stream("/completion", **body)
    assert "".join(event["content"] for event in events) == answer["content"]
    assert all(stop[:1] not in event["content"][-1:] for event in events)


def test_a_character_of_several_tokens_is_one_piece(client, model):
    """Ids of single bytes: a piece appears once the last byte of its character has come."""
    tokenizer = model.tokenizer
    ids = tokenizer.encode("🙂🙂", leading_space=False)
    assert len(ids) > 4

    def decode(ids):
        return tokenizer.decode(ids, leading_space=False)

    text = Text(Prompt([1], decode, tokenizer.unfinished, ()), Settings(Sampling()))
    pieces = [text.add([i]) for i in ids[:-1]] + [text.finish(True)]
    assert [piece for piece in pieces if piece] == ["🙂"] and text.kept == "🙂"


def test_a_time_limit_ends_a_sequence(client):
    body = {"prompt": "x = ", "n_predict": 100, "temperature": 0}
    answer = client.post("/completion", **body, t_max_predict_ms=1)
    assert 0 < answer["tokens_predicted"] < 100 and answer["stop_type"] == "limit"


@pytest.mark.parametrize("started", [0.0, 12.5])
def test_a_sequence_that_ends_before_its_first_token_has_no_negative_times(started):
    """As at its time limit in the queue, or between two pieces of its prompt."""
    prompt, settings = Prompt([1, 2], str, len, ()), Settings(GREEDY)
    job = Job(prompt, settings, 0, print, submitted=12.0, started=started)
    assert min(llama_cpp._timings(job).values()) >= 0


@pytest.mark.parametrize("text", ["x = 1", "é 日本", "🙂", ""])
def test_ids_of_a_text(client, model, text):
    tokens = client.post("/tokenize", content=text)["tokens"]
    assert tokens == model.tokenizer.encode(text)
    assert client.post("/detokenize", tokens=tokens)["content"] == text
    special = client.post("/tokenize", content=text, add_special=True, with_pieces=True)["tokens"]
    assert [token["id"] for token in special] == model.tokenizer.prompt(text)
    # A token that is a part of a character has a list of bytes in the place of a text.
    assert any(isinstance(token["piece"], list) for token in special) == (text == "🙂")


@pytest.mark.parametrize(
    ("path", "body", "problem"),
    [
        ("/infill", {"input_prefix": 1}, "input_prefix is 1: it must be text"),
        ("/infill", {"input_extra": [{"text": 1}]}, "input_extra.0.text must be text"),
        ("/infill", {"input_extra": "x"}, "input_extra is 'x': it must be a list of objects"),
        ("/infill", {"n_predict": -2}, "n_predict is -2: it must be at least -1"),
        ("/infill", {"t_max_predict_ms": 1e300}, "t_max_predict_ms is 1e+300"),
        ("/completion", {}, "prompt is missing"),
        ("/completion", {"prompt": {"a": 1}}, "prompt must be a text, or a list of ids"),
        ("/completion", {"prompt": []}, "prompt has no ids"),
        ("/completion", {"prompt": "x" * 2000}, "the context holds 128"),
        ("/detokenize", {"tokens": [999]}, "tokens has ids from 999 to 999: the model has 376"),
        ("/detokenize", {"tokens": "a"}, "tokens must be a list of ids"),
        ("/tokenize", {"content": ["a"]}, "content is ['a']: it must be text"),
    ],
)
def test_a_wrong_field_is_named(client, path, body, problem):
    status, answer = client.send("POST", path, body)
    assert status == 400 and problem in answer["error"]["message"], answer


def test_properties_slots_and_metrics(client):
    status, properties = client.send("GET", "/props")
    assert status == 200 and properties["model"] == "toy" and properties["infills"]
    assert properties["chats"] and properties["order"] == "PSM" and properties["n_ctx"] == 128
    assert client.send("GET", "/health") == (200, {"status": "ok"})
    _, slots = client.send("GET", "/slots")
    assert [slot["id"] for slot in slots] == [0, 1]
    before = metrics_of(client)
    client.post("/completion", prompt="x", n_predict=3)
    after = metrics_of(client)
    name = "codellama_jax_tokens_predicted_total"
    assert after[name] - before[name] == 3
    assert after['codellama_jax_http_requests_total{path="/completion",status="200"}'] >= 1


def metrics_of(client):
    status, text = client.send("GET", "/metrics")
    assert status == 200
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_a_model_without_infilling_or_chats_refuses_them(start_server, client):
    other = start_server(wait=False, infills=False, chat=None)
    for path, body in (
        ("/infill", EDITOR),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
    ):
        status, answer = other.send("POST", path, body)
        assert status == 400 and answer["error"]["code"] == "unsupported"


def test_the_next_keystroke_reads_only_what_is_new(client):
    before = client.worker.counts["prompt_tokens_reused"]
    text = "def value(x):\n    y = x + 1\n    return x"
    first = client.post("/completion", prompt=text, n_predict=2)
    second = client.post("/completion", prompt=text + " + y", n_predict=2)
    timings = second["timings"]
    assert timings["cache_n"] >= first["tokens_evaluated"] - 3 > 15 > timings["prompt_n"] > 0
    _, metrics = client.send("GET", "/metrics")
    counts = {}
    for line in metrics.splitlines():
        name, _, value = line.rpartition(" ")
        counts[name] = value
    reused = float(counts["codellama_jax_prompt_tokens_reused_total"])
    assert reused >= before + timings["cache_n"]
