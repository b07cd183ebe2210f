"""Conversations: records that hold a list of messages instead of one text.

Their text is JSON in one form, {"messages": [{"role": ..., "content": ...}, ...]}, whatever the
names in the input are: `messages` with role and content, or `conversations` with from and value.
"""

from __future__ import annotations

import json
from typing import Any

LANGUAGE = "conversation"
COLUMNS = ("messages", "conversations", "conversation")
# Roles as the sets of conversations of ShareGPT spell them.
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}


def canonical_text(messages: Any) -> str | None:
    """Returns the messages as JSON; None if they are not texts with roles, or if there are none."""
    if isinstance(messages, dict):  # Hugging Face stores a sequence of dicts as a dict of lists
        messages = _transposed(messages)
    if not isinstance(messages, list) or not messages:
        return None
    canonical = []
    for message in messages:
        if not isinstance(message, dict):
            return None
        role = message.get("role") or message.get("from")
        content = message["content"] if "content" in message else message.get("value")
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        canonical.append({"role": ROLES.get(role, role), "content": content})
    return json.dumps({"messages": canonical}, ensure_ascii=False)


def _transposed(lists: dict[str, Any]) -> list[dict[str, Any]] | None:
    lengths = {len(values) if isinstance(values, list) else -1 for values in lists.values()}
    if len(lengths) != 1 or -1 in lengths:
        return None
    return [dict(zip(lists, values)) for values in zip(*lists.values())]
