"""Chat formats: a conversation as token ids, as Code Llama - Instruct was published.

A format writes a prompt, after which the model generates an answer, and a training sample with the
weight of each id in the loss. Tags such as `[INST]` are text in these formats, so that a message
that contains one could end its own turn and speak for somebody else: such a message is refused.

Conversations start with an optional system message; then user and assistant alternate.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

from codellama_jax.errors import UserError
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.tokenizers.sentinels import SENTINEL_ROWS

ROLES = ("system", "user", "assistant")
# The published code refuses messages with any of them, in both formats.
TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<step>")
# The last of the 16 entries after the pieces: 32015 in Code Llama - Instruct 70B's vocabulary.
STEP_ROW = SENTINEL_ROWS - 1
QUOTES = '"""'


class Message(NamedTuple):
    """One message of a conversation."""

    role: str  # one of ROLES
    content: str


class Sample(NamedTuple):
    """A conversation to train on."""

    ids: list[int]
    weights: list[float]  # of each id in the loss: 1 for answers and their ends, otherwise 0


class ConversationError(UserError):
    """A conversation that a format cannot write. Its message names the message by its number."""


class ChatFormat(abc.ABC):
    """Writes conversations as token ids. The tokenizer is the model's."""

    name: str

    @abc.abstractmethod
    def prompt_ids(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        """Returns the ids, BOS included, after which the model generates the next answer.

        Raises ConversationError for a conversation that does not end with a user's message, and for
        the faults that `check` finds.
        """

    @abc.abstractmethod
    def sample(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> Sample:
        """Returns the ids of a conversation to train on, with the weight of each in the loss.

        Raises ConversationError for a conversation that does not end with an answer, and for the
        faults that `check` finds.
        """

    @abc.abstractmethod
    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Returns the ids that end an answer."""


class Llama2Chat(ChatFormat):
    """The format of Llama 2 - Chat and of Code Llama - Instruct 7B, 13B and 34B.

    A turn is BOS, one encoded text `[INST] question [/INST] answer ` and EOS. The system message is
    part of the first question. The paper does not state which tokens it trained on; here they are
    those of Llama 2's paper, the answer, the piece of the space after it, and EOS.
    """

    name = "llama2"

    def prompt_ids(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        turns = _turns(messages, answered=False)
        ids = []
        # Earlier turns are complete, with their EOS. The last one is open and ends after `[/INST]`.
        for question, answer in turns[:-1]:
            turn_ids, _ = _llama2_turn(tokenizer, question, answer)
            ids += turn_ids
        return [*ids, tokenizer.bos_id, *tokenizer.encode(_llama2_question(turns[-1][0]))]

    def sample(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> Sample:
        sample = Sample([], [])
        for question, answer in _turns(messages, answered=True):
            ids, prompt = _llama2_turn(tokenizer, question, answer)
            sample.ids.extend(ids)
            # 1 from the first token of the answer to EOS: the model must learn to end its answer.
            sample.weights.extend([0.0] * prompt + [1.0] * (len(ids) - prompt))
        return sample

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return (tokenizer.eos_id,)


class CodeLlama70BChat(ChatFormat):
    """The format of Code Llama - Instruct 70B, whose messages end with the marker `<step>`.

    One BOS; then for each message a header, a blank line with the content, and `<step>`. These
    parts are encoded separately, so that SentencePiece adds a space to each. A conversation without
    a system message gets an empty one, as in the published code.
    """

    name = "code_llama_70b"

    def prompt_ids(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        check(messages, answered=False)
        ids = [tokenizer.bos_id]
        for message in _with_system(messages):
            ids += [*_header(tokenizer, message.role), *_body(tokenizer, message)]
        # An open message: the header of the answer and the start of its body, after which the
        # content follows.
        return [*ids, *_header(tokenizer, "assistant"), *tokenizer.encode("\n\n ")]

    def sample(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> Sample:
        check(messages, answered=True)
        sample = Sample([tokenizer.bos_id], [0.0])
        for message in _with_system(messages):
            header, body = _header(tokenizer, message.role), _body(tokenizer, message)
            weight = float(message.role == "assistant")
            sample.ids.extend([*header, *body])
            sample.weights.extend([0.0] * len(header) + [weight] * len(body))
        return sample

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return (step_id(tokenizer),)


class DocstringChat(ChatFormat):
    """PanGu-Coder2's format: the question between triple quotes, then the code of the answer.

    A conversation has one question and one answer, and no system message. The paper publishes no
    more than this; here a newline follows the quotes, and BOS and EOS are those of documents.
    """

    name = "pangu_coder2"

    def prompt_ids(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        check(messages, answered=False)
        return self._given(tokenizer, messages, 1)

    def sample(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> Sample:
        check(messages, answered=True)
        given = self._given(tokenizer, messages, 2)
        answer = tokenizer.encode(messages[1].content, leading_space=False)
        learned = [*answer, tokenizer.eos_id]
        return Sample([*given, *learned], [0.0] * len(given) + [1.0] * len(learned))

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return (tokenizer.eos_id,)

    def _given(self, tokenizer: Tokenizer, messages: Sequence[Message], allowed: int) -> list[int]:
        if len(messages) != allowed or messages[0].role != "user":
            problem = f"the conversation has {len(messages)} messages"
            raise ConversationError(f"{problem}; pangu_coder2 takes one question and its answer")
        if QUOTES in messages[0].content:
            problem = f"the question contains {QUOTES}, which ends it in the format pangu_coder2"
            raise ConversationError(f"{problem}: remove it")
        start = [tokenizer.bos_id] if tokenizer.adds_bos else []
        return [*start, *tokenizer.encode(f"{QUOTES}{messages[0].content.strip()}{QUOTES}\n")]


FORMATS: dict[str, ChatFormat] = {}
for _format in (Llama2Chat(), CodeLlama70BChat(), DocstringChat()):
    FORMATS[_format.name] = _format


def check(messages: Sequence[Message], answered: bool, tags: Sequence[str] = TAGS) -> None:
    """Raises ConversationError, naming the message, for a conversation that has no such form.

    Roles must be an optional system message, then user and assistant alternately, ending with an
    answer where the conversation is `answered` and with a user's message otherwise. No message may
    contain any of `tags`, and only a system message may be empty.
    """
    start = 1 if messages and messages[0].role == "system" else 0
    if len(messages) == start:
        raise ConversationError("the conversation has no message of the user")
    for number, message in enumerate(messages, 1):
        # Counted without the system message: even turns are the user's, odd ones the assistant's.
        turn = number - 1 - start
        expected = "system" if turn < 0 else ROLES[1 + turn % 2]
        if message.role != expected:
            problem = f"has the role {message.role!r} where {expected!r} is due"
            fix = "an optional system message comes first, then user and assistant alternate"
            raise ConversationError(f"message {number} {problem}: {fix}")
        for tag in tags:
            if tag in message.content:
                problem = f"contains {tag}, which the chat format itself writes"
                raise ConversationError(f"message {number} {problem}: remove it")
        if message.role != "system" and not message.content.strip():
            raise ConversationError(f"message {number} is empty: write a text or remove it")
    last = "assistant" if answered else "user"
    if messages[-1].role != last:
        purpose = "to train on" if answered else "to answer"
        problem = f"the conversation ends with a message of the {messages[-1].role}"
        raise ConversationError(f"{problem}; one {purpose} ends with one of the {last}")


def step_id(tokenizer: Tokenizer) -> int:
    """Returns the id of `<step>`. Raises UserError for a vocabulary without room for it."""
    if tokenizer.vocab_size < tokenizer.pieces + SENTINEL_ROWS:
        fix = "use the format llama2, or a tokenizer with Code Llama's infilling entries"
        problem = "the vocabulary has no <step>, which ends the messages of code_llama_70b"
        raise UserError(f"{problem}: {fix}")
    return tokenizer.pieces + STEP_ROW


def _turns(messages: Sequence[Message], answered: bool) -> list[tuple[str, str]]:
    """Returns (question, answer) pairs, the system message in the first question.

    The last answer is "" unless the conversation is `answered`. Raises ConversationError like
    `check`.
    """
    check(messages, answered)
    system = ""
    if messages[0].role == "system":
        system = f"<<SYS>>\n{messages[0].content}\n<</SYS>>\n\n"
        messages = messages[1:]
    questions = [message.content for message in messages[::2]]
    answers = [message.content for message in messages[1::2]]
    # Llama 2's system message is no turn: it is text inside of the first question.
    questions[0] = system + questions[0]
    if not answered:
        answers.append("")
    return list(zip(questions, answers, strict=True))


def _llama2_question(question: str) -> str:
    return f"[INST] {question.strip()} [/INST]"


def _llama2_turn(tokenizer: Tokenizer, question: str, answer: str) -> tuple[list[int], int]:
    """Returns the ids of a finished turn and how many of them, BOS included, are the question's."""
    prompt = _llama2_question(question)
    prompt_ids = tokenizer.encode(prompt)
    ids = tokenizer.encode(f"{prompt} {answer.strip()} ")
    # The text is encoded at once, as published. A tokenizer could merge the last piece of the
    # question with the start of the answer; that piece then belongs to the answer.
    shared = common_length(prompt_ids, ids)
    return [tokenizer.bos_id, *ids, tokenizer.eos_id], shared + 1


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns how many ids two sequences have in common at their start."""
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    return shared


def _with_system(messages: Sequence[Message]) -> list[Message]:
    has_system = messages[0].role == "system"
    return [*messages] if has_system else [Message("system", ""), *messages]


def _header(tokenizer: Tokenizer, role: str) -> list[int]:
    destination = "\nDestination: user" if role == "assistant" else ""
    return tokenizer.encode(f" Source: {role}{destination}")


def _body(tokenizer: Tokenizer, message: Message) -> list[int]:
    content = message.content.strip()
    ids = tokenizer.encode(f"\n\n {content}") if content else []
    return [*ids, step_id(tokenizer)]
