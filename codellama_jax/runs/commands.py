"""`run` and `plan`, and the parsing of every verb that takes an experiment with overrides.

Imports neither JAX nor Flax, so that `plan` answers at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from codellama_jax import overrides
from codellama_jax.checked import Checked, Range
from codellama_jax.command_line import cli
from codellama_jax.config import CACHE, Experiment, Stage
from codellama_jax.errors import UserError
from codellama_jax.runs import experiment_file
from codellama_jax.system.files import user_path

if TYPE_CHECKING:
    from codellama_jax.report.findings import FindingOf

EXPERIMENT = (
    "An experiment file or its name: experiments/quickstart.py or quickstart. With a name, --help"
    " also lists everything that can be overridden."
)


@dataclass(frozen=True)
class PlanOptions(Checked):
    """The options of `plan`, and those that every verb with an experiment has."""

    experiment: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT", help=EXPERIMENT)
    ]
    scale: str = ""
    """One of those the file offers (toy, 7b, 13b, ...); its own default unless given."""
    arm: str = ""
    """Only this arm."""
    traceback: bool = False
    """Print Python's full traceback where the experiment file fails."""

    def start(self, experiment: Experiment, claim: str, finding: FindingOf | None) -> None:
        """Prints the plan of an experiment."""
        from codellama_jax.report.plan import print_plan

        print_plan(experiment, claim)


@dataclass(frozen=True)
class RunOptions(PlanOptions):
    """The options of `run`."""

    out: str = ""
    """The run's folder, local or gs://; runs/EXPERIMENT-SCALE unless given."""
    reuse: str = ""
    """A folder of runs: a stage that equals a finished one there is read, not trained again."""
    fresh: bool = False
    """Start again; the existing run is kept under another name."""
    cache: str = CACHE
    """Where prepared documents, tokenizers and compiled programs are kept."""
    processes: Annotated[int, Range(1, 1024)] = 1
    """Processes that train the seeds side by side on a CPU, each on its share of the cores."""

    def arms_of(self, experiment: Experiment) -> dict[str, dict[str, Stage]]:
        """Returns the stages of the arms to run, by name: of all, or of the one that was named."""
        if not self.arm:
            return experiment.arms
        return {self.arm: experiment.arms[self.arm]}

    def start(self, experiment: Experiment, claim: str, finding: FindingOf | None) -> None:
        """Trains an experiment, or resumes it."""
        print("starting JAX", flush=True)  # its import takes seconds
        from codellama_jax.runs.experiment import run_experiment

        run_experiment(experiment, claim, finding, self)


@dataclass(frozen=True)
class Command:
    """A parsed command line: the verb's options, and the experiment with its overrides."""

    options: PlanOptions
    experiment: Experiment
    module: ModuleType

    def start(self) -> None:
        """Runs, compiles or prints the plan of the experiment."""
        claim = experiment_file.claim_of(self.module)
        finding: FindingOf | None = getattr(self.module, "finding", None)
        show_traceback = self.options.traceback
        # After the overrides: the fields that `completed` fills in follow from them.
        experiment = experiment_file.completed(self.module, self.experiment, show_traceback)
        self.options.start(experiment, claim, finding)


def load_experiment(options: PlanOptions) -> tuple[Experiment, ModuleType]:
    """Returns the experiment as its file defines it, and the file.

    Raises UserError for an unknown file, scale or arm, and for a file that fails.
    """
    module = experiment_file.load_file(options.experiment, options.traceback)
    experiment = experiment_file.build(module, options.scale, options.traceback)
    if options.arm and options.arm not in experiment.arms:
        raise UserError(f"no arm {options.arm}: there are {', '.join(experiment.arms)}")
    return experiment, module


def parse_experiment(
    verb: type[PlanOptions], arguments: list[str], command: str, description: str
) -> Command:
    """Returns the parsed command; with `--help` prints every option and exits.

    The overrides depend on the experiment, so that the arguments are parsed twice: once for the
    name of the experiment, and once with its fields as further options.
    """
    # With --help in the arguments the first parse would print the help and exit, although the
    # experiment's own options are still unknown.
    without_help = [a for a in arguments if a not in ("-h", "--help")]
    is_help = len(without_help) < len(arguments)
    has_name = bool(without_help) and not without_help[0].startswith("-")
    options, unknown = cli(
        verb,
        args=without_help if has_name else arguments,
        description=description,
        prog=command,
        # At this point the overrides are unknown arguments, since no experiment has been read yet.
        return_unknown_args=True,
    )
    experiment, module = load_experiment(options)
    if is_help:
        print(f"{description}\n\n{experiment_file.claim_of(module)}\n")  # tyro would join the lines
    changed = experiment
    # Without overrides there is no second parse, for which tyro takes long: it has many fields.
    if unknown or is_help:
        options, changed = _with_overrides(options, experiment, arguments, command)
    overrides.warn(experiment, changed)
    return Command(_with_user_paths(options), changed, module)


def options_type(options: PlanOptions, experiment: Experiment) -> type:
    """Returns a dataclass of the verb's own options and of everything that can be overridden."""
    # `config.RESERVED` keeps stages from taking this name.
    fields: list[Any] = [("choice", Annotated[type(options), tyro.conf.arg(name="")], options)]
    for name, value in overrides.options(experiment).items():
        fields.append((name, type(value), dataclasses.field(default=value)))
    return dataclasses.make_dataclass("Options", fields, frozen=True)


def _with_overrides(
    options: PlanOptions, experiment: Experiment, arguments: list[str], command: str
) -> tuple[PlanOptions, Experiment]:
    """Returns the verb's options and the experiment with the overrides in `arguments`."""
    try:
        given = cli(options_type(options, experiment), args=arguments, prog=command, description="")
    except UserError as error:
        # Only with the experiment --help lists every option.
        full_help = f"see {command} {options.experiment} --help"
        raise UserError(str(error).replace(f"see {command} --help", full_help)) from None
    names = overrides.options(experiment)
    values = {name: getattr(given, name) for name in names}
    return given.choice, overrides.apply(experiment, values)


def _with_user_paths(options: Any) -> Any:
    """Returns the options with `~` expanded and local folders absolute. Raises UserError."""
    paths = {name: getattr(options, name, "") for name in ("out", "reuse", "cache")}
    given = {name: str(user_path(path)) for name, path in paths.items() if path}
    return dataclasses.replace(options, **given)
