"""Classes and functions of the standard library, which cross the pipe by name.

The trusted end resolves only names of a closed list, so that a candidate cannot make it call a
function that opens files or runs code.
"""

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
# Modules that start a program, open a window or print when they are imported.
_RUN_AT_IMPORT = {"antigravity", "idlelib", "lib2to3", "this", "tkinter", "turtle", "turtledemo"}
# Types of objects that stay in their process.
_RUNNING = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.GeneratorType,
    types.CoroutineType,
    types.ModuleType,
)


def _known() -> dict[str, Any]:
    """Returns classes and functions by name that do not run, open or import anything."""
    values = [value for value in vars(builtins).values() if isinstance(value, type)]
    values += [getattr(builtins, name) for name in _PURE.split()]
    for module in (math, cmath):
        values += [value for value in vars(module).values() if callable(value)]
    values += [getattr(abc, name) for name in abc.__all__]
    values += [*BY_TYPE, type(None)]
    # Not `type`, because calling it makes a class.
    return {name_of(value): value for value in values if value is not type}


def name_of(value: Any) -> str:
    """Returns `module:qualified name` of a class or function; the empty string if it has none."""
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None)
    if isinstance(value, types.MethodDescriptorType | types.WrapperDescriptorType):
        module = value.__objclass__.__module__
    # The exact type: an instance of a subclass of str may run code of the candidate.
    return f"{module}:{name}" if type(module) is str and type(name) is str else ""


KNOWN = _known()
# Only the type of an object or the base of a class has one of these names: nobody can call them.
ALIASES = {name_of(value): value for value in (*_RUNNING, enum.Enum, enum.IntEnum, enum.Flag)}


def known(name: str) -> Any:
    """Returns the class or function of a name that the candidate sends.

    Raises WireError unless it is in KNOWN or an exception class of a module of the standard
    library that is already loaded here: loading a module would run its code.
    """
    # A proxy would run code of the candidate when it is compared or hashed.
    if type(name) is not str:
        raise WireError("not a name")
    if name in KNOWN:
        return KNOWN[name]
    module, _, path = name.partition(":")
    if is_library_module(module) and module in sys.modules:
        value = vars(sys.modules[module]).get(path)
        if isinstance(value, type) and issubclass(value, Exception):
            return value
    raise WireError(f"no class {name[:100]}")


def known_type(name: str) -> Any:
    """Returns the class of a name: the type of an object, for `isinstance`, or a base class."""
    return ALIASES[name] if type(name) is str and name in ALIASES else known(name)


def is_known(value: Any) -> bool:
    """Returns whether `known` resolves the name of this value to the value itself."""
    name = name_of(value)
    try:
        return bool(name) and known(name) is value
    except (WireError, TypeError):
        return False


def library(name: str) -> Any:
    """Returns the value of any name of the standard library.

    Only the candidate's process may call this, because it imports the module.
    """
    module, _, path = name.partition(":")
    if not is_library_module(module):
        raise WireError(f"no module {module[:100]}")
    value: Any = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    return value


def is_library(value: Any) -> bool:
    """Returns whether the candidate can resolve the name of this class or function."""
    module = name_of(value).partition(":")[0]
    if not is_library_module(module) or module not in sys.modules:
        return is_known(value)
    resolved: Any = sys.modules[module]
    for part in value.__qualname__.split("."):
        resolved = getattr(resolved, part, None)
    return resolved is value or is_known(value)


def is_importable(module: str) -> bool:
    """Returns whether the trusted end may import a module that the candidate names.

    Importing `__main__`, or a module such as `this`, would run its program.
    """
    is_program = any(part.startswith("__") for part in module.split("."))
    return (
        is_library_module(module)
        and not is_program
        and module.partition(".")[0] not in _RUN_AT_IMPORT
    )


def is_library_module(module: str) -> bool:
    """Returns whether a module, or the package that it is in, belongs to the standard library."""
    return module.partition(".")[0] in sys.stdlib_module_names
