"""The prefix cache while one types: the share of prompt tokens that are reused, and the latency.

    PYTHONPATH=. python speed/keystrokes.py [--keystrokes 100] [--new 8] [--context 2048] [--http]

A line is typed in the middle of a source file of this project. After every character the middle at
the cursor is filled in, in both orders, as an editor asks for it; each request waits for the one
before. A random model of quickstart's size generates with a tokenizer that is trained on the
project's own source. Requests run through the engine as the server configures it, with the prefix
cache and without it, alternately, and both must draw the same ids. With --http two servers answer
the same keystrokes on loopback, as requests of llama.vim and llama.vscode to /infill: the time then
includes HTTP, JSON, and the encoding of the file.

Prefix-suffix-middle (PSM) prompts share the text before the cursor: the suffix is read again after
each keystroke. Suffix-prefix-middle (SPM) prompts share the suffix and the text before the cursor.
With --http PSM prompts share nearly all too: /infill receives the cursor's line apart, as `prompt`,
and it follows the suffix.
The complete file is sent. A client that sends a window of lines around the cursor shares nothing
after the keystroke at which the window moves, since the beginning of the prompt then differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import flax.linen as nn
import jax
import numpy as np

from codellama_jax.data.infilling import prompt_ids
from codellama_jax.generation.engine import Engine
from codellama_jax.generation.middle import Order
from codellama_jax.generation.requests import Request
from codellama_jax.generation.settings import Sampling
from codellama_jax.models.family import boxed_params
from codellama_jax.models.llama.sizes import TOY, choose
from codellama_jax.models.trained import TrainedModel
from codellama_jax.report.report import processor
from codellama_jax.serving.app import make_app
from codellama_jax.serving.guard import Rules
from codellama_jax.serving.server import serve_in_background
from codellama_jax.serving.service import Features, Service
from codellama_jax.serving.worker import Sizes, Worker
from codellama_jax.tokenizers import sentencepiece

ROOT = Path(__file__).parents[1]
FILE = ROOT / "codellama_jax" / "generation" / "batches.py"
BEFORE = "def first_mask("  # the line is typed before this text
TYPED = '''def rounded(numbers: Sequence[int], multiple: int = 64) -> list[int]:
    """Rounds numbers up to multiples."""
    return [n + -n % multiple for n in numbers]


'''
WARM_UP = 10  # keystrokes
SLOTS, PIECE = 8, 512  # the server's defaults
KINDS = ("reused", "read")


def load(vocab: int) -> TrainedModel:
    """Returns a random model with a tokenizer of the project's source."""
    texts = [path.read_text() for path in sorted((ROOT / "codellama_jax").rglob("*.py"))]
    with TemporaryDirectory() as folder:
        tokenizer = sentencepiece.train(texts, vocab, Path(folder))
    # Random weights: the time of a step and the cache's hits do not depend on their values.
    config = dataclasses.replace(choose(TOY, "toy"), vocab_size=tokenizer.vocab_size)
    params = nn.unbox(jax.jit(lambda: boxed_params(config, jax.random.key(0)))())
    return TrainedModel(config, params, tokenizer, "random")


class Keystroke(NamedTuple):
    """The texts around the cursor after a keystroke, and the order of the prompt."""

    before: str
    after: str
    spm: bool


def keystrokes(count: int, spm: bool, first: str = "") -> list[Keystroke]:
    """Returns the keystrokes. `first` begins both texts, so that they share nothing with others."""
    before, mark, after = FILE.read_text().partition(BEFORE)
    # Prompts share a prefix only from their very first token on. Both orders begin with one of the
    # two texts, so that both texts change.
    before, after = first + before, first + mark + after
    return [Keystroke(before + TYPED[:n], after, spm) for n in range(1, count + 1)]


class EngineSide:
    """The engine as the server configures it, without HTTP."""

    def __init__(self, model: TrainedModel, options: argparse.Namespace, is_cached: bool) -> None:
        """Starts with nothing read."""
        self._tokenizer, self._new = model.tokenizer, options.new
        # `least` fixes the length of the cache, so that no keystroke makes it grow and compile
        # again.
        sizes = {"least": options.context, "piece": PIECE}
        self._engine = Engine(model, SLOTS, prefix_cache=is_cached, **sizes)

    def ask(self, keystroke: Keystroke) -> tuple[object, float]:
        """Returns the new ids after a keystroke, and milliseconds."""
        prompt = prompt_ids(self._tokenizer, *keystroke)
        request = Request(prompt, Sampling(max_new_tokens=self._new), on_tokens=_streamed)
        start = time.perf_counter()
        (ids,) = self._engine.run([request])
        return ids, 1e3 * (time.perf_counter() - start)

    def tokens(self) -> Counter[str]:
        """Returns how many tokens of prompts were reused and read."""
        counts = self._engine.counts
        return Counter({kind: counts[f"prompt tokens {kind}"] for kind in KINDS})


class ServerSide:
    """A server on loopback, in threads that end with the process."""

    def __init__(self, model: TrainedModel, options: argparse.Namespace, is_cached: bool) -> None:
        """Starts it."""
        sizes = Sizes(SLOTS, options.context, 64, PIECE, PIECE, is_cached)
        # The model exists already, and both servers share its weights.
        worker = Worker(lambda: [model], sizes)
        features = Features("random", model.tokenizer, Order(False, "as given"), True, None)
        app = make_app(Service(features, worker), Rules())
        address = urlsplit(serve_in_background(app, worker)).netloc
        self._new, self._tokens = options.new, Counter[str]()
        # One connection for all keystrokes, as an editor keeps it open.
        self._connection = http.client.HTTPConnection(address, timeout=600)

    def ask(self, keystroke: Keystroke) -> tuple[object, float]:
        """Returns the text after a keystroke, and milliseconds."""
        # As llama.vim sends it: the cursor's line apart from the lines before it.
        prefix, newline, line = keystroke.before.rpartition("\n")
        body = {
            "input_prefix": prefix + newline,
            "prompt": line,
            "input_suffix": keystroke.after,
            "n_predict": self._new,
            "spm": keystroke.spm,
        }
        start = time.perf_counter()
        self._connection.request("POST", "/infill", json.dumps(body))
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        milliseconds = 1e3 * (time.perf_counter() - start)
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {answer}")
        self._tokens["reused"] += answer["timings"]["cache_n"]
        self._tokens["read"] += answer["timings"]["prompt_n"]
        return answer["content"], milliseconds

    def tokens(self) -> Counter[str]:
        """Returns how many tokens of prompts were reused and read."""
        return self._tokens


def typed(
    sides: dict[bool, Any], pressed: Sequence[Keystroke]
) -> tuple[dict[bool, list[object]], dict[bool, list[float]]]:
    """Returns the answers and the milliseconds of each keystroke, with the cache and without."""
    answers: dict[bool, list[object]] = {key: [] for key in sides}
    times: dict[bool, list[float]] = {key: [] for key in sides}
    for keystroke in pressed:
        # Alternating keystroke by keystroke: a change in the machine's load meets both sides.
        for key, side in sides.items():
            answer, milliseconds = side.ask(keystroke)
            answers[key].append(answer)
            times[key].append(milliseconds)
    return answers, times


def _streamed(ids: list[int]) -> None:
    """Makes the engine's chunks as short as those of the server."""


def main() -> None:
    """Prints hit rates and latencies of both orders, with and without the prefix cache."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    defaults = {"keystrokes": 100, "new": 8, "context": 2048, "vocab": 2000}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--http", action="store_true", help="measure servers on loopback")
    options = parser.parse_args()
    if not 1 <= options.keystrokes <= len(TYPED):
        parser.error(f"--keystrokes is {options.keystrokes}: it must be from 1 to {len(TYPED)}")
    model = load(options.vocab)
    print(f"processor: {processor()}, {jax.default_backend()}")
    # New sides for each order: their caches must not hold prompts of the other one.
    for order in ("PSM", "SPM"):
        pressed = keystrokes(options.keystrokes, order == "SPM")
        make_side = ServerSide if options.http else EngineSide
        sides = {key: make_side(model, options, key) for key in (False, True)}
        # The first keystrokes compile; they are of another file.
        typed(sides, keystrokes(WARM_UP, order == "SPM", "# another file\n"))
        # The warm-up's tokens are subtracted below.
        before = {key: side.tokens().copy() for key, side in sides.items()}
        answers, times = typed(sides, pressed)
        # The shortest and the longest prompt show what a hit rate refers to.
        lengths = [
            len(prompt_ids(model.tokenizer, *stroke)) for stroke in (pressed[0], pressed[-1])
        ]
        print(f"{order}: prompts of {lengths[0]:,} to {lengths[1]:,} tokens")
        for key, side in sides.items():
            reused, read = (side.tokens()[kind] - before[key][kind] for kind in KINDS)
            p50, p95 = np.percentile(times[key], [50, 95])
            share = f"{reused / (reused + read):.1%} of their tokens reused"
            name = "with the cache" if key else "without"
            print(f"  {name:14} {share}, p50 {p50:.0f} ms, p95 {p95:.0f} ms")
        # A cache that changed the answers would be fast and wrong.
        equal = sum(a == b for a, b in zip(answers[False], answers[True]))
        print(f"  {equal} of {len(pressed)} answers are equal")


if __name__ == "__main__":
    main()
