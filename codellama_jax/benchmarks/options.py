"""The options of all suites as one dataclass, for a command line that names the suite."""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any

from codellama_jax.benchmarks.settings import Options, described
from codellama_jax.benchmarks.suites import SUITES, suite_of
from codellama_jax.errors import UserError


def all_options() -> type:
    """Returns a dataclass with every option of any suite. Help texts name the suites of each."""
    fields: dict[str, dataclasses.Field] = {}
    types: dict[str, Any] = {}
    texts: dict[str, dict[str, list[str]]] = {}  # option -> help text -> suites
    for name, suite in SUITES.items():
        hints = typing.get_type_hints(suite.options, include_extras=True)
        for field in dataclasses.fields(suite.options):
            kind, argument = typing.get_args(hints[field.name])
            fields[field.name], types[field.name] = field, kind
            texts.setdefault(field.name, {}).setdefault(argument.help, []).append(name)
    arguments: list[Any] = []
    for option, field in fields.items():
        kind, argument = types[option], described(_help(texts[option]))
        hint: Any = Annotated[kind, argument]  # type: ignore[valid-type]
        arguments.append((option, hint, dataclasses.field(default=field.default)))
    return dataclasses.make_dataclass("SuiteOptions", arguments, frozen=True)


def _help(texts: dict[str, list[str]]) -> str:
    parts = []
    for text, names in texts.items():
        common = len(names) > len(SUITES) / 2
        parts.append(text if common else f"{', '.join(names)}: {text[0].lower()}{text[1:]}")
    return " ".join(parts)


def options_of(name: str, given: Any) -> Options:
    """Returns the options of a suite from those that a command line gave for all suites.

    Raises UserError for an unknown suite, and for an option that it does not have.
    """
    cls = suite_of(name).options
    values = {}
    own = [field.name for field in dataclasses.fields(cls)]
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if field.name in own:
            values[field.name] = value
        elif value != field.default:
            listed = " ".join(f"--{option}" for option in own)
            option = f"--{field.name} is no option of {name}, which has {listed}"
            raise UserError(option.replace("_", "-").replace(name.replace("_", "-"), name))
    return cls(**values)
