"""References to objects that stay in their process: each end lends objects and has proxies.

A value whose type is not on the closed list of `values` crosses the pipe as a number under which
its own process holds the object. The other end makes a proxy with this number, see `remote`.
"""

from __future__ import annotations

import enum
import types
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from codellama_jax.sandbox.inside import names, remote
from codellama_jax.sandbox.inside.packing import Packer
from codellama_jax.sandbox.inside.values import BY_TYPE, HELD, Kind, base_kind
from codellama_jax.sandbox.inside.wire import WireError

if TYPE_CHECKING:
    from codellama_jax.sandbox.inside.peer import Peer

MAX_TEXT = 2000  # characters of the text of an exception
MAX_NAME = 200  # characters of the name of a class


class _TypeOf:
    """Stands for the class of proxies for objects of `type_`, if `type_` crosses by name.

    It keeps apart two classes at the other end: the real one, and the one of its proxies.
    """

    def __init__(self, type_: type):
        self.type = type_


class References:
    """The objects that this end has lent, and its proxies for objects of the other end.

    Attributes:
        is_trusted: whether this is the end of the tests.
        extends_container: whether a class of proxies here extends a list, dict or set.
        names: the namespace of the program or test at this end.
    """

    is_trusted = False
    extends_container = False

    def __init__(self, program_names: dict[str, Any]):
        self.names = program_names
        self._lent: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}  # id of a lent object -> its number
        self._count = 0
        self._definitions: dict[type, _TypeOf] = {}
        self._sent_classes: set[int] = set()  # numbers of classes whose definition was sent
        self._classes: dict[int, type] = {}  # number of a class of the other end -> its proxies'
        # Proxies by number. Members of an IntEnum or a similar class are plain data as well, which
        # cannot be referenced weakly.
        self._members: dict[int, Any] = {}
        self._remotes: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._forgotten: list[int] = []  # numbers of proxies that were deleted

    # The two ends implement these differently.

    def is_named(self, value: Any) -> bool:
        """Returns whether a class or function crosses by its name in the standard library."""
        raise NotImplementedError

    def has_name(self, cls: type) -> bool:
        """Returns whether the other end can resolve the name of a class.

        Some names are only valid as the type of an object, see `names.ALIASES`.
        """
        return self.is_named(cls) or names.ALIASES.get(names.name_of(cls)) is cls

    def resolve(self, name: str) -> Any:
        """Returns the class or function of this name."""
        raise NotImplementedError

    def resolve_type(self, name: str) -> Any:
        """Returns the class of this name, to use as the type of a proxy or as its base class."""
        raise NotImplementedError

    def operators_of(self, cls: type) -> Iterable[str]:
        """Returns the operators that the other end may use on objects of a class."""
        raise NotImplementedError

    def check_lendable(self, value: Any) -> None:
        """Raises NotComparable for an object that the other end may not use."""

    # Lending.

    def lend(self, value: Any) -> int:
        """Returns the number of an object, which stays alive until the other end forgets it."""
        if id(value) not in self._numbers:
            self._count += 1
            self._numbers[id(value)] = self._count
            self._lent[self._count] = value
        return self._numbers[id(value)]

    def is_lent(self, value: Any) -> bool:
        """Returns whether the other end holds the number of an object of this end."""
        # Ids are reused, so the object itself is compared.
        return self._lent.get(self._numbers.get(id(value), 0)) is value

    def release(self, numbers: Iterable[int]) -> None:
        """Drops objects that the other end does not use any more."""
        for number in numbers:
            if number in self._lent:
                del self._numbers[id(self._lent.pop(number))]

    def forget(self, number: int) -> None:
        """Records that the proxy for an object of the other end was deleted."""
        self._forgotten.append(number)

    def take_forgotten(self) -> list[int]:
        """Returns the numbers that the other end may release; each is returned once."""
        taken, self._forgotten = self._forgotten, []
        # The same object may have arrived again and have a new proxy.
        return [number for number in taken if number not in self._remotes]

    # Encoding.

    def pack_other(self, value: Any, packer: Packer) -> Any:
        """Adds the node of a value whose type is not on the closed list and returns its index.

        An object of the other end needs no node: returns the pointer to it.
        """
        kind = type(value)
        if isinstance(kind, remote.RemoteType) or kind is remote.RemoteType:
            return [0, remote.number_of(value)]
        if issubclass(kind, type | _TypeOf):
            return self._pack_class(value, packer)
        if issubclass(kind, BaseException):
            return packer.add(value, "exception", self._exception_parts(value))
        if self.is_named(value):
            return packer.add(value, "name", [names.name_of(value)])
        if kind is types.CoroutineType and not self.is_trusted:
            return packer.add(value, "coroutine", [self._definition(kind), self.lend(value)])
        base = base_kind(kind)
        if issubclass(kind, enum.Enum):
            plain = _plain(value, base) if base else None
            return packer.add(value, "member", [kind, value.name, plain, self.lend(value)])
        if base and base.type in HELD:
            return packer.add(value, "held", [kind, _plain(value, base), self.lend(value)])
        # A list of a class of the candidate stays in its process, because the class may override
        # its methods. The classes of the test are trusted, so its values cross as plain ones.
        if base and (base.fill is None or self.is_trusted):
            return packer.add_as(value, base)
        self.check_lendable(value)
        return packer.add(value, "object", [self._definition(kind), self.lend(value)])

    def _definition(self, cls: type) -> Any:
        """Returns the value whose node defines the class of proxies for objects of `cls`."""
        if not self.has_name(cls):
            return cls
        return self._definitions.setdefault(cls, _TypeOf(cls))

    def _pack_class(self, value: Any, packer: Packer) -> int:
        """Adds the node of a class: its name, or its number, the first time with a definition."""
        if type(value) is not _TypeOf and self.is_named(value):
            return packer.add(value, "name", [names.name_of(value)])
        cls = value.type if type(value) is _TypeOf else value
        number = self.lend(cls)
        if number in self._sent_classes:
            return packer.add(value, "class", [number])
        self._sent_classes.add(number)
        base = base_kind(cls)
        # Base classes, without `object`, that the other end knows by name.
        known = [names.name_of(parent) for parent in cls.__mro__[:-1] if self.has_name(parent)]
        kind = "object"
        extended = names.name_of(base.type) if base else None
        if issubclass(cls, BaseException):
            kind = "exception"
            extended = known[0]
        elif base and base.type in HELD:
            kind = "held"
        parents = tuple(parent for parent in cls.__bases__ if not self.is_named(parent))
        # A class that the prompt defines exists at both ends, under the same name.
        in_program = dict.get(self.names, cls.__name__) is cls
        operators = " ".join(self.operators_of(cls))
        parts = [cls.__name__[:MAX_NAME], kind, extended, parents, operators]
        return packer.add(value, "class", [number, *parts, in_program, known[0] if known else None])

    def _exception_parts(self, error: BaseException) -> list[Any]:
        """Returns class, arguments, text, number and cause of an exception."""
        text = _text_of(error)
        # The class may override `args`.
        args = BaseException.args.__get__(error)  # type: ignore[attr-defined]
        if isinstance(error, BaseExceptionGroup):
            # Its constructor needs the exceptions at once, but a list is filled later.
            args = (error.message, tuple(error.exceptions))
        if sum(len(part) for part in args if type(part) in (str, bytes, list)) > MAX_TEXT:
            args = (text,)
        kind = type(error)
        is_builtin = names.name_of(kind).startswith("builtins:") and self.is_named(kind)
        cls = kind if is_builtin else self._definition(kind)
        return [cls, args, text, self.lend(error), error.__cause__]

    # Decoding.

    def unpack_other(self, tag: str, children: list[Any]) -> Any:
        """Returns the value of a node whose tag is not on the closed list."""
        reader = getattr(self, f"_unpack_{tag}", None) if tag in _TAGS else None
        if reader is None:
            raise WireError(f"no values of the kind {tag[:MAX_NAME]}")
        return reader(*children)

    # The methods below check the exact type of every part before they use it: a proxy in its place
    # would run code of the candidate.

    def _unpack_home(self, number: int) -> Any:
        _check(type(number) is int)
        return self._lent[number]

    def _unpack_name(self, name: str) -> Any:
        return self.resolve(name)

    def _unpack_class(self, number: int, *definition: Any) -> type:
        _check(type(number) is int)
        if number in self._classes:
            return self._classes[number]
        name, kind, extended, parents, operators, in_program, alias = definition
        _check(type(name) is type(kind) is type(operators) is str)
        _check(len(name) <= MAX_NAME and kind in _CLASS_KINDS)
        _check(type(parents) is tuple and set(map(type, parents)) <= {remote.RemoteType})
        extended = None if extended is None else self.resolve_type(extended)
        alias = None if alias is None else self.resolve_type(alias)
        _check(kind != "held" or extended in HELD)
        is_exception = isinstance(extended, type) and issubclass(extended, BaseException)
        _check(kind != "exception" or is_exception)
        _check(kind != "object" or extended is None or extended in BY_TYPE)
        peer = cast("Peer", self)
        cls = remote.make_class(peer, name, kind, extended, parents, operators.split(), number)
        if kind == "object":
            # The class of this end that `isinstance` sees: one of the prompt if both ends have it.
            local = dict.get(self.names, name) if in_program else None
            is_local = isinstance(local, type) and type(local) is not remote.RemoteType
            type.__setattr__(cls, "_codellama_alias", local if is_local else alias)
            self.extends_container = self.extends_container or extended is not None
        self._classes[number] = cls
        return cls

    def _unpack_object(self, cls: type, number: int) -> Any:
        _check(type(number) is int)
        proxy = self._remotes.get(number)
        if proxy is None:
            _check(type(cls) is remote.RemoteType and issubclass(cls, remote.Remote))
            proxy = self._remotes[number] = remote.new_remote(cls, number)
        return proxy

    def _unpack_held(self, cls: type, value: Any, number: int) -> Any:
        base = type(value)
        _check(type(number) is int)
        _check(base in HELD and type(cls) is remote.RemoteType and issubclass(cls, base))
        return remote.new_held(cls, base, value, number)

    def _unpack_member(self, cls: type, name: str, value: Any, number: int) -> Any:
        _check(type(cls) is remote.RemoteType and type(name) is str and type(number) is int)
        # An enumeration that the prompt defines exists at both ends.
        local = dict.get(self.names, cls.__name__)
        if isinstance(local, enum.EnumMeta) and name in local.__members__:
            return local.__members__[name]
        if value is None:
            return self._unpack_object(cls, number)
        if number not in self._members:
            self._members[number] = self._unpack_held(cls, value, number)
        return self._members[number]

    def _unpack_coroutine(self, cls: type, number: int) -> Any:
        return self._run_coroutine(self._unpack_object(cls, number))

    async def _run_coroutine(self, coroutine: Any) -> Any:
        return cast("Peer", self).request("await", coroutine)

    def _unpack_exception(
        self, cls: type, args: tuple, text: str, number: int, cause: BaseException | None
    ) -> BaseException:
        _check(type(args) is tuple and type(text) is str and type(number) is int)
        _check(isinstance(cls, type) and issubclass(cls, BaseException))
        if type(cls) is remote.RemoteType:
            error = remote.new_exception(cls, args, text, number)
        else:
            _check(cls.__module__ == "builtins")
            error = _builtin_exception(cls, args, text)
        if isinstance(cause, BaseException):
            error.__cause__ = cause
        return error


_CLASS_KINDS = ("object", "held", "exception")
_TAGS = ("home", "name", "class", "object", "held", "member", "coroutine", "exception")


def _check(is_valid: bool) -> None:
    if not is_valid:
        raise WireError("not a value")


def _plain(value: Any, base: Kind) -> Any:
    """Returns the plain value of an instance of a subclass of the immutable type `base`."""
    return base.make(base.take(value))


def _builtin_exception(cls: type, args: tuple, text: str) -> BaseException:
    try:
        return cls(*args)
    except Exception:
        # Subclasses of UnicodeError check their arguments in `__init__`, which `__new__` skips.
        return cls.__new__(cls, text) if issubclass(cls, UnicodeError) else Exception(text)


def _text_of(error: BaseException) -> str:
    """Returns the text of an exception, empty if its class cannot make one."""
    try:
        return str(error)[:MAX_TEXT]
    except BaseException:
        return ""
