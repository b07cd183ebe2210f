#!/usr/bin/env python3
"""The one command line: `launch.py run experiments/quickstart.py`, `launch.py plan experiments/code_llama.py --scale 34b`.

What an experiment file says can be overridden by its dotted name, in every arm: `--code.steps 10 --mesh.fsdp 4`;
`launch.py run EXPERIMENT --help` lists the names.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro

from codellama_jax import overrides
from codellama_jax.command_line import cli, run_command
from codellama_jax.config import CACHE, Experiment
from codellama_jax.errors import UserError

FOLDER = Path(__file__).resolve().parent / "experiments"


@dataclass(frozen=True)
class Plan:
    """Print the stages of an experiment and what they cost; starts nothing."""

    experiment: Annotated[str, tyro.conf.Positional]
    """An experiment file or its name: experiments/quickstart.py or quickstart."""
    scale: str = ""
    """One of those the file offers (toy, 7b, 13b, ...); its own default unless given."""
    arm: str = ""
    """Only this arm."""


@dataclass(frozen=True)
class Run(Plan):
    """Train an experiment, or go on with it: finished stages are skipped, a stopped one resumes."""

    out: str = ""
    """The run's folder, local or gs://; runs/EXPERIMENT-SCALE unless given."""
    reuse: str = ""
    """A folder of runs: a finished stage among them that equals one of this run is read from there instead of trained again."""
    fresh: bool = False
    """Start again; the run that is there is kept under another name."""
    cache: str = CACHE
    """Where prepared documents, tokenizers and compiled programs are kept."""


@dataclass(frozen=True)
class Compile(Plan):
    """Compile a stage for a TPU pod that is not there: does it fit, what does it exchange, how long does the compiler expect it to take."""

    stage: str = "code"
    """A stage of the experiment, or prefill or decode of its last model."""
    target: str = "v5p:4x8x8"
    """Chip and topology: v4:4x4x4, v5e:16x16, v5p:4x8x8, v6e:16x16, tpu7x:4x4x4."""
    slices: int = 1
    """Pods of that topology, joined by the data axis."""
    search: bool = False
    """Try meshes, rematerialisation and micro-batches, and print the best that fits."""
    batch: int = 1
    """Rows of prefill or decode."""
    context: int = 100_000
    """Tokens of a prompt to prefill, or in the cache to decode after."""
    cache: str = CACHE
    """Where what is known of our kernels is kept."""


Commands = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Compile, tyro.conf.subcommand("compile")]
)


def load_file(name: str) -> ModuleType:
    """Imports an experiment file. Raises UserError naming the near ones if there is none."""
    path = Path(name) if name.endswith(".py") else FOLDER / f"{name}.py"
    if not path.is_file():
        there = sorted(p.stem for p in FOLDER.glob("*.py"))
        near = difflib.get_close_matches(path.stem, there, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(there)}"
        raise UserError(f"no experiment {name}: {hint}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "experiment"):
        raise UserError(f"{path} is not an experiment file: it has no function experiment(scale)")
    return module


def load_experiment(choice: Plan) -> tuple[Experiment, ModuleType]:
    """Returns the experiment as its file has it, and the file."""
    module = load_file(choice.experiment)
    experiment = module.experiment(choice.scale) if choice.scale else module.experiment()
    if choice.arm and choice.arm not in experiment.arms:
        raise UserError(f"no arm {choice.arm}: there are {', '.join(experiment.arms)}")
    return experiment, module


def options_type(choice: Plan, experiment: Experiment) -> type:
    """Returns a dataclass of the command's own options and of everything that can be overridden."""
    fields: list[Any] = [("choice", Annotated[type(choice), tyro.conf.arg(name="")], choice)]
    for name, value in overrides.options(experiment).items():
        fields.append((name, type(value), dataclasses.field(default=value)))
    return dataclasses.make_dataclass("Options", fields, frozen=True)


def spelled_out(arguments: list[str]) -> list[str]:
    """Returns the arguments with `--mesh fsdp=64,tensor=4` as `--mesh.fsdp=64 --mesh.tensor=4`."""
    if "--mesh" not in arguments[:-1]:
        return arguments
    at = arguments.index("--mesh")
    return [*arguments[:at], *(f"--mesh.{axis}" for axis in arguments[at + 1].split(",")), *arguments[at + 2 :]]


def main(program: str = "launch.py") -> None:
    sys.argv[1:] = spelled_out(sys.argv[1:])
    asked = [a for a in sys.argv[1:] if a not in ("-h", "--help")]
    helped = len(asked) < len(sys.argv) - 1
    named = len(asked) > 1 and not asked[1].startswith("-")
    choice, unknown = cli(Commands, args=asked if named else sys.argv[1:], description=__doc__, prog=program, return_unknown_args=True)
    experiment, module = load_experiment(choice)
    claim = inspect.cleandoc(module.__doc__ or "")
    if unknown or helped:
        verb = asked[0]
        given = cli(options_type(choice, experiment), args=sys.argv[2:], prog=f"{program} {verb}", description=claim)
        choice = given.choice
        experiment = overrides.apply(experiment, {name: getattr(given, name) for name in overrides.options(experiment)})
    if isinstance(choice, Run):
        from codellama_jax.run import run_experiment

        run_experiment(experiment, claim, getattr(module, "finding", None), choice)
    elif isinstance(choice, Compile):
        from codellama_jax.compile.target import prepare_environment

        prepare_environment()
        from codellama_jax.compile.command import compile_experiment

        compile_experiment(experiment, choice)
    else:
        from codellama_jax.plan import print_plan

        print_plan(experiment, claim)


if __name__ == "__main__":
    run_command(main)
