"""Stand-ins for objects that stay in the process at the other end of the pipe.

Every class of the other end has one class here, with the operators that it has there and no others:
so `len`, `bool`, `iter`, `callable`, `isinstance` and `except` treat a stand-in as they treat the
object itself. The peer decides what an operator does.
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
_BATCH_FROM, _BATCH = 32, 256  # items taken one by one, then up to so many per request
_PEER, _NUMBER, _CLASS = "_codellama_peer", "_codellama_number", "_codellama_class"


def is_remote(value: Any) -> bool:
    """Returns whether the value is a stand-in, or a class of stand-ins."""
    return isinstance(type(value), RemoteType) or type(value) is RemoteType


def number_of(value: Any) -> int:
    """Returns the number under which the other end holds the object."""
    if isinstance_of(value, type):
        return type.__getattribute__(value, _CLASS)
    return _own(value, _NUMBER)


def _own(value: Any, name: str) -> Any:
    return object.__getattribute__(value, name)


def _peer_of(value: Any) -> Peer:
    return type.__getattribute__(type(value), _PEER)


class RemoteType(type):
    """The class of the classes here. What they do not have is looked up at the other end."""

    def __new__(mcs, name: str, bases: Any, namespace: dict[str, Any], peer: Any = None):
        """Makes a class of stand-ins; without `peer` this is a test that derives a class."""
        if peer is None:
            raise NotComparable(f"a class that is derived from the candidate's {bases[0].__name__}")
        return super().__new__(mcs, name, bases, {**namespace, _PEER: peer})

    def __init__(cls, name: str, bases: Any, namespace: dict[str, Any], peer: Any = None):
        super().__init__(name, bases, namespace)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._ask("call", kwargs or None, *args)

    def __getattr__(cls, name: str) -> Any:
        return cls._ask("get", name)

    def __setattr__(cls, name: str, value: Any) -> None:
        cls._ask("set", name, value)

    def __iter__(cls) -> Any:
        return cls._ask("op", "__iter__")

    def __len__(cls) -> int:
        return cls._ask("op", "__len__")

    def __bool__(cls) -> bool:
        return True

    def __getitem__(cls, key: Any) -> Any:
        return cls._ask("op", "__getitem__", key)

    def __contains__(cls, value: Any) -> bool:
        return isinstance(value, cls)

    def _ask(cls, verb: str, *arguments: Any) -> Any:
        peer = type.__getattribute__(cls, _PEER)
        if verb == "op":
            return peer.ask(verb, arguments[0], cls, *arguments[1:])
        return peer.ask(verb, cls, *arguments)


class _Attributes:
    """Attributes of a stand-in that its class here does not have."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        return _peer_of(self).get(self, name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotComparable("a copy of the candidate's object")

    def __copy__(self) -> Any:
        return _peer_of(self).ask("copy", self, False)

    def __deepcopy__(self, memo: Any) -> Any:
        return _peer_of(self).ask("copy", self, True)


class Remote(_Attributes):
    """The base of stand-ins for objects that are not plain data."""

    __slots__ = ("__weakref__", "_codellama_batch", "_codellama_number", "_codellama_seen")

    def __setattr__(self, name: str, value: Any) -> None:
        _peer_of(self).ask("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        _peer_of(self).ask("delete", self, name)

    @property
    def __class__(self) -> type:
        return type.__getattribute__(type(self), "_codellama_alias") or type(self)

    def __del__(self) -> None:
        _peer_of(self).forget(_own(self, _NUMBER))


def new_remote(cls: type, number: int) -> Remote:
    """Makes a stand-in for the object with this number."""
    made = object.__new__(cls)
    object.__setattr__(made, _NUMBER, number)
    object.__setattr__(made, "_codellama_seen", False)
    object.__setattr__(made, "_codellama_batch", (0, collections.deque()))
    return made


def has_seen(value: Any) -> bool:
    """Returns whether the object was computed from a value of the test by an operator."""
    is_object = isinstance(type(value), RemoteType) and isinstance_of(value, Remote)
    return is_object and _own(value, "_codellama_seen")


def mark_seen(value: Remote) -> None:
    """Records that the object was computed from a value of the test by an operator."""
    object.__setattr__(value, "_codellama_seen", True)


def isinstance_of(value: Any, cls: type) -> bool:
    """`isinstance`, blind to what the value says of itself."""
    return issubclass(type(value), cls)


def new_held(cls: type, base: type, value: Any, number: int) -> Any:
    """Makes plain data of a subclass of `base`."""
    made = base.__new__(cls, value)
    made.__dict__[_NUMBER] = number
    return made


def new_exception(cls: type, args: tuple, text: str, number: int) -> BaseException:
    """Makes an exception of a class of the other end."""
    made = cls.__new__(cls)
    made.args = args
    made.__dict__.update({_NUMBER: number, "_codellama_text": text})
    return made


def _next(self: Remote) -> Any:
    """Takes an item; after the first ones it asks for several, which the other end has at once."""
    count, waiting = _own(self, "_codellama_batch")
    if not waiting:
        items, error = _peer_of(self).ask_next(self, 1 if count < _BATCH_FROM else _BATCH)
        waiting.extend((True, item) for item in items)
        if error is not None:
            waiting.append((False, error))
    object.__setattr__(self, "_codellama_batch", (count + 1, waiting))
    good, value = waiting.popleft()
    if good:
        return value
    raise value


def _doc(self: Remote) -> Any:
    return _peer_of(self).get(self, "__doc__")


def _iterate_self(self: Remote) -> Remote:
    return self


def _operator(name: str) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any) -> Any:
        return _peer_of(self).operate(self, name, arguments)

    method.__name__ = name
    return method


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    return _peer_of(self).call(self, args, kwargs)


def _held_operator(name: str, base: type) -> Callable[[Any, Any], Any]:
    """An operator that the subclass overrides: between two of its kind it is theirs, else plain."""
    plain = getattr(base, name, None)

    def method(self: Any, other: Any) -> Any:
        if is_remote(other):
            return _peer_of(self).ask("op", name, self, other)
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
    """Makes the class of stand-ins for a class of the other end.

    Args:
        peer: this end of the pipe.
        name: the name of the class there.
        kind: object, exception or held (an immutable subclass of plain data).
        base: of an exception or held class the type here that it extends; of an object the mutable
            type of the closed list, or None.
        parents: classes of stand-ins for its bases.
        operators: the operators that it has.
        number: under which the other end holds the class.
    """
    chosen = set(operators)
    namespace: dict[str, Any] = {_CLASS: number, "__module__": "__candidate__", "__doc__": None}
    if kind == "object":
        namespace |= {"__slots__": (), "__doc__": property(_doc)}
        namespace |= {"_codellama_alias": None, "_codellama_base": base}
        namespace |= {op: _METHODS[op] for op in OPERATORS if op in chosen}
        if {"__iter__", "__next__"} <= chosen:
            namespace |= {"__iter__": _iterate_self, "__next__": _next}
        root: type = Remote
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
    fitting = [parent for parent in parents if issubclass(parent, root)]
    bases = tuple(fitting) or (root,)
    return RemoteType(name, bases, namespace, peer=peer)


def _exception_text(self: Any) -> str:
    return _own(self, "__dict__").get("_codellama_text", "")
