"""Sends thousands of right and wrong requests to the server, made from its own description.

    pip install schemathesis
    JAX_PLATFORMS=cpu PYTHONPATH=. python tools/fuzz_server.py [--cases 5000] [--seed 1] [--key]

A small random model that infills and chats is served on loopback. Schemathesis reads /openapi.json,
makes requests with and against its schemas for every endpoint, and checks that no answer has a
status of 500 or more, and that each conforms to the description: status, media type, layout. With
--key the server has an API key, and requests without it must be refused.

It runs again with further seeds until --cases requests are answered. The exit code is 1 if one of
its checks fails.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from codellama_jax.generation.middle import Order
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.llama.model import Llama
from codellama_jax.models.trained import TrainedModel
from codellama_jax.serving.app import make_app
from codellama_jax.serving.guard import Guard, Rules
from codellama_jax.serving.server import serve_in_background
from codellama_jax.serving.service import Features, Service
from codellama_jax.serving.worker import READY, Sizes, Worker
from codellama_jax.tokenizers import sentencepiece
from codellama_jax.tokenizers.chat import FORMATS

MODEL = "toy"
KEY = "a-key-for-the-fuzzer"
# Of 128 tokens, so that a request that asks for all that fit ends soon.
SIZES = Sizes(slots=4, context=128, queue=64, warm_up=1)
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)


def small_model(folder: Path) -> TrainedModel:
    """Returns a random model of two layers, with a tokenizer trained in `folder`."""
    texts = []
    for i in range(300):
        # Accents and characters of several bytes reach the tokenizer's byte pieces.
        texts.append(f"def name_{i}(x):\n    return x + {i}\n\n\nclass T{i}:\n    é = '日本'\n")
    # 360 pieces: few enough for this corpus, and enough for all bytes and markers.
    tokenizer = sentencepiece.train(texts, 360, folder)
    config = LlamaConfig(
        tokenizer.vocab_size,
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=64,
        compute_dtype="float32",
        remat="none",
    )
    tokens = jnp.zeros((1, 2), jnp.int32)

    def init() -> dict:
        return nn.unbox(Llama(config).init(jax.random.key(0), tokens, tokens))["params"]

    return TrainedModel(config, jax.jit(init)(), tokenizer, MODEL)


def start(rules: Rules) -> tuple[Worker, Guard, str]:
    """Starts the server and returns its parts and its URL."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-server-"))
    try:
        model = small_model(folder)
    finally:
        shutil.rmtree(folder)
    order, chat = Order(False, "as given"), FORMATS["llama2"]
    worker = Worker(lambda: [model], SIZES)
    features = Features(MODEL, model.tokenizer, order, True, chat)
    app = make_app(Service(features, worker), rules)
    assert isinstance(app, Guard)
    return worker, app, serve_in_background(app, worker)


def command(url: str, options: argparse.Namespace, seed: int) -> list[str]:
    """Returns the command that sends requests of one seed."""
    arguments = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
    arguments += ["--checks", ",".join(CHECKS), "--seed", str(seed), "--mode", "all"]
    # Phases in this order: the examples of the description, then every boundary of its schemas,
    # then random requests.
    arguments += ["--max-examples", str(options.examples), "--phases", "examples,coverage,fuzzing"]
    # Without a database of earlier failures a seed gives the same requests on every machine.
    arguments += ["--generation-database", "none", "--suppress-health-check", "all"]
    # One server answers all, so that a later failure may be caused by an earlier request.
    arguments += ["--continue-on-failure", "--request-timeout", "60", "--no-color"]
    if options.key:
        arguments += ["--header", f"Authorization: Bearer {KEY}"]
    return arguments


def main() -> int:
    """Fuzzes until enough requests are answered. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=5_000, help="requests, at least")
    parser.add_argument("--examples", type=int, default=100, help="per endpoint and seed")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--key", action="store_true", help="with an API key")
    options = parser.parse_args()
    # Few bytes, so that requests over the limit are cheap to make.
    worker, guard, url = start(Rules(KEY if options.key else "", most_bytes=100_000))
    code, seed = 0, options.seed
    while guard.requests.total() < options.cases:
        # Any failed seed makes the exit code nonzero, and the others still run.
        code |= subprocess.run(command(url, options, seed), check=False).returncode
        seed += 1
        print(table(guard), flush=True)
    print(f"{guard.requests.total():,} requests, {worker.unfinished} sequences still run")
    # A sequence that still runs after all answers were sent has lost its client: that is a leak.
    return int(bool(code or worker.unfinished or worker.state != READY))


def table(guard: Guard) -> str:
    """Returns a line for each endpoint: the number of answers by status."""
    answers: dict[str, list[str]] = {}
    for (path, status), count in sorted(guard.requests.items()):
        answers.setdefault(path, []).append(f"{status}: {count:,}")
    return "\n".join(f"{path:24} {', '.join(counts)}" for path, counts in answers.items())


if __name__ == "__main__":
    sys.exit(main())
