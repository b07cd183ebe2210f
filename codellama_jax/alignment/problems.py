"""Functions of a project as problems: signature and docstring as prompt, the body as solution.

A function can be a problem if it stands alone with the imports and definitions of its module that
it uses; those are part of the prompt, as in HumanEval.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from codellama_jax.benchmarks.programs import parse

MAX_PROMPT, MAX_SOLUTION = 6_000, 4_000  # characters
NO_DOCSTRING = "no docstring"
Definition = ast.FunctionDef | ast.AsyncFunctionDef


class Problem(NamedTuple):
    """A function as a problem."""

    path: str  # in its project
    line: int  # its first line
    name: str
    prompt: str
    solution: str


def problems(path: str, text: str, packages: Iterable[str]) -> Iterator[tuple[Problem, str]]:
    """Yields the functions at the top level of a file, each with the reason why it is none, or "".

    Args:
        path: of the file, in its project.
        text: its content.
        packages: the names of the project's own packages and modules.
    """
    tree = parse(text)
    if tree is None:
        return
    # As the parser counts lines; `splitlines` would also split at form feeds.
    lines = [f"{line}\n" for line in re.split("\r\n|\r|\n", text)]
    module = _Module(tree, lines, set(packages))
    for node in tree.body:
        if isinstance(node, Definition):
            yield module.problem(path, node)


class _Module:
    """The definitions of a module, and those that a function needs."""

    def __init__(self, tree: ast.Module, lines: list[str], packages: set[str]):
        self._lines, self._packages = lines, packages
        self._statements: dict[str, ast.stmt] = {}  # by the name that they define
        self._future: list[ast.stmt] = []
        for statement in tree.body:
            if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
                # Future imports change how all code of the module is compiled, so that every
                # problem has them.
                self._future.append(statement)
                continue
            for name in _defined(statement):
                # The last definition of a name wins, as when the module runs.
                self._statements[name] = statement

    def problem(self, path: str, node: Definition) -> tuple[Problem, str]:
        """Returns a function as a problem, and the reason why it can be none, or ""."""
        problem = Problem(path, node.lineno, node.name, "", "")
        reason = _unusable(node)
        if reason:
            return problem, reason
        needed, reason = self._needed(node)
        if reason:
            return problem, reason
        # The prompt ends after the docstring's last line and the solution is the rest: a line
        # cannot belong to both.
        docstring, first = node.body[:2]
        end = docstring.end_lineno or docstring.lineno
        if first.lineno <= end or docstring.lineno == node.lineno:
            return problem, "its docstring shares a line with code"
        definitions = "".join(self._source(statement) for statement in needed).strip("\n")
        prompt = "".join(self._lines[node.lineno - 1 : end])
        if definitions:
            prompt = f"{definitions}\n\n\n{prompt}"
        solution = "".join(self._lines[end : node.end_lineno])
        if len(prompt) > MAX_PROMPT or len(solution) > MAX_SOLUTION:
            return problem, "the prompt or the solution is too long"
        return problem._replace(prompt=prompt, solution=solution), ""

    def _needed(self, node: Definition) -> tuple[list[ast.stmt], str]:
        """Returns the statements that a function needs, in their order, or why it has too many."""
        needed: dict[int, ast.stmt] = {id(statement): statement for statement in self._future}
        waiting: list[ast.AST] = [node]
        while waiting:
            for name in _loaded(waiting.pop()):
                statement = self._statements.get(name)
                if statement is None or statement is node or id(statement) in needed:
                    continue
                if self._is_of_project(statement):
                    return [], "it needs another module of its project"
                needed[id(statement)] = statement
                # A definition needs those that it uses itself, and so on until nothing new is
                # needed.
                waiting.append(statement)
        # In the order of the module, in which they worked before.
        return sorted(needed.values(), key=_position), ""

    def _is_of_project(self, statement: ast.stmt) -> bool:
        for part in ast.walk(statement):
            names: list[str] = []
            if isinstance(part, ast.ImportFrom):
                names = ["." * part.level + (part.module or "")]
            elif isinstance(part, ast.Import):
                names = [alias.name for alias in part.names]
            # A relative import has "" before its first dot.
            if any(name.split(".")[0] in ("", *self._packages) for name in names):
                return True
        return False

    def _source(self, statement: ast.stmt) -> str:
        # Decorators are lines above `lineno`.
        first = min(
            [statement.lineno, *(mark.lineno for mark in getattr(statement, "decorator_list", []))]
        )
        gap = "\n\n" if isinstance(statement, Definition | ast.ClassDef) else ""
        return gap + "".join(self._lines[first - 1 : statement.end_lineno]) + gap


def _unusable(node: Definition) -> str:
    """Returns the reason why a function alone can be no problem, or ""."""
    if not ast.get_docstring(node):
        return NO_DOCSTRING
    if node.decorator_list:
        return "it has a decorator"
    if len(node.body) < 2:
        return "its body is only a docstring"
    for part in ast.walk(node):
        if isinstance(part, ast.Yield | ast.YieldFrom | ast.Await | ast.AsyncFunctionDef):
            return "it is a generator or a coroutine"
        if isinstance(part, ast.Global):
            return "it changes its module"
    return ""


def _defined(statement: ast.stmt) -> Iterator[str]:
    """Yields the names that a statement at the top level of a module defines."""
    if isinstance(statement, Definition | ast.ClassDef):
        yield statement.name
        return
    for part in ast.walk(statement):
        if isinstance(part, ast.Import | ast.ImportFrom):
            for alias in part.names:
                yield (alias.asname or alias.name).split(".")[0]
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id
        elif isinstance(part, Definition | ast.ClassDef):
            yield part.name


def _loaded(node: ast.AST) -> Iterator[str]:
    """Yields the names that code reads, local ones included."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
            yield part.id


def _position(statement: ast.stmt) -> int:
    return statement.lineno
