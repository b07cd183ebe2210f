"""The prefix cache while one types: the share of prompt tokens that are reused, and the latency.

    PYTHONPATH=. python speed/keystrokes.py [--keystrokes 100] [--new 8] [--context 2048]

A line is typed in the middle of a source file of this project. After every character the middle at
the cursor is filled in, in both orders, as an editor asks for it; each request waits for the one
before. A random model of quickstart's size generates with a tokenizer that is trained on the
project's own source. Requests run through the engine as the server configures it, with the prefix
cache and without it, alternately, and both must draw the same ids.

Prefix-suffix-middle (PSM) prompts share the text before the cursor: the suffix is read again after
each keystroke. Suffix-prefix-middle (SPM) prompts share the suffix and the text before the cursor.
The whole file is sent. A client that sends a window of lines around the cursor shares nothing after
the keystroke at which the window moves, since the beginning of the prompt then differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import flax.linen as nn
import jax
import numpy as np

from codellama_jax.data.infilling import prompt_ids
from codellama_jax.generation.engine import Engine
from codellama_jax.generation.requests import Request
from codellama_jax.generation.settings import Sampling
from codellama_jax.models.family import boxed_params
from codellama_jax.models.llama.sizes import TOY, choose
from codellama_jax.models.trained import TrainedModel
from codellama_jax.report.report import processor
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


def load(vocab: int) -> TrainedModel:
    """Returns a random model with a tokenizer of the project's source."""
    texts = [path.read_text() for path in sorted((ROOT / "codellama_jax").rglob("*.py"))]
    with TemporaryDirectory() as folder:
        tokenizer = sentencepiece.train(texts, vocab, Path(folder))
    config = dataclasses.replace(choose(TOY, "toy"), vocab_size=tokenizer.vocab_size)
    params = nn.unbox(jax.jit(lambda: boxed_params(config, jax.random.key(0)))())
    return TrainedModel(config, params, tokenizer, "random")


def prompts_of(model: TrainedModel, keystrokes: int, spm: bool) -> list[list[int]]:
    """Returns the prompt after each keystroke."""
    before, mark, after = FILE.read_text().partition(BEFORE)
    prompts = []
    for count in range(1, keystrokes + 1):
        prompts.append(prompt_ids(model.tokenizer, before + TYPED[:count], mark + after, spm))
    return prompts


def typed(
    engines: dict[bool, Engine], prompts: list[list[int]], new: int
) -> tuple[dict[bool, list[list[int]]], dict[bool, list[float]]]:
    """Returns the new ids and the milliseconds of each request, by engine."""
    ids: dict[bool, list[list[int]]] = {key: [] for key in engines}
    times: dict[bool, list[float]] = {key: [] for key in engines}
    for prompt in prompts:
        request = Request(prompt, Sampling(max_new_tokens=new), on_tokens=_streamed)
        for key, engine in engines.items():
            start = time.perf_counter()
            ids[key] += engine.run([request])
            times[key].append(1e3 * (time.perf_counter() - start))
    return ids, times


def _streamed(ids: list[int]) -> None:
    """Makes the engine's chunks as short as those of the server."""


def main() -> None:
    """Prints hit rates and latencies of both orders, with and without the prefix cache."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    defaults = {"keystrokes": 100, "new": 8, "context": 2048, "vocab": 2000}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    if not 1 <= options.keystrokes <= len(TYPED):
        parser.error(f"--keystrokes is {options.keystrokes}: it must be from 1 to {len(TYPED)}")
    model = load(options.vocab)

    def engines() -> dict[bool, Engine]:
        sizes = {"least": options.context, "piece": PIECE}
        return {key: Engine(model, SLOTS, prefix_cache=key, **sizes) for key in (False, True)}

    print(f"processor: {processor()}, {jax.default_backend()}")
    for order in ("PSM", "SPM"):
        prompts = prompts_of(model, options.keystrokes, order == "SPM")
        # The first keystrokes compile.
        typed(engines(), prompts[:WARM_UP], options.new)
        measured = engines()
        ids, times = typed(measured, prompts, options.new)
        print(f"{order}: prompts of {len(prompts[0]):,} to {len(prompts[-1]):,} tokens")
        for key, engine in measured.items():
            reused, read = (engine.counts[f"prompt tokens {kind}"] for kind in ("reused", "read"))
            p50, p95 = np.percentile(times[key], [50, 95])
            share = f"{reused / (reused + read):.1%} of their tokens reused"
            name = "with the cache" if key else "without"
            print(f"  {name:14} {share}, p50 {p50:.0f} ms, p95 {p95:.0f} ms")
        equal = sum(a == b for a, b in zip(ids[False], ids[True]))
        print(f"  {equal} of {len(prompts)} answers are equal")


if __name__ == "__main__":
    main()
