"""Writes docs/tpu.md, a table of every size and stage on pods of every chip: `make tpu-table`.

Each cell of the table is compiled by a separate process, in minutes. Its printed lines are kept in
docs/tpu.json, those of published results in docs/tpu_validation.json, so that an interrupted table
continues where it stopped. To compile a cell again, remove its entry from that file. `python -m
codellama_jax.compile.table TEXT` compiles only the cells whose name contains TEXT.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from codellama_jax.compile import validation
from codellama_jax.system.exits import failure_line

ROOT = Path(__file__).resolve().parents[2]
KEPT, PAGE = ROOT / "docs" / "tpu.json", ROOT / "docs" / "tpu.md"
VALIDATION = ROOT / "docs" / "tpu_validation.json"
SCALES = ("7b", "13b", "34b", "70b")
LARGE = ("34b", "70b")
# The experiment and the stage of each kind of train step.
STAGES = {
    "code 4k": ("code_llama", "code"),
    "LCFT 16k": ("code_llama", "long_context"),
    "instruct": ("code_llama_instruct", "instruct"),
}
INFERENCE = {"prefill 100k": "prefill", "decode at 100k": "decode"}

# In these tables a pair is for the two smaller sizes and for the two larger ones.
PODS = {
    "v5p": ("v5p:4x4x8", "v5p:8x8x8"),
    "v5e": ("v5e:16x16", "v5e:16x16"),
    "v6e": ("v6e:16x16", "v6e:16x16"),
    "tpu7x": ("tpu7x:4x4x4", "tpu7x:4x8x8"),
    "v4": ("v4:4x4x8", "v4:8x8x8"),
}
INFERENCE_PODS = ("v5p:2x2x2", "v5p:2x2x4")
TENSOR = {"code 4k": (1, 4), "LCFT 16k": (2, 8), "instruct": (2, 4)}
# Of the two larger sizes on v5p, where the collectives of these take less time.
LARGE_V5P: dict[str, tuple[int, tuple[str, ...]]] = {
    "code 4k": (2, ()),
    "LCFT 16k": (4, ("--mesh.context", "2")),
}
# Of the code stage.
MICRO_BATCHES = {"v5p": (2, 2), "v5e": (2, 16), "v6e": (1, 8), "tpu7x": (2, 2), "v4": (1, 4)}
# Of the instruct stage, where two sequences per device do not fit at once.
TIGHT = {("v5e", "70b"): ("--instruct.micro-batches", "2")}
_CONTEXT_2 = ("--mesh.context", "2", "--long-context.micro-batches", "4")
_CONTEXT_4 = ("--mesh.context", "4", "--long-context.micro-batches", "4")
# Of the long-context stage on chips with little memory. The VMEM of a v4 holds the gradients of
# 4,096 tokens per head, a quarter of a sequence: longer parts work too, in segments.
LONG: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "v5e": ((), _CONTEXT_2),
    "v6e": ((), _CONTEXT_2),
    "v4": (_CONTEXT_4, _CONTEXT_4),
}
# Chips with enough memory to keep the matmul results of every layer for the backward pass.
ROOMY = ("v5p", "tpu7x")

# The largest models of the GPT family: experiment, scale, stage, and micro-batches by chip.
OTHERS = (
    ("codegeex", "13b", "code", {"v5p": 8, "v5e": 4, "v6e": 4}),
    ("starcoder", "15.5b", "base", {"v5p": 2, "v5e": 2, "v6e": 2}),
    ("codex", "12b", "code", {"v5p": 2, "v5e": 2, "v6e": 2}),
)

HEAD = """# Code models on TPU pods, by the TPU compiler

The step that `launch.py run` starts is compiled for a pod that is not attached. A *compiler
estimate* is the memory that the compiler allocates, or the sum of its times of the operations,
without collectives between chips. The *bandwidth model* adds the collectives, from their bytes and
the published bandwidth of the links: *overlapped as scheduled* hides them behind the operations
between their starts and ends, *fully exposed* hides none. Only the CPU time and memory of compiling
are *measured*, on two CPU cores. A cell without a bandwidth model was compiled by an older version,
which flattened q, k, v and gate, up into one matmul each (slower, most of all on v6e and tpu7x).
MFU counts the full square of attention and its causal half. Decoding reads one token per sequence
after 100,000; reading weights and cache limits its speed. With the compiler's default flags few
collectives run beside computation, so that the last two totals are nearly equal, and a train step
loses to collectives what it has between compute only and overlapped. "instruct" is the stage of the
experiment `code_llama_instruct`. 70B with sequences of 16,384 tokens does not fit v5e, whose pods
end at 256 chips.

`make tpu-table` writes this page and continues where it was stopped. A cell is one command, such as
`python launch.py compile code_llama --scale 34b --stage code --target v5p:8x8x8` and its options.
A cell marked "not compiled yet" has no figures.
"""
COLUMNS = (
    "stage | pod | size",
    "options",
    "mesh",
    "memory per device",
    "compiler estimate",
    "bandwidth model",
    "compiled in",
)
RULE = "|---|---|---|---|---|---|---|---|---|"


def training(title: str, chip: str, scale: str) -> tuple[str, list[str]]:
    """Returns the name of a train step's cell and the arguments of `compile`.

    Args:
      title: a key of `STAGES`.
      chip: a key of `PODS`.
      scale: a size in `SCALES`.
    """
    is_large, (experiment, stage) = scale in LARGE, STAGES[title]
    pod, option = PODS[chip][is_large], f"--{stage.replace('_', '-')}"
    tensor = TENSOR[title][is_large]
    more: tuple[str, ...] = ()
    if chip == "v5p" and is_large:
        tensor, more = LARGE_V5P.get(title, (tensor, more))
    args = [*_arguments(experiment, scale, stage, pod, tensor), *more]
    if title == "code 4k":
        args += ["--code.micro-batches", str(MICRO_BATCHES[chip][is_large])]
    if title == "LCFT 16k" and chip in LONG:
        args += LONG[chip][is_large]
    if title == "instruct":
        args += TIGHT.get((chip, scale), ())
    if chip in ROOMY:
        args += [f"{option}.model.remat", "dots"]
    return f"{title} | {pod} | {scale}", args


def inference(title: str, scale: str) -> tuple[str, list[str]]:
    """Returns the name of a cell of prefill or decoding and the arguments of `compile`.

    Args:
      title: a key of `INFERENCE`.
      scale: a size in `SCALES`.
    """
    pod = INFERENCE_PODS[scale in LARGE]
    return f"{title} | {pod} | {scale}", _arguments("code_llama", scale, INFERENCE[title], pod, 8)


def _arguments(experiment: str, scale: str, stage: str, pod: str, tensor: int) -> list[str]:
    chosen = [experiment, "--scale", scale, "--stage", stage]
    return [*chosen, "--target", pod, "--mesh.tensor", str(tensor)]


def cells() -> dict[str, list[str]]:
    """Returns the arguments of each cell by its name, in the order in which they are compiled."""
    first, *others = STAGES
    table = dict(_training_cells([first]))
    for title in INFERENCE:
        for scale in SCALES:
            name, args = inference(title, scale)
            table[name] = args
    return table | dict(_training_cells(others)) | dict(_other_cells())


def _training_cells(titles: Iterable[str]) -> list[tuple[str, list[str]]]:
    table = []
    for title in titles:
        for chip in PODS:
            for scale in SCALES:
                table.append(training(title, chip, scale))
    return table


def _other_cells() -> list[tuple[str, list[str]]]:
    """Returns the names and the arguments of the cells of other experiments."""
    table = []
    for experiment, scale, stage, micro_batches in OTHERS:
        for chip, count in micro_batches.items():
            pod = PODS[chip][0]
            args = [experiment, "--scale", scale, "--stage", stage, "--target", pod]
            args += ["--mesh.tensor", "1", f"--{stage}.micro-batches", str(count)]
            if chip in ROOMY:
                args += [f"--{stage}.model.remat", "dots"]
            table.append((f"{experiment} {stage} | {pod} | {scale}", args))
    return table


def fill(path: Path, kept: dict[str, list[str]], name: str, args: list[str]) -> None:
    """Compiles a cell, adds the lines that it printed to `kept`, and writes that to `path`."""
    command = [sys.executable, str(ROOT / "launch.py"), "compile", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    # The first printed line repeats the command. Exit code 3 is a program that does not fit: that,
    # too, is a result.
    if done.returncode in (0, 3):
        kept[name] = done.stdout.splitlines()[1:]
    else:
        kept[name] = [failure_line(done.stderr, done.returncode)]
    path.write_text(json.dumps(kept, indent=1) + "\n")


def page(kept: dict[str, list[str]], validated: dict[str, list[str]]) -> str:
    """Returns the text of docs/tpu.md.

    Args:
      kept: the printed lines of each cell that was compiled, by its name.
      validated: the same of the published results.
    """
    rows = [f"| {' | '.join(COLUMNS)} |", RULE]
    for name, args in cells().items():
        lines = kept.get(name, ["not compiled yet"])
        memory, estimates, modelled, compiling = "", [], [], ""
        for line in lines:
            if line.startswith("compiler estimate"):
                estimates.append(line.removeprefix("compiler estimate: "))
            elif line.startswith("bandwidth model"):
                modelled.append(line.removeprefix("bandwidth model: "))
            elif line.startswith("compiled in"):
                compiling = line.removeprefix("compiled in ")
            elif "of HBM" in line and not memory:
                memory = line
        mesh = lines[0].removeprefix("mesh ") if lines[0] != memory else ""
        options = " ".join(args[args.index("--target") + 2 :])
        times = ["; ".join(estimates), "; ".join(modelled)]
        columns = [name, f"`{options}`", mesh, memory, *times, compiling]
        rows.append(f"| {' | '.join(columns)} |")
    return HEAD + "\n" + "\n".join(rows) + "\n" + validation.section(validated)


def main() -> None:
    """Compiles the cells that are missing, and writes the page after each of them."""
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    published = {name: list(result.args) for name, result in validation.RESULTS.items()}
    kept, validated = _load(KEPT), _load(VALIDATION)
    PAGE.write_text(page(kept, validated))
    for path, lines, table in ((KEPT, kept, cells()), (VALIDATION, validated, published)):
        for name, args in table.items():
            if name not in lines and only in name:
                print(name, flush=True)
                fill(path, lines, name, args)
                PAGE.write_text(page(kept, validated))


def _load(path: Path) -> dict[str, list[str]]:
    """Returns the printed lines of each cell in a file, {} if it does not exist yet."""
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    main()
