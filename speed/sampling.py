"""Continuous batching beside a static batch: many samples of few tasks.

    PYTHONPATH=. python speed/sampling.py [--samples 200] [--tasks 4] [--slots 64] [--rounds 2]

A random model of quickstart's size draws the same samples twice: through the slots of the engine,
and in batches of as many samples that start together and run until the longest ends, as the project
sampled before. Both stop at the same lengths and draw the same tokens, which is checked. The
lengths are log-normal, with the median and the spread of HumanEval's canonical solutions in tokens
of Llama 2 (54 and 0.79), and end at --max-new-tokens. The two alternate, and each is compiled
before. The static batches also read a prompt once, which no batch did before.

Steps do not depend on the machine: one computes a token for every slot.
"""

from __future__ import annotations

import argparse
import functools
import platform
import time
from collections import Counter
from pathlib import Path
from typing import cast

import flax.linen as nn
import jax
import numpy as np

from codellama_jax.generation.engine import Engine
from codellama_jax.generation.requests import Request
from codellama_jax.generation.settings import Sampling
from codellama_jax.models.family import boxed_params
from codellama_jax.models.llama.sizes import TOY, choose
from codellama_jax.models.trained import TrainedModel
from codellama_jax.tokenizers.base import Tokenizer

MEDIAN, SPREAD = 54, 0.79  # of the lengths
PROMPTS = (65, 304)  # tokens; 90 % of HumanEval's are between these


def requests_of(options: argparse.Namespace, vocab: int) -> list[Request]:
    """Returns the requests: those of a task follow each other and share its prompt."""
    rng = np.random.default_rng(0)
    sampling = Sampling(0.8, 0, 0.95, options.max_new_tokens)
    requests: list[Request] = []
    for _ in range(options.tasks):
        prompt = rng.integers(3, vocab, int(rng.integers(*PROMPTS))).tolist()
        # The spread is what static batches suffer from: each waits for its longest sample.
        lengths = MEDIAN * np.exp(SPREAD * rng.standard_normal(options.samples))
        for length in lengths:
            # Lengths are fixed in advance, because a random model would never end by itself.
            stop = functools.partial(_suffices, int(length))
            # The number makes the samples of a task differ, and equal between the two schedules.
            requests.append(Request(prompt, sampling, stop=stop, number=len(requests)))
    return requests


def _suffices(length: int, ids: list[int]) -> bool:
    return len(ids) >= length


def continuous(engine: Engine, requests: list[Request], slots: int) -> list[list[int]]:
    """Draws all samples through the slots of an engine."""
    return engine.run(requests)


def static(engine: Engine, requests: list[Request], slots: int) -> list[list[int]]:
    """Draws the samples batch by batch; each batch runs until its longest sample ends."""
    ids = []
    for start in range(0, len(requests), slots):
        # The engine is idle between two batches, so that no sample takes over a free slot.
        ids += engine.run(requests[start : start + slots])
    return ids


def main() -> None:
    """Prints the seconds and the steps of both, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    defaults = {"samples": 200, "tasks": 4, "slots": 64, "rounds": 2, "max_new_tokens": 512}
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    options = parser.parse_args()
    config = choose(TOY, "toy")
    params = nn.unbox(jax.jit(lambda: boxed_params(config, jax.random.key(0)))())
    model = TrainedModel(config, params, cast(Tokenizer, None), "random")
    requests = requests_of(options, config.vocab_size)
    engine = Engine(model, options.slots)
    print(f"processor: {_processor()}, {jax.default_backend()}, {jax.device_count()} devices")
    loops = {"continuous": continuous, "static": static}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    counts: dict[str, Counter[str]] = {}
    ids = {}
    for turn in range(options.rounds + 1):
        # The first turn compiles, with a part of the samples.
        drawn = requests if turn else requests[: 2 * options.slots]
        for name, loop in loops.items():
            engine.counts.clear()
            start = time.perf_counter()
            ids[name] = loop(engine, drawn, options.slots)
            taken = time.perf_counter() - start
            what = f"turn {turn} of {options.rounds}" if turn else "compiled"
            print(f"{name:12} {what}: {len(drawn)} samples in {taken:.1f} s", flush=True)
            if turn:
                seconds[name].append(taken)
            counts[name] = Counter(engine.counts)
        # Draws depend on the request alone: the same samples whatever the schedule.
        assert ids["continuous"] == ids["static"]
    tokens = sum(map(len, ids["static"]))
    print(f"{len(requests)} samples, {tokens} tokens, {options.slots} slots")
    for name in loops:
        # The least disturbed turn: other load on the machine can only add time.
        fastest = min(seconds[name])
        turns = ", ".join(f"{value:.1f}" for value in seconds[name])
        print(f"{name:12} {turns} s, {tokens / fastest:,.0f} tokens/s, {dict(counts[name])}")
    ratios = [b / a for a, b in zip(seconds["continuous"], seconds["static"])]
    print(f"ratio of seconds, turn by turn: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    print(f"ratio of steps: {counts['static']['steps'] / counts['continuous']['steps']:.2f}")


def _processor() -> str:
    """Returns the name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor()


if __name__ == "__main__":
    main()
