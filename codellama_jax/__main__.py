"""Asks a trained model: `python -m codellama_jax complete RUN PROMPT`, `infill RUN FILE`, `evaluate BENCHMARK --run RUN`.

Brings weights in and takes them out: `import DIR RUN`, `export RUN DIR`, `check RUN`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from codellama_jax.command_line import cli, run_command
from codellama_jax.config import CACHE, MeshConfig
from codellama_jax.errors import UserError
from codellama_jax.evaluation.settings import Checking, Options, Settings
from codellama_jax.files import is_bucket, read_file, user_path
from codellama_jax.weights import commands as weights

if TYPE_CHECKING:
    from codellama_jax.generation.sampler import Sampling
    from codellama_jax.training.checkpoint import Run


@dataclass(frozen=True)
class Asking:
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]  # The folder of a run or of one of its stages, local or gs://
    text: Annotated[str, tyro.conf.Positional]
    arm: str = ""  # An arm of the run; its first one unless given
    stage: str = ""  # A stage of the arm; the last that is done unless given
    temperature: float = 0.0  # 0 takes the likeliest token
    top_k: int = 0  # Draw from this many of the likeliest tokens; 0 from all
    top_p: float = 1.0  # Draw from the likeliest tokens that hold this share of the mass
    max_new_tokens: int = 128
    seed: int = 0
    stop: tuple[str, ...] = ()  # End before any of these strings
    mesh: MeshConfig = field(default_factory=MeshConfig)  # The devices of this host along each axis; -1 takes what is left

    def sampling(self) -> Sampling:
        from codellama_jax.generation.sampler import Sampling

        return Sampling(self.temperature, self.top_k, self.top_p, self.max_new_tokens, self.seed)

    def load(self) -> Run:
        from codellama_jax.training.checkpoint import keep_compiled, load_run
        from codellama_jax.training.mesh import make_mesh

        keep_compiled(CACHE)
        run = load_run(self.run, self.arm, self.stage, make_mesh(self.mesh))
        for limit in run.tokenizer.limits:
            print(f"note on the tokenizer: {limit}", file=sys.stderr)
        return run


@dataclass(frozen=True)
class Complete(Asking):
    """Go on from a prompt."""

    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")]  # What to go on from; `-` reads it from standard input

    def __call__(self) -> None:
        prompt = read("-") if self.text == "-" else decoded(os.fsencode(self.text), "the prompt")
        sampling, run = self.sampling(), self.load()
        from codellama_jax.generation.text import complete

        sys.stdout.write(prompt)
        complete(run, [prompt], sampling, self.stop, highlighted())
        sys.stdout.write("\n")


@dataclass(frozen=True)
class Infill(Asking):
    """Fill in <FILL_ME> in a file and print the whole."""

    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]  # The file, local or gs://; `-` reads standard input
    spm: bool = False  # Suffix-prefix-middle order instead of prefix-suffix-middle

    def __call__(self) -> None:
        from codellama_jax.generation.infill import infill, split_fill

        prefix, suffix = split_fill(read(self.text))
        sampling, run = self.sampling(), self.load()
        sys.stdout.write(prefix)
        infill(run, [(prefix, suffix)], sampling, self.spm, self.stop, highlighted())
        sys.stdout.write(suffix)


@dataclass(frozen=True)
class Evaluate:
    """Measure a benchmark of the paper: humaneval, mbpp, ... (a wrong name lists them all)."""

    benchmark: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BENCHMARK")]
    out: str  # The folder for samples.jsonl, results.jsonl and results.json; the same command goes on with what is there
    options: Annotated[Options, tyro.conf.arg(name="")]
    settings: Annotated[Settings, tyro.conf.arg(name="")]
    checking: Annotated[Checking, tyro.conf.arg(name="")]
    run: str = ""  # The folder of a run or of one of its stages, local or gs://; not needed to score
    arm: str = ""
    stage: str = ""
    samples_file: str = ""
    """Score these samples instead of generating any: a file of HumanEval's harness, EvalPlus, BigCode or CodeGeeX, plain or gzipped."""
    reference: bool = False  # Score the canonical solutions instead of generating any
    across_hosts: bool = False
    """Cut one model over the devices of all hosts, which answer together; else each host has a whole one and answers its share."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """The devices of a model along each axis; -1 takes what is left. `tensor` cuts the KV cache by heads, `data` by rows."""

    def __call__(self) -> None:
        from codellama_jax.evaluation.evaluate import evaluate
        from codellama_jax.evaluation.hosts import may_be_several

        if not (self.run or self.samples_file or self.reference):
            raise UserError("what is to be evaluated? Pass --run RUN, --samples-file FILE or --reference")
        if self.samples_file and self.reference:
            raise UserError("--samples-file and --reference exclude each other: pass one of them")
        if self.run and not is_bucket(self.run) and not os.path.exists(user_path(self.run)):
            raise UserError(f"there is no run {self.run}: pass the folder of a run with --run")
        if may_be_several():
            from codellama_jax.run import start_distributed

            start_distributed()
        evaluate(
            self.benchmark,
            self.load if self.run else None,
            self.options,
            self.settings,
            self.checking,
            self.out,
            self.samples_file,
            self.reference,
        )

    def load(self) -> Run:
        """Loads the model onto its devices: those of this host, or of all."""
        print(f"starting JAX and loading {self.run}", file=sys.stderr, flush=True)
        import jax

        from codellama_jax.training.checkpoint import keep_compiled, load_run
        from codellama_jax.training.mesh import make_mesh

        keep_compiled(CACHE)
        devices = jax.devices() if self.across_hosts else jax.local_devices()
        return load_run(self.run, self.arm, self.stage, make_mesh(self.mesh, devices))


def read(path: str) -> str:
    """Returns the text of a file, local or gs://, or of standard input. Raises UserError for what is not a text file."""
    if path == "-":
        return decoded(sys.stdin.buffer.read(), "standard input")
    return decoded(read_file(user_path(path)), path)


def decoded(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}") from None


def highlighted() -> Callable[[str], None]:
    """Returns what writes the model's text: in green on a terminal, plain elsewhere."""
    on, off = ("\x1b[32m", "\x1b[0m") if sys.stdout.isatty() else ("", "")

    def write(text: str) -> None:
        if text:
            sys.stdout.write(f"{on}{text}{off}")
            sys.stdout.flush()

    return write


COMMANDS = (
    Annotated[Complete, tyro.conf.subcommand("complete")]
    | Annotated[Infill, tyro.conf.subcommand("infill")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | weights.COMMANDS
)


if __name__ == "__main__":
    run_command(lambda: cli(COMMANDS, description=__doc__, prog="python -m codellama_jax")())
