"""Syntax of documents: whether Python parses, and the share of a text that is comments."""

from __future__ import annotations

import ast
import functools
import io
import tokenize
import warnings
from typing import Any

LONGEST_LINE = 1000  # characters; longer lines count as code without comments
# Tokenizers that lost track of a string search its end from every escaped quote. Documents with
# more escaped quotes times characters are not tokenized.
MOST_STEPS = 10**8
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def is_python3(text: str) -> bool:
    """Returns whether a text parses as the running version of Python."""
    return _syntax_tree(text) is not None


def comment_share(text: str, language: str) -> float | None:
    """Returns the share of characters in comments and docstrings; None if it cannot be computed.

    That is so for languages without a tokenizer and for texts full of escaped quotes.
    As SantaCoder's: of Python the comments without "#" and the docstrings without indentation, of
    other languages the comments that pygments finds.
    """
    # Such a text could take a tokenizer minutes. Without a share the rules on comments do not
    # apply.
    if sum(map(text.count, ("\\'", '\\"', "\\`"))) * len(text) > MOST_STEPS:
        return None
    if language == "Python":
        size = _python_comments(text) + _docstrings(text)
    elif (lexer := _lexer(language)) is not None:
        size = _pygments_comments(text, lexer)
    else:
        return None
    return min(size / max(len(text), 1), 1.0)


@functools.lru_cache(maxsize=1)  # two rules need the tree of one document after another
def _syntax_tree(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes such as "\d"
            # A byte order mark is no Python, but editors on Windows write it.
            return ast.parse(text.removeprefix("\ufeff"))
    # The parser has its own limits on depth and size, besides the errors of syntax.
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return None


def _docstrings(text: str) -> int:
    """Returns the number of characters in the docstrings of Python, 0 if it does not parse."""
    tree = _syntax_tree(text)
    if tree is None:
        return 0
    nodes = [node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
    return sum(len(ast.get_docstring(node) or "") for node in nodes)


def _python_comments(text: str) -> int:
    """Returns the number of characters in the comments of Python, up to an error of syntax."""
    size = 0
    try:
        # The tokenizer yields the comments before an error, so that they count even in a damaged
        # file.
        for token in tokenize.generate_tokens(io.StringIO(_short_lines(text)).readline):
            if token.type == tokenize.COMMENT:
                size += len(token.string) - token.string.count("#")
    except (tokenize.TokenError, SyntaxError, ValueError, RecursionError):
        pass
    return size


def _pygments_comments(text: str, lexer: Any) -> int:
    from pygments.token import Comment

    size = 0
    for kind, token in lexer.get_tokens(_short_lines(text)):
        # Directives such as #include are no comments.
        if kind in Comment and kind not in Comment.Preproc and kind not in Comment.PreprocFile:
            size += len(token)
    return size


@functools.lru_cache
def _lexer(language: str) -> Any:
    """Returns the lexer of pygments for a language, None if it has none."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language.lower())
    except ClassNotFound:
        return None


def _short_lines(text: str) -> str:
    """Returns the text with empty lines in the place of overlong ones."""
    lines = text.split("\n")
    return "\n".join(line if len(line) <= LONGEST_LINE else "" for line in lines)
