"""Projects: their files, and what may come back from the sandbox in which they are traced."""

import json
import sys

import pytest

from codellama_jax.alignment import tracer
from codellama_jax.alignment.projects import (
    Example,
    are_literals,
    is_literal,
    is_test,
    read_project,
    result_of,
)
from codellama_jax.errors import UserError


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        2.5,
        "it's\n",
        b"\x00",
        (),
        (1,),
        [[], {}],
        {"a": (1, 2)},
        {1, 2},
        set(),
        frozenset(),
        frozenset({1}),
    ],
    ids=repr,
)
def test_a_literal_stands_for_its_value(value):
    text = tracer.literal(value)
    assert eval(text) == value and type(eval(text)) is type(value)
    assert is_literal(text) and are_literals(f"1, {text}, key={text}")


class Number(int):
    """A value that looks like one of a builtin type."""


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), Number(1), "x" * 5_000])
def test_other_values_have_no_literal(value):
    with pytest.raises(tracer.NoLiteral):
        tracer.literal([value])


def test_a_list_that_holds_itself_has_no_literal():
    value = []
    value.append(value)
    with pytest.raises(tracer.NoLiteral):
        tracer.literal(value)


@pytest.mark.parametrize("text", ["f(1)", "open('x')", "1; 2", "x", "[i for i in 'a']", "1 +", 3])
def test_code_is_no_literal(text):
    assert not is_literal(text)


@pytest.mark.parametrize(
    "text", ["open('x')", "1) + g(2", "*[1]", "**{}", "1)\nimport os\nf(1", "x"]
)
def test_code_is_no_list_of_arguments(text):
    assert not are_literals(text)


def test_neither_the_module_nor_a_lambda_is_a_call_of_the_function_in_its_line():
    source = "def f(x, key=lambda v: 0):\n    return [x, key(x)]\n\nf(1)\n"
    recorder = tracer.Recorder({"m.py": [1]})
    code = compile(source, f"{tracer.ROOT}/m.py", "exec")
    before = sys.getprofile()
    sys.setprofile(recorder.hook)
    try:
        exec(code, {})
    finally:
        sys.setprofile(before)
    # The call has an argument without a literal, the lambda; no other call is recorded.
    call = recorder.calls["m.py:1"]
    assert (call["calls"], call["examples"]) == (1, {})


def printed(functions):
    return f"noise{tracer.MARK}{json.dumps({'status': 'ended', 'functions': functions})}"


def test_what_a_program_prints_is_checked():
    calls = {"calls": 2, "examples": {"1": "2", "open('x')": "3", "2": "exit()"}, "reasons": {}}
    status, traced = result_of(printed({"m.py:1": calls}))
    assert status == "ended" and traced["m.py:1"].examples == (Example("1", "2"),)
    for functions in ({"m": 1}, {"m": {"calls": "x", "examples": {}, "reasons": {}}}, {"m": {}}):
        assert result_of(printed(functions)) == ("ended", {})
    for text in ("", "traced: {}", f"{tracer.MARK}[1]", f"{tracer.MARK}{{", printed(3)):
        assert result_of(text) == ("no result", {})


@pytest.mark.parametrize(
    ("path", "expected"),
    [("test_a.py", True), ("a_test.py", True), ("tests/a.py", True), ("src/contest.py", False)],
)
def test_which_files_are_tests(path, expected):
    assert is_test(path) == expected


def test_a_project_has_its_files_without_hidden_and_built_ones(tmp_path):
    for path in ("pkg/m.py", "tests/test_m.py", ".git/x.py", "build/y.py", "pkg/data.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x = 1\n")
    (tmp_path / "link.py").symlink_to("/etc/passwd")
    project = read_project(str(tmp_path))
    assert list(project.files) == ["pkg/data.txt", "pkg/m.py", "tests/test_m.py"]
    assert (project.sources(), project.tests()) == (["pkg/m.py"], ["tests/test_m.py"])


@pytest.mark.parametrize(
    ("name", "problem"), [("missing", "there is no folder"), ("empty", "has no tests")]
)
def test_a_folder_that_is_no_project_is_one_line(tmp_path, name, problem):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"--projects: .*{problem}"):
        read_project(str(tmp_path / name))
