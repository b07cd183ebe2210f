"""The protocol of llama.cpp's server, which llama.vim and llama.vscode speak."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from codellama_jax.generation.text import BROKEN
from codellama_jax.serving import logprobs
from codellama_jax.serving.ends import CursorEnds
from codellama_jax.serving.errors import invalid
from codellama_jax.serving.fields import IDS, MAX_SEED, TEXT, Field, is_integer, parse, read
from codellama_jax.serving.jobs import Job
from codellama_jax.serving.service import Cursor, Generation, Service, sampling_of
from codellama_jax.serving.streaming import EventStream, answered, at_once
from codellama_jax.serving.texts import Prompt, Settings, Text

MOST_EXTRA = 256  # chunks of other files
MAX_COUNT = 2**31 - 1
MAX_MILLISECONDS = 86_400_000
PREFIX_SHARE = 0.75  # of the context that a long prefix gets beside a long suffix
SPARE = 8  # tokens

SAMPLING = (
    Field("model", "string", "a name of /v1/models; the first unless given"),
    Field("n_predict", "integer", "new tokens at most; -1 for all that fit", -1, -1, MAX_COUNT),
    Field("top_k", "integer", "draw from so many tokens; 0 from all", 40, 0, MAX_COUNT),
    Field("top_p", "number", "draw from this share of the probability", 0.95, 0, 1),
    Field("seed", "integer", "-1 for another each time", -1, -1, MAX_SEED),
    Field("stop", "strings", "texts, each of which ends the answer before it", (), 0, 16),
    Field("stream", "boolean", "send server-sent events", False),
    Field("n_probs", "integer", "alternatives per token", 0, 0, logprobs.MOST_TOP),
    Field("cache_prompt", "boolean", "ignored: the server's --no-prefix-cache decides", True),
    # An empty name selects nothing: llama.vim reads no answer to the requests that prepare others.
    Field("response_fields", "names", "parts of the answer, as timings/prompt_n", (), 0, 64),
    Field("t_max_prompt_ms", "integer", "time to the first token", 0, 0, MAX_MILLISECONDS),
    Field("t_max_predict_ms", "integer", "time after it", 0, 0, MAX_MILLISECONDS),
)
CHUNK = {
    "type": "object",
    "required": ["text"],
    "properties": {"filename": TEXT, "text": TEXT},
}
COMPLETION = (
    Field("prompt", "any", "a text, or ids", is_required=True, form={"anyOf": [TEXT, IDS]}),
    Field("temperature", "number", "0 takes the most likely token", 0.8, 0, 100),
    *SAMPLING,
)
INFILL = (
    Field("input_prefix", "string", "text before the cursor's line", ""),
    Field("input_suffix", "string", "text after the cursor", ""),
    Field("input_extra", "objects", "chunks of other files", [], 0, MOST_EXTRA, form=CHUNK),
    Field("prompt", "string", "the cursor's line up to the cursor", ""),
    Field("n_indent", "integer", "end before a line indented less", 0, 0, MAX_COUNT),
    Field("temperature", "number", "0 takes the most likely token", 0.0, 0, 100),
    Field("spm", "boolean", "suffix-prefix-middle order; unless given, the server's"),
    Field("stop_at_dedent", "boolean", "end before a line indented less than the cursor's"),
    Field("stop_at_repetition", "boolean", "end before the suffix's next line repeats"),
    *SAMPLING,
)
TOKENIZE = (
    Field("content", "string", "the text", ""),
    Field("add_special", "boolean", "begin as a prompt does, with BOS", False),
    Field("with_pieces", "boolean", "the text or bytes of each id too", False),
)
DETOKENIZE = (Field("tokens", "any", "ids", is_required=True, form=IDS | {"minItems": 0}),)


class LlamaCpp:
    """The endpoints of the protocol."""

    def __init__(self, service: Service) -> None:
        """Serves a model."""
        self.service, self.features = service, service.features

    async def completion(self, request: Request) -> Response:
        """Continues a prompt."""
        values = read(COMPLETION, parse(await request.body()))
        prompt = values["prompt"]
        is_ids = isinstance(prompt, list) and all(map(is_integer, prompt))
        if not isinstance(prompt, str) and not is_ids:
            raise invalid("prompt", "must be a text, or a list of ids")
        made = await self.service.in_thread(self.service.completion, prompt)
        return await self._answer(request, made, values, is_truncated=False)

    async def infill(self, request: Request) -> Response:
        """Fills in the middle at a cursor. `n_predict` 0 generates nothing."""
        values = read(INFILL, parse(await request.body()))
        self.service.check_infills()
        for number, chunk in enumerate(values["input_extra"]):
            if not isinstance(chunk.get("text"), str):
                raise invalid(f"input_extra.{number}.text", "must be text")
        prompt, is_truncated = await self.service.in_thread(self._middle, values)
        return await self._answer(request, prompt, values, is_truncated)

    async def tokenize(self, request: Request) -> Response:
        """Returns the ids of a text."""
        values = read(TOKENIZE, parse(await request.body()))
        tokenizer = self.service.tokenizer
        encode = tokenizer.prompt if values["add_special"] else tokenizer.encode
        tokens: list[Any] = await self.service.in_thread(encode, values["content"])
        if values["with_pieces"]:
            tokens = await self.service.in_thread(logprobs.pieces, tokenizer, tokens)
        # Writing a long list as JSON would hold up the other connections.
        return await self.service.in_thread(JSONResponse, {"tokens": tokens})

    async def detokenize(self, request: Request) -> Response:
        """Returns the text of ids."""
        tokens = read(DETOKENIZE, parse(await request.body()))["tokens"]
        if not isinstance(tokens, list) or not all(map(is_integer, tokens)):
            raise invalid("tokens", "must be a list of ids")
        if tokens:
            self.service.check_ids("tokens", tokens)
        content = await self.service.in_thread(self.service.tokenizer.decode, tokens)
        return JSONResponse({"content": content})

    async def health(self, request: Request) -> Response:
        """Returns whether requests are answered."""
        self.service.worker.check_ready()
        return JSONResponse({"status": "ok"})

    async def props(self, request: Request) -> Response:
        """Describes the model and the defaults, for editors and the page."""
        features, worker = self.features, self.service.worker
        properties = {
            "model": features.name,
            "model_alias": features.name,
            "status": worker.state,
            "infills": features.infills,
            "chats": features.chat is not None,
            "chat_format": features.chat.name if features.chat else None,
            "order": "SPM" if features.order.spm else "PSM",
            "healing": features.healing,
            "quantization": features.quantization,
            "models": dict(zip(features.models, features.schemes)),
            "max_probs": logprobs.MOST_TOP,
            "total_slots": worker.all_slots,
            "n_ctx": worker.context,
            "stop_at_dedent": features.ends_at_dedent,
            "stop_at_repetition": features.ends_at_repetition,
            "default_generation_settings": {
                "n_ctx": worker.context,
                "completion": {field.name: field.default for field in COMPLETION},
                "infill": {field.name: field.default for field in INFILL},
            },
        }
        return JSONResponse(properties)

    async def slots(self, request: Request) -> Response:
        """Lists the slots of each model, without their prompts."""
        worker = self.service.worker
        running = worker.running()
        slots: list[dict[str, Any]] = []
        for number, name in enumerate(self.features.models):
            jobs = [job for job in running if job.settings.model == number]
            # The engine's slots have no numbers outside it, so that running sequences come first.
            for place in range(worker.slots):
                slot = {"id": len(slots), "model": name, "n_ctx": worker.context}
                slots.append({**slot, "is_processing": place < len(jobs)})
                if place < len(jobs):
                    job = jobs[place]
                    counts = {"n_prompt": len(job.prompt.ids), "n_cached": job.reused}
                    slots[-1] |= {**counts, "n_decoded": job.count}
        return JSONResponse(slots)

    def _middle(self, values: dict[str, Any]) -> tuple[Prompt, bool]:
        """Returns the prompt at the cursor, and whether texts were left out or shortened to fit."""
        context, begun = self.service.worker.context, values["prompt"]
        new = values["n_predict"]
        # All that fit: a quarter of the context is left for them.
        new = context // 4 if new < 0 else min(new, context // 2)
        # An empty middle has the sentinels, BOS and the tokens of the cursor's line, which always
        # stay.
        room = context - max(1, new) - len(self.service.middle(Cursor("", "", begun)).ids)
        before, after = values["input_prefix"], values["input_suffix"]
        tokens = self._count(before) + self._count(after)
        is_truncated = tokens > room
        if is_truncated:
            before, after = self._shortened(before, after, room)
        extra: list[int] = []
        # The last chunks are the newest; older ones are left out where all do not fit.
        for chunk in reversed(values["input_extra"]):
            # Counted before it is kept: a chunk fits entirely or is left out.
            ids = self.service.tokenizer.encode(chunk["text"] + "\n\n")
            if tokens + len(extra) + len(ids) > room:
                is_truncated = True
                break
            extra = [*ids, *extra]
        at_dedent, at_repetition = values["stop_at_dedent"], values["stop_at_repetition"]
        ends = CursorEnds.around(
            before + begun,
            after,
            self.features.ends_at_dedent if at_dedent is None else at_dedent,
            self.features.ends_at_repetition if at_repetition is None else at_repetition,
            values["n_indent"],
        )
        return self.service.middle(
            Cursor(before, after, begun, values["spm"], ends), extra
        ), is_truncated

    def _count(self, text: str) -> int:
        return len(self.service.tokenizer.encode(text)) if text else 0

    def _shortened(self, before: str, after: str, room: int) -> tuple[str, str]:
        """Returns the end of a prefix and the start of a suffix that fit in `room` tokens."""
        tokenizer = self.service.tokenizer
        # A text that begins elsewhere may have a few ids more.
        room = max(0, room - SPARE)
        prefix, suffix = tokenizer.encode(before), tokenizer.encode(after)
        # The suffix is guaranteed its quarter, the prefix gets the rest, and the suffix whatever a
        # short prefix leaves. Tokens nearest to the cursor are kept on both sides.
        least = min(len(suffix), int(room * (1 - PREFIX_SHARE)))
        prefix = prefix[max(0, len(prefix) - room + least) :]
        suffix = suffix[: max(0, room - len(prefix))]
        before, after = tokenizer.decode(prefix), tokenizer.decode(suffix)
        # Half a character at an end is left out.
        return before.lstrip(BROKEN), after.rstrip(BROKEN)

    async def _answer(
        self, request: Request, prompt: Prompt, values: dict[str, Any], is_truncated: bool
    ) -> Response:
        """Generates after a prompt.

        Args:
          request: the request.
          prompt: the prompt.
          values: the fields of the request.
          is_truncated: whether the prompt had to be shortened.
        """
        room, model = self.service.room(prompt), self.service.number_of(values["model"])
        # Longer than the context is no error in this protocol: the number is lowered.
        new = room if values["n_predict"] < 0 else min(values["n_predict"], room)
        if not new:
            # Nothing to generate: editors send it to prepare the next request.
            self.service.worker.check_ready()
            nothing = _nothing(self.features.models[model], prompt, is_truncated)
            if values["stream"]:
                return EventStream(at_once([nothing]))
            return JSONResponse(_selected(nothing, values["response_fields"]))
        if values["n_probs"] and new > logprobs.MOST_TOKENS:
            allowed = f"at most {logprobs.MOST_TOKENS} beside n_probs"
            raise invalid("n_predict", f"is {values['n_predict']}: it must be {allowed}")
        settings = Settings(
            sampling_of(values, new),
            values["stop"],
            values["t_max_prompt_ms"] / 1000 or None,
            values["t_max_predict_ms"] / 1000 or None,
            model,
        )
        generation = Generation(self.service)
        generation.add(prompt, settings)
        if values["stream"]:
            return EventStream(self._streamed(generation, values, is_truncated))

        async def generate() -> dict[str, Any]:
            async with generation:
                (text,) = await generation.finish()
            return await self._final(generation, text.kept, values, is_truncated)

        final = await answered(request, generate())
        return JSONResponse(_selected(final, values["response_fields"]))

    async def _streamed(
        self, generation: Generation, values: dict[str, Any], is_truncated: bool
    ) -> AsyncIterator[list[dict[str, Any]]]:
        async with generation:
            async for pieces in generation.pieces():
                events: list[dict[str, Any]] = []
                for _, text, ids, _ in pieces:
                    if text or ids:
                        events.append({"content": text, "tokens": ids, "stop": False})
                is_finished = any(piece.is_finished for piece in pieces)
                # The final object of a request with `n_probs` needs a forward pass, which may fail
                # for memory. The text is sent before, so that such a failure does not lose it.
                if is_finished and events and values["n_probs"]:
                    yield events
                    events = []
                if is_finished:
                    events.append(await self._final(generation, "", values, is_truncated))
                yield events

    async def _final(
        self, generation: Generation, content: str, values: dict[str, Any], is_truncated: bool
    ) -> dict[str, Any]:
        """Returns the last object of an answer."""
        (text,), (job,) = generation.texts, generation.jobs
        # The last event of a stream repeats no text: `content` is empty there.
        final = {
            "content": content,
            "tokens": text.ids if content else [],
            "stop": True,
            "stop_type": _stop_type(text),
            "stopping_word": text.stop_string,
            "model": self.features.models[text.settings.model],
            "truncated": is_truncated,
            "tokens_evaluated": len(job.prompt.ids),
            "tokens_predicted": len(text.ids),
            "tokens_cached": len(job.prompt.ids) + len(text.ids),
            "timings": _timings(job),
            "generation_settings": _shown_settings(text.settings, values),
        }
        if values["n_probs"]:
            scored = await self.service.with_model(
                text.settings.model,
                lambda model: logprobs.score(model, job.prompt.ids, text.ids, values["n_probs"]),
            )
            final["completion_probabilities"] = await self.service.in_thread(
                logprobs.listed, self.service.tokenizer, scored
            )
        return final


def _stop_type(text: Text) -> str:
    if text.stop_string:
        return "word"
    return "eos" if text.is_ended else "limit"


def _timings(job: Job) -> dict[str, float]:
    """Returns the times of a sequence, and tokens per second."""
    # Of a sequence that ended before its first token, as at its time limit, `first` is 0.
    prompt, predicted = max(0.0, job.first - job.started), job.last - job.first
    # Only the ids after those that came with the prompt were drawn in the time since.
    count = job.count - job.count_of_first
    tokens = len(job.prompt.ids) - job.reused
    return {
        "cache_n": job.reused,
        "queue_ms": 1e3 * max(0.0, job.started - job.submitted),
        "prompt_n": tokens,
        "prompt_ms": 1e3 * prompt,
        "prompt_per_token_ms": 1e3 * prompt / max(1, tokens),
        "prompt_per_second": tokens / prompt if prompt > 0 else 0.0,
        "predicted_n": job.count,
        "predicted_ms": 1e3 * predicted,
        "predicted_per_token_ms": 1e3 * predicted / max(1, count),
        "predicted_per_second": count / predicted if predicted > 0 else 0.0,
    }


def _selected(answer: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Returns the parts of an answer with these names; a slash leads into an object."""
    if not names:
        return answer
    parts = {}
    for name in names:
        outer, _, inner = name.partition("/")
        # Without a slash the name is a part of the answer itself.
        group = answer.get(outer) if inner else answer
        if isinstance(group, dict) and (inner or outer) in group:
            parts[name] = group[inner or outer]
    return parts


def _shown_settings(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    sampling = settings.sampling
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "n_predict": sampling.max_new_tokens,
        "seed": sampling.seed,
        "stop": list(settings.stop_strings),
        "stream": values["stream"],
    }


def _nothing(model: str, prompt: Prompt, is_truncated: bool) -> dict[str, Any]:
    """Returns the answer to a request for no tokens."""
    now = time.monotonic()
    # A job that never runs, to give the answer the same timings object as others, all zero.
    job = Job(prompt, Settings(sampling_of({"temperature": 0, "top_p": 1}, 1)), 0, _ignore)
    job.started = job.first = job.last = now
    return {
        "content": "",
        "tokens": [],
        "stop": True,
        "stop_type": "limit",
        "model": model,
        "truncated": is_truncated,
        "tokens_evaluated": 0,
        "tokens_predicted": 0,
        "tokens_cached": 0,
        "timings": _timings(job) | {"prompt_n": 0},
        "generation_settings": {},
    }


def _ignore(event: Any) -> None:
    """Listens to a sequence that is never generated."""
