"""Every cell of docs/tpu.md is a command that `compile` accepts."""

import math

import pytest

from codellama_jax.compile import table
from codellama_jax.compile.command import choose_stage
from codellama_jax.compile.options import INFERENCE, CompileOptions
from codellama_jax.compile.table import cells, page, training
from codellama_jax.compile.validation import RESULTS, TOTALS, section
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


def test_a_cell_shows_three_totals_and_one_of_an_older_version_shows_one():
    new, old, *_ = CELLS
    memory = "fits 9 GiB of HBM: arguments 1 GiB"
    estimate = "compiler estimate: 4 s per step (1 s in Pallas kernels), collectives left out"
    model = "bandwidth model: 5 s per step, collectives overlapped as scheduled"
    exposed = "bandwidth model: 6 s per step, collectives fully exposed"
    collectives = "collectives: 3 all-gather over fsdp; bandwidth model: 2 s, 1 s of it exposed"
    kept = {
        new: ["mesh fsdp 4", memory, collectives, estimate, model, exposed, "compiled in 9 s"],
        old: ["mesh fsdp 4", memory, "collectives: 3 all-gather, 1GB", estimate],
    }
    rows = {}
    for row in page(kept, {}).splitlines():
        rows[" | ".join(row.split(" | ")[:3]).removeprefix("| ")] = row
    totals = "5 s per step, collectives overlapped as scheduled; 6 s per step, collectives fully"
    assert rows[new].count(" | ") == rows[old].count(" | ") == 8
    assert f"| {totals} exposed | 9 s |" in rows[new] and "2 s, 1 s" not in rows[new]
    assert "(1 s in Pallas kernels), collectives left out |  |  |" in rows[old]


def test_a_published_result_is_compared_by_its_tokens_per_second():
    name, result = next(iter(RESULTS.items()))
    lines = ["mesh fsdp 4"]
    for total, ratio in zip(TOTALS, (2.0, 1.25, 0.5)):
        lines.append(f"bandwidth model: {total}; {ratio * result.rate:,.0f} tokens/s; MFU 0.5")
    rows = section({name: lines}).splitlines()
    (row,) = [row for row in rows if row.startswith(f"| {name} ")]
    for ratio in ("(2.00)", "(1.25)", "(0.50)"):
        assert ratio in row
    assert sum("not compiled yet" in row for row in rows) == len(RESULTS) - 1


@pytest.mark.parametrize("name", RESULTS)
def test_a_published_result_is_a_command_that_compile_accepts(name):
    parsed = parse_experiment(CompileOptions, list(RESULTS[name].args), "compile", "")
    stage = choose_stage(parsed.experiment, "", "code")
    sides = parsed.options.target.partition(":")[2].split("x")
    chips = math.prod(map(int, sides)) * parsed.options.slices
    assert stage.data.seq_len == 4096 and stage.data.batch_size % chips == 0


def test_a_cell_whose_process_is_killed_says_so(tmp_path, monkeypatch):
    """The kernel kills one that fills the memory, which prints nothing."""
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    (tmp_path / "launch.py").write_text(killed)
    monkeypatch.setattr(table, "ROOT", tmp_path)
    kept: dict[str, list[str]] = {}
    table.fill(tmp_path / "kept.json", kept, "a cell", [])
    assert kept == {"a cell": ["killed by signal 9; 9 often means that memory was full"]}
