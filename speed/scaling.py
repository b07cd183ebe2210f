"""How time and memory grow with the work: docs/scaling.md with a plot and a fit for each quantity.

    pip install -e '.[tpu]'
    PYTHONPATH=. python speed/scaling.py              # all that docs/scaling.json does not have yet
    PYTHONPATH=. python speed/scaling.py "workers"    # only the sweeps whose title contains this

A sweep changes one number and keeps everything else. Sweeps over sequence length, layers and chips
are *compiler estimates* of a train step, with the collectives of the bandwidth model; those over
the size of a corpus, samples and workers are *measured on a CPU*. All take about an hour on two
cores. A fit is the exponent e of y = c * x ** e, by least squares on logarithms of all points.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from codellama_jax.command_line import run_command
from codellama_jax.errors import UserError
from codellama_jax.report.figures import panels_figure
from codellama_jax.report.findings import Panel
from codellama_jax.system.exits import failure_line

ROOT = Path(__file__).resolve().parents[1]
KEPT, PAGE, FIGURES = (ROOT / "docs" / name for name in ("scaling.json", "scaling.md", "scaling"))
ESTIMATE = "Compiler estimate with the bandwidth model's collectives"
MEASURED = "Measured on a CPU"
SECONDS, EXPOSED = "seconds per step", "seconds per step, no collective hidden"
GIB = "GiB per device"
SAMPLE_TOKENS, SLOTS = 64, 64  # of the sweep over samples
PROGRAMS = 400  # of the sweep over workers
CANDIDATE = "def total(count):\n    return sum(range(count))\n"
TEST = "def check(candidate):\n    assert candidate(200_000) == 19_999_900_000\n"
Measures = dict[str, float]  # by label with unit
HEAD = """# How time and memory grow with the work

One number changes along each table, everything else stays. A fit is the exponent e of a power law
y = c * x ** e through all points, by least squares on logarithms: 1 is proportional, 0 constant.
`PYTHONPATH=. python speed/scaling.py` measures what docs/scaling.json does not have, and writes
this page.
"""


@dataclass(frozen=True)
class Sweep:
    """One number that changes, and what is measured at each of its values."""

    x: str  # the label of the number
    points: tuple[int, ...]
    measure: Callable[[int], Measures]
    kept: str  # what stays the same
    is_estimate: bool = False  # else measured on a CPU


def compiled(stage: str, target: str, *options: str) -> Measures:
    """Returns the time and memory that `launch.py compile` prints of a train step of 7B."""
    # Through the command line, so that a figure is exactly the one that a user gets.
    chosen = ["compile", "code_llama", "--scale", "7b", "--stage", stage, "--target", target]
    done = _launch([*chosen, *options])
    text = done.stdout
    buffers = [float(size) for size in re.findall(r"(?:arguments|temporaries) ([\d.]+) GiB", text)]
    overlapped = re.search(r"model: ([\d.e-]+) s per step, collectives overlapped", text)
    exposed = re.search(r"model: ([\d.e-]+) s per step, collectives fully exposed", text)
    if overlapped is None or exposed is None:
        # A program that does not fit has no times: the sweep must not continue without that point.
        problem = failure_line(done.stderr or text, done.returncode)
        raise UserError(f"{target} {' '.join(options)}: {problem}")
    return {SECONDS: float(overlapped[1]), EXPOSED: float(exposed[1]), GIB: sum(buffers)}


def sequence(tokens: int) -> Measures:
    """Measures the long-context step: two sequences, each over eight chips."""
    options = {"data.seq-len": tokens, "data.batch-size": 2, "model.n-layers": 2}
    return compiled(
        "long_context", "v5p:2x2x4", "--mesh.context", "8", *_of_stage("long-context", options)
    )


def layers(count: int) -> Measures:
    """Measures the code step by the number of layers."""
    options = {"data.batch-size": 16, "model.n-layers": count}
    return compiled("code", "v5p:2x2x4", "--mesh.tensor", "1", *_of_stage("code", options))


def chips(count: int) -> Measures:
    """Measures the code step by the number of chips, each of which has eight sequences."""
    # Topologies as cubic as the pods allow; their axes double one after the other.
    x = 2 if count < 64 else 4 if count < 512 else 8
    y = 2 if count < 32 else 4 if count < 256 else 8
    # Weak scaling: the work per chip stays the same, so that ideal times are equal.
    options = {"data.batch-size": 8 * count, "model.n-layers": 4}
    target = f"v5p:{x}x{y}x{count // (x * y)}"
    return compiled("code", target, "--mesh.tensor", "1", *_of_stage("code", options))


def _of_stage(stage: str, options: dict[str, int]) -> list[str]:
    arguments = []
    for name, value in options.items():
        arguments += [f"--{stage}.{name}", str(value)]
    return arguments


def corpus(megabytes: int) -> Measures:
    """Measures `prepare` on so many megabytes of this machine's Python files, in one process."""
    with tempfile.TemporaryDirectory() as folder:
        # A folder apart, since `prepare` reads every file below the one that it is given.
        source, left = Path(folder) / "source", megabytes * 1_000_000
        source.mkdir()
        for number, path in enumerate(sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py"))):
            text = path.read_bytes()
            # Every file is another: copies would be removed as near-duplicates.
            (source / f"{number}.py").write_bytes(text)
            left -= len(text)
            if left <= 0:
                break
        if left > 0:
            raise UserError(f"the installed packages have no {megabytes} MB of Python files")
        command = ["prepare", str(source), "--out", f"{folder}/out", "--split-by", "file"]
        seconds, gib = _cost(command)
    return {"processor seconds": seconds, "peak GiB": gib}


def samples(count: int) -> Measures:
    """Measures drawing so many samples of one prompt with a random model of quickstart's size."""
    import flax.linen as nn
    import jax

    from codellama_jax.generation.engine import Engine
    from codellama_jax.generation.requests import Request
    from codellama_jax.generation.settings import Sampling
    from codellama_jax.models.family import boxed_params
    from codellama_jax.models.llama.sizes import TOY, choose
    from codellama_jax.models.trained import TrainedModel
    from codellama_jax.tokenizers.base import Tokenizer

    config = choose(TOY, "toy")
    params = nn.unbox(jax.jit(lambda: boxed_params(config, jax.random.key(0)))())
    no_tokenizer = cast(Tokenizer, None)  # the requests are token ids
    engine = Engine(TrainedModel(config, params, no_tokenizer, "random"), SLOTS)
    sampling = Sampling(0.8, 0, 0.95, SAMPLE_TOKENS)
    # Every request has the same prompt, which the engine reads once for all of them.
    prompt = list(range(3, 203))
    requests = [Request(prompt, sampling, number=number) for number in range(count)]
    # The same requests twice: the second run finds every shape compiled.
    engine.run(requests)  # compiles
    start = time.perf_counter()
    engine.run(requests)
    return {"seconds": time.perf_counter() - start}


def workers(count: int) -> Measures:
    """Measures verdicts of short programs with so many workers of the sandbox."""
    from codellama_jax.sandbox import Executor, Program

    parts = {"candidate": CANDIDATE, "test": TEST, "entry_point": "total"}
    programs = []
    for number in range(PROGRAMS):
        programs.append(Program(str(number), "python", CANDIDATE + TEST, 10.0, **parts))
    with Executor(count) as executor:
        start = time.perf_counter()
        # The time includes the start of each program.
        verdicts = [verdict.status for _, verdict in executor.run(programs)]
    seconds = time.perf_counter() - start
    if set(verdicts) != {"passed"}:
        raise UserError(f"a program of the sweep did not pass: {sorted(set(verdicts))}")
    return {"seconds": seconds}


SWEEPS = {
    "Sequence length": Sweep(
        "tokens per sequence",
        (8192, 16_384, 32_768, 65_536, 131_072),
        sequence,
        "7B with 2 layers, 2 sequences, v5p:2x2x4, fsdp 2 x context 8",
        True,
    ),
    "Layers": Sweep(
        "layers",
        (2, 4, 8, 16, 32),
        layers,
        "width of 7B, 16 sequences of 4,096 tokens, v5p:2x2x4, fsdp 16",
        True,
    ),
    "Chips": Sweep(
        "chips",
        (8, 16, 32, 64, 128, 256, 512),
        chips,
        "7B with 4 layers, 8 sequences of 4,096 tokens on each v5p chip, fsdp over all. Pods of"
        " less than 64 chips have axes of two chips, which are lines and not rings",
        True,
    ),
    "Size of the corpus": Sweep(
        "MB of source files",
        (4, 12, 36, 108),
        corpus,
        "`prepare` with its default policy in one process",
    ),
    "Samples per task": Sweep(
        "samples of one prompt",
        (1, 4, 16, 64, 256),
        samples,
        f"{SAMPLE_TOKENS} tokens after a prompt of 200, {SLOTS} slots, a million parameters",
    ),
    "Workers of the sandbox": Sweep(
        "workers",
        (1, 2, 4, 8),
        workers,
        f"{PROGRAMS} programs of a few milliseconds, in isolated mode, on {os.cpu_count()} cores",
    ),
}


def _launch(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def _cost(arguments: list[str]) -> tuple[float, float]:
    """Returns the processor seconds and the peak of the resident memory, GiB, of a command."""
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, str(ROOT / "launch.py"), *arguments]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        # Popen's own wait gives no usage.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise UserError(failure_line(log.read().decode(), process.returncode))
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def exponent(points: list[tuple[int, float]]) -> float:
    """Returns e of the power law y = c * x ** e that is nearest to the points (x, y)."""
    # A power law is a line in logarithms, and its exponent the slope.
    xs, ys = np.log(np.array(points, np.float64)).T
    return float(np.polyfit(xs, ys, 1)[0])


def section(title: str, kept: dict[str, Measures]) -> list[str]:
    """Returns the lines of a sweep in the page, and writes its figure.

    `kept` holds what was measured, by the number as text; JSON has no other keys.
    """
    sweep = SWEEPS[title]
    labels = list(next(iter(kept.values())))
    rows = [f"| {sweep.x} | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
    for point, measures in kept.items():
        cells = [f"{measures[label]:.4g}" for label in labels]
        rows.append(f"| {int(point):,} | {' | '.join(cells)} |")
    # One panel per quantity, on two logarithmic axes, where a power law is a straight line.
    panels, fits = [], []
    for label in labels:
        line = [(int(point), measures[label]) for point, measures in kept.items()]
        fits.append(f"{label}: x to the power {exponent(line):.2f}")
        panels.append(Panel(sweep.x, label, {label: [line]}, log_x=2, log_y=True))
    path = FIGURES / f"{title.lower().replace(' ', '_')}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(panels_figure(panels)[1])
    origin = ESTIMATE if sweep.is_estimate else MEASURED
    text = f"*{origin}.* The same at every point: {sweep.kept}."
    image = f"![{title}: {', '.join(labels)} over {sweep.x}]({FIGURES.name}/{path.name})"
    return [f"## {title}", "", text, "", *rows, "", f"Fits: {'; '.join(fits)}.", "", image, ""]


def page(kept: dict[str, dict[str, Measures]]) -> str:
    """Returns the text of docs/scaling.md, with the sweeps that have at least two points."""
    lines = [HEAD]
    for title in SWEEPS:
        if len(kept.get(title, {})) > 1:
            lines += section(title, kept[title])
    return "\n".join(lines)


def main() -> None:
    """Measures the points that are missing, and writes the page after each of them."""
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    if not any(only in title for title in SWEEPS):
        raise UserError(f"no sweep has {only!r} in its title: there are {', '.join(SWEEPS)}")
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for title, sweep in SWEEPS.items():
        for point in sweep.points:
            # Points are independent and expensive: each is kept as soon as it is measured.
            if only in title and str(point) not in kept.setdefault(title, {}):
                kept[title][str(point)] = sweep.measure(point)
                print(title, point, kept[title][str(point)], flush=True)
                KEPT.write_text(json.dumps(kept, indent=1) + "\n")
                PAGE.write_text(page(kept))
    PAGE.write_text(page(kept))


if __name__ == "__main__":
    run_command(main)
