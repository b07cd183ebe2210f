"""The names of models on the command line: runs, published weights, and models behind a URL."""

from __future__ import annotations

import contextlib
import os
import urllib.parse
from collections.abc import Sequence

from codellama_jax.errors import UserError
from codellama_jax.system.files import is_bucket, user_path
from codellama_jax.weights.commands import KINDS


def is_url(model: str) -> bool:
    """Returns whether a name is the URL of a server."""
    return model.startswith(("http://", "https://"))


def published(model: str) -> tuple[str, str]:
    """Returns the kind and the path of published weights, "" and the path of a run."""
    kind, _, path = model.partition(":")
    return (kind, path) if kind in KINDS and path else ("", model)


def repeated_model(models: Sequence[str]) -> str:
    """Returns the first name of a model that an earlier name means too, "" if there is none.

    Where the spelling differs, the result holds both, as in `runs/a/ (runs/a)`.
    """
    names: dict[str, str] = {}
    for model in models:
        place = place_of(model)
        if place in names:
            first = names[place]
            return model if model == first else f"{model} ({first})"
        names[place] = model
    return ""


def identity_of_model(model: str) -> str:
    """Returns the identity of the trained stage that a model is, "" for a model of another kind."""
    if is_url(model) or published(model)[0]:
        return ""
    from codellama_jax.checkpoints.folder import trained_identity

    return trained_identity(user_path(model))


def place_of(model: str) -> str:
    """Returns a text that is the same for all names of one model.

    It is a URL without the slash before `#`, or the path of the weights: absolute, without links
    and without the prefix of a kind. That of a run is the path of its trained stage.
    """
    if is_url(model):
        try:
            url = urllib.parse.urlsplit(model)
        except ValueError:  # opening the model reports it
            return model
        path = url.path.rstrip("/")
        # Host names ignore case and paths do not. The fragment, the model's name, is kept.
        return url._replace(netloc=url.netloc.lower(), path=path).geturl()
    kind, path = published(model)
    folder = user_path(path)
    if not kind:
        from codellama_jax.checkpoints.folder import find_trained

        # Where there is no run, opening the model reports it.
        with contextlib.suppress(UserError):
            folder = find_trained(folder)[0].path
    return str(folder).rstrip("/") if is_bucket(folder) else os.path.realpath(folder)
