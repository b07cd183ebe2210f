"""Conversations and ranked pairs: records with messages or answers instead of one text.

Their text is JSON in one form, by which training recognises them (data/conversations.py):

    {"messages": [{"role": ..., "content": ...}, ...]}
    {"prompt": ..., "chosen": ..., "rejected": ..., "difference": ...}
    {"prompt": ..., "completion": ...}

The layouts that are read: `messages` with role and content (OpenAI), `conversations` with from and
value (ShareGPT), `instruction`, `input` and `output` (Alpaca), `prompt`, `chosen` and `rejected`
with `chosen_score` and `rejected_score`, as alignment/rank.py writes them, and `prompt` with
`completion` (OpenAI's older layout, and alignment/codex_s.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

LANGUAGE = "conversation"
MESSAGES = ("messages", "conversations", "conversation")
ALPACA = ("instruction", "output")
PAIR = ("prompt", "chosen", "rejected")
SCORES = ("chosen_score", "rejected_score")
COMPLETION = ("prompt", "completion")
TEXTS = ("text", "content")  # columns of a table whose documents are no completions
# Roles as the sets of conversations of ShareGPT spell them.
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}


def columns_of(available: Sequence[str]) -> tuple[str, ...]:
    """Returns the columns of a table that make a conversation or a pair, () if it has none."""
    # Messages first: a table of them may also have a column named prompt or instruction.
    for name in MESSAGES:
        if name in available:
            return (name,)
    if set(PAIR) <= set(available):
        return (*PAIR, *(name for name in SCORES if name in available))
    if set(ALPACA) <= set(available):
        return (*ALPACA, *(name for name in ("input",) if name in available))
    # A table of documents may have a column `prompt` beside its text.
    if set(COMPLETION) <= set(available) and not set(TEXTS) & set(available):
        return COMPLETION
    return ()


def canonical_text(row: dict[str, Any]) -> str | None:
    """Returns a row as JSON, None if its values are not of the layout of its columns.

    `row` holds the values of the columns that `columns_of` returned.
    """
    if set(PAIR) <= set(row):
        value = _pair(row)
    elif set(ALPACA) <= set(row):
        value = _alpaca(row)
    elif set(COMPLETION) <= set(row):
        is_text = all(isinstance(row[name], str) for name in COMPLETION)
        value = {name: row[name] for name in COMPLETION} if is_text else None
    else:
        (messages,) = row.values()
        value = _conversation(messages)
    return None if value is None else json.dumps(value, ensure_ascii=False)


def plain_text(text: str) -> str:
    """Returns the texts in the JSON of `canonical_text`, without its escapes."""
    texts: list[str] = []

    def note(content: str) -> str:
        texts.append(content)
        return content

    with_texts(text, note)
    return "\n\n".join(texts)


def with_texts(text: str, change: Callable[[str], str]) -> str:
    """Returns the JSON of `canonical_text` after a change of each text in it but the roles.

    A text that is no such JSON, of which a table may state the language, is changed as it is.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return change(text)
    messages = value.get("messages")
    for fields in (value, *(messages if isinstance(messages, list) else ())):
        for name, content in fields.items() if isinstance(fields, dict) else ():
            if isinstance(content, str) and name != "role":
                fields[name] = change(content)
    return json.dumps(value, ensure_ascii=False)


def _conversation(messages: Any) -> dict[str, Any] | None:
    if isinstance(messages, dict):  # Hugging Face stores a sequence of dicts as a dict of lists
        messages = _transposed(messages)
    if not isinstance(messages, list) or not messages:
        return None
    canonical = []
    for message in messages:
        if not isinstance(message, dict):
            return None
        role = message.get("role") or message.get("from")
        # `content` may be "", so that its presence decides and not its value.
        content = message["content"] if "content" in message else message.get("value")
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        canonical.append({"role": ROLES.get(role, role), "content": content})
    return {"messages": canonical}


def _alpaca(row: dict[str, Any]) -> dict[str, Any] | None:
    texts = [row["instruction"], row.get("input") or "", row["output"]]
    if not all(isinstance(text, str) for text in texts):
        return None
    instruction, given, output = texts
    question = f"{instruction}\n\n{given}" if given.strip() else instruction
    return _conversation(
        [{"role": "user", "content": question}, {"role": "assistant", "content": output}]
    )


def _pair(row: dict[str, Any]) -> dict[str, Any] | None:
    texts = {name: row[name] for name in PAIR}
    # Without scores, as in DPO's data sets, the chosen answer is better by 1.
    scores = [row.get(name, default) for name, default in zip(SCORES, (1, 0))]
    is_number = all(isinstance(score, int | float) for score in scores)
    if not is_number or not all(isinstance(text, str) for text in texts.values()):
        return None
    try:
        difference = float(scores[0]) - float(scores[1])
    except OverflowError:  # an integer beyond any float
        return None
    # Training learns that the chosen answer is better by this much.
    is_ranked = math.isfinite(difference) and difference > 0
    return {**texts, "difference": difference} if is_ranked else None


def _transposed(lists: dict[str, Any]) -> list[dict[str, Any]] | None:
    lengths = {len(values) if isinstance(values, list) else -1 for values in lists.values()}
    if len(lengths) != 1 or -1 in lengths:
        return None
    return [dict(zip(lists, values)) for values in zip(*lists.values())]
