"""The command line: `launch.py VERB`, `python -m codellama_jax VERB`, `codellama-jax VERB`.

Every verb is one entry of `VERBS`. Its options are a dataclass in the package that does the work,
imported only for that verb, so that `--help` and `plan` start at once.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Union

import tyro

from codellama_jax.checked import FieldError, choices_problem
from codellama_jax.command_line import cli, program_name, run_command
from codellama_jax.errors import UserError
from codellama_jax.system.allocator import keep_freed_memory

DESCRIPTION = """Trains, plans and compiles experiments; prompts, evaluates and converts models.

VERB --help describes the options of a verb and shows an example."""


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    `options` names the dataclass of its options as `module:class`. An instance is called without
    arguments to do the work. `example` holds arguments that parse as they are printed.
    """

    options: str
    summary: str
    example: str
    is_experiment: bool = False
    keeps_memory: bool = False  # runs models and then ends: see `allocator.keep_freed_memory`

    def load(self) -> Any:
        """Imports and returns the dataclass of the verb's options."""
        module, _, name = self.options.partition(":")
        return getattr(importlib.import_module(f"codellama_jax.{module}"), name)

    def description(self, command: str) -> str:
        """Returns the text above the options in `--help`; `command` is `launch.py VERB`."""
        return f"{self.summary}\n\nExample: {command} {self.example}"


VERBS = {
    "run": Verb(
        "runs.commands:RunOptions",
        "Train an experiment, or resume it: finished stages are skipped.",
        "quickstart --code.steps 50 --code.optimizer.warmup-steps 5 --out runs/short",
        is_experiment=True,
        keeps_memory=True,
    ),
    "plan": Verb(
        "runs.commands:PlanOptions",
        "Print the stages of an experiment and what they cost; starts nothing.",
        "code_llama --scale 34b",
        is_experiment=True,
    ),
    "compile": Verb(
        "compile.options:CompileOptions",
        "Compile a stage for a TPU pod that is not attached: memory, collectives, estimated time.",
        "quickstart --stage code --target v5e:2x2 --mesh fsdp=2,tensor=2",
        is_experiment=True,
    ),
    "prepare": Verb(
        "runs.prepare:Prepare",
        "Prepare a corpus: filter, redact, remove duplicates and benchmarks, write a dataset.",
        "~/my/sources --out corpora/mine --policy starcoder --processes 2",
    ),
    "complete": Verb(
        "generation.commands:Complete",
        "Continue a prompt.",
        'runs/quickstart-toy "def mean(xs):" --max-new-tokens 48',
        keeps_memory=True,
    ),
    "infill": Verb(
        "generation.commands:Infill",
        "Fill in <FILL_ME> in a file and print the complete file.",
        "runs/quickstart-toy area.py --max-new-tokens 32",
        keeps_memory=True,
    ),
    "chat": Verb(
        "generation.chat:Chat",
        "Talk to a model that was trained on conversations, in the terminal.",
        'runs/smollm2 --message "Write a function that adds two numbers." --max-new-tokens 200',
        keeps_memory=True,
    ),
    "serve": Verb(
        "serving.commands:Serve",
        "Serve completions over HTTP: to editors, OpenAI clients and a page in the browser.",
        "runs/quickstart-toy --port 8012",
    ),
    "self-instruct": Verb(
        "alignment.commands:SelfInstructCommand",
        "Write questions, tests and solutions with models; keep solutions that pass the tests.",
        "data/self --model runs/smollm2 --prompts 2 --questions 10 --solutions 4",
        keeps_memory=True,
    ),
    "evol-instruct": Verb(
        "alignment.commands:EvolInstructCommand",
        "Make tasks harder in rounds, answer them, drop what is broken or of a benchmark.",
        "data/evol --seeds tasks.jsonl --model runs/smollm2 --rounds 2",
        keeps_memory=True,
    ),
    "rank": Verb(
        "alignment.rank_command:RankCommand",
        "Sample answers of a student and of teachers, run their tests, write ranked pairs.",
        "data/pairs --tasks data/self/dataset.jsonl --student runs/mine --teacher runs/smollm2",
        keeps_memory=True,
    ),
    "trace-functions": Verb(
        "alignment.codex_command:TraceFunctions",
        "Trace functions while a project's tests run; keep those that a model solves (Codex-S).",
        "data/traced --projects ~/src/toolz --model runs/codex --samples 100",
        keeps_memory=True,
    ),
    "evaluate": Verb(
        "benchmarks.commands:Evaluate",
        "Measure a benchmark of the paper: humaneval, mbpp, key_retrieval, ...",
        "humaneval --run runs/quickstart-toy --data HumanEval.jsonl.gz --out runs/humaneval",
        keeps_memory=True,
    ),
    "import": Verb(
        "weights.commands:Import",
        "Import published weights as a run that complete, infill, export and init=run: read.",
        "CodeLlama-7b-hf runs/code_llama",
    ),
    "export": Verb(
        "weights.commands:Export",
        "Write a trained model for transformers, vLLM and llama.cpp, or for Meta's own code.",
        "runs/quickstart-toy exported --to hf",
    ),
    "check": Verb(
        "weights.commands:Check",
        "Compare two models' tokens and logits on a text, or the files of one with its checksums.",
        "runs/code_llama --against CodeLlama-7b-hf",
    ),
    "kernels": Verb(
        "compile.options:Kernels",
        "Print the static schedule of a kernel on TPUs that are not attached: compiler estimates.",
        "flash_attention --chip v5p,v6e --seq 4096 --compare splash",
    ),
}


def main() -> None:
    """Runs the command in `sys.argv`, then exits."""
    run_command(_run)


def parse(arguments: list[str], program: str) -> Callable[[], None]:
    """Returns the function that does the work of `program ARGUMENTS`.

    Raises UserError with one line for a mistake, before anything has started.
    """
    # The verb decides which modules are imported, so that it is read before tyro parses anything.
    name = arguments[0] if arguments else ""
    if not name.startswith("-") and arguments and name not in VERBS:
        problem = choices_problem(name, list(VERBS))
        raise UserError(f"VERB{problem}; see {program} --help")
    if name not in VERBS:  # no verb at all, or --help
        return cli(_listing(), args=arguments, description=DESCRIPTION, prog=program)
    verb, command = VERBS[name], f"{program} {name}"
    options, description = verb.load(), verb.description(command)
    rest = spelled_out(arguments[1:])
    if verb.is_experiment:
        from codellama_jax.runs.commands import parse_experiment

        return parse_experiment(options, rest, command, description).start
    if hasattr(options, "parse"):
        return options.parse(rest, command, description)
    return cli(options, args=rest, description=description, prog=command)


def spelled_out(arguments: list[str]) -> list[str]:
    """Returns the arguments with `--mesh fsdp=64,tensor=4` as `--mesh.fsdp=64 --mesh.tensor=4`.

    Raises UserError for a `--mesh` without axes and sizes.
    """
    spelled: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, axes = argument.partition("=")
        if name != "--mesh":
            spelled.append(argument)
            continue
        if not equals:
            axes = next(remaining, "")
        for axis in axes.split(","):
            if not axis or axis.startswith("-"):
                raise UserError(
                    f"--mesh is {axes!r}: it must be axes with their sizes, as in fsdp=4,tensor=2"
                )
            spelled.append(f"--mesh.{axis}")
    return spelled


def _run() -> None:
    # Before `parse` imports the verb, whose libraries start threads.
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in VERBS and VERBS[name].keeps_memory:
        keep_freed_memory()
    work = parse(sys.argv[1:], program_name())
    try:
        work()
    except FieldError as error:
        # A check that needs the devices, such as the batch on a mesh, comes after parsing.
        raise error.as_option() from None


def _listing() -> Any:
    """Returns a type for tyro that lists every verb, without the imports that options need."""
    listed = []
    for name, verb in VERBS.items():
        # tyro only prints the list: with the name of a verb `parse` never comes here.
        empty = dataclasses.make_dataclass(name, [], namespace={"__call__": lambda self: None})
        listed.append(Annotated[empty, tyro.conf.subcommand(name, description=verb.summary)])
    return functools.reduce(lambda union, verb: Union[union, verb], listed)  # noqa: UP007
