"""What the fields of a benchmark's records must hold, checked when the file is read.

A suite declares its fields once, as {"prompt": TEXT, "stop_tokens": list_of(WORD)}; whatever reads
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
    """A type of a field: its name in messages, and the test of a value."""

    name: str
    accepts: Callable[[Any], bool]
    optional: bool = False


def _is_text(value: Any) -> bool:
    """Half a surrogate pair is no text: neither a tokenizer nor a file takes it."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


TEXT = Kind("a string", _is_text)
WORD = Kind("a string that is not empty", lambda value: _is_text(value) and bool(value))
IDENTIFIER = Kind("a Python name", lambda value: _is_text(value) and value.isidentifier())
INTEGER = Kind("an integer", lambda value: type(value) is int)
NUMBER = Kind("a number", _is_number)


def optional(kind: Kind) -> Kind:
    """Returns the kind of a field that may be missing."""
    return replace(kind, optional=True)


def or_null(kind: Kind) -> Kind:
    """Returns the kind of a field that may be null."""
    return replace(
        kind, name=f"{kind.name} or null", accepts=lambda v: v is None or kind.accepts(v)
    )


def list_of(kind: Kind, least: int = 0) -> Kind:
    """Returns the kind of a list whose items are all of `kind`, at least `least` of them."""
    name = f"a list{', not empty,' if least else ''} whose items are each {kind.name}"

    def accepts(value: Any) -> bool:
        return isinstance(value, list) and len(value) >= least and all(map(kind.accepts, value))

    return Kind(name, accepts)


ANY = Kind("any value", lambda value: True)
LIST = list_of(ANY)


def check_record(record: Any, fields: Mapping[str, Kind], place: str) -> None:
    """Raises UserError naming the place, field, value and expected type of the first fault."""
    if not isinstance(record, dict):
        raise UserError(f"{place} must be a JSON object, not {shown(record)}")
    lacking = [name for name, kind in fields.items() if not kind.optional and name not in record]
    if lacking:
        names = ", ".join(lacking)
        raise UserError(f"{place} has no {names}: is it a file of another benchmark?")
    for name, kind in fields.items():
        if name in record and not kind.accepts(record[name]):
            raise UserError(f"{place}: {name} must be {kind.name}, not {shown(record[name])}")


def shown(value: Any) -> str:
    """Returns a value as a message shows it: its type and its beginning."""
    names = {"str": "string", "NoneType": "null", "dict": "object", "bool": "boolean"}
    name = names.get(type(value).__name__, type(value).__name__)
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deeply, or an integer of very many digits
        return f"a {name}"
    if value is None:
        return "null"
    return f"the {name} {text[:SHOWN]}{'...' if len(text) > SHOWN else ''}"
