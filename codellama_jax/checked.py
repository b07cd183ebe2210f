"""Dataclasses that check their own fields: types, ranges and choices.

The same check runs for a config that an experiment file builds, one that is read from a file, and
options from the command line. A dataclass that checks itself while it is built knows only its own
field. So the command line parses everything `unchecked`, and `check_all` names the complete option.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import json
import math
import numbers
import re
import types
import typing
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from codellama_jax.errors import UserError

SHOWN = 60  # characters of a value in a message
_unchecked: ContextVar[bool] = ContextVar("unchecked", default=False)


class FieldError(UserError):
    """A field that holds a value which is not allowed.

    `path` holds the names that lead to the field. Code that knows more of the path than the code
    that raised the error adds it with `under`.
    """

    def __init__(self, path: tuple[str, ...], problem: str):
        """Takes a problem that is ready to follow the path: ` is 0: it must be at least 1`."""
        super().__init__(f"{'.'.join(path)}{problem}".lstrip(": "))
        self.path, self.problem = path, problem

    def under(self, *names: str) -> FieldError:
        """Returns the error with `names` before its path."""
        return FieldError((*names, *self.path), self.problem)

    def as_option(self) -> UserError:
        """Returns the error with its path spelled as on the command line."""
        return UserError(f"--{'.'.join(self.path)}".replace("_", "-") + self.problem)


@dataclass(frozen=True)
class Range:
    """The numbers that a field may hold; `open_least` and `open_most` exclude the bounds."""

    least: float
    most: float
    open_least: bool = False
    open_most: bool = False

    def problem(self, value: float) -> str:
        """Returns the requirement that a value does not meet, or "" if it is in the range."""
        if value < self.least or (self.open_least and value == self.least):
            return f"it must be {'above' if self.open_least else 'at least'} {self.least:,}"
        if value > self.most or (self.open_most and value == self.most):
            return f"it must be {'below' if self.open_most else 'at most'} {self.most:,}"
        return ""


@dataclass(frozen=True)
class Pattern:
    """The texts that a field may hold, as a regular expression and in words."""

    regex: str
    words: str

    def problem(self, value: str) -> str:
        """Returns the requirement that a value does not meet, or "" if it matches."""
        return "" if re.fullmatch(self.regex, value, re.DOTALL) else f"it must be {self.words}"


class Checked:
    """Base of a frozen dataclass whose fields are checked, and numbers converted, when it is built.

    The annotation of a field declares its values: `Annotated[int, Range(1, 8)]`,
    `Annotated[str, Pattern(...)]`, `Literal`, `Optional`, `tuple[X, ...]`, `dict[str, X]`, another
    dataclass, or a plain type.
    """

    def __post_init__(self) -> None:
        if not _unchecked.get():
            self.check()

    def check(self) -> None:
        """Raises FieldError for a wrong type or value, or for fields that contradict each other."""
        cls: Any = type(self)
        for name, hint in _hints(cls).items():
            value = getattr(self, name)
            try:
                converted = _converted(hint, value)
            except FieldError as error:
                raise error.under(name) from None
            if converted is not value:
                # The dataclass is frozen: this is the way in which its own __init__ assigns.
                object.__setattr__(self, name, converted)
        self.check_relations()

    def check_relations(self) -> None:
        """Raises FieldError where fields contradict each other, each of them being in range."""


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Builds `Checked` dataclasses without checks; `check_all` runs them later."""
    # A context variable, so that other threads keep their checks.
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


def check_all(config: Any) -> None:
    """Checks a dataclass and every dataclass in its fields.

    Raises FieldError with the path from `config`. A field whose tyro name is "" adds nothing to the
    path, as it adds nothing to the option.
    """
    cls: Any = type(config)
    for name, hint in _hints(cls).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            # Inner dataclasses first: a relation may use their values.
            names = () if _is_unnamed(hint) else (name,)
            try:
                check_all(value)
            except FieldError as error:
                raise error.under(*names) from None
    if isinstance(config, Checked):
        config.check()


def from_dict(cls: Any, values: Any) -> Any:
    """Builds a dataclass from nested dicts, lists and numbers, as JSON gives them.

    A class with a classmethod `class_for(values)` is the base of several: it returns which of them
    to build, and its fields. Raises FieldError with the dotted path of a field that is unknown or
    missing, or that holds a wrong type or value.
    """
    if not isinstance(values, dict):
        raise FieldError((), f" is {shown(values)}: it must be a group of fields ({cls.__name__})")
    # ModelConfig, for example, finds the model family by a tag in `values`.
    if hasattr(cls, "class_for"):
        cls, values = cls.class_for(values)
    # Unknown before missing: a renamed field is both, and its old name explains more.
    hints = _hints(cls)
    unknown = sorted(str(name) for name in set(values) - set(hints))
    if unknown:
        fields = f"{cls.__name__} has no field {', '.join(unknown)}"
        raise FieldError((), f": {fields}: written by another version of this code")
    required = [field.name for field in dataclasses.fields(cls) if _is_required(field)]
    missing = [name for name in required if name not in values]
    if missing:
        raise FieldError((), f": {cls.__name__} lacks the field {', '.join(missing)}")
    arguments = {}
    for name, value in values.items():
        try:
            arguments[name] = _built(hints[name], value)
        except FieldError as error:
            raise error.under(name) from None
    return cls(**arguments)


def to_dict(config: Any) -> dict:
    """Returns a dataclass as nested dicts, lists and numbers, from which `from_dict` builds it.

    A field whose metadata is `sparse` is left out while it holds its default. An object with a
    method `tag()` adds the fields by which its `class_for` finds the class.
    """
    # The round trip makes tuples lists and keys text, as they are after a file was read.
    return json.loads(json.dumps(_as_json(config)))


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    fields = value.tag() if hasattr(value, "tag") else {}
    for f in dataclasses.fields(value):
        part = getattr(value, f.name)
        if not f.metadata.get("sparse") or part != default_of(f):
            fields[f.name] = _as_json(part)
    return fields


def shown(value: Any) -> str:
    """Returns a value for a message, shortened where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python prints
        return "a number of thousands of digits"
    if len(text) <= SHOWN:
        return text
    unit = "digits" if isinstance(value, int) else "characters"
    length = len(value) if isinstance(value, str) else len(text)
    return f"{text[:SHOWN]}... ({length:,} {unit})"


def nearest(name: str, names: typing.Iterable[str]) -> str:
    """Returns a hint at the allowed name that a misspelt one resembles, or ""."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def choices_problem(value: str, allowed: typing.Sequence[str]) -> str:
    """Returns the problem of a value that is none of the choices, for a FieldError."""
    listed = ", ".join(name or "''" for name in allowed)
    return f" is {shown(value)}: it must be one of {listed}{nearest(str(value), allowed)}"


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _is_unnamed(hint: Any) -> bool:
    return any(getattr(extra, "name", None) == "" for extra in getattr(hint, "__metadata__", ()))


def _is_required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _split(hint: Any) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
    """Returns a hint's origin (a plain type itself), its arguments, and the extras of Annotated."""
    extras = getattr(hint, "__metadata__", ())
    plain = typing.get_args(hint)[0] if extras else hint
    return typing.get_origin(plain) or plain, typing.get_args(plain), extras


def _built(hint: Any, value: Any) -> Any:
    """Builds the dataclasses in a value of JSON. The dataclass around it checks other values."""
    origin, args, _ = _split(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _built(_not_none(args), value)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_built(args[0], item) for item in value)
    if origin is dict and isinstance(value, dict):
        built = {}
        for key, item in value.items():
            try:
                built[key] = _built(_class_of(args[1], str(key)), item)
            except FieldError as error:
                raise error.under(str(key)) from None
        return built
    return from_dict(origin, value) if dataclasses.is_dataclass(origin) else value


def _class_of(hint: Any, key: str) -> Any:
    """Returns the hint of an entry of a dict; a class with a registry `named` chooses by key."""
    # Probe is such a class: the key of an experiment's probe names its dataclass.
    named = getattr(hint, "named", None)
    return named(key) if named else hint


def _not_none(args: tuple[Any, ...]) -> Any:
    return next(arg for arg in args if arg is not type(None))


def _converted(hint: Any, value: Any) -> Any:
    """Returns a value as a field of this annotation holds it, an int for a float converted.

    Raises FieldError for a wrong type or value.
    """
    origin, args, extras = _split(hint)
    # Optional[X] is the only union that configs have.
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _converted(_not_none(args), value)
    # Literals of configs are texts only: True must not match a 1 among them.
    if origin is typing.Literal:
        if not isinstance(value, str) or value not in args:
            raise FieldError((), choices_problem(value, args))
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise FieldError((), f" is {shown(value)}: it must be a list")
        items = tuple(_converted(args[0], item) for item in value)
        # An unchanged tuple is returned itself, so that `check` assigns nothing.
        same = isinstance(value, tuple) and all(a is b for a, b in zip(items, value))
        return value if same else items
    if origin is dict:
        return _converted_dict(args[1], value)
    converted = _plain(origin, value)
    for extra in extras:
        problem = extra.problem(converted) if isinstance(extra, Range | Pattern) else ""
        if problem:
            raise FieldError((), f" is {shown(value)}: {problem}")
    return converted


def _converted_dict(hint: Any, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FieldError((), f" is {shown(value)}: it must be a dict by name")
    converted = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise FieldError((), f" has the key {shown(key)}: it must be a name")
        try:
            converted[key] = _converted(hint, item)
        except FieldError as error:
            raise error.under(key) from None
    return converted


def _plain(expected: type, value: Any) -> Any:
    """Returns a value of a plain type; numbers of other libraries become Python's."""
    # bool is a subclass of int: True must not pass for 1.
    if expected is bool and isinstance(value, bool):
        return value
    if expected is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return value if type(value) is int else int(value)
    if expected is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        return _finite(value)
    if expected not in (bool, int, float) and isinstance(value, expected):
        return value
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    allowed = words.get(expected, f"a {expected.__name__}")
    raise FieldError((), f" is {shown(value)}: it must be {allowed}")


def _finite(value: Any) -> float:
    # float16 of NumPy and exact fractions are numbers too; an int may exceed all floats.
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise FieldError((), f" is {shown(value)}: it must be a finite number")
    return value if type(value) is float else number


def default_of(f: dataclasses.Field) -> Any:
    """Returns the default of a field, `dataclasses.MISSING` if it has none."""
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return f.default


def leaves(values: dict, prefix: str = "") -> dict[str, Any]:
    """Returns the values of a `to_dict` result that are no dicts, by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Lists the leaves in which two `to_dict` results differ, as `dotted.name: old -> new`."""
    rows = []
    for key in sorted(set(old) | set(new)):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            rows += differences(a, b, name + ".")
        elif a != b:
            rows.append(f"{name}: {a} -> {b}")
    return rows
