"""Models that answer requests: a trained model here, or one behind an OpenAI-compatible URL."""

from __future__ import annotations

import functools
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

from codellama_jax.alignment.answers import Answerer, Request
from codellama_jax.errors import UserError
from codellama_jax.generation.settings import Sampling
from codellama_jax.system.files import reason
from codellama_jax.tokenizers.chat import ChatFormat, ConversationError

if TYPE_CHECKING:
    from codellama_jax.models.trained import TrainedModel

# Answers that mean: try again later.
BUSY = (408, 429, 500, 502, 503, 504)
TRIES = 5
FIRST_WAIT = 1.0  # seconds; doubled after every try


def local(model: TrainedModel, chat: ChatFormat, sampling: Sampling) -> Answerer:
    """Returns the function with which a trained model answers requests.

    An answer depends on the seed and on the name of its request alone, not on the other requests.
    A conversation that the format refuses, such as one with a tag in a question that a model wrote,
    is answered by "".

    Args:
      model: the model.
      chat: how it writes conversations.
      sampling: how tokens are drawn.
    """

    def answer(requests: Sequence[Request], at_once: int) -> Iterator[tuple[int, str]]:
        prompts, places = [], []
        for place, request in enumerate(requests):
            try:
                prompts.append(chat.prompt_ids(model.tokenizer, request.messages))
                places.append(place)
            except ConversationError:
                yield place, ""
        numbers = [number_of(requests[place].name) for place in places]
        for index, text in generate_answers(model, chat, prompts, sampling, numbers, at_once):
            yield places[index], text

    return answer


def generate_answers(
    model: TrainedModel,
    chat: ChatFormat,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    numbers: Sequence[int],
    slots: int,
) -> Iterator[tuple[int, str]]:
    """Yields the index of each prompt and the answer, without white space at its ends, as it ends.

    Args:
      model: the model.
      chat: the format, whose ids end an answer.
      prompts: ids, as the format writes them.
      sampling: how tokens are drawn.
      numbers: of the sequences; each one's PRNG key depends on the seed and its number.
      slots: answers that are generated at once.
    """
    from codellama_jax.generation.text import Rows, generate_text_each

    def decode(_: int, ids: list[int]) -> str:
        return model.tokenizer.decode(ids, leading_space=False)

    def truncate(_: int, text: str) -> str:
        return text

    rows = Rows(truncate, numbers)
    stop_ids = chat.stop_ids(model.tokenizer)
    slots = min(slots, 1 << max(0, len(prompts) - 1).bit_length())
    arguments = (model, prompts, decode, sampling, stop_ids)
    for index, answer in generate_text_each(*arguments, rows=rows, slots=slots):
        yield index, answer.text.strip()


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
        """Returns the function that answers requests; see `ask`."""

        def answer(requests: Sequence[Request], at_once: int) -> Iterator[tuple[int, str]]:
            with ThreadPoolExecutor(min(self.concurrent, at_once)) as pool:
                yield from enumerate(pool.map(functools.partial(self.ask, sampling), requests))

        return answer

    def ask(
        self,
        sampling: Sampling,
        request: Request,
        wait: Callable[[float], None] = time.sleep,
    ) -> str:
        """Returns the answer to one request; a busy server is tried again a few times.

        Raises UserError naming the URL for one that cannot be reached, refuses the request, or
        answers in another form.
        """
        data = json.dumps(self._body(sampling, request)).encode()
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        target = f"{self.url.rstrip('/')}/chat/completions"
        for number in range(TRIES):
            post = urllib.request.Request(target, data, headers)
            try:
                with urllib.request.urlopen(post, timeout=self.timeout) as reply:
                    return self._text(reply.read())
            except urllib.error.HTTPError as error:
                problem, is_busy = f"answers {error.code} {error.reason}", error.code in BUSY
            except http.client.InvalidURL as error:
                problem, is_busy = f"is no URL ({error})", False
            # HTTPException: an answer that ended early, or that is no HTTP.
            except (OSError, ValueError, http.client.HTTPException) as error:
                problem, is_busy = f"cannot be reached ({reason(error)})", True
            if not is_busy:
                break
            if number + 1 < TRIES:
                wait(FIRST_WAIT * 2**number)
        fix = "check the URL, the name of the model and the key; the same command continues"
        raise UserError(f"{self.url} {problem}: {fix}")

    def _body(self, sampling: Sampling, request: Request) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [message._asdict() for message in request.messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            # The server's draws differ between requests, and are the same after a kill.
            "seed": (sampling.seed + number_of(request.name)) % 2**31,
        }

    def _text(self, data: bytes) -> str:
        try:
            text = json.loads(data)["choices"][0]["message"]["content"]
            # A model that refuses to answer has no content.
            text = "" if text is None else text
        except (ValueError, LookupError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise UserError(
                f"{self.url} answers in another form than OpenAI's chat/completions: give the URL"
                " of a server of that kind"
            )
        # JSON can hold half of a surrogate pair, which no tokenizer takes.
        return text.encode(errors="replace").decode().strip()
