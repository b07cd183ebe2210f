"""The chat template of an imported model as a chat format.

A template is a program in Jinja that a model's files hold. It runs in Jinja's sandbox, without
access to Python's attributes. Special tokens in the text that it writes become their ids, and a
message that spells one is refused.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from typing import Any

from codellama_jax.errors import UserError
from codellama_jax.tokenizers import byte_bpe_spec
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.tokenizers.byte_bpe import ByteBpeTokenizer
from codellama_jax.tokenizers.byte_bpe_files import MARKERS
from codellama_jax.tokenizers.chat import (
    ChatFormat,
    ConversationError,
    Message,
    Sample,
    check,
    common_length,
)

NAME = "template"
ANSWER = "An answer."  # that no template writes itself
# What the program of a template raises beside Jinja's own errors.
PYTHON_ERRORS = (ArithmeticError, LookupError, TypeError, ValueError, RecursionError)


def has_template(tokenizer: Tokenizer) -> bool:
    """Returns whether the tokenizer was imported with a chat template."""
    return isinstance(tokenizer, ByteBpeTokenizer) and bool(_template_of(tokenizer))


class TemplateChat(ChatFormat):
    """The chat template of a tokenizer.

    In a training sample, the answers have loss, with the special token that the template writes
    after an answer; everything else has none.
    """

    name = NAME

    def __init__(self, tokenizer: Tokenizer):
        """Compiles the template. Raises UserError where the tokenizer has none, or a wrong one."""
        template = _template_of(tokenizer) if isinstance(tokenizer, ByteBpeTokenizer) else ""
        if not isinstance(tokenizer, ByteBpeTokenizer) or not template:
            fix = "name a format, such as llama2"
            raise UserError(f"the model's tokenizer has no chat template: {fix}")
        spec = json.loads(tokenizer.model)
        vocabulary = byte_bpe_spec.vocabulary(spec, "the tokenizer")
        entries = byte_bpe_spec.entries(spec)
        special = {}
        # Special are all entries that no text is encoded to.
        for name, row in entries.items():
            if name not in vocabulary.tokens and name not in vocabulary.added:
                special[name] = row
        self._special = special
        # Longer ones first: one may begin as another.
        names = sorted(self._special, key=len, reverse=True)
        # `(?!)` matches nowhere: an empty alternative would match everywhere.
        self._pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._template = _compiled(template)
        by_id = {row: name for name, row in entries.items()}
        self._names = {
            "bos_token": by_id.get(tokenizer.bos_id, ""),
            "eos_token": by_id.get(tokenizer.eos_id, ""),
        }

    def prompt_ids(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        self._check(messages, answered=False)
        return self._ids(tokenizer, self._text(messages, is_prompt=True))

    def sample(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> Sample:
        self._check(messages, answered=True)
        ids = self._ids(tokenizer, self._text(messages, is_prompt=False))
        weights = [0.0] * len(ids)
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            # A template is a program and does not reveal which tokens are an answer. So the
            # conversation is written once up to the answer and once with it, and the difference is
            # the answer. Lengths are those of common ids, because a template may treat the last
            # message in another way.
            prompt = self._ids(tokenizer, self._text(messages[:index], is_prompt=True))
            until = self._ids(tokenizer, self._text(messages[: index + 1], is_prompt=False))
            start, end = common_length(prompt, ids), common_length(until, ids)
            # A template may write a line break after the token that ends an answer.
            ends = [i for i in range(start, end) if ids[i] in self._special.values()]
            end = ends[-1] + 1 if ends else end
            weights[start:end] = [1.0] * (end - start)
        return Sample(ids, weights)

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        # The token that ends an answer is the first special token after the text of a short one.
        # Before that text a template may write others, such as marks around a thought. EOS ends
        # every answer too.
        talk = [Message("user", "A question."), Message("assistant", ANSWER)]
        _, written, after = self._text(talk, is_prompt=False).rpartition(ANSWER)
        match = self._pattern.search(after)
        ids = [tokenizer.eos_id]
        if written and match:
            ids.append(self._special[match.group()])
        return tuple(dict.fromkeys(ids))

    def _check(self, messages: Sequence[Message], answered: bool) -> None:
        check(messages, answered, tags=())
        for number, message in enumerate(messages, 1):
            match = self._pattern.search(message.content)
            if match:
                problem = f"contains {match.group()}, a special token of the model"
                raise ConversationError(f"message {number} {problem}: remove it")

    def _text(self, messages: Sequence[Message], is_prompt: bool) -> str:
        from jinja2 import TemplateError

        plain = [message._asdict() for message in messages]
        try:
            return self._template.render(
                messages=plain, add_generation_prompt=is_prompt, tools=None, **self._names
            )
        # Templates may raise anything, among it errors of Python for a wrong program.
        except (TemplateError, *PYTHON_ERRORS) as error:
            message = f"the model's chat template refuses the conversation: {error}"
            raise ConversationError(" ".join(message.split())) from None

    def _ids(self, tokenizer: Tokenizer, text: str) -> list[int]:
        ids, start = [], 0
        for match in self._pattern.finditer(text):
            # Text between special tokens is encoded piece by piece, as the library splits it there.
            ids += tokenizer.encode(text[start : match.start()], leading_space=False)
            ids.append(self._special[match.group()])
            start = match.end()
        return [*ids, *tokenizer.encode(text[start:], leading_space=False)]


def _template_of(tokenizer: ByteBpeTokenizer) -> str:
    template = json.loads(tokenizer.model).get(MARKERS, {}).get("chat_template")
    return template if isinstance(template, str) else ""


def _compiled(template: str) -> Any:
    """Returns the compiled template, with the settings and functions that transformers gives it."""
    from jinja2 import TemplateSyntaxError
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # Templates of transformers mark answers with this block, which Jinja does not know.
    class Generation(Extension):
        """The block `generation` around answers, which changes nothing in the text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = _strftime_now
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(template)
    # The last two for templates that are nested too deeply.
    except (TemplateSyntaxError, SyntaxError, RecursionError) as error:
        fix = "name a format, such as llama2"
        raise UserError(f"the model's chat template is no Jinja ({error}): {fix}") from None


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Returns JSON that keeps `<` and letters, which Jinja's own filter would escape."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
