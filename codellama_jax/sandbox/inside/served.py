"""What the candidate may do with an object that a test handed over, through five verbs.

Only what the test defined is open to it, and a few classes of the standard library.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

from codellama_jax.sandbox.inside import names, remote, wire
from codellama_jax.sandbox.inside.peer import PASSED_ON
from codellama_jax.sandbox.inside.values import BY_TYPE, NotComparable

TEST_MODULE = "__test__"  # the module of what tests and prompts define
_MAX_BATCH = 256
# What functools.wraps copies. The last two may hold any value of the test: see _get.
_FUNCTION_ATTRIBUTES = ("__name__", "__qualname__", "__doc__", "__module__")
_WRAPPED = ("__annotations__", "__dict__")
_IDENTITY = ("__eq__", "__ne__", "__hash__", "__str__", "__repr__", "__format__")
_STREAM = """
    read readline readlines write writelines getvalue seek tell close flush fileno isatty encoding
"""
_RANDOM = "random randint randrange choice choices sample shuffle uniform gauss seed"
_METHODS = {"_io:StringIO": _STREAM, "_io:BytesIO": _STREAM, "random:Random": _RANDOM}


def defined_by_test(cls: type) -> bool:
    """Returns whether the test, or the prompt, defines a class."""
    return cls.__module__ == TEST_MODULE and not isinstance(cls, remote.RemoteType)


def operator_of(cls: type, name: str) -> Callable[..., Any] | None:
    """Returns an operator that the test defined in a class, or a harmless one of `object`."""
    for base in cls.__mro__:
        if name in vars(base):
            if defined_by_test(base):
                return vars(base)[name]
            return vars(base)[name] if base is object and name in _IDENTITY else None
    return None


def is_open(value: Any) -> bool:
    """Returns whether the candidate may use the attributes of an object or a class."""
    return defined_by_test(value if isinstance(value, type) else type(value))


def may_be_called(value: Any) -> bool:
    """Returns whether the candidate may call this with arguments that it chooses.

    A function of the library that a test prepares would run here on any file or name.
    """
    if isinstance(value, functools.partial):
        return names.is_known(value.func) or may_be_called(value.func)
    if isinstance(value, types.FunctionType):
        return value.__module__ in (TEST_MODULE, "builtins", None)  # the last two: from `exec`
    if isinstance(value, types.MethodType) and not _is_of_test(value):
        return value.__func__.__name__ in methods_of(value.__self__)
    if isinstance(value, types.BuiltinFunctionType):
        owner = type(value.__self__)
        is_pure = owner in BY_TYPE or owner is re.Pattern
        return is_pure or value.__name__ in methods_of(value.__self__)
    return callable(value)


def methods_of(value: Any) -> list[str]:
    """Returns the methods of a stream or random generator that the candidate may call."""
    return _METHODS.get(names.name_of(type(value)), "").split()


def _is_of_test(value: Any) -> bool:
    function = value.__func__ if isinstance(value, types.MethodType) else value
    return getattr(function, "__module__", None) in (TEST_MODULE, "builtins") or is_open(value)


def _get(value: Any, name: str) -> Any:
    if type(name) is not str:  # a stand-in would answer for itself
        raise wire.WireError("not an attribute's name")
    if not name.startswith("__") and is_open(value):
        found = getattr(value, name)
        if callable(found) and not remote.is_remote(found) and not _is_of_test(found):
            raise NotComparable(f"the candidate uses {name[:100]} of a {type(value).__name__}")
        return found
    if type(value) is types.FunctionType and name in _FUNCTION_ATTRIBUTES:
        return getattr(value, name)
    if type(value) is types.FunctionType and name in _WRAPPED:
        return _harmless(getattr(value, name), name)
    if name in methods_of(value):
        return getattr(value, name)
    if not hasattr(value, name):
        raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
    raise NotComparable(f"the candidate reads {name[:100]} of a {type(value).__name__}")


def _harmless(found: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns a function's attributes or annotations if they hold nothing but known classes."""
    if not all(isinstance(item, type) and names.is_known(item) for item in found.values()):
        raise NotComparable(f"the candidate reads {name} of a function of the test")
    return dict(found)


def _set(value: Any, name: str, new: Any) -> None:
    if type(name) is not str:
        raise wire.WireError("not an attribute's name")
    own_data = not callable(getattr(type(value), name, None) or getattr(value, name, None))
    if name.startswith("__") or isinstance(value, type) or not is_open(value) or not own_data:
        raise NotComparable(f"the candidate sets {name[:100]} of a {type(value).__name__}")
    setattr(value, name, new)


def _call(value: Any, kwargs: dict[str, Any] | None, *args: Any) -> Any:
    if isinstance(value, type) and not is_open(value):
        raise wire.WireError("not a class of the test")
    if kwargs is not None and (type(kwargs) is not dict or set(map(type, kwargs)) - {str}):
        raise wire.WireError("not keyword arguments")
    if not isinstance(value, type) and not is_open(value) and not may_be_called(value):
        raise NotComparable(f"the candidate calls a {type(value).__name__}")
    return value(*args, **(kwargs or {}))


def _apply(operator: str, value: Any, *arguments: Any) -> Any:
    if type(value) in BY_TYPE or isinstance(value, type) or type(operator) is not str:
        raise wire.WireError("not an object of the test")
    if operator == "__iter__" and hasattr(type(value), "__next__"):
        return value
    function = operator_of(type(value), operator) if operator in remote.OPERATORS else None
    if function is None:
        raise NotComparable(f"the candidate uses {operator[:100]} of a {type(value).__name__}")
    return function(value, *arguments)


def _next(value: Any, count: int) -> tuple[list[Any], BaseException | None]:
    if not isinstance(value, Iterator) or type(count) is not int or count > _MAX_BATCH:
        raise wire.WireError("not an iterator of the test")
    try:
        return [next(value)], None  # one at a time: the test may see how many were taken
    except PASSED_ON:
        raise
    except Exception as error:
        return [], error


ACTIONS: dict[str, Callable[..., Any]] = {
    "get": _get,
    "set": _set,
    "call": _call,
    "op": _apply,
    "next": _next,
}
