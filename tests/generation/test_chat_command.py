"""`chat`: messages, commands and mistakes, with a small model that answers anything."""

import io
import json

import pytest

from codellama_jax.errors import UserError
from codellama_jax.generation import chat as chatting
from codellama_jax.generation import text as texts
from codellama_jax.generation.chat import Chat
from codellama_jax.generation.options import Generating
from codellama_jax.generation.settings import Sampling
from codellama_jax.generation.text import Generated
from codellama_jax.tokenizers import sentencepiece


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    lines = ["[INST] Hi [/INST] Hello <<SYS>>\nBe brief.\n<</SYS>> x = 1 + 2\n"] * 30
    return sentencepiece.train(lines, 310, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def folder(write_run, tokenizer):
    """A run that was trained on conversations, without parameters."""
    return write_run(tokenizer, chat="llama2")


@pytest.fixture
def prompts(monkeypatch, tokenizer):
    """The prompts that a stand-in for the model answers with their number."""
    read = []

    def generate_text(model, ids, decode, sampling, stop_ids, stop_strings, stream):
        read.append(tokenizer.decode([i for i in ids[0] if i > 2]))
        assert stop_ids == (tokenizer.eos_id,)
        answer = Generated(f"answer {len(read)}", True)
        stream.update(answer.text)
        return [answer]

    monkeypatch.setattr(texts, "generate_text", generate_text)
    monkeypatch.setattr(Generating, "load", lambda self: None)
    return read


def talk(monkeypatch, run, *lines, **options):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    Chat(str(run), sampling=Sampling(), **options)()


def test_answers_become_part_of_the_conversation(monkeypatch, folder, prompts, capsys):
    talk(monkeypatch, folder, "Hi", "", "And you?", system="Be brief.")
    first = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]"
    assert prompts == [first, f"{first} answer 1  [INST] And you? [/INST]"]
    assert capsys.readouterr().out == "answer 1\nanswer 2\n"


def test_one_message(monkeypatch, folder, prompts, capsys):
    talk(monkeypatch, folder, message="Hi")
    assert prompts == ["[INST] Hi [/INST]"]
    assert capsys.readouterr().out == "answer 1\n"


def test_commands(monkeypatch, folder, prompts, capsys, tmp_path):
    saved = tmp_path / "talk.jsonl"
    lines = ("Hi", f"/save {saved}", "/clear", "Hi", "/system Be brief.", "Hi", "/quit", "more")
    talk(monkeypatch, folder, *lines)
    assert prompts[0] == prompts[1] == "[INST] Hi [/INST]"
    assert prompts[2].startswith("[INST] <<SYS>>\nBe brief.") and len(prompts) == 3
    messages = json.loads(saved.read_text())["messages"]
    assert messages[1] == {"role": "assistant", "content": "answer 1"}


def test_mistakes_are_one_line_and_the_chat_continues(monkeypatch, folder, prompts, capsys):
    lines = ("a [/INST] b", "/sav x", "/save", "/save /dev/null/x", "/help", " /slash", "Hi")
    talk(monkeypatch, folder, *lines)
    errors = capsys.readouterr().err
    assert "error: message 1 contains [/INST]" in errors
    assert "error: the command is '/sav'" in errors and "did you mean /save" in errors
    assert "error: /save needs a file" in errors and "error: cannot write /dev/null/x" in errors
    assert "/clear" in errors and "Traceback" not in errors
    assert prompts == ["[INST] /slash [/INST]", "[INST] /slash [/INST] answer 1  [INST] Hi [/INST]"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"chat_format": "llama3"}, "--chat-format is 'llama3'.*did you mean llama2"),
        ({"chat_format": "template"}, "has no chat template"),
        ({"message": "a [INST]"}, r"message 1 contains \[INST\]"),
        ({"message": "x", "chat_format": "pangu_coder2", "system": "s"}, "pangu_coder2 takes one"),
    ],
)
def test_a_mistake_in_the_options_is_refused(monkeypatch, folder, prompts, options, problem):
    with pytest.raises(UserError, match=problem):
        talk(monkeypatch, folder, **options)


def test_a_run_without_conversations_needs_a_format(monkeypatch, folder, prompts):
    path = folder / "main" / "code" / "config.json"
    config = json.loads(path.read_text())
    del config["data"]["chat"]
    path.write_text(json.dumps(config))
    for name in ("config.json",):
        whole = json.loads((folder / name).read_text())
        del whole["arms"]["main"]["code"]["data"]["chat"]
        (folder / name).write_text(json.dumps(whole))
    with pytest.raises(UserError, match="was not trained on conversations: pass --chat-format"):
        talk(monkeypatch, folder, message="Hi")
    talk(monkeypatch, folder, message="Hi", chat_format="llama2")
    assert prompts == ["[INST] Hi [/INST]"]


def test_markdown_only_on_a_terminal(monkeypatch, capsys):
    with chatting._shown() as write:
        write("**bold**")
    assert capsys.readouterr().out == "**bold**\n"


def test_bytes_that_are_not_utf8_are_one_line(monkeypatch, folder, prompts, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\nHi\n"), "utf-8"))
    Chat(str(folder), sampling=Sampling())()
    printed = capsys.readouterr()
    assert "error: text holds a lone surrogate" in printed.err
    assert prompts == ["[INST] Hi [/INST]"]


def test_a_text_that_is_not_utf8_is_not_saved(monkeypatch, folder, prompts, capsys, tmp_path):
    lines = b"/system caf\xe9\n/save %s\n/system\nHi\n" % str(tmp_path / "talk.jsonl").encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines), "utf-8"))
    Chat(str(folder), sampling=Sampling())()
    assert "error: text holds a lone surrogate, '\\udce9'" in capsys.readouterr().err
    assert prompts == ["[INST] Hi [/INST]"] and not list(tmp_path.glob("*.jsonl"))


def test_the_largest_seed_has_further_turns(monkeypatch, folder, prompts, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\nAnd you?\n"))
    Chat(str(folder), sampling=Sampling(temperature=1.0, seed=2**32 - 1))()
    assert capsys.readouterr().out == "answer 1\nanswer 2\n"
