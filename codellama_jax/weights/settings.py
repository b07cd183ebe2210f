"""What config.json and params.json say, or one line about what they should."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from codellama_jax.config import ModelConfig
from codellama_jax.errors import UserError


def read_json(file: epath.Path) -> dict[str, Any]:
    """Returns what a file of settings says by name. Raises UserError for a damaged one."""
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{file.parent} has no {file.name}: name a folder of weights that has one") from None
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}; download it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} holds a {type(found).__name__} where settings by name are wanted; download it again")
    return found


def number(settings: dict[str, Any], name: str, default: float | None = None, kind: type = int) -> Any:
    """Returns a setting; null takes the default. Raises KeyError if it is not said, and ValueError unless it is a positive number."""
    value = settings.get(name)
    value = default if value is None else value
    if value is None:
        raise KeyError(name)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)) or value <= 0:
        raise ValueError(f"{name} is {value!r}")
    return kind(value)


@contextlib.contextmanager
def describing(file: str) -> Iterator[None]:
    """Makes one line of what a config file leaves unsaid or says wrong."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{file} does not say {error}") from None
    except ValueError as error:
        raise UserError(f"{file} contradicts itself: {error}") from None


def check_heads(model: ModelConfig) -> ModelConfig:
    """Returns a model whose query heads can share its key heads. Raises ValueError for any other."""
    if model.n_heads % model.n_kv_heads or model.head_dim < 1 or model.head_dim % 2:
        raise ValueError(f"{model.n_heads} heads of {model.head_dim} on {model.n_kv_heads} key heads")
    return model
