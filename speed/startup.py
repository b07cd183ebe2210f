"""Time and memory from the start of a process to its first token and its first train steps.

    PYTHONPATH=. python speed/startup.py [--rounds 3]

Each row is a separate process, of a random model of quickstart's size. "cold" starts with an empty
folder of compiled programs, as the first command on a machine does, and "cached" finds there
what the cold process compiled: commands keep it in the cache folder (`keep_compiled`). Processor
time is comparable on a busy machine, wall time is not.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import cast

from rich.console import Console
from rich.table import Table

from codellama_jax.command_line import cli, run_command
from codellama_jax.errors import UserError
from speed.train_cpu import processor


@dataclass(frozen=True)
class Options:
    """Command line."""

    rounds: int = 3  # of every row; figures are medians
    worker: str = ""  # the work of a process of this script
    cache: str = ""  # its folder of compiled programs


@dataclass(frozen=True)
class Cost:
    """What a process took, from its start to its end.

    Attributes:
      wall: seconds.
      processor: seconds of user and system time.
      peak: bytes of memory.
    """

    wall: float
    processor: float
    peak: int


def command_line(cache: str) -> None:
    """Imports what `launch.py` needs to parse its options."""
    import launch  # noqa: F401


def jax_alone(cache: str) -> None:
    """Imports JAX and starts its backend: the least that any work needs."""
    import jax

    jax.devices()


def first_token(cache: str) -> None:
    """Draws one token after a prompt of 64."""
    import flax.linen as nn
    import jax

    from codellama_jax.checkpoints.loading import keep_compiled
    from codellama_jax.generation.sampler import generate
    from codellama_jax.generation.settings import Sampling
    from codellama_jax.models.family import boxed_params
    from codellama_jax.models.llama.sizes import TOY, choose
    from codellama_jax.models.trained import TrainedModel
    from codellama_jax.tokenizers.base import Tokenizer

    keep_compiled(cache)
    config = choose(TOY, "toy")
    params = nn.unbox(jax.jit(lambda: boxed_params(config, jax.random.key(0)))())
    model = TrainedModel(config, params, cast(Tokenizer, None), "random")
    generate(model, [list(range(64))], Sampling(max_new_tokens=1))


def train_steps(cache: str) -> None:
    """Trains for the fewest steps that `speed/training.py` runs."""
    from codellama_jax.checkpoints.loading import keep_compiled
    from codellama_jax.models.llama.sizes import TOY, choose
    from speed.training import Work, ours

    keep_compiled(cache)
    config = dataclasses.replace(choose(TOY, "toy"), compute_dtype="float32")
    ours(config, Work(rows=4, length=256, steps=1))


# Works by name, and whether they compile programs.
WORKS = {
    "command line": (command_line, False),
    "JAX alone": (jax_alone, False),
    "first token": (first_token, True),
    "four train steps": (train_steps, True),
}


def measure(work: str, cache: str) -> Cost:
    """Returns the cost of a process that does a work. Raises UserError where it fails."""
    command = [sys.executable, __file__, "--worker", work, "--cache", cache]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    # A folder that the user chose would be warm already.
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    # wait4 gives the usage of this process alone; `getrusage` would add up all children so far.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode:
        raise UserError(f"{work} failed: its error is above")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def main() -> None:
    """Prints a table with a row per work, cold and cached."""
    options = cli(Options, description=__doc__)
    if options.worker:
        # The script starts itself for each row: imports and compiled programs of one work must not
        # help another.
        WORKS[options.worker][0](options.cache)
        return
    costs: dict[tuple[str, str], list[Cost]] = {}
    for _ in range(options.rounds):
        for work, (_, compiles) in WORKS.items():
            # A new folder per round, so that every round has a cold start.
            with tempfile.TemporaryDirectory() as cache:
                # In this order and in one folder: the cold process fills it for the cached one.
                for state in ("cold", "cached") if compiles else ("",):
                    costs.setdefault((work, state), []).append(measure(work, cache))
    title = f"{processor()[0]}, {os.cpu_count()} cores; median of {options.rounds} rounds"
    table = Table("process", "programs", "wall, s", "processor, s", "peak, MB", title=title)
    for (work, state), rounds in costs.items():
        wall = statistics.median(cost.wall for cost in rounds)
        seconds = statistics.median(cost.processor for cost in rounds)
        peak = statistics.median(cost.peak for cost in rounds) / 1e6
        table.add_row(work, state, f"{wall:.1f}", f"{seconds:.1f}", f"{peak:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    run_command(main)
