"""`chat` of the command line: a conversation with a trained model in the terminal."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING

from codellama_jax.checked import choices_problem
from codellama_jax.errors import UserError
from codellama_jax.generation.options import Generating, Trained, note
from codellama_jax.generation.settings import MAX_SEED
from codellama_jax.system.files import reason, user_path, write_file
from codellama_jax.tokenizers.base import utf8
from codellama_jax.tokenizers.chat import FORMATS, ChatFormat, ConversationError, Message
from codellama_jax.tokenizers.chat_template import NAME as TEMPLATE
from codellama_jax.tokenizers.chat_template import TemplateChat, has_template

if TYPE_CHECKING:
    from codellama_jax.config import Stage
    from codellama_jax.models.trained import TrainedModel
    from codellama_jax.tokenizers.base import Tokenizer

HELP = """\
/system TEXT  replaces the system message and begins a new conversation; without TEXT removes it
/clear        begins a new conversation
/save FILE    writes the conversation as one line of JSON, as training reads it
/help         prints this list
/quit         ends the chat, as Ctrl-D does"""
PROMPT = "you: "


@dataclass(frozen=True)
class Chat(Generating):
    """Talk to a model that was trained on conversations."""

    _: KW_ONLY
    system: str = ""
    """The system message."""
    chat_format: str = ""
    """llama2, code_llama_70b, pangu_coder2, or template, the model's own; unless given, the
    template of an imported model, or the format that the run was trained with."""
    message: str = ""
    """Print the answer to this message and end, instead of reading messages."""

    def __call__(self) -> None:
        """Reads messages and prints answers until the end of the input."""
        trained = self.find()
        chat = format_of(self.run, self.chat_format, trained.tokenizer, trained.stage)
        conversation = Conversation(self.system)
        if self.message:
            # A message that the format refuses is reported before the model is loaded.
            conversation.ask(chat, trained.tokenizer, self.message)
        model = self.load()
        answer = _answerer(self, trained, model, chat)
        if self.message:
            answer(conversation)
            return
        note("type a message; /help lists the commands, Ctrl-D ends the chat")
        for line in _lines():
            try:
                if line.startswith("/"):
                    # `/quit` ends the loop; every other command is followed by the next line.
                    if not _command(line, conversation):
                        return
                    continue
                conversation.ask(chat, trained.tokenizer, line)
                answer(conversation)
            except KeyboardInterrupt:
                note("\nstopped; the message is forgotten")
                conversation.forget()
            # A question without an answer must not stay: the next one would follow it, and the
            # formats refuse two messages of the user in a row.
            except UserError as error:
                note(f"error: {error}")
                conversation.forget()


def format_of(run: str, name: str, tokenizer: Tokenizer, stage: Stage | None) -> ChatFormat:
    """Returns the format of a conversation with a run.

    Raises UserError where no format has the name, or where none is given or known.

    Args:
        run: the run, for messages.
        name: of the format; "" takes the model's own template, or the format of the training.
        tokenizer: the run's.
        stage: the stage that was trained; None for published weights.
    """
    if not name:
        trained = stage.data.chat if stage else ""
        name = TEMPLATE if has_template(tokenizer) else trained
    if not name:
        raise UserError(
            f"{run} was not trained on conversations: pass --chat-format with their form"
            f" ({', '.join(FORMATS)}), or use complete"
        )
    return named_format(name, tokenizer)


def named_format(name: str, tokenizer: Tokenizer) -> ChatFormat:
    """Returns the format of a name. Raises UserError for another one, or a missing template."""
    if name == TEMPLATE:
        return TemplateChat(tokenizer)
    if name not in FORMATS:
        raise UserError(f"--chat-format{choices_problem(name, [*FORMATS, TEMPLATE])}")
    return FORMATS[name]


class Conversation:
    """The messages so far."""

    def __init__(self, system: str):
        """Starts with a system message, or without one where it is ""."""
        self.system = system
        self.messages: list[Message] = []

    def all(self) -> list[Message]:
        """Returns the messages, the system's first."""
        first = [Message("system", self.system)] if self.system else []
        return [*first, *self.messages]

    def ask(self, chat: ChatFormat, tokenizer: Tokenizer, text: str) -> None:
        """Adds a message of the user. Raises ConversationError if the format refuses it."""
        self.messages.append(Message("user", text))
        try:
            # Encoding is the only check that knows the format's rules on roles and their order.
            chat.prompt_ids(tokenizer, self.all())
        except ConversationError:
            self.messages.pop()
            raise

    def forget(self) -> None:
        """Removes a last message of the user that has no answer."""
        if self.messages and self.messages[-1].role == "user":
            self.messages.pop()

    def save(self, path: str) -> None:
        """Writes the conversation as a line of JSON. Raises UserError if that fails."""
        messages = [message._asdict() for message in self.all()]
        line = json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
        try:
            write_file(user_path(path), utf8(line))
        except OSError as error:
            raise UserError(f"cannot write {path}: {reason(error)}") from error


def _command(line: str, conversation: Conversation) -> bool:
    """Carries out a line that begins with a slash; returns whether the chat continues."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/quit":
        return False
    if name == "/help":
        note(HELP)
    elif name == "/clear":
        conversation.messages.clear()
        note("a new conversation")
    elif name == "/system":
        conversation.messages.clear()
        conversation.system = rest
        note("a new conversation with this system message" if rest else "no system message")
    elif name == "/save" and rest:
        conversation.save(rest)
        note(f"saved {len(conversation.all())} messages to {rest}")
    elif name == "/save":
        note("error: /save needs a file: /save talk.jsonl")
    else:
        known = ["/system", "/clear", "/save", "/help", "/quit"]
        problem = choices_problem(name, known)
        note(f"error: the command{problem}; a message that begins with a slash needs a space first")
    return True


def _lines() -> Iterator[str]:
    """Yields the user's messages until the end of the input; empty ones are left out."""
    if sys.stdin.isatty():
        # Importing it gives `input` a history and editing keys.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Bytes that are not UTF-8 become lone surrogates, which the tokenizer refuses in one line.
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            line = input(PROMPT if sys.stdin.isatty() else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            note("\nCtrl-D ends the chat")
            continue
        # A leading space sends a message that begins with a slash.
        if line.strip():
            yield line


def _answerer(
    options: Chat, trained: Trained, model: TrainedModel, chat: ChatFormat
) -> Callable[[Conversation], None]:
    """Returns the function that answers the last message, prints the answer and adds it."""
    from codellama_jax.generation.text import Stream, generate_text

    tokenizer = trained.tokenizer
    stop_ids = chat.stop_ids(tokenizer)

    def decode(_: int, ids: list[int]) -> str:
        return tokenizer.decode(ids, leading_space=False).lstrip()

    def answer(conversation: Conversation) -> None:
        messages = conversation.all()
        # Every turn encodes the full conversation again; the sampler starts a new engine, so that
        # no cache is kept between turns.
        ids = chat.prompt_ids(tokenizer, messages)
        options.check_length(trained, ids, "the conversation")
        # Another turn, another seed: the same question twice need not have the same answer.
        seed = (options.sampling.seed + len(conversation.messages)) % (MAX_SEED + 1)
        sampling = replace(options.sampling, seed=seed)
        with _shown() as write:
            # No stop strings: the format's stop ids end an answer, and they are not among the new
            # ids.
            stream = Stream(write, ())
            (generated,) = generate_text(model, [ids], decode, sampling, stop_ids, (), stream)
            stream.finish(generated.text)
        text = generated.text.strip()
        if not text:
            raise UserError("the model has no answer: its first token ends it; try --temperature")
        if not generated.is_ended:
            note(f"note: no end within {sampling.max_new_tokens:,} tokens: --max-new-tokens")
        conversation.messages.append(Message("assistant", text))

    return answer


@contextlib.contextmanager
def _shown() -> Iterator[Callable[[str], None]]:
    """Yields a function that prints pieces of an answer: on a terminal as Markdown, with code in
    colour."""
    if not sys.stdout.isatty():
        yield _plain
        print(flush=True)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.markdown import Markdown

    pieces: list[str] = []
    with Live(console=Console(), refresh_per_second=8, vertical_overflow="visible") as live:

        def write(text: str) -> None:
            pieces.append(text)
            live.update(Markdown("".join(pieces)))

        yield write


def _plain(text: str) -> None:
    print(text, end="", flush=True)
