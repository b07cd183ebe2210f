"""Every cell of docs/tpu.md is a command that `compile` accepts."""

import pytest

from codellama_jax.compile.command import INFERENCE, choose_stage
from codellama_jax.compile.options import CompileOptions
from codellama_jax.compile.table import cells, training
from codellama_jax.runs.commands import parse_experiment

CELLS = cells()


@pytest.mark.parametrize(("scale", "chat"), [("7b", "llama2"), ("70b", "code_llama_70b")])
def test_an_instruct_cell_is_a_command_that_compile_accepts(scale, chat):
    # One chip has every option: those of another one have the same names.
    name, args = training("instruct", "v5e", scale)
    assert CELLS[name] == args
    parsed = parse_experiment(CompileOptions, args, "compile", "")
    stage = choose_stage(parsed.experiment, "", args[args.index("--stage") + 1])
    assert (stage.data.chat, stage.data.batch_size, stage.data.seq_len) == (chat, 128, 4096)


def test_the_instruct_cells_are_the_stage_of_its_experiment():
    args = [args for name, args in CELLS.items() if name.startswith("instruct | ")]
    assert len(args) == 20
    assert {arg[0] for arg in args} == {"code_llama_instruct"}
    assert not {arg[arg.index("--stage") + 1] for arg in args} & {"code", *INFERENCE}
