"""Projects of Python files whose functions are traced while their tests run, in the sandbox.

A project is a folder with tests that pytest or unittest runs. Nothing of it runs here: its files
are packed, unpacked in the sandbox, and traced there by alignment/tracer.py. What comes back is
text, of which only calls with literals are used.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.metadata
import io
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from codellama_jax.alignment import tracer
from codellama_jax.benchmarks.programs import parse
from codellama_jax.errors import UserError
from codellama_jax.sandbox import Program
from codellama_jax.system.files import check_not_root, reason, user_path

# Folders that hold no sources of the project.
SKIPPED = ("build", "dist", "node_modules", "site-packages", "venv", "env", "__pycache__")
TEST_FOLDERS = ("test", "tests", "testing")
MAX_FILE, MAX_PROJECT = 1 << 20, 64 << 20  # bytes; larger files are left out
MAX_FILES = 10_000
WALL_SHARE = 0.8  # of the processor time after which a test prints what it has recorded
# What a test needs that is written for pytest. They are pure Python.
PYTEST = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")
LITERALS = (
    *(ast.Constant, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.Load),
    *(ast.UnaryOp, ast.USub),
)
MADE = ("set", "frozenset")  # calls in literals


class Project(NamedTuple):
    """The files of a project."""

    name: str
    files: dict[str, bytes]  # by path in the project
    left_out: int  # files that are too large

    def sources(self) -> list[str]:
        """Returns the paths of the Python files that are no tests."""
        return [path for path in self.files if path.endswith(".py") and not is_test(path)]

    def tests(self) -> list[str]:
        """Returns the paths of the files that hold tests."""
        return [path for path in self.files if is_test(path) and _is_test_name(path)]


class Example(NamedTuple):
    """A call of a function: its arguments and its result as Python literals."""

    arguments: str
    result: str


class Traced(NamedTuple):
    """What a run of the tests recorded of one function.

    Attributes:
        calls: how often it was called.
        examples: different calls with their results.
        reasons: numbers of calls without an example, by reason.
    """

    calls: int
    examples: tuple[Example, ...]
    reasons: dict[str, int]

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Traced:
        """Returns what `fields` of a file describes."""
        examples = tuple(Example(*example) for example in fields["examples"])
        return cls(fields["calls"], examples, fields["reasons"])


def read_project(folder: str) -> Project:
    """Returns the files of a project. Raises UserError for a folder without tests."""
    root = Path(user_path(folder))
    check_not_root(root, f"--projects: {folder}")
    if not root.is_dir():
        raise UserError(f"--projects: there is no folder {folder}")
    files: dict[str, bytes] = {}
    left_out = total = 0
    for path in _paths(root):
        try:
            data = path.read_bytes() if path.stat().st_size <= MAX_FILE else b""
        except OSError as error:
            raise UserError(f"--projects: cannot read {path}: {reason(error)}") from error
        total += len(data)
        if total > MAX_PROJECT or len(files) >= MAX_FILES:
            limit = f"{MAX_FILES:,} files or {MAX_PROJECT >> 20} MiB"
            raise UserError(f"--projects: {folder} has over {limit}: name a smaller folder")
        if data or not path.stat().st_size:
            files[path.relative_to(root).as_posix()] = data
        else:
            left_out += 1
    project = Project(root.resolve().name, files, left_out)
    if not project.tests():
        expected = "files test_*.py or *_test.py"
        raise UserError(f"--projects: {folder} has no tests ({expected}): name a project's folder")
    return project


def _paths(root: Path) -> Iterator[Path]:
    """Yields the regular files below a folder in sorted order, without hidden and built ones."""
    for parent, folders, names in os.walk(root):
        # Assigning to the slice changes the list that `os.walk` descends into.
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in SKIPPED
        )
        for name in sorted(names):
            path = Path(parent, name)
            # A link may lead to files that are not the project's.
            if path.is_file() and not path.is_symlink() and not name.endswith(".pyc"):
                yield path


def content_of(projects: Sequence[Project]) -> str:
    """Returns a hash of all files of projects."""
    digest = hashlib.sha256()
    for project in projects:
        for path, data in project.files.items():
            digest.update(f"{project.name}/{path}\0{len(data)}\0".encode(errors="replace") + data)
    return digest.hexdigest()


def is_test(path: str) -> bool:
    """Returns whether a path is that of a test, or of a file that only tests use."""
    *folders, name = path.split("/")
    is_helper = name == "conftest.py" or any(folder in TEST_FOLDERS for folder in folders)
    return is_helper or _is_test_name(path)


def _is_test_name(path: str) -> bool:
    name = path.rpartition("/")[2]
    is_named = name.startswith("test_") or name.endswith("_test.py")
    return name.endswith(".py") and (is_named or name in ("test.py", "tests.py"))


def program(
    project: Project, functions: dict[str, list[int]], test: str, packages: bytes, seconds: float
) -> Program:
    """Returns the program that traces functions while the tests of a file run.

    Args:
        project: the project.
        functions: the first lines of the functions to trace, by path.
        test: the path of the tests.
        packages: a zip archive of further packages, b"" for none.
        seconds: limit of processor time.
    """
    # A package is imported from the folder that holds it: the project's, or src in it.
    paths = [folder for folder in ("src", "lib") if _holds_package(project, folder)]
    job = {
        "project": base64.b64encode(_zip(project.files)).decode(),
        "packages": base64.b64encode(packages or _zip({})).decode(),
        "functions": functions,
        "paths": [*paths, "", test.rpartition("/")[0]],
        "test": test,
        "pytest": bool(packages),
        "seconds": seconds * WALL_SHARE,
    }
    # The tracer travels as source text, because the sandbox cannot import this project. The job is
    # passed as JSON in a string literal, so that no content of a project becomes code.
    source = Path(tracer.__file__).read_text("utf-8")
    code = f"{source}\nmain(__import__('json').loads({json.dumps(job)!r}))\n"
    return Program(f"{project.name}/{test}", "python", code, seconds, rule="output")


def _holds_package(project: Project, folder: str) -> bool:
    return any(path.startswith(f"{folder}/") and path.endswith(".py") for path in project.files)


def pytest_packages() -> bytes:
    """Returns a zip archive of pytest and what it needs, b"" where it is not installed."""
    files: dict[str, bytes] = {}
    for name in PYTEST:
        try:
            listed = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            return b""
        for path in listed:
            # Also the metadata, from which pytest reads its version and its plugins.
            if ".." not in path.parts and path.suffix != ".pyc":
                files[path.as_posix()] = Path(path.locate()).read_bytes()
    return _zip(files)


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            # A fixed date: file systems know dates that an archive cannot hold.
            archive.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), data)
    return buffer.getvalue()


def result_of(stdout: str) -> tuple[str, dict[str, Traced]]:
    """Returns how the tests of a file ended, and the functions that were traced by `path:line`.

    The output is untrusted: a program may print anything. Calls that are no literals are left out.
    """
    # The last mark: tests may print the same text before, but the tracer ends the process after it.
    _, mark, text = stdout.rpartition(tracer.MARK)
    try:
        result = json.loads(text) if mark else {}
        status, functions = str(result["status"])[:100], dict(result["functions"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "no result", {}
    traced = {}
    for name, call in functions.items():
        examples = []
        try:
            for arguments, value in dict(call["examples"]).items():
                # Checked again outside the sandbox, where the tracer's word counts for nothing:
                # this text becomes part of a program that judges answers.
                if are_literals(arguments) and is_literal(value):
                    examples.append(Example(arguments, value))
            reasons = {str(key)[:100]: int(number) for key, number in call["reasons"].items()}
            traced[name] = Traced(int(call["calls"]), tuple(examples), reasons)
        except (ValueError, LookupError, TypeError, AttributeError):
            continue
    return status, traced


def is_literal(text: Any) -> bool:
    """Returns whether a text is a Python literal, or a set that `set()` or `frozenset` makes.

    Nothing else may become part of a test: it runs beside the judge of the answers.
    """
    tree = parse(text) if isinstance(text, str) else None
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        return False
    return _is_value(tree.body[0].value)


def are_literals(text: str) -> bool:
    """Returns whether a text is a list of arguments that are all literals."""
    tree = parse(f"f({text})")
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        return False
    call = tree.body[0].value
    # Without this, "1) + g(2" would be two calls.
    is_one_call = isinstance(call, ast.Call) and getattr(call.func, "id", "") == "f"
    if not is_one_call or not isinstance(call, ast.Call):
        return False
    values = [*call.args, *(argument.value for argument in call.keywords)]
    # `**mapping` is a keyword without a name.
    has_names = all(argument.arg for argument in call.keywords)
    return has_names and all(_is_value(value) for value in values)


def _is_value(node: ast.expr) -> bool:
    for part in ast.walk(node):
        if isinstance(part, ast.Call):
            # Python has no literal for an empty set or a frozenset.
            is_set = isinstance(part.func, ast.Name) and part.func.id in MADE
            if not is_set or part.keywords:
                return False
        elif isinstance(part, ast.Name):
            if part.id not in MADE:
                return False
        elif not isinstance(part, LITERALS):
            return False
    return True
