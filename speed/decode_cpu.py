"""Tokens per second of greedy decoding on a CPU, beside transformers and CTranslate2.

    pip install -e '.[oracle]' ctranslate2
    PYTHONPATH=. python speed/decode_cpu.py                # 34M parameters, batches of 1 and 16
    PYTHONPATH=. python speed/decode_cpu.py --rounds 5

A random Llama is written once, as a Hugging Face folder, and read by every side. All sides read
prompts of 64 tokens and draw 128 more. They alternate, each in a separate process, and a figure
is the median over the rounds. The fp32 sides must draw the same ids.

All sides take the processors that the process may use: `taskset -c 0` measures one core. There the
processor time per token is comparable on a busy machine too, since no thread waits for another.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from rich.console import Console
from rich.table import Table

from codellama_jax.command_line import cli, run_command
from codellama_jax.errors import UserError
from codellama_jax.system.exits import failure_line
from speed.train_cpu import processor

VOCAB, WIDTH, LAYERS, HEADS, FEED_FORWARD = 8192, 512, 8, 8, 1408
PROMPT, NEW = 64, 128  # tokens
BATCHES = (1, 16)
SIDES = ("ours", "ours int8", "ours w8a8", "transformers", "CTranslate2", "CTranslate2 int8")
FP32 = ("ours", "transformers", "CTranslate2")
PEERS = ("transformers", "CTranslate2")
RATIOS = ("x transformers", "x CTranslate2")


@dataclass(frozen=True)
class Options:
    """Command line."""

    rounds: int = 3  # measurements of each side
    worker: str = ""  # arguments of one side as JSON, for the processes of this script


def write_model(folder: Path) -> None:
    """Writes a random Llama and its conversions to CTranslate2."""
    import torch
    from ctranslate2.converters import TransformersConverter
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        # Large enough that the two most likely tokens are rarely close: the ids can be compared.
        initializer_range=0.06,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    # The converter wants a tokenizer; token i is spelled "ti".
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="t0", bos_token="t1", eos_token="t2"
    )
    tokenizer.save_pretrained(folder)
    # CTranslate2 quantizes when it converts, the other sides when they load.
    for dtype in ("float32", "int8"):
        TransformersConverter(str(folder)).convert(str(folder / dtype), quantization=dtype)


def ours(folder: Path, prompts_BT: np.ndarray, scheme: str) -> Callable[[], list[list[int]]]:
    """Returns a function that draws greedily with our engine."""
    import jax
    from etils import epath

    from codellama_jax.config import MeshConfig
    from codellama_jax.generation.quantize import quantized
    from codellama_jax.generation.sampler import generate
    from codellama_jax.generation.settings import Quantization, Sampling
    from codellama_jax.models.trained import TrainedModel
    from codellama_jax.sharding.mesh import make_mesh
    from codellama_jax.tokenizers.base import Tokenizer
    from codellama_jax.weights import huggingface, load

    source = huggingface.open_source(epath.Path(folder))
    config = dataclasses.replace(source.model, compute_dtype="float32", remat="none")
    params = load.place_params(source, config, make_mesh(MeshConfig(), jax.devices()[:1]))
    no_tokenizer = cast(Tokenizer, None)  # the prompts are token ids
    model = quantized(TrainedModel(config, params, no_tokenizer, "random"), Quantization(scheme))
    sampling = Sampling(temperature=0.0, max_new_tokens=NEW)
    return lambda: generate(model, prompts_BT.tolist(), sampling)


def transformers(folder: Path, prompts_BT: np.ndarray, _: str) -> Callable[[], list[list[int]]]:
    """Returns a function that draws greedily with transformers."""
    import torch
    from transformers import LlamaForCausalLM

    llama = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.tensor(prompts_BT)
    # A minimum as well: a sequence that ends early would be less work than the others'.
    lengths = {"min_new_tokens": NEW, "max_new_tokens": NEW}

    def draw() -> list[list[int]]:
        with torch.inference_mode():
            ids_BT = llama.generate(
                tokens, attention_mask=torch.ones_like(tokens), do_sample=False, **lengths
            )
        return ids_BT[:, PROMPT:].tolist()

    return draw


def ctranslate2(folder: Path, prompts_BT: np.ndarray, dtype: str) -> Callable[[], list[list[int]]]:
    """Returns a function that draws greedily with CTranslate2."""
    from ctranslate2 import Generator

    # Set explicitly, so that every side uses the processors that `taskset` allows.
    threads = len(os.sched_getaffinity(0))
    # int8 weights with fp32 activations between the layers, as in our w8a8.
    compute = {"float32": "float32", "int8": "int8_float32"}[dtype]
    generator = Generator(str(folder / dtype), compute_type=compute, intra_threads=threads)
    texts = []
    for prompt in prompts_BT.tolist():
        texts.append([f"t{i}" for i in prompt])

    def draw() -> list[list[int]]:
        results = generator.generate_batch(
            texts,
            max_length=NEW,
            min_length=NEW,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token="t2",
        )
        return [result.sequences_ids[0] for result in results]

    return draw


START = {
    "ours": (ours, "none"),
    "ours int8": (ours, "int8"),
    "ours w8a8": (ours, "w8a8"),
    "transformers": (transformers, ""),
    "CTranslate2": (ctranslate2, "float32"),
    "CTranslate2 int8": (ctranslate2, "int8"),
}


def run_side(side: str, folder: str, batch: int) -> dict:
    """Returns the fastest of three runs, in tokens per second, the least processor time per token,
    in ms, and the ids, in this process."""
    prompts_BT = np.random.default_rng(0).integers(3, VOCAB, (batch, PROMPT))
    function, argument = START[side]
    draw = function(Path(folder), prompts_BT, argument)
    # The first run compiles, or allocates, and is not measured.
    draw()
    seconds, processor_seconds = [], []
    # The best of three: a busy machine only ever makes a run slower.
    for _ in range(3):
        start, processor_start = time.perf_counter(), time.process_time()
        ids = draw()
        seconds.append(time.perf_counter() - start)
        processor_seconds.append(time.process_time() - processor_start)
    tokens = batch * NEW
    # Of all threads together: a side that spins while it waits pays for it here.
    processor_ms = 1000 * min(processor_seconds) / tokens
    return {"speed": tokens / min(seconds), "processor_ms": processor_ms, "ids": ids}


def measure(side: str, folder: Path, batch: int) -> dict:
    """Returns what `run_side` does, in a separate process; UserError where that fails."""
    command = [sys.executable, __file__, "--worker", json.dumps([side, str(folder), batch])]
    # No side may move to a GPU that the machine happens to have.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise UserError(f"{side}: {failure_line(done.stderr, done.returncode)}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, batch: int, rounds: int) -> dict[str, list[dict]]:
    """Returns the results of each side, one per round; the sides alternate."""
    results: dict[str, list[dict]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            results[side].append(measure(side, folder, batch))
            # The table comes minutes later.
            report = f"{batch} sequences, {side}: {results[side][-1]['speed']:,.0f} tokens/s"
            print(report, file=sys.stderr, flush=True)
        for side in FP32:
            # Equal ids show that the sides compute the same model; the int8 sides round
            # differently.
            if results[side][-1]["ids"] != results["ours"][-1]["ids"]:
                raise UserError(f"{side} draws other ids than ours with {batch} sequences")
    return results


def add_rows(table: Table, batch: int, results: dict[str, list[dict]]) -> None:
    """Adds a row per side: rates and processor times, each with how many times better it is."""
    speeds, costs = {}, {}
    for side in SIDES:
        speeds[side] = statistics.median(result["speed"] for result in results[side])
        costs[side] = statistics.median(result["processor_ms"] for result in results[side])
    for side in SIDES:
        faster = [f"{speeds[side] / speeds[peer]:.2f}" for peer in PEERS]
        cheaper = [f"{costs[peer] / costs[side]:.2f}" for peer in PEERS]
        rates = f"{speeds[side]:,.0f}", *faster
        table.add_row(str(batch), side, *rates, f"{costs[side]:.2f}", *cheaper)


def main() -> None:
    """Prints a table with a row per batch and side."""
    options = cli(Options, description=__doc__)
    if options.worker:
        print(json.dumps(run_side(*json.loads(options.worker))))
        return
    cores = len(os.sched_getaffinity(0))
    title = f"{processor()[0]}, {cores} cores; median of {options.rounds} rounds"
    table = Table("sequences", "side", "tokens/s", *RATIOS, "processor ms/token", *RATIOS)
    table.title = title
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        for batch in BATCHES:
            add_rows(table, batch, compare(folder, batch, options.rounds))
    Console().print(table)


if __name__ == "__main__":
    run_command(main)
