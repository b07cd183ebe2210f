"""The OpenAI protocol: /v1/completions with `suffix` for infilling, chats, and the list of models.

/v1/fim/completions is the endpoint of the same purpose in Mistral's protocol, which Continue calls.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from codellama_jax.errors import UserError
from codellama_jax.models.trained import TrainedModel
from codellama_jax.serving import logprobs
from codellama_jax.serving.ends import CursorEnds
from codellama_jax.serving.errors import ApiError, invalid
from codellama_jax.serving.fields import (
    IDS,
    MAX_SEED,
    TEXT,
    Field,
    is_integer,
    parse,
    read,
    schema,
)
from codellama_jax.serving.service import Cursor, Generation, Service, sampling_of
from codellama_jax.serving.streaming import EventStream, answered, at_once
from codellama_jax.serving.texts import Prompt, Settings, Text
from codellama_jax.tokenizers.chat import Message

MOST_CHOICES = 128
MOST_PROMPTS = 128
MOST_STOPS = 4
MAX_TOKENS = 2**31 - 1
DONE = "[DONE]"
Scored = list[logprobs.TokenLogprob]

STREAM_OPTIONS = (
    Field("include_usage", "boolean", "send a last event with the tokens used", False),
)
SAMPLING = (
    Field("model", "string", "a name of /v1/models; the first unless given"),
    Field("temperature", "number", "0 takes the most likely token", 1.0, 0, 2),
    Field("top_p", "number", "draw from this share of the probability", 1.0, 0, 1),
    Field("n", "integer", "choices per prompt", 1, 1, MOST_CHOICES),
    Field("stop", "strings", "texts, each of which ends the answer before it", (), 0, MOST_STOPS),
    Field("stream", "boolean", "send server-sent events", False),
    Field("stream_options", "object", form=schema(STREAM_OPTIONS)),
    Field("seed", "integer", "the same seed draws the same tokens", None, -MAX_SEED - 1, MAX_SEED),
    Field("user", "string", "ignored"),
    Field("presence_penalty", "number", "0 only", 0.0, 0, 0),
    Field("frequency_penalty", "number", "0 only", 0.0, 0, 0),
    Field("logit_bias", "object", "empty only"),
)
PROMPTS = {"type": "array", "items": {"anyOf": [TEXT, IDS]}, "minItems": 1}
PROMPT = {"anyOf": [TEXT, IDS, PROMPTS | {"maxItems": MOST_PROMPTS}]}
PARTS = {
    "type": "array",
    "items": {"type": "object", "required": ["text"], "properties": {"text": TEXT}},
}
ROLES = ("system", "developer", "user", "assistant")
MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"enum": list(ROLES)}, "content": {"anyOf": [TEXT, PARTS]}},
}
CURSOR = (
    Field("spm", "boolean", "suffix-prefix-middle order; unless given, the server's"),
    Field("stop_at_dedent", "boolean", "end before a line indented less than the cursor's", False),
    Field("stop_at_repetition", "boolean", "end before the suffix's next line repeats", False),
)
COMPLETION = (
    Field("prompt", "any", "a text, ids, or a list of texts or of ids", "", form=PROMPT),
    Field("suffix", "string", "text after the middle to fill in"),
    Field("max_tokens", "integer", "new tokens at most", 16, 1, MAX_TOKENS),
    Field("best_of", "integer", "return the most likely n of these", None, 1, MOST_CHOICES),
    Field("echo", "boolean", "the prompt before the text", False),
    Field("logprobs", "integer", "alternatives per token", None, 0, logprobs.MOST_TOP),
    *SAMPLING,
    *CURSOR,
)
FIM = (
    Field("prompt", "string", "text before the middle", is_required=True),
    Field("suffix", "string", "text after the middle", ""),
    Field("max_tokens", "integer", "new tokens at most", None, 1, MAX_TOKENS),
    *SAMPLING,
    *CURSOR,
)
CHAT = (
    Field("messages", "objects", "the conversation", None, 1, is_required=True, form=MESSAGE),
    Field("max_tokens", "integer", "new tokens at most; none or -1 for all that fit", None, -1),
    Field("max_completion_tokens", "integer", "the newer name of max_tokens", None, 1),
    Field("n_predict", "integer", "llama.cpp's name of max_tokens", None, -1),
    Field("logprobs", "boolean", "log-probabilities of the tokens", False),
    Field("top_logprobs", "integer", "alternatives per token", 0, 0, logprobs.MOST_TOP),
    *SAMPLING,
)
# Options of the protocol that would change the answer, and that no field above offers.
UNSUPPORTED = ("tools", "functions", "tool_choice", "response_format", "grammar")
PLAIN_FORMAT = {"type": "text"}


class OpenAI:
    """The endpoints of the protocol."""

    def __init__(self, service: Service) -> None:
        """Serves a model."""
        self.service, self.features = service, service.features

    async def models(self, request: Request) -> Response:
        """Lists the models."""
        data = [self._model(name) for name in self.features.models]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """Describes the model of a name."""
        number = self.service.number_of(request.path_params["name"])
        return JSONResponse(self._model(self.features.models[number]))

    async def completions(self, request: Request) -> Response:
        """Continues prompts, or fills in a middle where there is a suffix."""
        values = self._read(COMPLETION, await request.body())
        # `best_of` sequences are generated and the n with the highest mean log-probability
        # returned.
        best_of = values["best_of"] or values["n"]
        if best_of < values["n"]:
            raise invalid("best_of", f"is {best_of}: it must be at least n, {values['n']}")
        is_scored = values["logprobs"] is not None or best_of > values["n"]
        # Scores come from a forward pass over the finished text, so that no event could hold them.
        if is_scored and values["stream"]:
            raise invalid("stream", "is true: logprobs and best_of need stream false")
        if is_scored:
            _check_scored(values["max_tokens"])
        # With a suffix the text is a middle: an echoed prompt would leave out what follows it.
        if values["echo"] and values["suffix"] is not None:
            raise invalid("echo", "is true: with a suffix it must be false")
        # Encoding long texts takes a while, and would hold up all other connections in the loop.
        prompts, echoes = await self.service.in_thread(self._prompts, values)
        # Adding sequences queues nothing yet; `async with generation` submits all of them together.
        generation, settings = Generation(self.service), _settings(values, values["max_tokens"])
        for prompt in prompts:
            self.service.check_length(prompt, values["max_tokens"])
            # The number is folded into the PRNG key: choices of one prompt differ, and do so
            # reproducibly.
            for number in range(best_of):
                generation.add(prompt, settings, number)
        answer = _Answer(self._name(values), "cmpl", "text_completion", prompts)
        if values["stream"]:
            return EventStream(_streamed(generation, answer, values, echoes, _text_delta), DONE)

        async def generate() -> list[Text]:
            async with generation:
                return await generation.finish()

        texts = await answered(request, generate())
        scored: list[Scored] = [[] for _ in texts]
        if is_scored:
            scored = await answered(request, self._score(texts, values["logprobs"] or 0))
        choices: list[dict[str, Any]] = []
        for index, echo in enumerate(echoes):
            # Sequences were added prompt by prompt, `best_of` consecutive ones each.
            group = list(range(index * best_of, (index + 1) * best_of))
            if best_of > values["n"]:
                group.sort(key=lambda sequence: -logprobs.mean(scored[sequence]))
            for sequence in group[: values["n"]]:
                text, laid_out = texts[sequence], None
                if values["logprobs"] is not None:
                    arguments = self.service.tokenizer, scored[sequence], text, len(echo)
                    laid_out = await self.service.in_thread(logprobs.legacy, *arguments)
                choice = {"text": echo + text.kept, "index": len(choices), "logprobs": laid_out}
                choices.append(choice | {"finish_reason": _reason(text)})
        return JSONResponse(answer.complete(choices, generation))

    async def fim(self, request: Request) -> Response:
        """Fills in the middle between a prompt and a suffix; answers as chats do."""
        values = self._read(FIM, await request.body())
        cursor = _cursor(values["prompt"], values)
        # The tokenizer runs in a thread, as everywhere in the endpoints.
        prompt = await self.service.in_thread(self.service.middle, cursor)
        return await self._messages(request, prompt, values, "fim", "prompt")

    async def chat(self, request: Request) -> Response:
        """Answers a conversation."""
        values = self._read(CHAT, await request.body())
        values["max_tokens"] = _most_tokens(values)
        if not values["logprobs"] and values["top_logprobs"]:
            raise invalid("top_logprobs", "needs logprobs true")
        messages = _messages(values["messages"])
        try:
            prompt = await self.service.in_thread(self.service.answer, messages)
        except UserError as error:
            raise ApiError(400, str(error), "messages") from None
        if values["max_tokens"] == 0:
            # Nothing to generate: llama.vscode sends it to prepare the next request.
            self.service.worker.check_ready()
            answer = _Answer(self._name(values), "chatcmpl", "chat.completion", [prompt])
            return _without_tokens(answer, values, Generation(self.service))
        return await self._messages(request, prompt, values, "chatcmpl", "messages")

    async def _messages(
        self, request: Request, prompt: Prompt, values: dict[str, Any], kind: str, param: str
    ) -> Response:
        """Answers with messages, as chats and Mistral's infilling do.

        Args:
          request: the request.
          prompt: the prompt.
          values: the fields of the request.
          kind: the beginning of the answer's id.
          param: the field with the prompt, for errors.
        """
        # Unlike /v1/completions, a chat without a limit may fill the rest of the context.
        new = values["max_tokens"] or self.service.room(prompt, param)
        self.service.check_length(prompt, new, param)
        is_scored = values.get("logprobs", False)
        if is_scored:
            _check_scored(values["max_tokens"] or logprobs.MOST_TOKENS + 1)
        generation, settings = Generation(self.service), _settings(values, new)
        for number in range(values["n"]):
            generation.add(prompt, settings, number)
        answer = _Answer(self._name(values), kind, "chat.completion", [prompt])
        if values["stream"]:
            if is_scored:
                raise invalid("stream", "is true: logprobs need stream false")
            return EventStream(_streamed(generation, answer, values, [""], _message_delta), DONE)

        async def generate() -> list[Text]:
            async with generation:
                return await generation.finish()

        texts = await answered(request, generate())
        choices = []
        for index, text in enumerate(texts):
            message = {"role": "assistant", "content": text.kept}
            laid_out = None
            if is_scored:
                # Scored one by one in the worker's thread, between the chunks of other sequences.
                (scored,) = await answered(request, self._score([text], values["top_logprobs"]))
                arguments = self.service.tokenizer, scored
                entries = await self.service.in_thread(logprobs.listed, *arguments)
                laid_out = {"content": entries}
            choice = {"index": index, "message": message, "logprobs": laid_out}
            choices.append(choice | {"finish_reason": _reason(text)})
        return JSONResponse(answer.complete(choices, generation))

    def _read(self, fields: Sequence[Field], body: bytes) -> dict[str, Any]:
        parsed = parse(body)
        for name in UNSUPPORTED:
            # Clients send these fields with values that ask for nothing, which are accepted.
            if parsed.get(name) not in (None, [], {}, "none", "auto", PLAIN_FORMAT):
                raise invalid(name, "is not supported: leave it out", "unsupported")
        values = read(fields, parsed)
        if values["logit_bias"]:
            raise invalid("logit_bias", "is not supported: leave it out", "unsupported")
        values["stream_options"] = read(STREAM_OPTIONS, values["stream_options"] or {})
        # From here on the model is its number in the server's list.
        values["model"] = self.service.number_of(values["model"])
        return values

    def _name(self, values: dict[str, Any]) -> str:
        return self.features.models[values["model"]]

    def _model(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.features.created,
            "owned_by": "codellama_jax",
        }

    def _prompts(self, values: dict[str, Any]) -> tuple[list[Prompt], list[str]]:
        """Returns the prompts of /v1/completions, and the text of each that is echoed."""
        prompts, echoes = [], []
        for prompt in _split_prompts(values["prompt"]):
            if values["suffix"] is None:
                prompts.append(self.service.completion(prompt))
            elif isinstance(prompt, str):
                prompts.append(self.service.middle(_cursor(prompt, values)))
            else:
                raise invalid("prompt", "is a list of ids: with a suffix it must be text")
            text = prompt if isinstance(prompt, str) else self.service.tokenizer.decode(prompt)
            echoes.append(text if values["echo"] else "")
        return prompts, echoes

    async def _score(self, texts: Sequence[Text], top: int) -> list[Scored]:
        scored = []
        for text in texts:
            arguments = text.prompt.ids, text.ids, top

            # The default argument binds this text's arguments; a closure would see those of the
            # last one.
            def work(model: TrainedModel, arguments: Any = arguments) -> Scored:
                return logprobs.score(model, *arguments)

            scored.append(await self.service.with_model(text.settings.model, work))
        return scored


class _Answer:
    """The parts of an answer that do not depend on the text."""

    def __init__(self, model: str, kind: str, name: str, prompts: Sequence[Prompt]) -> None:
        self.head: dict[str, Any] = {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "object": name,
            "created": int(time.time()),
            "model": model,
        }
        self.prompt_tokens, self._prompts = 0, len(prompts)
        for prompt in prompts:
            self.prompt_tokens += len(prompt.ids)

    def complete(self, choices: list[dict], generation: Generation) -> dict[str, Any]:
        """Returns the answer."""
        return {**self.head, "choices": choices, "usage": self.usage(generation)}

    def chunk(self, choices: list[dict], **fields: Any) -> dict[str, Any]:
        """Returns an event of a stream."""
        name = self.head["object"]
        name += ".chunk" if name == "chat.completion" else ""
        return {**self.head, "object": name, "choices": choices, **fields}

    def usage(self, generation: Generation) -> dict[str, Any]:
        """Returns the tokens used."""
        new = sum(len(text.ids) for text in generation.texts)
        total = self.prompt_tokens + new
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": new,
            "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": self._cached(generation)},
        }

    def _cached(self, generation: Generation) -> int:
        """Returns how many tokens of the prompts were read before.

        Of the choices of one prompt the first counts, as `prompt_tokens` counts the prompt once.
        """
        per_prompt = max(1, len(generation.jobs) // self._prompts)
        return sum(job.reused for job in generation.jobs[::per_prompt])


def _most_tokens(values: dict[str, Any]) -> int | None:
    """Returns the most new tokens of an answer; None for all that fit."""
    for name in ("max_completion_tokens", "max_tokens", "n_predict"):
        if values[name] is not None:
            return None if values[name] < 0 else values[name]
    return None


async def _streamed(
    generation: Generation, answer: _Answer, values: dict[str, Any], echoes: list[str], delta: Any
) -> AsyncIterator[list[dict[str, Any]]]:
    """Yields the events of a stream, those that are there at once together.

    Args:
      generation: the sequences.
      answer: the parts of every event.
      values: the fields of the request.
      echoes: the text before the choices of each prompt.
      delta: returns a choice from a piece of text, and whether it is the first of its choice.
    """
    # Every prompt has the same number of choices, in the order of the prompts.
    per_prompt = len(generation.jobs) // len(echoes)
    started: set[int] = set()
    async with generation:
        async for pieces in generation.pieces():
            events = []
            for index, text, _, is_finished in pieces:
                # A token whose text may still change (part of a character or of a stop string) is
                # no event yet.
                if not text and not is_finished:
                    continue
                is_first = index not in started
                started.add(index)
                if is_first:
                    text = echoes[index // per_prompt] + text
                reason = _reason(generation.texts[index]) if is_finished else None
                choice = {**delta(text, is_first), "index": index, "finish_reason": reason}
                events.append(answer.chunk([choice]))
            yield events
    # The usage is known only at the end, and the protocol gives it an event without choices.
    if values["stream_options"]["include_usage"]:
        yield [answer.chunk([], usage=answer.usage(generation))]


def _without_tokens(answer: _Answer, values: dict[str, Any], generation: Generation) -> Response:
    """Returns the answer to a chat that asks for no tokens, streamed where it asks for that."""
    message = {"role": "assistant", "content": ""}
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
    if not values["stream"]:
        choice |= {"message": message, "logprobs": None}
        return JSONResponse(answer.complete([choice], generation))
    events = [answer.chunk([choice | {"delta": message}])]
    if values["stream_options"]["include_usage"]:
        events.append(answer.chunk([], usage=answer.usage(generation)))
    return EventStream(at_once(events), DONE)


def _text_delta(piece: str, is_first: bool) -> dict[str, Any]:
    return {"text": piece, "logprobs": None}


def _message_delta(piece: str, is_first: bool) -> dict[str, Any]:
    role = {"role": "assistant"} if is_first else {}
    return {"delta": {**role, "content": piece}}


def _settings(values: dict[str, Any], new: int) -> Settings:
    return Settings(sampling_of(values, new), values["stop"], model=values["model"])


def _cursor(prefix: str, values: dict[str, Any]) -> Cursor:
    suffix = values["suffix"]
    ends = CursorEnds.around(prefix, suffix, values["stop_at_dedent"], values["stop_at_repetition"])
    return Cursor(prefix, suffix, spm=values["spm"], ends=ends)


def _reason(text: Text) -> str:
    return "stop" if text.is_ended else "length"


def _check_scored(tokens: int) -> None:
    most = logprobs.MOST_TOKENS
    if tokens > most:
        raise invalid("max_tokens", f"must be given and at most {most} beside logprobs or best_of")


def _split_prompts(prompt: Any) -> list[str | list[int]]:
    """Returns the prompts of the field: texts and lists of ids. Raises ApiError for others."""
    if isinstance(prompt, str):
        return [prompt]
    # A list of integers is one prompt of ids, and a list of anything else several prompts.
    if isinstance(prompt, list) and prompt and all(map(is_integer, prompt)):
        return [prompt]
    allowed = "a text, ids, or a list of texts or of ids"
    if not isinstance(prompt, list) or not 1 <= len(prompt) <= MOST_PROMPTS:
        raise invalid("prompt", f"must be {allowed}, at most {MOST_PROMPTS} of them")
    for item in prompt:
        is_ids = isinstance(item, list) and item and all(map(is_integer, item))
        if not isinstance(item, str) and not is_ids:
            raise invalid("prompt", f"must be {allowed}")
    return prompt


def _messages(items: Sequence[dict[str, Any]]) -> list[Message]:
    """Returns the messages of a conversation. Raises ApiError for one of another form."""
    messages = []
    for number, item in enumerate(items):
        role, content = item.get("role"), item.get("content")
        if isinstance(content, list):
            content = "".join(_part(number, part) for part in content)
        if not isinstance(role, str) or not isinstance(content, str):
            raise invalid(f"messages.{number}", "must have a role and a content, both text")
        # "developer" is the newer name of the system role.
        messages.append(Message("system" if role == "developer" else role, content))
    return messages


def _part(number: int, part: Any) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("text"), str):
        raise invalid(f"messages.{number}.content", 'must be text, or parts of type "text"')
    return part["text"]
