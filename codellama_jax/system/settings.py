"""The fields of config.json and params.json, each with the type and the range that it may have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from etils import epath

from codellama_jax.errors import UserError
from codellama_jax.system.files import read_json

MAX_SHOWN = 40  # characters of a value in a message


@dataclass(frozen=True)
class Settings:
    """The JSON object of a file of settings, or an object inside it."""

    file: str  # path of the file, for messages
    values: dict[str, Any]
    prefix: str = ""  # of the names of an inner object, as "rope_scaling."

    def has(self, name: str) -> bool:
        """Returns whether a field has a value other than null."""
        return self.values.get(name) is not None

    def integer(self, name: str, largest: int, default: int | None = None) -> int:
        """Returns a whole number between 1 and `largest`; a missing or null field is `default`.

        Raises UserError naming the field and its value for any other, and if there is no default.
        """
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        # bool is a subclass of int: true must not pass for 1.
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            raise self.error(name, f"a whole number between 1 and {largest:,}")
        return value

    def real(self, name: str, largest: float, default: float | None = None) -> float:
        """Returns a number above 0 and up to `largest`. Raises UserError like `integer`."""
        value: Any = self.values.get(name)
        if value is None and default is not None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value <= largest:
            raise self.error(name, f"a number between 0 and {largest:,.12g}")
        return float(value)

    def flag(self, name: str) -> bool:
        """Returns true or false; a missing or null field is false. Raises UserError for others."""
        value = self.values.get(name)
        if not isinstance(value, bool | None):
            raise self.error(name, "true or false")
        return bool(value)

    def inner(self, name: str) -> Settings:
        """Returns an inner object; a missing or null one is empty. Raises UserError for others."""
        value = self.values.get(name)
        if not isinstance(value, dict | None):
            raise self.error(name, "an object or null")
        return Settings(self.file, value or {}, f"{self.prefix}{name}.")

    def error(self, name: str, requirement: str) -> UserError:
        """Returns the error of a field whose value does not meet a requirement."""
        if name not in self.values:
            return UserError(
                f"{self.file}: {self.prefix}{name} is missing: it must be {requirement}"
            )
        value = shown_value(self.values[name])
        return UserError(f"{self.file}: {self.prefix}{name} must be {requirement}, got {value}")


def read_settings(file: epath.Path) -> Settings:
    """Reads a file of settings. Raises UserError that names the file for one that is damaged."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise UserError(f"{file} must hold a JSON object, got {shown_value(value)}")
    return Settings(str(file), value)


def shown_value(value: Any) -> str:
    """Returns a JSON value as a message shows it, in one short line."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    if len(text) > MAX_SHOWN:
        text = f"{text[:MAX_SHOWN]}... ({len(text):,} characters)"
    return f"the string {text}" if isinstance(value, str) else text
