"""The closed list of types whose values cross the pipe, and how each is taken apart and rebuilt.

Neither step runs code of the candidate: the parts of a number, a date or a string are plain values
themselves. `packing` encodes the parts into a message.

The functions below call methods of the base type, such as `list.__setitem__(value, ...)`, because
a subclass may override them.
"""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import fractions
import itertools
import pathlib
import re
import types
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

from codellama_jax.sandbox.inside.wire import WireError

MAX_BITS = 1 << 22  # of an integer
# Of the numerator or denominator of a fraction: building one reduces it, in quadratic time.
MAX_FRACTION_BITS = 1 << 17
# Of a decimal number: int(value) has as many digits.
MAX_EXPONENT = 1_000_000
_DIGITS = re.compile("[0-9]{1,1000000}")


class NotComparable(BaseException):
    """A test cannot be decided, because a value cannot cross the pipe without risk of forgery.

    `reasons` holds the reason of each instance that was created in this process, so that a bare
    `except` of a test hides none.
    """

    reasons: ClassVar[list[str]] = []

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reasons.append(reason)


class Kind(NamedTuple):
    """One type of the list.

    Attributes:
        tag: its name in a message.
        type: the type.
        take: returns the parts (children) of a value.
        make: rebuilds an immutable value from its decoded parts. For a mutable type it gets the
            parts before they are decoded, and returns an empty value.
        fill: sets the parts of a mutable value; None for an immutable type.
    """

    tag: str
    type: type
    take: Callable[[Any], list[Any]]
    make: Callable[[Sequence[Any]], Any]
    fill: Callable[[Any, Sequence[Any]], None] | None = None


def _pairs(items: Iterable[tuple[Any, Any]]) -> list[Any]:
    """Flattens (key, value) pairs: a message has no pairs."""
    return list(itertools.chain.from_iterable(items))


def _from_pairs(children: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(children[::2], children[1::2], strict=True)


# An integer beyond the range of a leaf crosses in hexadecimal: converting to decimal takes
# quadratic time.
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
    # NaN may have no digits.
    return [sign, "".join(map(str, digits)) or "0", exponent]


def _make_decimal(children: Sequence[Any]) -> decimal.Decimal:
    sign, digits, exponent = children
    # F is infinity, n and N are quiet and signaling NaN.
    is_special = type(exponent) is str and exponent in ("F", "n", "N")
    is_finite = type(exponent) is int and abs(exponent) <= MAX_EXPONENT
    if not is_special and not is_finite:
        raise WireError("not an exponent")
    if sign not in (0, 1) or not _DIGITS.fullmatch(digits):
        raise WireError("not a decimal number")
    tuple_of_digits = () if digits == "0" and is_special else tuple(map(int, digits))
    return decimal.Decimal((int(sign), tuple_of_digits, exponent))


def _take_fraction(value: fractions.Fraction) -> list[Any]:
    # Private, because the properties `numerator` and `denominator` may be overridden.
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
    """Returns the time zone, which must be a plain one: others run code."""
    if value.tzinfo is not None and type(value.tzinfo) is not datetime.timezone:
        raise NotComparable(f"a time in a zone of the type {type(value.tzinfo).__name__}")
    return value.tzinfo


def _take_datetime(value: datetime.datetime) -> list[Any]:
    date = [value.year, value.month, value.day]
    time = [value.hour, value.minute, value.second, value.microsecond]
    return [*date, *time, _zone(value), value.fold]


def _take_time(value: datetime.time) -> list[Any]:
    time = [value.hour, value.minute, value.second, value.microsecond]
    return [*time, _zone(value), value.fold]


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


# The functions below replace the content in place, so that other references see the change.


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
        value.__dict__[text(name)] = item


def text(value: Any) -> str:
    """Returns a string unchanged. Raises WireError for a value of any other type."""
    if type(value) is not str:
        raise WireError("not a text")
    return value


def _dict_of(pairs: Sequence[Any]) -> dict[Any, Any]:
    return dict(_from_pairs(pairs))


def _empty(kind: type) -> Callable[[Sequence[Any]], Any]:
    """Returns the `make` of a mutable type, which ignores the children."""

    def make(children: Sequence[Any]) -> Any:
        return kind()

    return make


_KEYS: type = type({}.keys())
_VALUES: type = type({}.values())
_ITEMS: type = type({}.items())
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
BY_TAG = {kind.tag: kind for kind in _KINDS}
PLAIN = {type(None), bool, *BY_TYPE}
# Immutable types whose values may contain any value. The parts of the other types are plain: a
# proxy among them would run code of the candidate while the value is made.
HOLDING = {tuple, frozenset, slice, types.MappingProxyType, _KEYS, _VALUES, _ITEMS}
# A value of a subclass of these crosses as its plain value, together with a reference to the object
# for everything that the subclass adds. Not Fraction: its metaclass conflicts with that of the
# proxies' classes, so a subclass of it crosses as a plain fraction.
HELD = (int, float, complex, str, bytes, tuple, frozenset, decimal.Decimal)


def base_kind(cls: type) -> Kind | None:
    """Returns the kind of a class, or of its first base class that is on the list."""
    for base in cls.__mro__:
        if base in BY_TYPE:
            return BY_TYPE[base]
    return None
