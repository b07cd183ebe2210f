#!/usr/bin/env python3
"""Runs, plans or compiles an experiment: `launch.py run experiments/quickstart.py`.

Every field of an experiment file can be overridden by its dotted name, in every arm:
`--code.steps 10 --mesh.fsdp 4`; `launch.py run EXPERIMENT --help` lists the names.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any

try:
    import tyro
except ModuleNotFoundError:  # a Python without the project's packages
    fix = "run `make quickstart` once, then .venv/bin/python instead of python"
    print(f"error: {sys.executable} has no package tyro: {fix}", file=sys.stderr)
    sys.exit(2)

from codellama_jax import overrides
from codellama_jax.checked import Checked, FieldError, Range
from codellama_jax.command_line import cli, run_command
from codellama_jax.config import CACHE, INT32, Experiment
from codellama_jax.errors import UserError
from codellama_jax.runs import experiment_file
from codellama_jax.system.files import user_path

EXPERIMENT = (
    "An experiment file or its name: experiments/quickstart.py or quickstart. With a name, --help"
    " also lists everything that can be overridden."
)


@dataclass(frozen=True)
class Plan(Checked):
    """Print the stages of an experiment and what they cost; starts nothing."""

    experiment: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT", help=EXPERIMENT)
    ]
    scale: str = ""
    """One of those the file offers (toy, 7b, 13b, ...); its own default unless given."""
    arm: str = ""
    """Only this arm."""
    traceback: bool = False
    """Print Python's full traceback where the experiment file fails."""


@dataclass(frozen=True)
class Run(Plan):
    """Train an experiment, or resume it: finished stages are skipped."""

    out: str = ""
    """The run's folder, local or gs://; runs/EXPERIMENT-SCALE unless given."""
    reuse: str = ""
    """A folder of runs: a stage that equals a finished one there is read, not trained again."""
    fresh: bool = False
    """Start again; the existing run is kept under another name."""
    cache: str = CACHE
    """Where prepared documents, tokenizers and compiled programs are kept."""


@dataclass(frozen=True)
class Compile(Plan):
    """Compile a stage for a TPU pod that is not attached: memory, communication, estimated time."""

    stage: str = "code"
    """A stage of the experiment, or prefill or decode of its last model."""
    target: str = "v5p:4x8x8"
    """Chip and topology: v4:4x4x4, v5e:16x16, v5p:4x8x8, v6e:16x16, tpu7x:4x4x4."""
    slices: Annotated[int, Range(1, 256)] = 1
    """Pods of that topology, joined by the data axis."""
    search: bool = False
    """Try meshes, rematerialisation and micro-batches, and print the best that fits."""
    batch: Annotated[int, Range(1, 2**20)] = 1
    """Sequences of prefill or decode."""
    context: Annotated[int, Range(1, INT32)] = 100_000
    """Tokens of a prompt to prefill, or in the cache to decode after."""
    cache: str = CACHE
    """Where figures of the project's own kernels are kept."""


Commands = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Compile, tyro.conf.subcommand("compile")]
)


def load_experiment(choice: Plan) -> tuple[Experiment, ModuleType]:
    """Returns the experiment as its file defines it, and the file."""
    module = experiment_file.load_file(choice.experiment, choice.traceback)
    experiment = experiment_file.build(module, choice.scale, choice.traceback)
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
    index = arguments.index("--mesh")
    axes = [f"--mesh.{axis}" for axis in arguments[index + 1].split(",")]
    return [*arguments[:index], *axes, *arguments[index + 2 :]]


def with_user_paths(choice: Any) -> Any:
    """Returns the command with `~` expanded and local folders absolute. Raises UserError."""
    paths = {name: getattr(choice, name, "") for name in ("out", "reuse", "cache")}
    given = {name: str(user_path(path)) for name, path in paths.items() if path}
    return dataclasses.replace(choice, **given)


def parse(arguments: list[str], program: str) -> tuple[Any, Experiment, ModuleType]:
    """Returns the command, the experiment with its overrides, and the experiment file."""
    others = [a for a in arguments if a not in ("-h", "--help")]
    helped = len(others) < len(arguments)
    named = len(others) > 1 and not others[1].startswith("-")
    choice, unknown = cli(
        Commands,
        args=others if named else arguments,
        description=__doc__,
        prog=program,
        return_unknown_args=True,
    )
    experiment, module = load_experiment(choice)
    if helped:
        print(experiment_file.claim_of(module), end="\n\n")  # tyro would join the lines
    if unknown or helped:
        options = options_type(choice, experiment)
        verb = f"{program} {others[0]}"
        try:
            given = cli(options, args=arguments[1:], prog=verb, description="")
        except UserError as error:  # only with the experiment --help lists every option
            help_of_all = f"see {verb} {choice.experiment} --help"
            raise UserError(str(error).replace(f"see {verb} --help", help_of_all)) from None
        choice = given.choice
        names = overrides.options(experiment)
        changed = overrides.apply(experiment, {name: getattr(given, name) for name in names})
        overrides.warn(experiment, changed)
        experiment = changed
    else:
        overrides.warn(experiment, experiment)
    return with_user_paths(choice), experiment, module


def main(program: str = "launch.py") -> None:
    choice, experiment, module = parse(spelled_out(sys.argv[1:]), program)
    claim = experiment_file.claim_of(module)
    try:
        start(choice, experiment, claim, getattr(module, "finding", None))
    except FieldError as error:
        raise error.as_option() from None


def start(choice: Any, experiment: Experiment, claim: str, finding: Any) -> None:
    """Runs, compiles or prints the plan of an experiment."""
    if isinstance(choice, Run):
        print("starting JAX", flush=True)  # its import takes seconds
        from codellama_jax.runs.experiment import run_experiment

        run_experiment(experiment, claim, finding, choice)
    elif isinstance(choice, Compile):
        from codellama_jax.compile.target import prepare_environment

        prepare_environment(choice.target)
        from codellama_jax.compile.command import compile_experiment

        compile_experiment(experiment, choice)
    else:
        from codellama_jax.report.plan import print_plan

        print_plan(experiment, claim)


if __name__ == "__main__":
    run_command(main)
