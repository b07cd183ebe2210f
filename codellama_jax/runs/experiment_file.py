"""Finds, imports and calls an experiment file. A mistake in the file is one line with its place."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from codellama_jax.checked import FieldError, shown
from codellama_jax.config import Experiment
from codellama_jax.errors import UserError
from codellama_jax.system.files import user_path
from kernels import UnsupportedError

FOLDER = Path(__file__).resolve().parents[2] / "experiments"
MORE = "pass --traceback for the rest"


def find_file(name: str) -> Path:
    """Returns the path of an experiment file named by its path or its name without `.py`.

    A name is looked up among the project's experiments, then in the current folder. Raises
    UserError with a similar name if there is no such file.
    """
    path = Path(user_path(name))
    # A name without `.py` is first one of the project's: its meaning must not depend on the folder.
    candidates = [path] if name.endswith(".py") else [FOLDER / f"{name}.py", Path(f"{path}.py")]
    for candidate in candidates:
        if _is_file(candidate):
            return candidate
    known = experiment_names()
    # An absent path is compared by its name alone: the folder is often the mistake.
    near = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise UserError(f"no experiment {_shortened(name)}: {hint}")


def experiment_names() -> list[str]:
    """Returns the names of the project's experiments: its files with a function `experiment`."""
    paths = sorted(FOLDER.glob("*.py"))
    return [path.stem for path in paths if "\ndef experiment(" in path.read_text("utf-8")]


def load_file(name: str, show_traceback: bool = False) -> ModuleType:
    """Imports an experiment file.

    Raises UserError if there is none, if Python cannot run it, or if it defines no experiment.
    """
    path = find_file(name)
    module_name = f"experiment_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not an experiment file: its name does not end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses in the file look their module up
    _guarded(path, show_traceback, spec.loader.exec_module, module)
    if not callable(getattr(module, "experiment", None)):
        raise UserError(f"{path} is not an experiment file: it has no function experiment(scale)")
    # `print` stands for an absent finding, which is allowed.
    if not callable(getattr(module, "finding", print)):
        raise UserError(f"{path}: finding must be a function of the results")
    return module


def build(module: ModuleType, scale: str, show_traceback: bool = False) -> Experiment:
    """Calls a file's `experiment` function, with its own default scale unless one is given.

    Raises UserError if it fails or returns anything but an Experiment.
    """
    path = Path(str(module.__file__))
    # Without an argument the file's own default decides.
    arguments = (scale,) if scale else ()
    experiment = _guarded(path, show_traceback, module.experiment, *arguments)
    if not isinstance(experiment, Experiment):
        returned = f"experiment(scale) returned {shown(experiment)}"
        raise UserError(f"{path}: {returned}: it must return an Experiment")
    return experiment


def completed(
    module: ModuleType, experiment: Experiment, show_traceback: bool = False
) -> Experiment:
    """Returns the experiment as the file's function `completed`, if it has one, completes it.

    That function takes the experiment with the overrides of the command line, and returns it with
    what follows from them, such as the shape of the model that `init` names. Raises UserError if it
    fails or returns anything but an Experiment.
    """
    function = getattr(module, "completed", None)
    if function is None:
        return experiment
    path = Path(str(module.__file__))
    if not callable(function):
        raise UserError(f"{path}: completed must be a function of the experiment")
    result = _guarded(path, show_traceback, function, experiment)
    if not isinstance(result, Experiment):
        problem = f"completed(experiment) returned {shown(result)}"
        raise UserError(f"{path}: {problem}: it must return an Experiment")
    return result


def claim_of(module: ModuleType) -> str:
    """Returns the docstring of an experiment file, which states its claim."""
    text = module.__doc__ if isinstance(module.__doc__, str) else ""
    return inspect.cleandoc(text) or "no description: the file has no docstring"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system allows
        return False


def _shortened(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:60]}... ({len(name):,} characters)"


def _guarded(path: Path, show_traceback: bool, function: Callable, *arguments: Any) -> Any:
    """Calls code of an experiment file. Raises UserError with the file, the line and the error."""
    try:
        return function(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit included
        if isinstance(error, UserError | UnsupportedError) and not isinstance(error, FieldError):
            raise  # such as an unknown scale: the message names its own fix
        if show_traceback:
            traceback.print_exception(error)
        hint = "" if show_traceback or isinstance(error, FieldError) else f"; {MORE}"
        line = _line_of(path, function, error)
        raise UserError(f"{path}:{line}: {_description(error)}{hint}") from error


def _line_of(path: Path, function: Callable, error: BaseException) -> int:
    """Returns the line of the file in which an error was raised, or from which it was reached."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 1
    code = getattr(function, "__code__", None)
    line = 1
    if code and code.co_filename == str(path):  # a call with wrong arguments never enters it
        line = code.co_firstlineno
    # The last frame in the file: deeper ones are the library's, and mean nothing to the user.
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(path) and frame.lineno:
            line = frame.lineno
    return line


def _description(error: BaseException) -> str:
    if isinstance(error, FieldError):
        return str(error)
    if isinstance(error, SystemExit):
        return "the file calls exit()"
    try:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
    except Exception:  # an exception class of the file may fail to describe itself
        text = ""
    # The file may import another one that has the mistake.
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        text += f" ({error.filename}, line {error.lineno})"
    return " ".join(f"{type(error).__name__}: {text}".split()).rstrip(": ")[:500]
