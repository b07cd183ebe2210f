"""Proxies for objects that stay in the process at the other end of the pipe.

Every class of the other end has one class here, with exactly the operators that it has there, so
that `len`, `bool`, `iter`, `callable`, `isinstance` and `except` treat a proxy like the object
itself. `Peer` decides how an operator is applied.

Attributes of proxies that start with `_codellama_` belong to this module. They are read through
`object.__getattribute__` and `type.__getattribute__`, which never send a request to the other end.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from codellama_jax.sandbox.inside.values import NotComparable

if TYPE_CHECKING:
    from codellama_jax.sandbox.inside.peer import Peer

COMPARISONS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
_ARITHMETIC = """
    add sub mul truediv floordiv mod divmod pow matmul and or xor lshift rshift
"""
BINARY = tuple(f"__{way}{name}__" for name in _ARITHMETIC.split() for way in ("", "r", "i"))
_OTHERS = """
    neg pos abs invert int float complex index round trunc floor ceil bool len hash str repr format
    iter next reversed contains getitem setitem delitem enter exit call
"""
OPERATORS = (*COMPARISONS, *BINARY, *(f"__{name}__" for name in _OTHERS.split()))
# The first items of an iterator are requested one by one, because a test may observe how many were
# computed; later ones in batches, because a request takes longer than most items.
_BATCH_FROM, _BATCH = 32, 256
_PEER, _NUMBER, _CLASS = "_codellama_peer", "_codellama_number", "_codellama_class"


def is_remote(value: Any) -> bool:
    """Returns whether the value is a proxy or a class of proxies."""
    return isinstance(type(value), RemoteType) or type(value) is RemoteType


def number_of(value: Any) -> int:
    """Returns the number under which the other end holds the object."""
    if isinstance_of(value, type):
        return type.__getattribute__(value, _CLASS)
    return _read(value, _NUMBER)


def _read(value: Any, name: str) -> Any:
    """Returns an attribute of a proxy itself, not of the object at the other end."""
    return object.__getattribute__(value, name)


def _peer_of(value: Any) -> Peer:
    return type.__getattribute__(type(value), _PEER)


class RemoteType(type):
    """The metaclass of classes of proxies. Missing attributes are looked up at the other end."""

    def __new__(mcs, name: str, bases: Any, namespace: dict[str, Any], peer: Any = None):
        """Makes a class of proxies. Raises NotComparable if a test derives a class from one."""
        # A `class` statement of a test passes no peer.
        if peer is None:
            raise NotComparable(f"a class that is derived from the candidate's {bases[0].__name__}")
        return super().__new__(mcs, name, bases, {**namespace, _PEER: peer})

    # `type.__init__` does not accept the keyword `peer`.
    def __init__(cls, name: str, bases: Any, namespace: dict[str, Any], peer: Any = None):
        super().__init__(name, bases, namespace)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._codellama_request("call", kwargs or None, *args)

    def __getattr__(cls, name: str) -> Any:
        return cls._codellama_request("get", name)

    def __setattr__(cls, name: str, value: Any) -> None:
        cls._codellama_request("set", name, value)

    def __iter__(cls) -> Any:
        return cls._codellama_request("op", "__iter__")

    def __len__(cls) -> int:
        return cls._codellama_request("op", "__len__")

    def __bool__(cls) -> bool:
        return True

    def __getitem__(cls, key: Any) -> Any:
        return cls._codellama_request("op", "__getitem__", key)

    def __contains__(cls, value: Any) -> bool:
        return isinstance(value, cls)

    def _codellama_request(cls, verb: str, *arguments: Any) -> Any:
        peer = type.__getattribute__(cls, _PEER)
        if verb == "op":
            return peer.request(verb, arguments[0], cls, *arguments[1:])
        return peer.request(verb, cls, *arguments)


class _Attributes:
    """Looks up attributes at the other end that the class of a proxy does not have here."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        return _peer_of(self).get(self, name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotComparable("a copy of the candidate's object")

    def __copy__(self) -> Any:
        return _peer_of(self).request("copy", self, False)

    def __deepcopy__(self, memo: Any) -> Any:
        return _peer_of(self).request("copy", self, True)


class Remote(_Attributes):
    """The base class of proxies for objects that are not plain data."""

    __slots__ = ("__weakref__", "_codellama_batch", "_codellama_number", "_codellama_seen")

    def __setattr__(self, name: str, value: Any) -> None:
        _peer_of(self).request("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        _peer_of(self).request("delete", self, name)

    # `isinstance` also looks at this: a test may check for a class of the prompt or of the library.
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type.__getattribute__(type(self), "_codellama_alias") or type(self)

    def __del__(self) -> None:
        _peer_of(self).forget(_read(self, _NUMBER))


def new_remote(cls: type, number: int) -> Remote:
    """Makes the proxy of class `cls` for the object with this number."""
    proxy: Remote = object.__new__(cls)
    object.__setattr__(proxy, _NUMBER, number)
    object.__setattr__(proxy, "_codellama_seen", False)
    # How many items were taken from this iterator, and those that wait to be taken.
    object.__setattr__(proxy, "_codellama_batch", (0, collections.deque()))
    return proxy


def has_seen(value: Any) -> bool:
    """Returns whether the object was computed from a value of the test by an operator."""
    is_object = isinstance(type(value), RemoteType) and isinstance_of(value, Remote)
    return is_object and _read(value, "_codellama_seen")


def mark_seen(value: Remote) -> None:
    """Records that the object was computed from a value of the test by an operator."""
    object.__setattr__(value, "_codellama_seen", True)


def isinstance_of(value: Any, cls: type) -> bool:
    """Like `isinstance`, but ignores the `__class__` attribute, which a proxy can fake."""
    return issubclass(type(value), cls)


def new_held(cls: Any, base: Any, value: Any, number: int) -> Any:
    """Makes the proxy of class `cls`, which extends the plain type `base`, for a plain value."""
    proxy = base.__new__(cls, value)
    proxy.__dict__[_NUMBER] = number
    return proxy


def new_exception(cls: Any, args: tuple, text: str, number: int) -> BaseException:
    """Makes the proxy of class `cls` for an exception with these arguments and this text."""
    # Without `__init__`, which may require other arguments.
    error: BaseException = cls.__new__(cls)
    error.args = args
    error.__dict__.update({_NUMBER: number, "_codellama_text": text})
    return error


def _next(self: Remote) -> Any:
    """Returns the next item of an iterator; requests several at once after the first ones."""
    count, waiting = _read(self, "_codellama_batch")
    if not waiting:
        items, error = _peer_of(self).request_items(self, 1 if count < _BATCH_FROM else _BATCH)
        waiting.extend((True, item) for item in items)
        if error is not None:
            waiting.append((False, error))
    object.__setattr__(self, "_codellama_batch", (count + 1, waiting))
    is_item, value = waiting.popleft()
    if is_item:
        return value
    raise value


def _doc(self: Remote) -> Any:
    return _peer_of(self).get(self, "__doc__")


def _iterate_self(self: Remote) -> Remote:
    return self


def _operator(name: str) -> Callable[..., Any]:
    """Returns the method of this name, which applies the operator at the other end."""

    def method(self: Any, *arguments: Any) -> Any:
        return _peer_of(self).operate(self, name, arguments)

    method.__name__ = name
    return method


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    return _peer_of(self).call(self, args, kwargs)


def _held_operator(name: str, base: type) -> Callable[[Any, Any], Any]:
    """Returns an operator that a subclass of plain data overrides.

    Between two objects of the candidate, the candidate applies it. With a value of the test it is
    the operator of the plain type: the candidate's would see the expected value.
    """
    plain = getattr(base, name, None)

    def method(self: Any, other: Any) -> Any:
        if is_remote(other):
            return _peer_of(self).request("op", name, self, other)
        return NotImplemented if plain is None else plain(self, other)

    return method


_METHODS = {name: _operator(name) for name in OPERATORS} | {"__call__": _call}


def make_class(
    peer: Peer,
    name: str,
    kind: str,
    base: type | None,
    parents: Sequence[type],
    operators: Sequence[str],
    number: int,
) -> type:
    """Makes the class of proxies for a class of the other end.

    Args:
        peer: this end of the pipe.
        name: the name of the class.
        kind: "object", "exception" or "held" (an immutable subclass of plain data).
        base: for an exception or held class, the type here that it extends; for an object, the
            mutable type of the closed list that it extends, or None.
        parents: classes of proxies for its base classes.
        operators: the operators that it has.
        number: the number under which the other end holds the class.
    """
    chosen = set(operators)
    namespace: dict[str, Any] = {_CLASS: number, "__module__": "__candidate__", "__doc__": None}
    root: type
    if kind == "object":
        namespace |= {"__slots__": (), "__doc__": property(_doc)}
        namespace |= {"_codellama_alias": None, "_codellama_base": base}
        namespace |= {op: _METHODS[op] for op in OPERATORS if op in chosen}
        if {"__iter__", "__next__"} <= chosen:
            namespace |= {"__iter__": _iterate_self, "__next__": _next}
        root = Remote
    elif kind == "held" and base is not None:
        namespace |= {"__getattr__": _Attributes.__getattr__, "_codellama_base": base}
        overridable = (*COMPARISONS, *BINARY)
        namespace |= {op: _held_operator(op, base) for op in overridable if op in chosen}
        namespace |= {"__hash__": base.__hash__}
        for op in ("__str__", "__repr__", "__format__", "__call__"):
            if op in chosen:
                namespace[op] = _METHODS[op]
        root = base
    else:
        namespace |= {"__getattr__": _Attributes.__getattr__, "__str__": _exception_text}
        root = base or Exception
    # A parent of another kind, such as a plain class that an exception also extends, has another
    # memory layout than `root`.
    compatible = [parent for parent in parents if issubclass(parent, root)]
    bases = tuple(compatible) or (root,)
    return RemoteType(name, bases, namespace, peer=peer)


def _exception_text(self: Any) -> str:
    return _read(self, "__dict__").get("_codellama_text", "")
