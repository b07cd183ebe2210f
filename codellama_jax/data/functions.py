"""Documented functions of Python code as training examples of a text and its translation.

PanGu-Coder (Christopoulou et al. 2022, second stage) puts the docstring first and learns the code;
Codex-D (Chen et al. 2021, section 5) puts the docstring last and learns it. Neither paper publishes
the exact text of an example. Here the docstring is between triple quotes, as PanGu-Coder2's prompt
has it, and the code is the function without it.

PanGu-Coder also trained a masked language model on the docstring; this is left out.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from codellama_jax.data.infilling import start_ids


class Function(NamedTuple):
    """A documented function; `signature + body` is its code without docstring and decorators."""

    signature: str
    docstring: str  # without quotes and indentation
    body: str


def functions(text: str) -> Iterator[Function]:
    """Yields the documented functions and methods of Python code, outer ones first.

    A function is left out where its docstring shares a line with code, where it holds nothing but
    the docstring, and where its code would change without the indentation of its class. Text that
    is not Python yields none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes in the text
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    # As the parser counts lines; `splitlines` would also split at form feeds.
    lines = [f"{line}\n" for line in re.split("\r\n|\r|\n", text)]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = _function(node, lines)
            if function:
                yield function


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> Function | None:
    """Returns a documented function, None where it has no docstring or cannot be separated."""
    docstring = ast.get_docstring(node)
    if not docstring or not docstring.strip() or len(node.body) < 2:
        return None
    first, second = node.body[:2]
    last_line = first.end_lineno or first.lineno
    # Lines are removed, not characters: a docstring that shares a line with code would take it
    # away.
    is_separate = first.lineno > node.lineno and second.lineno > last_line
    # The example writes the docstring's value between quotes again, which must give the same value.
    quoted = _literal(docstring)
    if not is_separate or not quoted:
        return None
    head = "".join(lines[node.lineno - 1 : first.lineno - 1])
    # Dedented after the removal, because the lines of a docstring may be indented less than the
    # code.
    code = textwrap.dedent(head + "".join(lines[last_line : node.end_lineno]))
    # dedent also changes the lines inside strings over several lines: a function whose syntax tree
    # differs afterwards is left out instead of taught wrongly.
    if not _is_same(code, node):
        return None
    signature_lines = head.count("\n")
    parts = [f"{line}\n" for line in code.split("\n")[:-1]]
    signature, body = "".join(parts[:signature_lines]), "".join(parts[signature_lines:])
    return Function(signature, docstring, body.lstrip("\n"))


def _is_same(code: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Returns whether code parses to a function without its docstring and decorators."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (parsed,) = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if type(parsed) is not type(node):
        return False
    fields = {name: getattr(node, name) for name in node._fields}
    fields |= {"body": node.body[1:], "decorator_list": []}
    return _are_equal(parsed, type(node)(**fields))


def _are_equal(first: ast.AST, second: ast.AST) -> bool:
    """Returns whether two syntax trees are equal, wherever their code is."""
    # Without recursion: `ast.dump` fails where the parser does not, as on a chain of 300 elifs.
    pairs: list[tuple[Any, Any]] = [(first, second)]
    while pairs:
        a, b = pairs.pop()
        if type(a) is not type(b):
            return False
        if isinstance(a, ast.AST):
            pairs += [(getattr(a, name, None), getattr(b, name, None)) for name in a._fields]
        elif isinstance(a, list):
            if len(a) != len(b):
                return False
            pairs += zip(a, b)
        # By their text, in which also -0.0 and 0.0 differ.
        elif repr(a) != repr(b):
            return False
    return True


def _literal(docstring: str) -> str:
    """Returns a docstring between triple quotes, "" for one that would need escapes."""
    quoted = f'"""{docstring}"""'
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return quoted if ast.literal_eval(quoted) == docstring else ""
    except (SyntaxError, ValueError):
        return ""


def example_ids(tokenizer: Any, function: Function, examples: str) -> tuple[list[int], int]:
    """Returns the ids of a training example, and how many of them carry no loss.

    The two parts are encoded separately, so that no token spans both. EOS, which ends the example,
    is trained.

    Args:
        tokenizer: encodes the texts.
        function: the function.
        examples: `docstring_to_code` or `code_to_docstring`, as in DataConfig.
    """
    docstring = f'"""{function.docstring}"""\n'
    code = function.signature + function.body
    is_code_last = examples == "docstring_to_code"
    given, learned = (docstring, code) if is_code_last else (code, docstring)
    given_ids = [*start_ids(tokenizer), *tokenizer.encode(given)]
    learned_ids = tokenizer.encode(learned, leading_space=False)
    return [*given_ids, *learned_ids, tokenizer.eos_id], len(given_ids)
