"""Conversations, ranked pairs and completions as training examples.

They are documents whose text is JSON in the form that `prepare` writes: see
prepare/readers/conversations.py. One that a chat format refuses, because of a tag in a message or
an order of roles, is left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from codellama_jax.tokenizers.chat import FORMATS, ConversationError, Message

CONVERSATION = '{"messages": ['
DAMAGED = "it is no JSON of roles and texts"
LONGEST_REASON = 100  # characters: a role may be any text
LEAST_DIFFERENCE, MOST_DIFFERENCE = 1e-30, 1e30  # of the scores of a pair


def is_conversation(text: str) -> bool:
    """Returns whether a document is a conversation: its text begins as `prepare` writes one."""
    return text.startswith(CONVERSATION)


def conversation_ids(
    tokenizer: Any, text: str, chat: str, reasons: Counter[str] | None = None
) -> tuple[list[int], list[float]]:
    """Returns the ids of a conversation and the weight of each in the loss; none if it is refused.

    Messages after the last answer are left out.

    Args:
        tokenizer: of the model.
        text: the document.
        chat: a key of `tokenizers.chat.FORMATS`.
        reasons: counts why conversations are refused.
    """
    reasons = Counter() if reasons is None else reasons
    try:
        messages = [Message(**message) for message in json.loads(text)["messages"]]
        _check_texts(message.content for message in messages)
    except (ValueError, TypeError, KeyError, RecursionError):
        reasons[DAMAGED] += 1
        return [], []
    # Nothing after the last answer has any loss, and formats refuse to end with a question.
    while messages and messages[-1].role != "assistant":
        messages.pop()
    return _sample(tokenizer, messages, chat, reasons)


def pair_ids(
    tokenizer: Any, text: str, chat: str, reasons: Counter[str] | None = None
) -> tuple[tuple[list[int], list[float]], ...]:
    """Returns ids and weights of the chosen and of the rejected answer; none for another document.

    The weights are the difference of the scores, positive for the chosen answer and negative for
    the rejected one, as the ranked objectives take them.

    Args:
        tokenizer, chat, reasons: as in `conversation_ids`.
        text: the document.
    """
    reasons = Counter() if reasons is None else reasons
    try:
        pair = json.loads(text)
        prompt, difference = pair["prompt"], float(pair["difference"])
        answers = pair["chosen"], pair["rejected"]
        _check_texts((prompt, *answers))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        reasons[DAMAGED] += 1
        return ()
    # The weights are fp32, in which the difference must be neither 0 nor infinite.
    if not LEAST_DIFFERENCE <= difference <= MOST_DIFFERENCE:
        reasons["the difference of the scores is no positive number of fp32"] += 1
        return ()
    encoded = []
    # Both answers are encoded as full conversations, so that each can be scored given the prompt.
    for answer, sign in zip(answers, (1, -1)):
        messages = [Message("user", prompt), Message("assistant", answer)]
        ids, weights = _sample(tokenizer, messages, chat, reasons)
        if not ids:
            return ()
        # The tokens of the prompt have the weight 0 and keep it.
        encoded.append((ids, [sign * difference * weight for weight in weights]))
    return tuple(encoded)


def completion_ids(tokenizer: Any, text: str) -> tuple[list[int], int]:
    """Returns the ids of a prompt with its completion, and how many of them carry no loss.

    The two are encoded separately, as when a model continues the prompt; EOS is trained. Returns no
    ids for a document that is no such record.

    Args:
        tokenizer: of the model.
        text: the document.
    """
    try:
        record = json.loads(text)
        prompt, completion = record["prompt"], record["completion"]
        _check_texts((prompt, completion))
    except (ValueError, TypeError, KeyError, RecursionError):
        return [], 0
    given = tokenizer.prompt(prompt)
    # The completion continues the prompt: SentencePiece's space before a text would separate them.
    learned = tokenizer.encode(completion, leading_space=False)
    return [*given, *learned, tokenizer.eos_id], len(given)


def separate_pairs(sequence: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a packed sequence whose pairs are two segments each, the chosen answer first.

    A pair was packed as one segment, so that both answers are in one sequence. The tokens of the
    rejected answer have ~index as the index of their document.

    Args:
        sequence: arrays of length T by Grain's names: int32 `ids` [T, 3] (token, next token, index
            of the document), `ids_segment_ids` and `ids_positions`, and float32 `weights`.
    """
    ids = sequence["ids"].copy()
    pairs_T, positions_T = sequence["ids_segment_ids"], sequence["ids_positions"].copy()
    is_rejected_T = (ids[:, 2] < 0) & (pairs_T > 0)
    ids[is_rejected_T, 2] = ~ids[is_rejected_T, 2]
    for pair in range(1, int(pairs_T.max(initial=0)) + 1):
        rejected_T = is_rejected_T & (pairs_T == pair)
        # A separate segment counts its positions from 0: with the positions of the packed pair the
        # rejected answer would be scored at another distance than the chosen one.
        positions_T[rejected_T] -= positions_T[rejected_T].min(initial=len(pairs_T))
    # 1, 2, 3, ... become 1 and 2, 3 and 4, 5 and 6, ...; padding stays 0.
    segments_T = np.where(pairs_T > 0, 2 * pairs_T - 1 + is_rejected_T, 0)
    return {
        **sequence,
        "ids": ids,
        "ids_positions": positions_T,
        "ids_segment_ids": segments_T.astype(pairs_T.dtype),
    }


def _check_texts(texts: Iterable[Any]) -> None:
    """Raises TypeError or ValueError for a value that is no text which UTF-8 can represent."""
    for text in texts:
        str.encode(text)


def _sample(
    tokenizer: Any, messages: list[Message], chat: str, reasons: Counter[str]
) -> tuple[list[int], list[float]]:
    try:
        sample = FORMATS[chat].sample(tokenizer, messages)
    except ConversationError as error:
        reasons[_kind_of(error)] += 1
        return [], []
    return sample.ids, sample.weights


def _kind_of(error: ConversationError) -> str:
    """Returns the reason of an error without the number of the message, to count it."""
    problem = re.sub(r"^message \d+ ", "a message ", str(error)).partition(": ")[0]
    return problem[:LONGEST_REASON]
