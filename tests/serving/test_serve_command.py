"""`serve` of the command line: its mistakes, and the end of its process."""

import importlib.util

import pytest
from toy import stage

from codellama_jax.errors import UserError
from codellama_jax.generation.settings import QuantizationOptions
from codellama_jax.serving import commands
from codellama_jax.serving.commands import Serve
from codellama_jax.serving.server import Address, listen, url_of

KEY = "a-key-of-many-characters"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"port": 70_000}, "--port is 70000: it must be from 0 to 65,535"),
        ({"slots": 0}, "--slots is 0: it must be from 1"),
        ({"queue": -1}, "--queue is -1"),
        ({"context": 10}, "--context is 10: it must be from 64"),
        ({"warm_up": 0}, "--warm-up is 0"),
        ({"prompt_piece": 8}, "--prompt-piece is 8: it must be from 16"),
        ({"grace": -1.0}, "--grace is -1"),
        ({"max_body_bytes": 1}, "--max-body-bytes is 1"),
        ({"spm": True, "psm": True}, "--spm and --psm exclude each other"),
        ({"psm": True, "healing": True}, "--healing works in SPM order only"),
    ],
)
def test_a_wrong_option_is_named(options, problem):
    with pytest.raises(UserError, match=problem):
        Serve("run", **options)


def test_several_quantizations_are_several_models():
    options = QuantizationOptions(quantize="none,int8", speculate=2)
    assert Serve("run", quantization=options).quantization.quantize == "none,int8"
    drafts = QuantizationOptions(quantize="none,int8", speculate=2, draft_model="small")
    with pytest.raises(UserError, match="--quantize none,int8 and --draft-model small exclude"):
        Serve("run", quantization=drafts)


def test_an_origin_that_no_browser_sends_is_refused():
    Serve("run", cors=("http://localhost:3000", "https://[::1]", "vscode-webview://a", "null", "*"))
    for origin in ("localhost:3000", "http://localhost:3000/", "http://a b", "http://", ""):
        with pytest.raises(UserError, match=f"--cors is '{origin}': an origin must be SCHEME://HO"):
            Serve("run", cors=("http://localhost", origin))


def test_another_address_needs_a_key(monkeypatch):
    monkeypatch.delenv(commands.KEY_VARIABLE, raising=False)
    for host in ("127.0.0.1", "::1", "localhost"):
        assert Serve("run", host=host)._key() == ""
    for host in ("0.0.0.0", "::", "192.168.0.2", "example.org"):
        with pytest.raises(UserError, match=f"--host is {host}.*set --api-key, or pass"):
            Serve("run", host=host)._key()
    assert Serve("run", host="0.0.0.0", without_api_key=True)._key() == ""
    assert Serve("run", host="0.0.0.0", api_key=KEY)._key() == KEY
    # With white space at an end, no request could have sent the key.
    assert Serve("run", host="0.0.0.0", api_key=f" {KEY}\n")._key() == KEY
    for key in ("short", "é" * 20, "a\nb" * 10, " " * 20):
        with pytest.raises(UserError, match=r"--api-key has .* at least 16, all ASCII"):
            Serve("run", api_key=key)._key()
    monkeypatch.setenv(commands.KEY_VARIABLE, KEY)
    assert Serve("run", host="0.0.0.0")._key() == KEY


def test_the_context_is_the_models_unless_given(capsys):
    assert Serve("run")._context(stage(seq_len=512)) == 512
    assert Serve("run")._context(stage(seq_len=16_384)) == 2048
    assert Serve("run", context=1024)._context(stage(seq_len=512)) == 1024
    assert "the model was trained on sequences of 512 tokens" in capsys.readouterr().err


def test_a_server_without_a_key_answers_to_names_of_this_machine_only():
    rules = Serve("run")._rules("")
    assert set(rules.hosts) == {"localhost", "127.0.0.1", "[::1]"}
    assert Serve("run")._rules(KEY).hosts == ()


def test_a_port_in_use_and_an_address_of_another_machine_are_one_line():
    listener = listen(Address("127.0.0.1", 0))
    port = listener.getsockname()[1]
    assert url_of(listener) == f"http://127.0.0.1:{port}"
    with pytest.raises(UserError, match=f"--port is {port}: another program uses it"):
        listen(Address("127.0.0.1", port))
    listener.close()
    with pytest.raises(UserError, match=r"cannot listen at 192.0.2.1, port 80"):
        listen(Address("192.0.2.1", 80))


def test_the_extra_is_named_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"serve needs starlette.*pip install -e '.\[serve\]'"):
        Serve("run")()
