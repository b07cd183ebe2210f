"""`self-instruct` and `evol-instruct` as commands: files, continuation and mistakes."""

import json

import pytest

from codellama_jax.alignment.commands import (
    EvolInstructCommand,
    ModelOptions,
    SelfInstructCommand,
    read_tasks,
)
from codellama_jax.alignment.evol_instruct import EvolInstruct
from codellama_jax.alignment.self_instruct import SelfInstruct
from codellama_jax.errors import UserError

AMOUNTS = SelfInstruct(prompts=1, questions=1, solutions=2, batch=2)
CODE = "def one(x):\n    return x + 1\n"


def answer_of(request):
    kind = request.name.split()[0]
    if kind == "questions":
        return "1. Write a function that adds one."
    if kind == "tests":
        return "[TESTS]\nassert one(1) == 2\n[/TESTS]"
    if kind == "evolved":
        return "Write a function that adds one to a number, for any kind of number."
    return f"```python\n{CODE}```"


@pytest.fixture
def requests(monkeypatch):
    """The requests that a stand-in for the models answers."""
    asked = []

    def answerer(self, model, seed):
        def answer(batch, at_once):
            asked.extend((model, request.name) for request in batch)
            return enumerate(answer_of(request) for request in batch)

        return answer

    monkeypatch.setattr(ModelOptions, "answerer", answerer)
    return asked


def self_instruct(out, **options):
    fields = {"model": "run", "models": ModelOptions(), "amounts": AMOUNTS, **options}
    SelfInstructCommand(str(out), **fields)()


def test_self_instruct_prints_its_counts_and_continues(tmp_path, requests, capsys):
    self_instruct(tmp_path / "out", question_model="big")
    printed = capsys.readouterr().out
    assert "questions            1" in printed and "kept                 1" in printed
    assert f"--corpus.others NAME {tmp_path / 'out' / 'dataset.jsonl'}" in printed
    (line,) = map(json.loads, (tmp_path / "out" / "dataset.jsonl").read_text().splitlines())
    assert line["question_model"] == "big" and line["solution_model"] == "run"
    assert {model for model, name in requests if name.startswith("questions")} == {"big"}
    requests.clear()
    self_instruct(tmp_path / "out", question_model="big", workers=1)
    assert requests == []


def test_a_folder_belongs_to_its_options(tmp_path, requests):
    self_instruct(tmp_path)
    with pytest.raises(UserError, match="was started with another model: name another folder"):
        self_instruct(tmp_path, model="other")


def test_a_folder_without_answers_takes_other_options(tmp_path, requests):
    (tmp_path / "settings.json").write_text('{"model": "http://127.0.0.1:1/v1#misspelt"}')
    self_instruct(tmp_path)
    assert (tmp_path / "dataset.jsonl").read_text()


def test_a_dataset_that_is_empty_is_no_data_to_train_on(tmp_path, monkeypatch, capsys):
    def silent(batch, at_once):
        return enumerate([""] * len(batch))

    monkeypatch.setattr(ModelOptions, "answerer", lambda *_: silent)
    self_instruct(tmp_path)
    printed = capsys.readouterr().out
    assert "nothing was kept" in printed and "train on it" not in printed


def test_a_folder_belongs_to_the_content_of_its_seeds(tmp_path, requests):
    seeds = tmp_path / "seeds.jsonl"
    row = {"instruction": "Write a function that adds one.", "output": CODE}
    seeds.write_text(json.dumps(row))
    fields = {"seeds": str(seeds), "model": "run", "models": ModelOptions()}
    command = EvolInstructCommand(str(tmp_path / "out"), rounds=EvolInstruct(rounds=1), **fields)
    command()
    seeds.write_text(json.dumps({**row, "instruction": "Write a function that adds two."}))
    with pytest.raises(UserError, match="was started with another content of --seeds"):
        command()


def test_evol_instruct(tmp_path, requests, capsys):
    seeds = tmp_path / "seeds.jsonl"
    row = {"instruction": "Write a function that adds one.", "output": CODE}
    seeds.write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")
    models, rounds = ModelOptions(), EvolInstruct(rounds=1)
    command = EvolInstructCommand(
        str(tmp_path / "out"), seeds=str(seeds), model="run", models=models, rounds=rounds
    )
    command()
    assert "tasks                2" in capsys.readouterr().out
    assert len((tmp_path / "out" / "dataset.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"text": "x"}', "line 1 of .* is no conversation"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "line 1 of .* is no conv"),
        ('{"instruction": "a", "output": "b"}\n3', "line 2 of .* is no conversation"),
        ("no json", "line 1 of"),
    ],
)
def test_seeds_that_are_no_tasks_are_one_line(tmp_path, text, problem):
    path = tmp_path / "seeds.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(UserError, match=problem):
        read_tasks(str(path))


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("http://127.0.0.1:8000/v1", "does not name a model of the server"),
        ("http://[::1/v1#m", r"http://\[::1/v1#m is no URL \(Invalid IPv6 URL\): write"),
        ("/missing/run", "/missing/run"),
    ],
)
def test_a_wrong_model_is_one_line(tmp_path, model, problem):
    with pytest.raises(UserError, match=problem):
        self_instruct(tmp_path / "out", model=model)
    assert not (tmp_path / "out").exists()
