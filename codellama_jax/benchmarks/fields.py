"""Types of the fields of a benchmark's records, which are checked when the file is read.

A suite declares its fields once, as {"prompt": TEXT, "stop_tokens": list_of(WORD)}. Code that uses
the records later may rely on the types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from codellama_jax.errors import UserError

SHOWN = 60  # characters of a faulty value in a message


@dataclass(frozen=True)
class Kind:
    """A type of a field.

    Attributes:
        name: the type in messages, such as "a string".
        accepts: returns whether a value has the type.
        optional: whether the field may be missing.
    """

    name: str
    accepts: Callable[[Any], bool]
    optional: bool = False


def _is_text(value: Any) -> bool:
    """Returns whether a value is a string without lone surrogates.

    JSON can hold half of a surrogate pair, which neither a tokenizer nor a file accepts.
    """
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _is_number(value: Any) -> bool:
    """Returns whether a value is a finite number that float64 can hold, and no boolean."""
    # type() instead of isinstance, since bool is a subclass of int.
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


TEXT = Kind("a string", _is_text)
WORD = Kind("a string that is not empty", lambda value: _is_text(value) and bool(value))
IDENTIFIER = Kind("a Python name", lambda value: _is_text(value) and value.isidentifier())
# `type(...) is int`, because a boolean is an instance of int.
INTEGER = Kind("an integer", lambda value: type(value) is int)
NUMBER = Kind("a number", _is_number)


def optional(kind: Kind) -> Kind:
    """Returns the kind of a field that may be missing."""
    return replace(kind, optional=True)


def or_null(kind: Kind) -> Kind:
    """Returns the kind of a field that may be null."""

    def accepts(value: Any) -> bool:
        return value is None or kind.accepts(value)

    return replace(kind, name=f"{kind.name} or null", accepts=accepts)


def list_of(kind: Kind, least: int = 0) -> Kind:
    """Returns the kind of a list of at least `least` items that are all of `kind`."""
    not_empty = ", not empty," if least else ""
    name = f"a list{not_empty} whose items are each {kind.name}"

    def accepts(value: Any) -> bool:
        return isinstance(value, list) and len(value) >= least and all(map(kind.accepts, value))

    return Kind(name, accepts)


ANY = Kind("any value", lambda value: True)
LIST = list_of(ANY)


def check_record(record: Any, fields: Mapping[str, Kind], place: str) -> None:
    """Raises UserError naming the place, field, value and expected type of the first fault."""
    if not isinstance(record, dict):
        raise UserError(f"{place} must be a JSON object, not {shown(record)}")
    # Missing fields first: they mean that the file is of another benchmark.
    missing = [name for name, kind in fields.items() if not kind.optional and name not in record]
    if missing:
        names = ", ".join(missing)
        raise UserError(f"{place} has no {names}: is it a file of another benchmark?")
    for name, kind in fields.items():
        if name in record and not kind.accepts(record[name]):
            raise UserError(f"{place}: {name} must be {kind.name}, not {shown(record[name])}")


def shown(value: Any) -> str:
    """Returns the type and the beginning of a value, for a message."""
    # Messages use the names of JSON, which users know from their file.
    names = {"str": "string", "NoneType": "null", "dict": "object", "bool": "boolean"}
    name = names.get(type(value).__name__, type(value).__name__)
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        # The value is nested too deeply, or is an integer of too many digits.
        return f"a {name}"
    if value is None:
        return "null"
    beginning = f"{text[:SHOWN]}..." if len(text) > SHOWN else text
    return f"the {name} {beginning}"
