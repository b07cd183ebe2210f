"""The requests of the candidate for objects that a test passed to it: five verbs.

The candidate may use functions and classes that the test defines, and a few methods of the standard
library. Everything else could run code with the rights of the test, or show it expected values;
such a test is not comparable.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

from codellama_jax.sandbox.inside import names, remote, wire
from codellama_jax.sandbox.inside.peer import PROPAGATED
from codellama_jax.sandbox.inside.values import BY_TYPE, NotComparable

TEST_MODULE = "__test__"  # the module of functions and classes that tests and prompts define
_MAX_BATCH = 256
# Attributes that functools.wraps copies from a function.
_FUNCTION_ATTRIBUTES = ("__name__", "__qualname__", "__doc__", "__module__")
# It also copies these, which may hold any value of the test: see `_check_annotations`.
_WRAPPED = ("__annotations__", "__dict__")
_IDENTITY = ("__eq__", "__ne__", "__hash__", "__str__", "__repr__", "__format__")
_READING = ("read", "readline", "readlines", "getvalue", "seek", "tell")
_WRITING = ("write", "writelines", "flush", "close")
_STREAM = (*_READING, *_WRITING, "fileno", "isatty", "encoding")
_DRAWING = ("random", "randint", "randrange", "uniform", "gauss", "seed")
_CHOOSING = ("choice", "choices", "sample", "shuffle")
_RANDOM = (*_DRAWING, *_CHOOSING)
# Classes of the standard library -> methods and attributes of their objects that are harmless.
_METHODS = {"_io:StringIO": _STREAM, "_io:BytesIO": _STREAM, "random:Random": _RANDOM}


def defined_by_test(cls: type) -> bool:
    """Returns whether the test or the prompt defines a class."""
    return cls.__module__ == TEST_MODULE and not isinstance(cls, remote.RemoteType)


def operator_of(cls: type, name: str) -> Callable[..., Any] | None:
    """Returns an operator of a class that the candidate may use, None if there is none.

    These are operators that the test defines, and harmless ones of `object`.
    """
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

    A function of the library, such as `open`, would run here, on a file of the candidate's choice.
    """
    if isinstance(value, functools.partial):
        return names.is_known(value.func) or may_be_called(value.func)
    if isinstance(value, types.FunctionType):
        # Functions that the test defines through `exec` have the last two modules.
        return value.__module__ in (TEST_MODULE, "builtins", None)
    if isinstance(value, types.MethodType) and not _is_of_test(value):
        return value.__func__.__name__ in methods_of(value.__self__)
    if isinstance(value, types.BuiltinFunctionType):
        # A method in C of a value of the closed list, such as `dict.get`, uses only that value.
        owner = type(value.__self__)
        is_pure = owner in BY_TYPE or owner is re.Pattern
        return is_pure or value.__name__ in methods_of(value.__self__)
    return callable(value)


def methods_of(value: Any) -> tuple[str, ...]:
    """Returns the methods of a stream or random generator that the candidate may use."""
    return _METHODS.get(names.name_of(type(value)), ())


def _is_of_test(value: Any) -> bool:
    """Returns whether the test defines a function, method or callable object."""
    function = value.__func__ if isinstance(value, types.MethodType) else value
    return getattr(function, "__module__", None) in (TEST_MODULE, "builtins") or is_open(value)


def _get(value: Any, name: str) -> Any:
    # A proxy in place of the name would run code of the candidate.
    if type(name) is not str:
        raise wire.WireError("not an attribute's name")
    if not name.startswith("__") and is_open(value):
        attribute = getattr(value, name)
        # A class of the test may inherit methods of the library.
        runs_here = callable(attribute) and not remote.is_remote(attribute)
        if runs_here and not _is_of_test(attribute):
            raise NotComparable(f"the candidate uses {name[:100]} of a {type(value).__name__}")
        return attribute
    if type(value) is types.FunctionType and name in _FUNCTION_ATTRIBUTES:
        return getattr(value, name)
    if type(value) is types.FunctionType and name in _WRAPPED:
        attributes = getattr(value, name)
        _check_annotations(attributes, name)
        return dict(attributes)
    # functools.wraps of Python 3.12 copies these too. Those of generic functions are the test's.
    is_type_params = type(value) is types.FunctionType and name == "__type_params__"
    if is_type_params and getattr(value, name, None) == ():
        return ()
    if name in methods_of(value):
        return getattr(value, name)
    if not hasattr(value, name):
        raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
    raise NotComparable(f"the candidate reads {name[:100]} of a {type(value).__name__}")


def _check_annotations(attributes: dict[str, Any], name: str) -> None:
    """Raises NotComparable if attributes or annotations hold other values than known classes."""
    for value in attributes.values():
        if not (isinstance(value, type) and names.is_known(value)):
            raise NotComparable(f"the candidate reads {name} of a function of the test")


def _set(value: Any, name: str, new: Any) -> None:
    if type(name) is not str:
        raise wire.WireError("not an attribute's name")
    # Only data of an object: a new method would replace code of the test.
    is_data = not callable(getattr(type(value), name, None) or getattr(value, name, None))
    is_object = not isinstance(value, type) and is_open(value)
    if name.startswith("__") or not is_object or not is_data:
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
        # One item, whatever `count`: the test may observe how many were taken.
        return [next(value)], None
    except PROPAGATED:
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
