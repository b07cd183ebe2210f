"""Answers of a trained model and of a server, by the names of the requests."""

import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import jax
import pytest
from flax import linen as nn

from codellama_jax.alignment.answers import Request, replies
from codellama_jax.alignment.models import TOO_LONG, Remote, continuing, local
from codellama_jax.errors import UserError
from codellama_jax.generation.settings import Sampling
from codellama_jax.models.family import boxed_params
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.trained import TrainedModel
from codellama_jax.tokenizers import sentencepiece
from codellama_jax.tokenizers.chat import FORMATS, Message

SAMPLING = Sampling(temperature=1.0, max_new_tokens=8, seed=3)


def request(number, text="Hi"):
    return Request(f"tests {number}", [Message("user", text)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    texts = ["[INST] Hi [/INST] Hello, who are you? I am a model of code. "] * 20
    tokenizer = sentencepiece.train(texts, 300, tmp_path_factory.mktemp("tokenizer"))
    config = LlamaConfig(tokenizer.vocab_size, 16, 1, 2, 2, 8, 32)
    params = nn.unbox(boxed_params(config, jax.random.key(0)))
    return TrainedModel(config, params, tokenizer, "tiny")


def test_an_answer_depends_on_the_name_of_its_request_alone(model):
    answer = local(model, FORMATS["llama2"], SAMPLING)
    requests = [request(0), request(1, "Who?"), request(2)]
    together = dict(answer(requests, 2))
    alone = [dict(answer([requests[index]], 1))[0] for index in range(3)]
    assert [together[index] for index in range(3)] == alone
    assert len(set(alone)) == 3


def test_a_conversation_that_the_format_refuses_has_an_empty_answer(model):
    answer = local(model, FORMATS["llama2"], SAMPLING)
    answers = dict(answer([request(0, "a [/INST] b"), request(1)], 2))
    assert answers == {0: "", 1: dict(answer([request(1)], 1))[0]}


def test_a_prompt_too_long_for_the_model_fails_alone(model, monkeypatch):
    # As of a model with learned positions: three words fit beside the new tokens, a hundred do not.
    monkeypatch.setattr(LlamaConfig, "longest_sequence", lambda config: 64)
    requests = [request(0), request(1, "Hi " * 100), request(2)]
    kept = []
    for batch in replies(local(model, FORMATS["llama2"], SAMPLING), requests, 1, False):
        kept += batch
    answers = dict(kept)
    assert answers[1] == TOO_LONG and all(isinstance(answers[n], str) for n in (0, 2))
    texts = [Request("samples 0", [], "Hi"), Request("samples 1", [], "Hi " * 100)]
    answers = dict(continuing(model, SAMPLING)(texts, 2))
    assert answers[1] == TOO_LONG and isinstance(answers[0], str)
    with pytest.raises(UserError, match="--max-new-tokens is 64: tiny holds 64 tokens"):
        next(continuing(model, Sampling(max_new_tokens=64))(texts, 2))


class Server(BaseHTTPRequestHandler):
    """Answers with the next of the prepared (status, body)."""

    replies: ClassVar[list] = []
    bodies: ClassVar[list] = []
    keys: ClassVar[list] = []
    headers_sent: ClassVar[dict] = {}

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append((self.path, body))
        self.keys.append(self.headers.get("Authorization"))
        status, reply = self.replies.pop(0)
        self.send_response(status)
        for name, value in self.headers_sent.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Server.replies, Server.bodies, Server.keys = [], [], []
    Server.headers_sent = {}
    http = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()
    http.server_close()


def reply_of(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def test_a_server_gets_the_conversation_and_the_sampling(server):
    Server.replies = [(200, reply_of(" Hello \n"))]
    remote = Remote(server, "big", key="secret")
    assert list(remote.answerer(SAMPLING)([request(0)], 64)) == [(0, "Hello")]
    ((path, body),) = Server.bodies
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "Hi"}]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("big", 1.0, 8)
    assert Server.keys == ["Bearer secret"]


def test_a_busy_server_is_tried_again(server):
    Server.replies = [(429, ""), (503, ""), (200, reply_of("x"))]
    waits = []
    assert Remote(server, "big").ask(SAMPLING, request(0), waits.append) == "x"
    assert waits == [1.0, 2.0]
    assert Server.bodies[0] == Server.bodies[2]
    assert Server.keys[0] is None


@pytest.mark.parametrize(
    ("replies", "problem", "is_final"),
    [
        ([(401, "no")], "answers 401 Unauthorized", True),
        ([(404, "no")], "answers 404 Not Found", True),
        ([(400, '{"error": {"message": "too\\nlong"}}')], "answers 400 Bad Request", False),
        ([(500, "")] * 5, "answers 500 Internal Server Error", False),
        ([(429, "")] * 5, "answers 429 Too Many Requests", False),
        ([(200, "{}")], "answers in another form than OpenAI's chat/completions", False),
        ([(200, "<html>")], "answers in another form than OpenAI's chat/completions", False),
        ([(200, reply_of(3))], "answers in another form than OpenAI's chat/completions", False),
    ],
)
def test_a_server_that_does_not_answer_is_a_failure_and_one_line(
    server, replies, problem, is_final
):
    Server.replies = list(replies)
    failure = Remote(server, "big").ask(SAMPLING, request(0), lambda _: None)
    assert (failure.reason, failure.is_final) == (problem, is_final)
    assert not Server.replies  # only a busy server is tried again
    line = str(failure.error())
    assert line.startswith(f"{server} {problem}") and "\n" not in line
    assert ("(too long)" in line) == ("400" in problem)


def test_a_server_decides_how_long_to_wait(server):
    Server.replies = [(429, ""), (200, reply_of("x"))]
    Server.headers_sent = {"Retry-After": "7"}
    waits = []
    assert Remote(server, "big").ask(SAMPLING, request(0), waits.append) == "x"
    assert waits == [7.0]


def test_a_request_that_times_out_is_not_made_again():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        waits = []
        failure = Remote(url, "big", timeout=0.05).ask(SAMPLING, request(0), waits.append)
    assert (failure.reason, failure.is_final) == ("has no answer within 0.05 s", False)
    assert not waits


def test_after_a_final_failure_no_other_request_is_sent(server):
    Server.replies = [(404, "no")]
    remote = Remote(server, "big", concurrent=1)
    replies = remote.answerer(SAMPLING)([request(number) for number in range(3)], 64)
    assert [reply.reason for _, reply in replies] == ["answers 404 Not Found"] * 3
    assert len(Server.bodies) == 1


def test_an_answer_without_content_is_empty(server):
    Server.replies = [(200, reply_of(None))]
    assert Remote(server, "big").ask(SAMPLING, request(0)) == ""


@pytest.mark.parametrize("reply", [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", b"hello\r\n"])
def test_a_reply_that_is_no_complete_http_is_one_line(reply):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            for _ in range(5):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65_536)
                    connection.sendall(reply)

        threading.Thread(target=answer, daemon=True).start()
        remote = Remote(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "big")
        failure = remote.ask(SAMPLING, request(0), lambda _: None)
    assert failure.reason == "broke off its answer" and not failure.is_final
    assert "\n" not in str(failure.error())


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://127.0.0.1:abc/v1", "is no URL"),
        ("http://127.0.0.1:1/v1", "cannot be reached .*check the URL"),
    ],
)
def test_an_address_without_a_server_is_final_and_one_line(url, line):
    failure = Remote(url, "big").ask(SAMPLING, request(0), lambda _: None)
    assert failure.is_final and re.search(line, str(failure.error()))
