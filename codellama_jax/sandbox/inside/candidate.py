"""The candidate's end of the pipe. The tests' end believes nothing that is sent from here."""

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

_BATCH_SECONDS = 0.001
_ORIGINALS: dict[tuple[str, str], Any] = {}  # of what tests replaced
_FUNCTIONS: dict[str, Callable[..., Any]] = {  # these also know classes and old protocols
    "__iter__": iter,
    "__len__": len,
    "__getitem__": operator.getitem,
}


class Candidate(Peer):
    """Serves requests until the pipe is closed."""

    def run(self) -> None:
        """Answers every request. What cannot be sent is refused by name."""
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
        return names.is_known(value)

    def resolve(self, name: str) -> Any:
        return names.library(name)

    def resolve_type(self, name: str) -> Any:
        return names.known_type(name) if name in names.ALIASES else names.library(name)

    def operators_of(self, cls: type) -> Iterable[str]:
        return _OF_FUNCTIONS if cls is types.FunctionType else _operators(cls)

    def act(self, verb: str, arguments: Sequence[Any]) -> Any:
        if verb == "load":
            return exec(compile(arguments[0], "<candidate>", "exec"), self.names)
        if verb == "name":
            return self._global(*arguments)
        return _ACTIONS[verb](*arguments)

    def _global(self, name: str) -> tuple[str, Any]:
        if name not in self.names:
            return "missing", None
        value = self.names[name]
        if isinstance(value, types.ModuleType):
            return "module", value.__name__
        return "value", value


def _has(cls: type, name: str) -> bool:
    for base in cls.__mro__:
        if name in base.__dict__:
            return base is not object and base.__dict__[name] is not None
    return False


def _operators(cls: type) -> list[str]:
    found = [name for name in remote.OPERATORS if _has(cls, name)]
    return [*found, "__str__", "__repr__", "__format__"]


_OF_FUNCTIONS = _operators(types.FunctionType)


def _call(function: Any, kwargs: dict[str, Any] | None, *args: Any) -> Any:
    return function(*args, **(kwargs or {}))


def _apply(name: str, value: Any, *arguments: Any) -> Any:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](value, *arguments)
    return getattr(type(value), name)(value, *arguments)


def _next(iterator: Any, count: int) -> tuple[list[Any], BaseException | None]:
    """Takes up to `count` items, fewer if they take long. Returns also what ended the iterator."""
    items: list[Any] = []
    end = time.monotonic() + _BATCH_SECONDS
    try:
        while len(items) < count and (not items or time.monotonic() < end):
            items.append(next(iterator))
    except Exception as error:
        return items, error
    return items, None


def _plain(value: Any) -> Any:
    kind = base_kind(type(value))
    if kind is None or kind.fill is None:
        raise TypeError("not a container")
    children = kind.take(value)
    made = kind.make(children)
    kind.fill(made, children)
    return made


def _copy(value: Any, deep: bool) -> Any:
    return copy.deepcopy(value) if deep else copy.copy(value)


def _replace(module: str, name: str, value: Any) -> None:
    """Puts what a test has replaced there, a stream or `print`, in the same place here."""
    place = sys.modules[module]
    original = _ORIGINALS.setdefault((module, name), getattr(place, name))
    setattr(place, name, original if value is None else value)


def _await(coroutine: Any) -> Any:
    import asyncio  # few programs need it

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
