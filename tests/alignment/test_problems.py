"""Functions of a module as problems: what a prompt holds, and which functions can be none."""

import pytest

from codellama_jax.alignment.problems import problems

MODULE = '''from __future__ import annotations

import math
import os
from . import other

LIMIT = 3


def helper(x):
    return min(x, LIMIT)


def area(radius):
    """Returns the area of a circle.

    At most LIMIT counts.
    """
    r = helper(radius)

    return math.pi * r * r


def uses_other(x):
    """Needs a module."""
    return other.f(x)
'''


def test_a_prompt_holds_what_the_function_needs_of_its_module():
    by_name = {problem.name: (problem, reason) for problem, reason in problems("m.py", MODULE, [])}
    problem, reason = by_name["area"]
    assert (problem.path, problem.line, reason) == ("m.py", 14, "")
    assert problem.prompt == (
        "from __future__ import annotations\nimport math\nLIMIT = 3\n\n\ndef helper(x):\n"
        '    return min(x, LIMIT)\n\n\ndef area(radius):\n    """Returns the area of a circle.\n\n'
        '    At most LIMIT counts.\n    """\n'
    )
    assert problem.solution == "    r = helper(radius)\n\n    return math.pi * r * r\n"
    namespace = {}
    exec(problem.prompt + problem.solution, namespace)
    assert round(namespace["area"](9), 3) == 28.274
    assert by_name["uses_other"][1] == "it needs another module of its project"
    assert by_name["helper"][1] == "no docstring"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('@cache\ndef f(x):\n    """D."""\n    return x\n', "it has a decorator"),
        ('def f(x):\n    """D."""\n', "its body is only a docstring"),
        ('def f(x):\n    """D."""\n    yield x\n', "it is a generator or a coroutine"),
        ('async def f(x):\n    """D."""\n    return x\n', "it is a generator or a coroutine"),
        ('def f(x):\n    """D."""\n    global y\n    y = x\n', "it changes its module"),
        ('def f(x): """D."""; return x\n', "its docstring shares a line with code"),
        ('import mine.part\ndef f(x):\n    """D."""\n    return mine.part.g(x)\n', "it needs"),
        (f'def f(x):\n    """D."""\n    return "{"x" * 5_000}"\n', "the prompt or the solution"),
        ('def f(x):\n    """D."""\n    return x\n', ""),
        ("def f(:\n", None),
    ],
)
def test_the_reasons_of_functions_that_are_no_problem(text, reason):
    (actual,) = [why for _, why in problems("m.py", text, ["mine"])] or [None]
    assert actual == reason if not reason else actual.startswith(reason)
