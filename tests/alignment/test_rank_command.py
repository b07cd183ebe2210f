"""`rank` as a command: pairs from the answers of stand-ins, and mistakes."""

import json

import pytest

from codellama_jax.alignment.commands import ModelOptions
from codellama_jax.alignment.pairs import Sampled
from codellama_jax.alignment.rank_command import RankCommand, RankedModelOptions, read_tasks
from codellama_jax.cli import parse
from codellama_jax.data.prepare.readers.conversations import canonical_text, columns_of
from codellama_jax.errors import UserError

TASK = {"messages": [{"role": "user", "content": "Add one."}], "tests": ["assert f(1) == 2"]}


@pytest.fixture
def asked(monkeypatch):
    """The requests, which the teacher answers with a right program and the student with none.

    No two answers are equal, as equal pairs are written once.
    """
    requests = []

    def answerer(self, model, seed):
        if model == "missing":
            raise UserError("there is no run missing")

        def answer(batch, at_once):
            requests.extend((model, self.temperature, request.name) for request in batch)
            answers = []
            for request in batch:
                code = f"```python\ndef f(x):  # {request.name}\n    return x + 1\n```"
                answers.append(code if model == "big" else f"No {request.name}.")
            return enumerate(answers)

        return answer

    monkeypatch.setattr(ModelOptions, "answerer", answerer)
    return requests


def run(tmp_path, **options):
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps(TASK) + "\n")
    numbers = {name: options.pop(name) for name in ("samples", "temperatures") if name in options}
    sampled = Sampled(**{"samples": 2} | numbers)
    fields = {"tasks": str(tasks), "student": "small", "teacher": ("big",), "sampled": sampled}
    RankCommand(str(tmp_path / "out"), models=RankedModelOptions(), **fields | options)()


def test_pairs_are_written_as_training_reads_them(tmp_path, asked, capsys):
    run(tmp_path)
    lines = (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()
    pairs = [json.loads(line) for line in lines]
    assert len(pairs) == 4  # of 16, the most that one task may have
    assert {pair["prompt"] for pair in pairs} == {"Add one."}
    row = {name: pairs[0][name] for name in columns_of(tuple(pairs[0]))}
    assert json.loads(canonical_text(row))["difference"] > 0
    printed = capsys.readouterr().out
    assert "4 x student: compile error" in printed and "4 x teacher: passed" in printed
    assert len(asked) == 8
    run(tmp_path, workers=1)
    assert len(asked) == 8  # nothing is answered twice


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"teacher": ("small",)}, "name the same model twice: small; give other models"),
        ({"teacher": ("small/",)}, r"name the same model twice: small/ \(small\);"),
        ({"teacher": ("big", "hf:./big")}, r"name the same model twice: hf:./big \(big\);"),
        ({"teacher": ()}, "--teacher names no model"),
        ({"teacher": ("big", "missing")}, "there is no run missing"),
        ({"temperatures": (-1.0,)}, "temperatures is -1.0"),
        ({"temperatures": (1e-5,)}, "temperatures is 1e-05: it must be 0, or at least 0.0001"),
        ({"temperatures": (0.2, 0.8, 0.2)}, "temperatures is 0.2 0.8 0.2: give each .* once"),
        ({"temperatures": (0.2, 0.20000001)}, "temperatures is 0.2 0.2: give each .* once"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, asked, options, problem):
    with pytest.raises(UserError, match=problem):
        run(tmp_path, **options)
    assert not (tmp_path / "out").exists() and not asked


def test_a_folder_with_options_of_an_older_version_continues(tmp_path, asked):
    run(tmp_path)
    path = tmp_path / "out" / "settings.json"
    options = json.loads(path.read_text())
    # As versions wrote them whose command had these fields itself.
    assert (options["samples"], options["temperatures"], options["most_pairs"]) == (
        2,
        [0.2, 0.8],
        4,
    )
    assert "sampled" not in options and "batch" not in options
    run(tmp_path, student="./small", teacher=("big/",))
    assert len(asked) == 8
    with pytest.raises(UserError, match="was started with another student: name another folder"):
        run(tmp_path, student="smaller")


def test_a_temperature_beside_temperatures_is_no_option():
    arguments = ["rank", "out", "--tasks", "t", "--student", "a", "--teacher", "b"]
    parse(arguments, "launch.py")
    with pytest.raises(UserError, match="unrecognized option: --temperature;"):
        parse([*arguments, "--temperature", "0.3"], "launch.py")


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"tests": ["assert f()"]}, "line 1 of .* has no prompt"),
        ({"prompt": "x"}, "line 1 of .* has no tests"),
        ({"prompt": "x", "tests": []}, "line 1 of .* has no tests"),
        ({"prompt": "x", "tests": "assert f()"}, "line 1 of .* has no tests"),
        (1, "line 1 of .* has no prompt"),
    ],
)
def test_a_task_without_its_fields_is_one_line(tmp_path, record, problem):
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(record) + "\n\n")
    with pytest.raises(UserError, match=problem):
        read_tasks(str(path))
