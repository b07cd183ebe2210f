"""The closed list of types whose values cross the pipe, and how each is taken apart and rebuilt.

Neither step runs code of the candidate: the parts of a number, a date or a string are plain values
themselves. `packing` encodes the parts into a message.

The functions below call methods of the base type, such as `list.__setitem__(value, ...)`, because
a subclass may override them.
"""

from __future__ import annotations

import array
import decimal
import fractions
import itertools
import re
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone
from pathlib import PosixPath, PurePosixPath
from types import MappingProxyType, SimpleNamespace
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


def _attributes(*names: str) -> Callable[[Any], list[Any]]:
    """Returns the `take` of a type whose parts are these attributes."""

    def take(value: Any) -> list[Any]:
        return [getattr(value, name) for name in names]

    return take


def _constructor(cls: type) -> Callable[[Sequence[Any]], Any]:
    """Returns the `make` of a type whose parts are the arguments of its constructor."""

    def make(children: Sequence[Any]) -> Any:
        return cls(*children)

    return make


def _take_items(value: Mapping[Any, Any]) -> list[Any]:
    return _pairs(value.items())


def _take_dict(value: dict) -> list[Any]:
    return _pairs(dict.items(value))


def _take_defaultdict(value: defaultdict) -> list[Any]:
    return [value.default_factory, *_take_dict(value)]


def _take_deque(value: deque) -> list[Any]:
    return [value.maxlen, *deque.__iter__(value)]


def _take_bytearray(value: bytearray) -> list[Any]:
    return [bytes(value).hex()]


def _take_array(value: array.array) -> list[Any]:
    return [value.typecode, value.tobytes().hex()]


def _take_namespace(value: SimpleNamespace) -> list[Any]:
    return _pairs(value.__dict__.items())


def _take_path(value: PurePosixPath) -> list[Any]:
    return [str(value)]


# JSON cannot carry a lone surrogate, so such a string crosses as bytes.
def _take_str(value: str) -> list[Any]:
    return [str.encode(value, "utf-8", "surrogatepass").hex()]


def _make_str(children: Sequence[Any]) -> str:
    return _make_bytes(children).decode("utf-8", "surrogatepass")


def _make_bytes(children: Sequence[Any]) -> bytes:
    return bytes.fromhex(children[0])


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


def _zone(value: time | datetime) -> timezone | None:
    """Returns the time zone, which must be a plain one: others run code."""
    if value.tzinfo is not None and type(value.tzinfo) is not timezone:
        raise NotComparable(f"a time in a zone of the type {type(value.tzinfo).__name__}")
    return value.tzinfo


def _take_datetime(value: datetime) -> list[Any]:
    day = [value.year, value.month, value.day]
    clock = [value.hour, value.minute, value.second, value.microsecond]
    return [*day, *clock, _zone(value), value.fold]


def _take_time(value: time) -> list[Any]:
    clock = [value.hour, value.minute, value.second, value.microsecond]
    return [*clock, _zone(value), value.fold]


def _take_timezone(value: timezone) -> list[Any]:
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


def _fill_ordered_dict(value: OrderedDict, children: Sequence[Any]) -> None:
    value.clear()
    for key, item in _from_pairs(children):
        value[key] = item


def _fill_defaultdict(value: defaultdict, children: Sequence[Any]) -> None:
    value.default_factory = children[0]
    _fill_dict(value, children[1:])


def _fill_set(value: set, children: Sequence[Any]) -> None:
    set.clear(value)
    set.update(value, children)


def _fill_deque(value: deque, children: Sequence[Any]) -> None:
    deque.clear(value)
    deque.extend(value, children[1:])


def _fill_bytearray(value: bytearray, children: Sequence[Any]) -> None:
    bytearray.__setitem__(value, slice(None), bytes.fromhex(children[0]))


def _fill_array(value: array.array, children: Sequence[Any]) -> None:
    del value[:]
    value.frombytes(bytes.fromhex(children[1]))


def _fill_namespace(value: SimpleNamespace, children: Sequence[Any]) -> None:
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


_TIMEDELTA = ("days", "seconds", "microseconds")
_KEYS: type = type({}.keys())
_VALUES: type = type({}.values())
_ITEMS: type = type({}.items())
_KINDS = [
    Kind("int", int, _take_int, _make_int),
    Kind("str", str, _take_str, _make_str),
    Kind("nan", float, lambda value: [float.__repr__(value)], lambda children: float(children[0])),
    Kind("complex", complex, _attributes("real", "imag"), _constructor(complex)),
    Kind("bytes", bytes, lambda value: [bytes.hex(value)], _make_bytes),
    Kind("tuple", tuple, lambda value: list(tuple.__iter__(value)), tuple),
    Kind("frozenset", frozenset, lambda value: list(frozenset.__iter__(value)), frozenset),
    Kind("list", list, list.copy, _empty(list), _fill_list),
    Kind("OrderedDict", OrderedDict, _take_items, _empty(OrderedDict), _fill_ordered_dict),
    Kind("Counter", Counter, _take_dict, _empty(Counter), _fill_dict),
    Kind("defaultdict", defaultdict, _take_defaultdict, _empty(defaultdict), _fill_defaultdict),
    Kind("dict", dict, _take_dict, _empty(dict), _fill_dict),
    Kind("set", set, lambda value: list(set.__iter__(value)), _empty(set), _fill_set),
    Kind("deque", deque, _take_deque, lambda children: deque(maxlen=children[0]), _fill_deque),
    Kind("bytearray", bytearray, _take_bytearray, _empty(bytearray), _fill_bytearray),
    Kind("array", array.array, _take_array, _make_array, _fill_array),
    Kind("namespace", SimpleNamespace, _take_namespace, _empty(SimpleNamespace), _fill_namespace),
    Kind("Decimal", decimal.Decimal, _take_decimal, _make_decimal),
    Kind("Fraction", fractions.Fraction, _take_fraction, _make_fraction),
    Kind("range", range, _attributes("start", "stop", "step"), _constructor(range)),
    Kind("slice", slice, _attributes("start", "stop", "step"), _constructor(slice)),
    Kind("datetime", datetime, _take_datetime, lambda c: datetime(*c[:8], fold=c[8])),
    Kind("date", date, _attributes("year", "month", "day"), _constructor(date)),
    Kind("time", time, _take_time, lambda c: time(*c[:5], fold=c[5])),
    Kind("timedelta", timedelta, _attributes(*_TIMEDELTA), _constructor(timedelta)),
    Kind("timezone", timezone, _take_timezone, _constructor(timezone)),
    Kind("UUID", uuid.UUID, _attributes("int"), lambda c: uuid.UUID(int=c[0])),
    Kind("path", PosixPath, _take_path, lambda c: PosixPath(c[0])),
    Kind("purepath", PurePosixPath, _take_path, lambda c: PurePosixPath(c[0])),
    Kind("memoryview", memoryview, _take_memoryview, lambda c: memoryview(c[0])),
    Kind("mappingproxy", MappingProxyType, _take_items, lambda c: MappingProxyType(_dict_of(c))),
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
HOLDING = {tuple, frozenset, slice, MappingProxyType, _KEYS, _VALUES, _ITEMS}
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
