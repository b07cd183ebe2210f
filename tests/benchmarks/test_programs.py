"""Programs in answers of any form."""

import pytest

from codellama_jax.benchmarks import programs

CODE = "def f(x):\n    return x + 1"


@pytest.mark.parametrize(
    "answer",
    [
        f"[PYTHON]\n{CODE}\n[/PYTHON]",
        f"Of course. [PYTHON]\n{CODE}",
        f"[PYTHON]\n```python\n{CODE}\n```\n[/PYTHON]",
        f"```python\n{CODE}\n```\nThat is all.",
        f"```\n{CODE}\n",
        f"```js\nlet x = 1;\n```\n```py\n{CODE}\n```",
        f"```python\nx = = 1\n```\n```python\n{CODE}\n```\n```python\nf(1)\n```",
        f"Call ```f(1)``` so:\n```python\n{CODE}\n```\nIt gives ```2```.",
        CODE,
    ],
)
def test_the_program_of_an_answer(answer):
    assert programs.program(answer) == programs.Parsed(CODE + "\n")


EXAMPLE = "    ```python\n    f(1)  # 2\n    ```\n"
DOCUMENTED = f'def f(x):\n    """Adds one.\n\n{EXAMPLE}    """\n    return x + 1'


@pytest.mark.parametrize(
    "answer",
    [
        f"Here it is:\n```python\n{DOCUMENTED}\n```\nIt adds one.\n```python\ndef g(): ...\n```",
        f"```\n{DOCUMENTED}\n",
        f"[PYTHON]\n{DOCUMENTED}\n[/PYTHON]",
        f"[PYTHON]\n```python\n{DOCUMENTED}\n```\n[/PYTHON]",
        DOCUMENTED,
    ],
)
def test_a_fence_in_a_docstring_ends_no_block(answer):
    assert programs.program(answer) == programs.Parsed(DOCUMENTED + "\n")
    assert programs.nearest_program(answer, "f").code == DOCUMENTED + "\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", programs.NO_CODE),
        ("I cannot do that.", programs.NO_CODE),
        ("[PYTHON]\n\n[/PYTHON]", programs.NO_CODE),
        ("```java\nclass A {}\n```", programs.OTHER_LANGUAGE),
        ("[PYTHON]\ndef f(:\n[/PYTHON]", programs.DOES_NOT_PARSE),
        ("[PYTHON]\n" + "(" * 5_000 + "[/PYTHON]", programs.DOES_NOT_PARSE),
        ("[PYTHON]\nx\0 = 1\n[/PYTHON]", programs.DOES_NOT_PARSE),
        ("[PYTHON]\nx = 1\n[/PYTHON]", programs.NO_FUNCTION),
        ("x" * 1_000_000, programs.TOO_LONG),
        ("```" * 5_000, programs.NO_CODE),
        ("```\n(\n" * 2_500, programs.DOES_NOT_PARSE),
    ],
)
def test_an_answer_without_a_program_has_a_reason(answer, reason):
    assert programs.program(answer) == programs.Parsed(reason=reason)
