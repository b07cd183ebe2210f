"""The closed list of values that cross the pipe, and how each is written and rebuilt.

A message holds a list of nodes [tag, children]. A child is a leaf (None, bool, str, float or int of
62 bits), a pointer [i] to node i of this message, a pointer [-1 - i] to node i of the request that
it answers, or [0, number] for an object of the receiver. So shared and cyclic values keep their
shape, and an argument that comes back is the caller's own object.

A node of an immutable value comes after its children. A node of a mutable value may come before
them: it is created empty and filled when every node exists. Decoding never recurses.
"""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import fractions
import itertools
import operator
import pathlib
import re
import types
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

from codellama_jax.sandbox.inside.wire import WireError

MAX_DEPTH = 100
MAX_BITS = 1 << 22  # of an integer
MAX_FRACTION_BITS = 1 << 17  # building a fraction reduces it, which takes quadratic time
MAX_EXPONENT = 1_000_000  # of a decimal number: int(value) has as many digits
_LEAVES = {type(None), bool, int, float, str}
_FEW = 8
_MAX_LEAF = 1 << 62
_DIGITS = re.compile("[0-9]{1,1000000}")


class NotComparable(BaseException):
    """A value cannot cross the pipe unforgeably.

    `reasons` holds every one that was raised in this process: a bare `except` of a test hides none.
    """

    reasons: ClassVar[list[str]] = []

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reasons.append(reason)


class Kind(NamedTuple):
    """One type of the list. `fill` is None for an immutable type.

    `take` returns the children of a value. `make` rebuilds the value from them; of a mutable type
    it gets the undecoded children and returns an empty value for `fill`.
    """

    tag: str
    type: type
    take: Callable[[Any], list[Any]]
    make: Callable[[Sequence[Any]], Any]
    fill: Callable[[Any, Sequence[Any]], None] | None = None


def _pairs(items: Iterable[tuple[Any, Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(items))


def _from_pairs(children: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(children[::2], children[1::2], strict=True)


def _take_int(value: int) -> list[Any]:
    if int.bit_length(value) > MAX_BITS:
        raise NotComparable(f"an integer of {int.bit_length(value)} bits")
    return [hex(int.__int__(value))]


def _make_int(children: Sequence[Any]) -> int:
    if len(children[0]) > MAX_BITS // 4 + 4:
        raise WireError("an integer is too long")
    return int(children[0], 16)


def _take_decimal(value: decimal.Decimal) -> list[Any]:
    sign, digits, exponent = decimal.Decimal.as_tuple(value)
    if isinstance(exponent, int) and abs(exponent) > MAX_EXPONENT:
        raise NotComparable(f"a decimal number with the exponent {exponent}")
    return [sign, "".join(map(str, digits)) or "0", exponent]


def _make_decimal(children: Sequence[Any]) -> decimal.Decimal:
    sign, digits, exponent = children
    special = type(exponent) is str and exponent in ("F", "n", "N")
    if not special and not (type(exponent) is int and abs(exponent) <= MAX_EXPONENT):
        raise WireError("not an exponent")
    if sign not in (0, 1) or not _DIGITS.fullmatch(digits):
        raise WireError("not a decimal number")
    figures = () if digits == "0" and special else tuple(map(int, digits))
    return decimal.Decimal((int(sign), figures, exponent))


def _take_fraction(value: fractions.Fraction) -> list[Any]:
    parts = [value._numerator, value._denominator]  # type: ignore[attr-defined]
    if max(part.bit_length() for part in parts) > MAX_FRACTION_BITS:
        raise NotComparable("a fraction of more than 131072 bits")
    return parts


def _make_fraction(children: Sequence[Any]) -> fractions.Fraction:
    numerator, denominator = children
    if type(numerator) is not int or type(denominator) is not int:
        raise WireError("not a fraction")
    if max(numerator.bit_length(), denominator.bit_length()) > MAX_FRACTION_BITS:
        raise WireError("a fraction is too long")
    return fractions.Fraction(numerator, denominator)


def _zone(value: datetime.time | datetime.datetime) -> datetime.timezone | None:
    if value.tzinfo is not None and type(value.tzinfo) is not datetime.timezone:
        raise NotComparable(f"a time in a zone of the type {type(value.tzinfo).__name__}")
    return value.tzinfo


def _take_datetime(value: datetime.datetime) -> list[Any]:
    day = [value.year, value.month, value.day]
    return [
        *day,
        value.hour,
        value.minute,
        value.second,
        value.microsecond,
        _zone(value),
        value.fold,
    ]


def _take_time(value: datetime.time) -> list[Any]:
    parts = [value.hour, value.minute, value.second, value.microsecond]
    return [*parts, _zone(value), value.fold]


def _take_timezone(value: datetime.timezone) -> list[Any]:
    offset, *name = value.__getinitargs__()  # type: ignore[attr-defined]
    return [offset, *name]


def _take_memoryview(value: memoryview) -> list[Any]:
    if value.format != "B" or value.ndim != 1:
        raise NotComparable("a memoryview of other items than bytes")
    return [value.tobytes()]


def _make_array(children: Sequence[Any]) -> array.array:
    if type(children[0]) is not str or children[0] not in array.typecodes:
        raise WireError("not an array")
    return array.array(children[0])


def _fill_list(value: list, children: Sequence[Any]) -> None:
    list.__setitem__(value, slice(None), children)


def _fill_dict(value: dict, children: Sequence[Any]) -> None:
    dict.clear(value)
    for key, item in _from_pairs(children):
        dict.__setitem__(value, key, item)


def _fill_ordered_dict(value: collections.OrderedDict, children: Sequence[Any]) -> None:
    value.clear()
    for key, item in _from_pairs(children):
        value[key] = item


def _fill_defaultdict(value: collections.defaultdict, children: Sequence[Any]) -> None:
    value.default_factory = children[0]
    _fill_dict(value, children[1:])


def _fill_set(value: set, children: Sequence[Any]) -> None:
    set.clear(value)
    set.update(value, children)


def _fill_deque(value: collections.deque, children: Sequence[Any]) -> None:
    collections.deque.clear(value)
    collections.deque.extend(value, children[1:])


def _fill_bytearray(value: bytearray, children: Sequence[Any]) -> None:
    bytearray.__setitem__(value, slice(None), bytes.fromhex(children[0]))


def _fill_array(value: array.array, children: Sequence[Any]) -> None:
    del value[:]
    value.frombytes(bytes.fromhex(children[1]))


def _fill_namespace(value: types.SimpleNamespace, children: Sequence[Any]) -> None:
    value.__dict__.clear()
    for name, item in _from_pairs(children):
        value.__dict__[_text(name)] = item


def _text(value: Any) -> str:
    if type(value) is not str:
        raise WireError("not a text")
    return value


def _dict_of(pairs: Sequence[Any]) -> dict[Any, Any]:
    return dict(_from_pairs(pairs))


def _empty(kind: type) -> Callable[[Sequence[Any]], Any]:
    return lambda children: kind()


_KEYS, _VALUES, _ITEMS = type({}.keys()), type({}.values()), type({}.items())
_KINDS = [
    Kind("int", int, _take_int, _make_int),
    Kind(
        "str",
        str,
        lambda value: [str.encode(value, "utf-8", "surrogatepass").hex()],
        lambda children: bytes.fromhex(children[0]).decode("utf-8", "surrogatepass"),
    ),
    Kind("nan", float, lambda value: [float.__repr__(value)], lambda children: float(children[0])),
    Kind("complex", complex, lambda value: [value.real, value.imag], lambda c: complex(*c)),
    Kind("bytes", bytes, lambda value: [bytes.hex(value)], lambda c: bytes.fromhex(c[0])),
    Kind("tuple", tuple, lambda value: list(tuple.__iter__(value)), tuple),
    Kind("frozenset", frozenset, lambda value: list(frozenset.__iter__(value)), frozenset),
    Kind("list", list, list.copy, _empty(list), _fill_list),
    Kind(
        "OrderedDict",
        collections.OrderedDict,
        lambda value: _pairs(value.items()),
        _empty(collections.OrderedDict),
        _fill_ordered_dict,
    ),
    Kind(
        "Counter",
        collections.Counter,
        lambda value: _pairs(dict.items(value)),
        _empty(collections.Counter),
        _fill_dict,
    ),
    Kind(
        "defaultdict",
        collections.defaultdict,
        lambda value: [value.default_factory, *_pairs(dict.items(value))],
        _empty(collections.defaultdict),
        _fill_defaultdict,
    ),
    Kind("dict", dict, lambda value: _pairs(dict.items(value)), _empty(dict), _fill_dict),
    Kind("set", set, lambda value: list(set.__iter__(value)), _empty(set), _fill_set),
    Kind(
        "deque",
        collections.deque,
        lambda value: [value.maxlen, *collections.deque.__iter__(value)],
        lambda children: collections.deque(maxlen=children[0]),
        _fill_deque,
    ),
    Kind(
        "bytearray",
        bytearray,
        lambda value: [bytes(value).hex()],
        _empty(bytearray),
        _fill_bytearray,
    ),
    Kind(
        "array",
        array.array,
        lambda value: [value.typecode, value.tobytes().hex()],
        _make_array,
        _fill_array,
    ),
    Kind(
        "namespace",
        types.SimpleNamespace,
        lambda value: _pairs(value.__dict__.items()),
        _empty(types.SimpleNamespace),
        _fill_namespace,
    ),
    Kind("Decimal", decimal.Decimal, _take_decimal, _make_decimal),
    Kind("Fraction", fractions.Fraction, _take_fraction, _make_fraction),
    Kind("range", range, lambda value: [value.start, value.stop, value.step], lambda c: range(*c)),
    Kind("slice", slice, lambda value: [value.start, value.stop, value.step], lambda c: slice(*c)),
    Kind(
        "datetime",
        datetime.datetime,
        _take_datetime,
        lambda c: datetime.datetime(*c[:8], fold=c[8]),
    ),
    Kind(
        "date",
        datetime.date,
        lambda value: [value.year, value.month, value.day],
        lambda c: datetime.date(*c),
    ),
    Kind("time", datetime.time, _take_time, lambda c: datetime.time(*c[:5], fold=c[5])),
    Kind(
        "timedelta",
        datetime.timedelta,
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda c: datetime.timedelta(*c),
    ),
    Kind("timezone", datetime.timezone, _take_timezone, lambda c: datetime.timezone(*c)),
    Kind("UUID", uuid.UUID, lambda value: [value.int], lambda c: uuid.UUID(int=c[0])),
    Kind("path", pathlib.PosixPath, lambda value: [str(value)], lambda c: pathlib.PosixPath(c[0])),
    Kind(
        "purepath",
        pathlib.PurePosixPath,
        lambda value: [str(value)],
        lambda c: pathlib.PurePosixPath(c[0]),
    ),
    Kind("memoryview", memoryview, _take_memoryview, lambda c: memoryview(c[0])),
    Kind(
        "mappingproxy",
        types.MappingProxyType,
        lambda value: _pairs(value.items()),
        lambda c: types.MappingProxyType(_dict_of(c)),
    ),
    Kind("keys", _KEYS, list, lambda c: dict.fromkeys(c).keys()),
    Kind("values", _VALUES, list, lambda c: dict(enumerate(c)).values()),
    Kind("items", _ITEMS, _pairs, lambda c: _dict_of(c).items()),
    Kind("ellipsis", type(...), lambda value: [], lambda c: ...),
    Kind("notimplemented", type(NotImplemented), lambda value: [], lambda c: NotImplemented),
]
BY_TYPE = {kind.type: kind for kind in _KINDS}
_BY_TAG = {kind.tag: kind for kind in _KINDS}
# A subclass of these is its plain value and, for what the plain value lacks, a reference.
HELD = (int, float, complex, str, bytes, tuple, frozenset, decimal.Decimal, fractions.Fraction)


def base_kind(cls: type) -> Kind | None:
    """Returns the kind of the type, or of the first of its bases that is on the list."""
    for base in cls.__mro__:
        if base in BY_TYPE:
            return BY_TYPE[base]
    return None


def _is_leaf(value: Any, kind: type) -> bool:
    if kind is int:
        return -_MAX_LEAF < value < _MAX_LEAF
    if kind is str:
        return value.isascii() or are_leaves((value,))
    return kind is not float or value == value  # not NaN


def are_leaves(items: Sequence[Any]) -> bool:
    """Returns whether JSON carries every item as it is, without a look at each in Python."""
    kinds = set(map(type, items))
    if not kinds <= _LEAVES:
        return False
    if int in kinds:
        integers = items if len(kinds) == 1 else [item for item in items if type(item) is int]
        if min(integers) <= -_MAX_LEAF or max(integers) >= _MAX_LEAF:
            return False
    if float in kinds and any(map(operator.ne, items, items)):  # NaN
        return False
    if str in kinds:
        texts = items if len(kinds) == 1 else [item for item in items if type(item) is str]
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:  # JSON would join two lone surrogates into one character
            return False
    return True


class Packer:
    """Writes the values of one message as nodes.

    `pack_other(value, packer)` adds the node of a value that is not on the list and returns its
    index, or returns the pointer to an object of the receiver. `known` are the values of the request that this message answers.
    """

    def __init__(self, pack_other: Callable[[Any, Packer], Any], known: Sequence[Any] = ()):
        self.nodes: list[Any] = []
        self.values: list[Any] = []  # of the nodes; this also keeps their ids from being reused
        self._pack_other = pack_other
        self._index = {id(value): -1 - i for i, value in enumerate(known)}
        self._open: set[int] = set()  # immutable values whose children are being packed

    def pack(self, value: Any) -> Any:
        """Returns a leaf, or a pointer to the node of the value."""
        kind = type(value)
        if kind in _LEAVES and _is_leaf(value, kind):
            return value
        index = self._index.get(id(value))
        if index is None:
            added = self._add(value, BY_TYPE.get(kind))
            return added if type(added) is list else [added]
        return [index]

    def pack_all(self, values: Sequence[Any]) -> list[Any]:
        """Packs every value of a list."""
        if len(values) > _FEW and are_leaves(values):
            return list(values)
        return [self.pack(value) for value in values]

    def add(self, value: Any, tag: str, children: list[Any], mutable: bool = False) -> int:
        """Adds a node. The children of a mutable value are packed after it, else before."""
        if len(self._open) > MAX_DEPTH:
            raise NotComparable(f"a value nested deeper than {MAX_DEPTH}")
        if id(value) in self._open and not mutable:
            raise NotComparable("a tuple that holds itself")
        self._open.add(id(value))
        if mutable:
            index = self._append(value, [tag, []])
            self.nodes[index][1] = self.pack_all(children)
        else:
            packed = self.pack_all(children)
            index = self._append(value, [tag, packed])
        self._open.discard(id(value))
        return index

    def state(self, value: Any) -> list[Any]:
        """Packs the children that a mutable value has now."""
        return self.pack_all(BY_TYPE[type(value)].take(value))

    def _add(self, value: Any, kind: Kind | None) -> Any:
        return self._pack_other(value, self) if kind is None else self.add_as(value, kind)

    def add_as(self, value: Any, kind: Kind) -> int:
        """Adds the node of a value of this kind, or of a subclass as the kind's own type."""
        return self.add(value, kind.tag, kind.take(value), kind.fill is not None)

    def _append(self, value: Any, node: list[Any]) -> int:
        index = len(self.nodes)
        self.nodes.append(node)
        self.values.append(value)
        self._index[id(value)] = index
        return index


class Unpacker:
    """Rebuilds the values of one message. Raises WireError for what Packer does not write.

    `unpack_other(tag, children)` rebuilds the node of a value that is not on the list, "home" the
    one that this end has lent.
    """

    def __init__(
        self,
        nodes: Sequence[Any],
        unpack_other: Callable[[str, list[Any]], Any],
        known: Sequence[Any] = (),
    ):
        self.values: list[Any] = []
        self._known, self._unpack_other = known, unpack_other
        unfilled = []
        for tag, children in nodes:
            kind = _BY_TAG.get(_text(tag))
            if type(children) is not list:
                raise WireError("not a node")
            if kind is None:
                value = unpack_other(tag, self.get_all(children))
            elif kind.fill:
                value = kind.make(children)
                unfilled.append((kind.fill, value, children))
            else:
                value = kind.make(self.get_all(children))
            self.values.append(value)
        for fill, value, children in unfilled:
            fill(value, self.get_all(children))

    def get(self, child: Any) -> Any:
        """Returns the value of a leaf or pointer."""
        if type(child) is not list:
            return self._leaf(child)
        if len(child) == 2:
            return self._unpack_other("home", child[1:])
        [index] = child
        if type(index) is not int:
            raise WireError("not a pointer")
        return self.values[index] if index >= 0 else self._known[-1 - index]

    def get_all(self, children: list[Any]) -> list[Any]:
        """Returns the values of a list of leaves and pointers."""
        if set(map(type, children)) <= _LEAVES:
            return children
        return [self.get(child) for child in children]

    def mutate(self, value: Any, children: list[Any]) -> None:
        """Gives a mutable value of the request the children that it has at the other end."""
        kind = BY_TYPE.get(type(value)) or base_kind(type(value))
        if kind is None or kind.fill is None:
            raise WireError("not a mutable value")
        kind.fill(value, self.get_all(children))

    @staticmethod
    def _leaf(value: Any) -> Any:
        if type(value) not in _LEAVES:
            raise WireError("not a value")
        return value


def snapshot(values: Sequence[Any]) -> list[tuple[int, list[Any]]]:
    """Returns (index, children) of each mutable value, to find what a call changes."""
    found = []
    for index, value in enumerate(values):
        kind = BY_TYPE.get(type(value))
        if kind and kind.fill:
            found.append((index, kind.take(value)))
    return found


def changed(value: Any, before: list[Any]) -> bool:
    """Returns whether a mutable value has other children than `before`."""
    now = BY_TYPE[type(value)].take(value)
    if type(value) in (bytearray, array.array):
        return now != before
    return len(now) != len(before) or not all(map(operator.is_, now, before))
