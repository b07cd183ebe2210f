"""Runs the solutions of self-instruct datasets on their tests again, in the sandbox.

python -m tools.rerun_dataset RUN/ARM/self_instruct/dataset.jsonl ...
"""

import argparse
import sys
from collections import Counter

from codellama_jax.alignment.outcomes import Candidate, passing
from codellama_jax.benchmarks.fields import ANY, TEXT, check_record, list_of
from codellama_jax.benchmarks.programs import program
from codellama_jax.command_line import run_command
from codellama_jax.errors import UserError
from codellama_jax.sandbox.executor import Executor
from codellama_jax.system.json_files import read_values

FIELDS = {"task_id": TEXT, "tests": list_of(TEXT), "messages": list_of(ANY, least=1)}
ANSWER = {"content": TEXT}


def main() -> None:
    """Prints the outcomes; exit code 1 if a solution does not pass its tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", nargs="+")
    candidates = []
    for path in parser.parse_args().datasets:
        read = read_values(path, only_lines=True)
        if read.unfinished:
            problem = "the last line was not written to its end"
            raise UserError(f"{path}: {problem}: {read.unfinished[:60]!r}")
        for place, line in read.values:
            check_record(line, FIELDS, place)
            check_record(line["messages"][-1], ANSWER, f"{place}: the last of messages")
            # The last message is the answer, written in the chat format; only its program is run.
            code = program(line["messages"][-1]["content"]).code
            candidates.append(Candidate(line["task_id"], code, tuple(line["tests"])))
    with Executor() as executor:
        statuses = Counter(status for _, status in passing(executor, candidates))
    print(f"{len(candidates)} solutions: {dict(statuses)}")
    # Every solution of such a dataset has passed its tests once: any other verdict is a fault.
    sys.exit(not candidates or statuses["passed"] != len(candidates))


if __name__ == "__main__":
    run_command(main)
