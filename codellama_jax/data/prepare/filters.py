"""Applies the rules of a policy to one document after another."""

from __future__ import annotations

from collections.abc import Callable

from codellama_jax.data.prepare.policies import Policy
from codellama_jax.data.prepare.records import Dropped, Record


def apply(
    record: Record,
    policy: Policy,
    count_tokens: Callable[[str], int] | None = None,
    language_of: Callable[[str, str], str] | None = None,
) -> Record | Dropped:
    """Returns the record, redacted and with its language, or the reason why it is dropped.

    Args:
        record: the document; a language that it already has is kept.
        policy: the rules.
        count_tokens: returns the number of tokens of a text, for the rule `min_fertility`, which
          is off without it.
        language_of: returns the language of (path, text), "" if it is unknown; by default
          `languages.language_of`.
    """
    raise NotImplementedError
