"""Published step times of Llama 2 on TPU pods, and programs of the same shapes, for table.py."""

from __future__ import annotations

import re
from dataclasses import dataclass

TOKENS = 1024 * 4096  # per step of Llama 2


@dataclass(frozen=True)
class Published:
    """A published result and the program that comes closest to it.

    Args:
      source: where it is published, with the commit of a file.
      rate: tokens per second of the pod.
      mfu: as published; the sources count attention's FLOPs differently.
      differs: how the compiled program differs.
      args: arguments of `compile`.
    """

    source: str
    rate: float
    mfu: str
    differs: str
    args: tuple[str, ...]


_AXLEARN = "AXLearn, experiments/text/gpt/fuji.py (01ebc3f)"
_PAPER = "AXLearn, arXiv 2507.05411"
_MAXTEXT = "MaxText, docs/reference/models/tiering.md (e591f30)"
_CODE = ("--stage", "code")
RESULTS = {
    "Llama 2 7B, 256 x v5p": Published(
        _PAPER,
        TOKENS / 2.5,
        "2.5 s",
        "mesh (data 32 x fsdp 8) and batch (1,024 x 4,096) are those of AXLearn's fuji.py; what the"
        " paper recomputes is not known",
        ("code_llama", "--scale", "7b", *_CODE, "--target", "v5p:4x8x8")
        + ("--mesh.tensor", "1", "--mesh.data", "32", "--code.model.remat", "dots"),
    ),
    "Llama 2 7B, 4 x 256 v5e": Published(
        _AXLEARN,
        TOKENS / 2.21,
        "2.21 s, 46 %",
        "same mesh (data 4 x fsdp 256), batch (1,024 x 4,096) and rematerialization (dots)",
        ("code_llama", "--scale", "7b", *_CODE, "--target", "v5e:16x16", "--slices", "4")
        + ("--mesh.tensor", "1", "--code.model.remat", "dots"),
    ),
    "Llama 2 70B, 512 x v5p": Published(
        _MAXTEXT,
        512 * 692,
        "692 tokens/s per chip, 65.4 %",
        "all of a layer is recomputed, MaxText recomputes only gate and up",
        ("code_llama", "--scale", "70b", *_CODE, "--target", "v5p:8x8x8")
        + ("--mesh.tensor", "1", "--code.data.batch-size", "2048", "--code.model.remat", "full"),
    ),
}
HEAD = """
## Validation against published results

This project's train step at the shapes of published runs. A ratio is the estimated rate of tokens
over the published one: above 1 the estimate is too fast, or this step is better; below 1 the
estimate is too slow, or this step is worse. MaxText sets compiler flags (LIBTPU_INIT_ARGS) that
overlap more collectives than the defaults, which are compiled here. AXLearn's model has 32,768
vocabulary entries and one matrix for embedding and head, MaxText's 32,000 and two, these 32,016 and
two. `python -m codellama_jax.compile.table "Llama 2"` compiles these alone.

| model, pod | published | compute only (ratio) | overlapped (ratio) | exposed (ratio) | differs |
|---|---|---|---|---|---|
"""
# The lines of `compile` that have each of the three totals.
TOTALS = ("compiler estimate: ", "overlapped as scheduled", "fully exposed")


def rates(lines: list[str]) -> list[float]:
    """Returns the tokens per second of the three totals in the lines that `compile` printed."""
    totals = []
    for total in TOTALS:
        # The first line with a rate counts for each total.
        for line in lines:
            rate = re.search(r"([\d,]+) tokens/s", line)
            if total in line and rate:
                totals.append(float(rate[1].replace(",", "")))
                break
    return totals


def section(kept: dict[str, list[str]]) -> str:
    """Returns the section of docs/tpu.md.

    Args:
      kept: the printed lines of each result that was compiled, by its name.
    """
    rows = []
    for name, result in RESULTS.items():
        columns = []
        for rate in rates(kept.get(name, [])):
            columns.append(f"{rate:,.0f} tokens/s ({rate / result.rate:.2f})")
        # Not compiled, too large, or failed: the one line that reports it fills the row.
        if len(columns) < len(TOTALS):
            lines = kept.get(name, ["not compiled yet"])
            columns = [lines[-1] if len(lines) == 1 else lines[0], "", ""]
        published = f"{result.mfu}: {result.rate:,.0f} tokens/s ({result.source})"
        rows.append(f"| {name} | {published} | {' | '.join(columns)} | {result.differs} |")
    return HEAD + "\n".join(rows) + "\n"
