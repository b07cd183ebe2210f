"""Experiment files of the user's own: found by name or path, and one line for whatever is wrong."""

import dataclasses
import re

import pytest

from codellama_jax.errors import UserError
from codellama_jax.runs.experiment_file import build, claim_of, completed, load_file

HEAD = '"""Claim of mine."""\nfrom experiments.recipe import *\n'
GOOD = (
    HEAD
    + "def experiment(scale='toy'):\n"
    + "    return ablation('mine', scale, {'a': {'s': general(scale)}})\n"
)


def load(name, text, folder, scale=""):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return build(load_file(str(folder / name)), scale)


@pytest.mark.parametrize(
    "text, line",
    [
        ("def experiment(:\n", r":1: SyntaxError: invalid syntax"),
        (
            "\n\nimport nowhere_at_all\n",
            r":3: ModuleNotFoundError: No module named 'nowhere_at_all'",
        ),
        (
            HEAD + "def experiment():\n    return Experimant()\n",
            r":4: NameError: name 'Experimant' is not defined",
        ),
        (
            HEAD + "def experiment():\n    pass\n",
            r": experiment\(scale\) returned None: it must return an Experiment",
        ),
        (HEAD + "x = 1\n", r"is not an experiment file: it has no function experiment\(scale\)"),
        (HEAD + "experiment = 3\n", r"is not an experiment file"),
        (GOOD + "finding = 3\n", r"finding must be a function"),
        ("raise SystemExit(3)\n", r":1: the file calls exit\(\)"),
        (
            HEAD + "def experiment(a, b):\n    pass\n",
            r":3: TypeError: experiment\(\) missing 2 required",
        ),
        (b"x = '\xff'\n", r":1: SyntaxError: "),
        (b"x = 1\0\n", r":1: (SyntaxError|ValueError): .* null bytes"),
        (
            HEAD + "def experiment():\n    return [][0]\n",
            r":4: IndexError: list index out of range",
        ),
        (
            HEAD + "def experiment():\n    return DataConfig(0, 8, MixtureConfig())\n",
            r":4: seq_len is 0: it must be at least 1$",
        ),
    ],
)
def test_a_mistake_is_one_line_with_its_place(text, line, tmp_path):
    with pytest.raises(UserError, match=line) as raised:
        load("mine.py", text, tmp_path)
    assert "\n" not in str(raised.value) and str(raised.value).startswith(str(tmp_path / "mine.py"))


def test_a_users_mistake_keeps_its_own_line(tmp_path):
    with pytest.raises(UserError, match=r"^no scale 8b: there are toy, small, 7b$"):
        load("mine.py", GOOD, tmp_path, "8b")


def test_a_name_is_looked_up_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "mine.py", "./mine", str(tmp_path / "mine")):
        module = load_file(name)
        assert build(module, "toy").name == "mine" and claim_of(module) == "Claim of mine."


def test_a_file_may_define_dataclasses(tmp_path):
    text = (
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\nclass A:\n    x: int\n"
    )
    assert load("mine.py", text + GOOD.partition("\n")[2], tmp_path).name == "mine"


def test_a_file_without_docstring_has_a_claim(tmp_path):
    (tmp_path / "mine.py").write_text(GOOD.partition("\n")[2])
    assert claim_of(load_file(str(tmp_path / "mine.py"))).startswith("no description")


def test_helper_modules_are_not_suggested_as_experiments():
    with pytest.raises(UserError, match=r"^no experiment zzz: there are code_llama, ") as raised:
        load_file("zzz")
    for helper in ("attention_decay", "recipe"):
        assert helper not in str(raised.value)
    with pytest.raises(UserError, match="there are code_llama, "):
        load_file("recipes")
    with pytest.raises(UserError, match=r"^no experiment quikstart: did you mean quickstart\?$"):
        load_file("quikstart")


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 5000 + ".py", "no\0where", "", ".", "/"])
def test_a_name_that_is_no_file_is_one_short_line(name):
    with pytest.raises(UserError) as raised:
        load_file(name)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_the_command_line_itself_is_no_experiment():
    with pytest.raises(UserError, match=re.escape("is not an experiment file")):
        load_file("launch.py")


def test_traceback_is_shown_when_asked_for(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError: division by zero; pass --traceback"):
        load_file(str(tmp_path / "mine.py"))
    assert not capsys.readouterr().err
    with pytest.raises(UserError, match=r"ZeroDivisionError: division by zero$"):
        load_file(str(tmp_path / "mine.py"), show_traceback=True)
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_file_completes_its_experiment_after_the_overrides(tmp_path):
    load("mine.py", GOOD, tmp_path)
    module = load_file(str(tmp_path / "mine.py"))
    plain = build(module, "toy")
    assert completed(module, plain) is plain
    module.completed = lambda experiment: dataclasses.replace(experiment, seed=7)
    assert completed(module, plain).seed == 7
    module.completed = lambda experiment: None
    with pytest.raises(UserError, match=r"completed.* returned None: it must return an Experiment"):
        completed(module, plain)
    module.completed = 3
    with pytest.raises(UserError, match="completed must be a function of the experiment"):
        completed(module, plain)
