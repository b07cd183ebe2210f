"""How the papers prompt for a Python function with a docstring, and where its text ends.

`--prompt` of humaneval, humaneval_plus, humaneval_x and mbpp names a paper:

- code_llama: the prompt without white space at its ends, and the stop strings of BigCode's harness,
  which Meta names as the harness of Code Llama.
- starcoder: the same, as the harness is that of StarCoder's authors (Li et al. 2023).
- codex: the published prompt as it is, and five stop strings (Chen et al. 2021, section 3.2).
- codegeex: a comment that names the language, then the published prompt; the text ends at the first
  line that is not indented (Zheng et al. 2023, section 4; their published code).
- pangu_coder2: the docstring between triple quotes, then the code before it and the signature (Shen
  et al. 2023, section 4). The paper gives neither line breaks nor stop strings. Here the docstring
  is in the form of PanGu-Coder's training examples (`data/functions.py`), white space is stripped
  and the stop strings are BigCode's.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

from codellama_jax.benchmarks.benchmark import Record, Task, stripped, until
from codellama_jax.data.functions import Function
from codellama_jax.errors import UserError
from codellama_jax.tokenizers.language_tags import language_tag

# A new statement at the top level: the function has ended.
BIGCODE_STOPS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>")
CODEX_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
# The first line without indentation.
PYTHON_END = re.compile(r"\n(?=\S)")


class Form(NamedTuple):
    """How a paper prompts for a function.

    Attributes:
      prompt: returns the model's prompt for a record, and the white space that it lost at its end.
      truncate: returns a text up to the end of the function; see `Benchmark.truncate`.
    """

    prompt: Callable[[Record], tuple[str, str]]
    truncate: Callable[[Task, str], str]


class Documented(NamedTuple):
    """The parts of a prompt that ends with the docstring of a function.

    Attributes:
      before: the code before the function.
      signature: the lines of the function before its docstring.
      docstring: its text, without quotes and indentation.
    """

    before: str
    signature: str
    docstring: str


def end_of_function(task: Task, text: str) -> str:
    """Returns a Python text up to its first line that is not indented, for `truncate`."""
    end = PYTHON_END.search(text)
    return text[: end.start() + 1] if end else text


def tagged(language: str, prompt: str) -> str:
    """Returns a prompt after CodeGeeX's comment that names the language."""
    return f"{language_tag(language)}\n{prompt}"


def documented(record: Record) -> Documented:
    """Returns the parts of a record's prompt.

    Raises UserError for a prompt that does not end with the docstring of its function.
    """
    prompt = record["prompt"]
    function = _last_statement(prompt)
    docstring = None
    if isinstance(function, ast.FunctionDef):
        start, last = function.lineno - 1, function.body[-1]
        quotes = last.lineno - 1
        # The last and not the first statement: in HumanEval/115 an import precedes the docstring.
        if isinstance(last, ast.Expr) and isinstance(last.value, ast.Constant):
            docstring = last.value.value
    if not isinstance(docstring, str) or start == quotes:
        raise UserError(
            f"{record['place']}: prompt must end with a function and its docstring on separate"
            " lines: use another --prompt, or leave out --rank back-translation"
        )
    # As the parser counts lines; `splitlines` would also split at form feeds.
    lines = [f"{line}\n" for line in prompt.split("\n")]
    cleaned = inspect.cleandoc(docstring)
    return Documented("".join(lines[:start]), "".join(lines[start:quotes]), cleaned)


def _last_statement(code: str) -> ast.stmt | None:
    """Returns the last statement at the top level, None for text that is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes in docstrings
            return ast.parse(code).body[-1]
    except (SyntaxError, ValueError, IndexError, RecursionError, MemoryError):
        return None


def solved(record: Record, completion: str) -> Function:
    """Returns the function of a prompt with a completion as its body.

    Raises UserError as `documented` does.
    """
    parts = documented(record)
    # Without blank lines at its ends, as training examples are.
    body = f"{completion.rstrip()}\n".lstrip("\n")
    return Function(parts.signature, parts.docstring, body)


def _stripped(record: Record) -> tuple[str, str]:
    return stripped(record["prompt"])


def _published(record: Record) -> tuple[str, str]:
    return record["prompt"], ""


def _tagged_python(record: Record) -> tuple[str, str]:
    return tagged("python", record["prompt"]), ""


def _docstring_first(record: Record) -> tuple[str, str]:
    parts = documented(record)
    return stripped(f'"""{parts.docstring}"""\n{parts.before}{parts.signature}')


FORMS = {
    "code_llama": Form(_stripped, until(BIGCODE_STOPS)),
    "codex": Form(_published, until(CODEX_STOPS)),
    "codegeex": Form(_tagged_python, end_of_function),
    "pangu_coder2": Form(_docstring_first, until(BIGCODE_STOPS)),
    "starcoder": Form(_stripped, until(BIGCODE_STOPS)),
}
