"""Fields of JSON requests: one table per endpoint checks requests and describes them in OpenAPI.

Fields that are not in a table are ignored, as clients of both protocols expect; null stands for the
default. Wrong types and values are errors that name the field.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from codellama_jax.checked import shown
from codellama_jax.serving.errors import ApiError, invalid

MAX_SEED = 2**63 - 1
MOST_ITEMS = 1024  # of a list, apart from ids


@dataclass(frozen=True)
class Field:
    """A field of a JSON object.

    Attributes:
      name: its key.
      kind: integer, number, boolean, string, strings, names, object, objects, or "any", which the
        endpoint checks itself. Of names, unlike strings, one may be empty.
      help: its meaning, for the description.
      default: the value where it is absent or null.
      least, most: the range of a number; the length of a list of strings or objects.
      is_required: whether null and absence are errors.
      form: the JSON schema of values of kind "any" or "object", or of the items of objects.
    """

    name: str
    kind: str
    help: str = ""
    default: Any = None
    least: float | None = None
    most: float | None = None
    is_required: bool = False
    form: dict[str, Any] | None = None

    def read(self, value: Any) -> Any:
        """Returns the value of the field, checked. Raises ApiError 400."""
        # Clients serialise unset options as null, so null and absence are the same.
        if value is None:
            if self.is_required:
                raise invalid(self.name, "is missing: it is required", "missing")
            return self.default
        # One method per kind, which names it.
        check = getattr(self, f"_{self.kind}")
        return check(value)

    def schema(self) -> dict[str, Any]:
        """Returns the JSON schema of the field."""
        schema = dict(SCHEMAS[self.kind])
        if self.form:
            schema |= {"items": self.form} if self.kind == "objects" else self.form
        if self.help:
            schema["description"] = self.help
        if self.default is not None:
            is_tuple = self.kind in ("strings", "names")
            schema["default"] = list(self.default) if is_tuple else self.default
        is_list = self.kind in ("strings", "names", "objects")
        names = ("minItems", "maxItems") if is_list else ("minimum", "maximum")
        for name, bound in zip(names, (self.least, self.most)):
            if bound is not None:
                schema[name] = bound
        return schema

    def _any(self, value: Any) -> Any:
        check_text(self.name, value)
        return value

    def _boolean(self, value: Any) -> bool:
        if not isinstance(value, bool):
            self._refuse(value, "true or false")
        return value

    def _integer(self, value: Any) -> int:
        # JSON has one type of number, and 3.0 is a whole number too.
        if not _is_number(value) or value != value // 1:
            self._refuse(value, "a whole number")
        return int(self._ranged(value))

    def _number(self, value: Any) -> float:
        if not _is_number(value):
            self._refuse(value, "a number")
        return float(self._ranged(value))

    def _string(self, value: Any) -> str:
        if not isinstance(value, str):
            self._refuse(value, "text")
        check_text(self.name, value)
        return value

    def _strings(self, value: Any) -> tuple[str, ...]:
        values = self._names(value)
        if "" in values:
            self._refuse(value, "text of at least one character")
        return values

    def _names(self, value: Any) -> tuple[str, ...]:
        # One stop string may be sent without a list around it.
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
            self._refuse(value, "text, or a list of texts")
        self._check_length(values)
        check_text(self.name, values)
        return tuple(values)

    def _object(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._refuse(value, "an object")
        check_text(self.name, value)
        return value

    def _objects(self, value: Any) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self._refuse(value, "a list of objects")
        self._check_length(value)
        check_text(self.name, value)
        return value

    def _ranged(self, value: float) -> float:
        if self.least is not None and value < self.least:
            self._refuse(value, f"at least {self.least:g}")
        if self.most is not None and value > self.most:
            self._refuse(value, f"at most {self.most:g}")
        return value

    def _check_length(self, values: Sequence[Any]) -> None:
        most = int(self.most or MOST_ITEMS)
        if not (self.least or 0) <= len(values) <= most:
            bounds = f"{int(self.least or 0)} to {most}"
            raise invalid(self.name, f"has {len(values)} items: it must have {bounds}")

    def _refuse(self, value: Any, allowed: str) -> NoReturn:
        raise invalid(self.name, f"is {shown(value)}: it must be {allowed}")


TEXT: dict[str, Any] = {"type": "string"}
IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
SCHEMAS: dict[str, dict[str, Any]] = {
    "any": {},
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "string": {"type": "string"},
    "strings": {
        "anyOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "items": {"type": "string", "minLength": 1}},
        ]
    },
    "names": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "object": {"type": "object"},
    "objects": {"type": "array", "items": {"type": "object"}},
}


def read(fields: Sequence[Field], body: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of all fields by name. Raises ApiError 400 for the first wrong one."""
    return {field.name: field.read(body.get(field.name)) for field in fields}


def schema(fields: Sequence[Field]) -> dict[str, Any]:
    """Returns the JSON schema of an object with these fields, and others."""
    properties = {}
    for field in fields:
        properties[field.name] = field.schema()
        if not field.is_required:
            # The description must allow null where `read` does.
            properties[field.name] = {"anyOf": [properties[field.name], {"type": "null"}]}
    required = [field.name for field in fields if field.is_required]
    described: dict[str, Any] = {"type": "object", "properties": properties}
    return described | ({"required": required} if required else {})


def parse(data: bytes) -> dict[str, Any]:
    """Returns the JSON object of a request. Raises ApiError 400 for anything else."""
    try:
        # By default `json` accepts NaN and Infinity, which are not JSON.
        body = json.loads(data or b"null", parse_constant=_refuse_constant)
    # ValueError: no JSON, no UTF-8, or a number of thousands of digits.
    except (ValueError, RecursionError) as error:
        lines = str(error).splitlines() or ["nested too deeply"]
        raise ApiError(400, f"the body is no JSON: {lines[0][:200]}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return body


def check_text(name: str, value: Any) -> None:
    """Raises ApiError for a lone surrogate in a text, or in the texts of a list or an object."""
    if isinstance(value, str):
        try:
            # JSON may escape a lone surrogate, which no tokenizer can encode. Refused here, the
            # error names its field.
            value.encode()
        except UnicodeEncodeError as error:
            surrogate = f"{value[error.start]!a}"
            raise invalid(name, f"holds a lone surrogate, {surrogate}: remove it") from None
    elif isinstance(value, list):
        for item in value:
            check_text(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(name, key)
            check_text(name, item)


def is_integer(value: Any) -> bool:
    """Returns whether a value of JSON is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _is_number(value: Any) -> bool:
    # An int of 400 digits fits in no float; 1e999 is read as infinity.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -sys.float_info.max <= value <= sys.float_info.max
