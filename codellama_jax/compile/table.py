"""Writes docs/tpu.md: every size and stage on pods of every chip, as the TPU compiler sees them. `make tpu-table`.

A cell is compiled in its own process and kept in docs/tpu.json, so that the table goes on where it was stopped; a kept cell is
compiled again only when its line is removed from there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT, PAGE = ROOT / "docs" / "tpu.json", ROOT / "docs" / "tpu.md"
SCALES = ("7b", "13b", "34b", "70b")
LARGE = ("34b", "70b")
STAGES = {"code 4k": "code", "LCFT 16k": "long_context", "instruct": "code"}
INSTRUCT = (
    "--code.data.batch-size",
    "128",
)  # 524,288 tokens a step (Code Llama, section 2.5), in rows of the code stage
INFERENCE = {"prefill 100k": "prefill", "decode at 100k": "decode"}
TENSOR = {"code 4k": (1, 4), "LCFT 16k": (2, 8), "instruct": (2, 4)}  # as PODS
MICRO_BATCHES = {
    "v5p": (2, 2),
    "v5e": (2, 16),
    "v6e": (1, 8),
    "tpu7x": (2, 2),
    "v4": (1, 4),
}  # of the code stage, as PODS
TIGHT = {
    ("v5e", "70b"): ("--code.micro-batches", "2")
}  # instruct, where its two rows a device are too many at once
LONG = {  # of the long-context stage on chips with little memory: what each micro-batch leaves of a row on a device
    "v5e": ((), ("--mesh.context", "2", "--long-context.micro-batches", "4")),
    "v6e": ((), ("--mesh.context", "2", "--long-context.micro-batches", "4")),
    "v4": (("--mesh.context", "4", "--long-context.micro-batches", "4"),)
    * 2,  # its vector memory holds 4,096 tokens' gradients
}
ROOMY = ("v5p", "tpu7x")  # keep the products of every layer
PODS = {  # for the smaller two sizes, for the larger two
    "v5p": ("v5p:4x4x8", "v5p:8x8x8"),
    "v5e": ("v5e:16x16", "v5e:16x16"),
    "v6e": ("v6e:16x16", "v6e:16x16"),
    "tpu7x": ("tpu7x:4x4x4", "tpu7x:4x8x8"),
    "v4": ("v4:4x4x8", "v4:8x8x8"),
}
HEAD = """# Code Llama on TPU pods, by the TPU compiler

Every figure is a *compiler estimate*: the step that `launch.py run` starts, compiled for a pod without having one, with its memory
as the compiler lays it out and the time as it estimates each operation, exchanges between chips left out. Nothing here is
measured, but for what compiling took on two CPU cores (empty where it was not recorded). MFU counts attention's full square / its
causal half. Decoding reads one token a row after 100,000; what bounds it is reading weights and cache. "instruct" is the step of
the code stage with 128 rows of 4,096 tokens. 70B's rows of 16,384 tokens are too much for v5e, whose pods end at 256 chips.

`make tpu-table` writes this page and goes on where it was stopped; a cell is one command, such as
`python launch.py compile code_llama --scale 34b --stage code --target v5p:8x8x8` and its options. A cell that says so was not
compiled yet.
"""


def training(title: str, chip: str, scale: str) -> tuple[str, list[str]]:
    """Returns a cell's name and its arguments."""
    large, stage = scale in LARGE, STAGES[title]
    pod, option = PODS[chip][large], f"--{stage.replace('_', '-')}"
    args = [
        "code_llama",
        "--scale",
        scale,
        "--stage",
        stage,
        "--target",
        pod,
        "--mesh.tensor",
        str(TENSOR[title][large]),
    ]
    if title == "code 4k":
        args += ["--code.micro-batches", str(MICRO_BATCHES[chip][large])]
    if title == "LCFT 16k" and chip in LONG:
        args += LONG[chip][large]
    if title == "instruct":
        args += INSTRUCT + TIGHT.get((chip, scale), ())
    if chip in ROOMY:
        args += [f"{option}.model.remat", "dots"]
    return f"{title} | {pod} | {scale}", args


def inference(title: str, scale: str) -> tuple[str, list[str]]:
    """Returns a cell's name and its arguments."""
    pod = ("v5p:2x2x2", "v5p:2x2x4")[scale in LARGE]
    args = [
        "code_llama",
        "--scale",
        scale,
        "--stage",
        INFERENCE[title],
        "--target",
        pod,
        "--mesh.tensor",
        "8",
    ]
    return f"{title} | {pod} | {scale}", args


def cells() -> dict[str, list[str]]:
    """Returns the arguments of each cell by its name, in the order in which they are compiled."""
    train = lambda titles: [
        training(t, chip, scale) for t in titles for chip in PODS for scale in SCALES
    ]
    first, *others = STAGES
    return dict(
        [
            *train([first]),
            *(inference(t, scale) for t in INFERENCE for scale in SCALES),
            *train(others),
        ]
    )


def fill(kept: dict[str, list[str]], name: str, args: list[str]) -> None:
    """Compiles a cell and keeps the lines that it printed."""
    command = [sys.executable, str(ROOT / "launch.py"), "compile", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    kept[name] = (
        done.stdout.splitlines()[1:]
        if done.returncode in (0, 3)
        else [done.stderr.strip().splitlines()[-1]]
    )
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")


def page(kept: dict[str, list[str]]) -> str:
    """Returns the page; a cell that was not compiled yet says so."""
    rows = [
        "| stage | pod | size | options | mesh | memory a device | compiler estimate | compiled in |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, args in cells().items():
        lines = kept.get(name, ["not compiled yet"])
        estimates = [
            line.removeprefix("compiler estimate: ")
            for line in lines
            if line.startswith("compiler estimate")
        ]
        memory = next((line for line in lines if "of HBM" in line), "")
        taken = next(
            (line.removeprefix("compiled in ") for line in lines if line.startswith("compiled in")),
            "",
        )
        options = " ".join(args[args.index("--target") + 2 :])
        mesh = lines[0].removeprefix("mesh ") if lines[0] != memory else ""
        rows.append(
            f"| {name} | `{options}` | {mesh} | {memory} | {'; '.join(estimates)} | {taken} |"
        )
    return HEAD + "\n" + "\n".join(rows) + "\n"


def main() -> None:
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name, args in cells().items():
        if name not in kept:
            print(name, flush=True)
            fill(kept, name, args)
        PAGE.write_text(page(kept))


if __name__ == "__main__":
    main()
