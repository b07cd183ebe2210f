"""The options of all suites in one dataclass, for a command line that names the suite."""

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
    for suite_name, suite in SUITES.items():
        # `include_extras` keeps the help texts, which are annotations.
        hints = typing.get_type_hints(suite.options, include_extras=True)
        for field in dataclasses.fields(suite.options):
            annotation = hints[field.name]
            if typing.get_origin(annotation) is not Annotated:
                raise TypeError(
                    f"option {field.name} of {suite_name} has no help text: write its type as"
                    ' Annotated[TYPE, described("HELP")]'
                )
            kind, argument = typing.get_args(annotation)
            # Options of several suites with one name have the same type and default.
            fields[field.name] = field
            types[field.name] = kind
            suites_by_text = texts.setdefault(field.name, {})
            suites_by_text.setdefault(argument.help, []).append(suite_name)
    arguments: list[Any] = []
    # tyro reads the options from the annotations of a dataclass.
    for option, field in fields.items():
        kind, argument = types[option], described(_help(texts[option]))
        hint: Any = Annotated[kind, argument]  # type: ignore[valid-type]
        arguments.append((option, hint, dataclasses.field(default=field.default)))
    return dataclasses.make_dataclass("SuiteOptions", arguments, frozen=True)


def _help(suites_by_text: dict[str, list[str]]) -> str:
    """Joins the help texts of an option; one that few suites have is preceded by their names."""
    parts = []
    for text, suites in suites_by_text.items():
        if len(suites) > len(SUITES) / 2:
            parts.append(text)
        else:
            parts.append(f"{', '.join(suites)}: {text[0].lower()}{text[1:]}")
    return " ".join(parts)


def options_of(suite_name: str, given: Any) -> Options:
    """Returns the options of one suite from `given`, an instance of `all_options()`.

    Raises UserError for an unknown suite, and for an option that it does not have.
    """
    cls = suite_of(suite_name).options
    names = [field.name for field in dataclasses.fields(cls)]
    values = {}
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if field.name in names:
            values[field.name] = value
        # The command line passes every option; only those that the user changed are mistakes.
        elif value != field.default:
            listed = " ".join(_flag(name) for name in names)
            raise UserError(f"{_flag(field.name)} is no option of {suite_name}, which has {listed}")
    return cls(**values)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
