"""Models that answer requests: a trained model here, or one behind an OpenAI-compatible URL."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codellama_jax.alignment.answers import Answerer, Failure, Reply, Request
from codellama_jax.errors import UserError
from codellama_jax.generation.settings import CAPACITY, Sampling
from codellama_jax.generation.stop import until
from codellama_jax.system.files import reason
from codellama_jax.tokenizers.chat import ChatFormat, ConversationError

if TYPE_CHECKING:
    from codellama_jax.models.trained import TrainedModel

# A continued function ends where another definition begins (Codex, section 3.3).
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
# A continued program ends where the docstring of another one begins.
PROGRAM_STOPS = ('\n"""',)
MOST_STOPS = 4  # that OpenAI's interface takes
# Answers that mean: try again later.
BUSY = (408, 429, 500, 502, 503, 504)
TRIES = 5
FIRST_WAIT = 1.0  # seconds; doubled after every try
LONGEST_WAIT = 60.0  # seconds; a server's Retry-After may be longer
# Answers that mean: no request will succeed. The key, its rights, the path or the model is wrong.
FINAL = (401, 403, 404, 405)
# What reading a reply raises that is no JSON, of another form, or incomplete.
UNREADABLE = (
    *(ValueError, LookupError, TypeError, RecursionError),
    *(OSError, http.client.HTTPException),
)
MAX_DETAIL = 200  # characters of a server's own message
TOO_LONG = Failure("has too few positions for the prompt and the new tokens", is_of_request=True)


def local(model: TrainedModel, chat: ChatFormat, sampling: Sampling) -> Answerer:
    """Returns the function with which a trained model answers requests.

    An answer depends on the seed and on the name of its request alone, not on the other requests.
    A conversation that the format refuses, such as one with a tag in a question that a model wrote,
    is answered by "". One that is too long for the model is a failure of the request.

    Args:
      model: the model.
      chat: how it writes conversations.
      sampling: how tokens are drawn.
    """

    # Imported only here, because it imports JAX.
    from codellama_jax.generation.answering import generate_answers

    def answer(requests: Sequence[Request], at_once: int) -> Iterator[tuple[int, Reply]]:
        most = _longest_prompt(model, sampling)
        prompts, places = [], []
        for place, request in enumerate(requests):
            try:
                ids = chat.prompt_ids(model.tokenizer, request.messages)
            except ConversationError:
                yield place, ""
                continue
            if len(ids) > most:
                yield place, TOO_LONG
                continue
            prompts.append(ids)
            places.append(place)
        # The hash of the name and not the place in the list, which differs after a continued run.
        numbers = [number_of(requests[place].name) for place in places]
        for index, text in generate_answers(model, chat, prompts, sampling, numbers, at_once):
            yield places[index], text

    return answer


def continuing(model: TrainedModel, sampling: Sampling) -> Answerer:
    """Returns the function with which a trained model continues the prompts of requests.

    A text ends where another definition or program begins, see `stops_of`. A prompt that is too
    long for the model is a failure of the request.
    """

    def answer(requests: Sequence[Request], at_once: int) -> Iterator[tuple[int, Reply]]:
        from codellama_jax.generation.text import Rows, generate_text_each

        def decode(_: int, ids: list[int]) -> str:
            return model.tokenizer.decode(ids, leading_space=False)

        def truncate(index: int, text: str) -> str:
            return until(text, stops_of(requests[places[index]]))

        most = _longest_prompt(model, sampling)
        prompts, places = [], []
        for place, request in enumerate(requests):
            ids = model.tokenizer.prompt(request.prompt)
            if len(ids) > most:
                yield place, TOO_LONG
                continue
            prompts.append(ids)
            places.append(place)
        rows = Rows(truncate, [number_of(requests[place].name) for place in places])
        stop_ids = [model.tokenizer.eos_id]
        arguments = (model, prompts, decode, sampling, stop_ids)
        for index, text in generate_text_each(*arguments, rows=rows, slots=at_once):
            yield places[index], text.text

    return answer


def stops_of(request: Request) -> tuple[str, ...]:
    """Returns the texts at which the continuation of a prompt ends."""
    return PROGRAM_STOPS if request.is_program else STOPS


def _longest_prompt(model: TrainedModel, sampling: Sampling) -> int:
    """Returns how many tokens of a prompt the model holds beside the new ones.

    Raises UserError if there is room for none.
    """
    most = min(CAPACITY, model.config.longest_sequence() or CAPACITY)
    if sampling.max_new_tokens >= most:
        allowed = f"{model.name} holds {most:,} tokens with the prompt; pass fewer"
        raise UserError(f"--max-new-tokens is {sampling.max_new_tokens:,}: {allowed}")
    return most - sampling.max_new_tokens


def number_of(name: str) -> int:
    """Returns the number of a sequence that has this name, below 2**32."""
    return zlib.crc32(name.encode())


@dataclass(frozen=True)
class Remote:
    """A model behind a URL that answers as OpenAI's `/v1/chat/completions` does.

    Attributes:
        url: up to and including the version, as `http://127.0.0.1:8000/v1`.
        model: its name there.
        key: sent as the bearer token; "" sends none.
        concurrent: requests in flight at once.
        timeout: seconds to wait for one answer.
    """

    url: str
    model: str
    key: str = ""
    concurrent: int = 8
    timeout: float = 600.0

    def answerer(self, sampling: Sampling) -> Answerer:
        """Returns the function that answers requests; see `ask`.

        After a failure that is final it sends no further request of the same call.
        """

        def answer(requests: Sequence[Request], at_once: int) -> Iterator[tuple[int, Reply]]:
            ended: list[Failure] = []

            def ask(request: Request) -> Reply:
                if ended:
                    return ended[0]
                reply = self.ask(sampling, request)
                if isinstance(reply, Failure) and reply.is_final:
                    ended.append(reply)
                return reply

            with ThreadPoolExecutor(min(self.concurrent, at_once)) as pool:
                # Not all at once: what was answered after a kill is lost.
                for start in range(0, len(requests), at_once):
                    batch = requests[start : start + at_once]
                    yield from enumerate(pool.map(ask, batch), start)

        return answer

    def ask(
        self,
        sampling: Sampling,
        request: Request,
        wait: Callable[[float], None] = time.sleep,
    ) -> Reply:
        """Returns the answer to one request, or why there is none.

        A busy server is tried again a few times; a request that timed out is not. A server that
        cannot be reached, or that refuses the key or the model, is a failure that is final.
        """
        post = self._post(sampling, request)
        for number in range(TRIES):
            # Exponential backoff; a server's Retry-After can only make the wait longer.
            seconds = FIRST_WAIT * 2**number
            try:
                with urllib.request.urlopen(post, timeout=self.timeout) as reply:
                    return self._text(reply.read(), stops_of(request) if request.prompt else ())
            except urllib.error.HTTPError as error:
                failure = self._refusal(error)
                # Other statuses come from the request or the configuration, and would come again.
                if error.code not in BUSY:
                    return failure
                seconds = max(seconds, _retry_after(error))
            except http.client.InvalidURL as error:
                return Failure(f"is no URL ({error})", self.url, is_final=True)
            # HTTPException: an answer that ended early, or that is no HTTP.
            except (OSError, ValueError, http.client.HTTPException) as error:
                cause = getattr(error, "reason", error)
                if isinstance(cause, TimeoutError):
                    return Failure(f"has no answer within {self.timeout:g} s", self.url)
                # A URLError comes before the request is sent: the server is missing. Another error
                # may be the fault of this request.
                is_reset = isinstance(cause, ConnectionResetError | BrokenPipeError)
                is_missing = isinstance(error, urllib.error.URLError) and not is_reset
                problem = "cannot be reached" if is_missing else "broke off its answer"
                failure = Failure(problem, self.url, reason(error), is_final=is_missing)
            if number + 1 < TRIES:
                wait(seconds)
        return failure

    def _post(self, sampling: Sampling, request: Request) -> urllib.request.Request:
        data = json.dumps(self._body(sampling, request)).encode()
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        kind = "completions" if request.prompt else "chat/completions"
        return urllib.request.Request(f"{self.url.rstrip('/')}/{kind}", data, headers)

    def _refusal(self, error: urllib.error.HTTPError) -> Failure:
        """Returns the failure of an HTTP status, with the server's own message if it has one."""
        try:
            detail = json.loads(error.read(100_000))["error"]["message"]
        except UNREADABLE:
            detail = ""
        shown = " ".join(str(detail).split())[:MAX_DETAIL]
        return Failure(
            f"answers {error.code} {error.reason}", self.url, shown, is_final=error.code in FINAL
        )

    def _body(self, sampling: Sampling, request: Request) -> dict[str, Any]:
        content: dict[str, Any] = {"messages": [message._asdict() for message in request.messages]}
        if request.prompt:
            content = {"prompt": request.prompt, "stop": list(stops_of(request)[:MOST_STOPS])}
        return {
            "model": self.model,
            **content,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            # The server's draws differ between requests, and are the same after a kill.
            "seed": (sampling.seed + number_of(request.name)) % 2**31,
        }

    def _text(self, data: bytes, stops: tuple[str, ...]) -> Reply:
        """Returns the text of an answer, a continuation that ends at `stops` if there are any."""
        try:
            choice = json.loads(data)["choices"][0]
            text = choice["text"] if stops else choice["message"]["content"]
            # A model that refuses to answer has no content.
            text = "" if text is None else text
        except UNREADABLE:
            text = None
        if not isinstance(text, str):
            kind = "completions" if stops else "chat/completions"
            return Failure(f"answers in another form than OpenAI's {kind}", self.url)
        return until(text, stops) if stops else text.strip()


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Returns the seconds that a busy server gives in Retry-After, 0 without it."""
    text = error.headers.get("Retry-After", "") if error.headers else ""
    return min(float(text), LONGEST_WAIT) if text.isdecimal() else 0.0
