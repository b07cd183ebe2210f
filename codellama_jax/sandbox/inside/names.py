"""Classes and functions of Python itself, which cross the pipe by name."""

from __future__ import annotations

import builtins
import cmath
import enum
import importlib
import math
import sys
import types
from collections import abc
from typing import Any

from codellama_jax.sandbox.inside.values import BY_TYPE
from codellama_jax.sandbox.inside.wire import WireError

_PURE = """
    abs all any ascii bin chr divmod hash hex id len max min oct ord pow repr round sorted sum
"""
_RUNS = {"antigravity", "idlelib", "lib2to3", "this", "tkinter", "turtle", "turtledemo"}
_RUNNING = (  # types of objects that stay where they are
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.GeneratorType,
    types.CoroutineType,
    types.ModuleType,
)


def _known() -> dict[str, Any]:
    """Returns what the trusted end believes by name: nothing that runs, opens or imports."""
    named = [value for value in vars(builtins).values() if isinstance(value, type)]
    named += [getattr(builtins, name) for name in _PURE.split()]
    for module in (math, cmath):
        named += [value for value in vars(module).values() if callable(value)]
    named += [getattr(abc, name) for name in abc.__all__]
    named += [*BY_TYPE, type(None)]
    return {name_of(value): value for value in named if value is not type}  # which makes classes


def name_of(value: Any) -> str:
    """Returns `module:qualified name` of a class or function; the empty string if it has none."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if isinstance(value, types.MethodDescriptorType | types.WrapperDescriptorType):
        module = value.__objclass__.__module__
    return f"{module}:{name}" if type(module) is str and type(name) is str else ""


KNOWN = _known()
# Named only as the type of an object: nobody can call these.
ALIASES = {name_of(value): value for value in (*_RUNNING, enum.Enum, enum.IntEnum, enum.Flag)}


def known(name: str) -> Any:
    """Resolves a name that the candidate gives. Raises WireError unless it is on the list.

    Besides the list these are exception classes of the standard library's loaded modules.
    """
    if type(name) is not str:  # a stand-in would answer for itself
        raise WireError("not a name")
    if name in KNOWN:
        return KNOWN[name]
    module, _, path = name.partition(":")
    if is_library_module(module) and module in sys.modules:
        found = vars(sys.modules[module]).get(path)
        if isinstance(found, type) and issubclass(found, Exception):
            return found
    raise WireError(f"no class {name[:100]}")


def known_type(name: str) -> Any:
    """Resolves the name of the type of an object, for `isinstance` and as a base class."""
    return ALIASES[name] if type(name) is str and name in ALIASES else known(name)


def is_known(value: Any) -> bool:
    """Returns whether `known` gives this value for its name."""
    name = name_of(value)
    try:
        return bool(name) and known(name) is value
    except (WireError, TypeError):
        return False


def library(name: str) -> Any:
    """Resolves any name of the standard library. Only the candidate's process may call this."""
    module, _, path = name.partition(":")
    if not is_library_module(module):
        raise WireError(f"no module {module[:100]}")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def is_library(value: Any) -> bool:
    """Returns whether a class or function of the trusted end can be named to the candidate."""
    module = name_of(value).partition(":")[0]
    if not is_library_module(module) or module not in sys.modules:
        return is_known(value)
    found: Any = sys.modules[module]
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value or is_known(value)


def is_importable(module: str) -> bool:
    """Returns whether the trusted end may import a module that the candidate names.

    Importing a program (`__main__`) or a joke runs it.
    """
    is_program = any(part.startswith("__") for part in module.split("."))
    return is_library_module(module) and not is_program and module.partition(".")[0] not in _RUNS


def is_library_module(module: str) -> bool:
    """Returns whether a module, or the package that it is in, belongs to the standard library."""
    return module.partition(".")[0] in sys.stdlib_module_names
