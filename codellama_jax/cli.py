"""Trains, plans and compiles experiments; prompts, evaluates and converts models.

`codellama-jax run quickstart` trains, `codellama-jax complete RUN PROMPT` prompts; VERB --help
describes a verb.
"""

from __future__ import annotations

import sys

import launch
from codellama_jax.__main__ import COMMANDS
from codellama_jax.command_line import cli, run_command

PROGRAM = "codellama-jax"
EXPERIMENTS = ("run", "plan", "compile")  # the verbs of launch.py


def main() -> None:
    """Runs the console script `codellama-jax`."""
    run_command(_dispatch)


def _dispatch() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in EXPERIMENTS:
        launch.main(PROGRAM)
        return
    verbs = launch.Commands | COMMANDS
    cli(verbs, description=__doc__, prog=PROGRAM)()
