"""The candidate's end of the pipe. The end of the tests trusts nothing that is sent from here."""

from __future__ import annotations

import copy
import operator
import sys
import time
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from codellama_jax.sandbox.inside import names, remote, wire
from codellama_jax.sandbox.inside.peer import Peer
from codellama_jax.sandbox.inside.values import NotComparable, base_kind

_BATCH_SECONDS = 0.001  # a batch of items ends after this time
# (module, name) of each stream or function that a test replaced -> its original.
_ORIGINALS: dict[tuple[str, str], Any] = {}
# Operators that also work without the method of this name: `iter` accepts an object with only
# `__getitem__`, and `operator.getitem` a class with `__class_getitem__`.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "__iter__": iter,
    "__len__": len,
    "__getitem__": operator.getitem,
}


class Candidate(Peer):
    """The untrusted end: serves requests until the pipe is closed."""

    def run(self) -> None:
        """Answers every request; sends the reason if a result cannot be sent."""
        while True:
            message = self._receive()
            try:
                self.serve(message)
            except NotComparable as error:
                self._send(["refuse", "not_comparable", str(error)])
            except RecursionError:
                self._send(["refuse", "not_comparable", "a value nested too deep"])
            except wire.TooLargeError as error:
                self._send(["refuse", "too_large", str(error)])
            except MemoryError as error:
                self._send(["refuse", "out_of_memory", f"MemoryError: {error}"])

    def is_named(self, value: Any) -> bool:
        """Returns whether the trusted end resolves the name of `value`."""
        return names.is_known(value)

    def resolve(self, name: str) -> Any:
        """Returns any class or function of the standard library: the test is trusted."""
        return names.library(name)

    def resolve_type(self, name: str) -> Any:
        """Returns the class of this name; some names are only valid as types of objects."""
        return names.known_type(name) if name in names.ALIASES else names.library(name)

    def operators_of(self, cls: type) -> Iterable[str]:
        """Returns every operator that objects of `cls` have."""
        return _OF_FUNCTIONS if cls is types.FunctionType else _operators(cls)

    def act(self, verb: str, arguments: Sequence[Any]) -> Any:
        """Performs a request of the test and returns its result."""
        if verb == "load":
            return exec(compile(arguments[0], "<candidate>", "exec"), self.names)
        if verb == "name":
            return self._global(*arguments)
        return _ACTIONS[verb](*arguments)

    def _global(self, name: str) -> tuple[str, Any]:
        """Returns (missing, None), (module, its name) or (value, the value) of a global name."""
        if name not in self.names:
            return "missing", None
        value = self.names[name]
        if isinstance(value, types.ModuleType):
            return "module", value.__name__
        return "value", value


def _has(cls: type, name: str) -> bool:
    """Returns whether a class has an operator that is not merely inherited from `object`."""
    for base in cls.__mro__:
        if name in base.__dict__:
            # None means that the class does not support the operator, as in `__hash__ = None`.
            return base is not object and base.__dict__[name] is not None
    return False


def _operators(cls: type) -> list[str]:
    operators = [name for name in remote.OPERATORS if _has(cls, name)]
    return [*operators, "__str__", "__repr__", "__format__"]


# Computed once: most objects that a candidate lends are functions.
_OF_FUNCTIONS = _operators(types.FunctionType)


def _call(function: Any, kwargs: dict[str, Any] | None, *args: Any) -> Any:
    return function(*args, **(kwargs or {}))


def _apply(name: str, value: Any, *arguments: Any) -> Any:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](value, *arguments)
    return getattr(type(value), name)(value, *arguments)


def _next(iterator: Any, count: int) -> tuple[list[Any], BaseException | None]:
    """Returns up to `count` items, and the exception that ended the iterator, if any.

    Returns fewer items if they take long to compute.
    """
    items: list[Any] = []
    end = time.monotonic() + _BATCH_SECONDS
    try:
        while len(items) < count and (not items or time.monotonic() < end):
            items.append(next(iterator))
    except Exception as error:
        return items, error
    return items, None


def _plain(value: Any) -> Any:
    """Returns the content of a list, dict or set subclass as an object of the plain type."""
    kind = base_kind(type(value))
    if kind is None or kind.fill is None:
        raise TypeError("not a container")
    children = kind.take(value)
    plain = kind.make(children)
    kind.fill(plain, children)
    return plain


def _copy(value: Any, deep: bool) -> Any:
    return copy.deepcopy(value) if deep else copy.copy(value)


def _replace(module: str, name: str, value: Any) -> None:
    """Replaces a stream or a function such as `print` as the test has replaced it at its end.

    The value None restores the original.
    """
    holder = sys.modules[module]
    original = _ORIGINALS.setdefault((module, name), getattr(holder, name))
    setattr(holder, name, original if value is None else value)


def _await(coroutine: Any) -> Any:
    # Imported only here: few programs need it, and it takes long to import.
    import asyncio

    return asyncio.run(coroutine)


_ACTIONS: dict[str, Callable[..., Any]] = {
    "call": _call,
    "get": getattr,
    "set": setattr,
    "delete": delattr,
    "op": _apply,
    "next": _next,
    "plain": _plain,
    "copy": _copy,
    "await": _await,
    "replace": _replace,
}
