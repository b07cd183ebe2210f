"""HumanEval in C++, Java, PHP, TypeScript, C# and Bash, zero-shot.

MultiPL-E, Cassano et al. 2022; Code Llama, table 4.
"""

from __future__ import annotations

from codellama_jax.benchmarks.benchmark import (
    Benchmark,
    Check,
    Record,
    Task,
    after_space,
    read_records,
    stripped,
)
from codellama_jax.benchmarks.fields import TEXT, WORD, list_of
from codellama_jax.benchmarks.settings import Options
from codellama_jax.generation.stop import until as cut_before
from codellama_jax.sandbox import Program

TIMEOUTS = {
    "cpp": 15.0,
    "java": 15.0,
    "php": 15.0,
    "ts": 15.0,
    "cs": 5.0,
    "sh": 15.0,
    "js": 5.0,
    "rs": 15.0,
    "go": 30.0,
}
FIELDS = {
    "name": TEXT,
    "language": WORD,
    "prompt": TEXT,
    "tests": TEXT,
    "stop_tokens": list_of(WORD),
}


def load(options: Options, tokenizer: object = None) -> Benchmark:
    tasks = [_task(record) for record in read_records(options.data, FIELDS)]
    return Benchmark(
        "multipl_e",
        tasks,
        cut=_cut,
        finish=_finish,
        checks=lambda task, completion: _test(task, task.record["prompt"] + completion),
        program_checks=_test,
    )


def _task(record: Record) -> Task:
    prompt, space = stripped(record["prompt"])
    name = f"{record['language']}/{record['name']}"
    return Task(name, prompt, group=record["language"], record={**record, "space": space})


def _cut(task: Task, text: str) -> str:
    return cut_before(text, task.record["stop_tokens"])


def _finish(task: Task, text: str) -> str:
    return after_space(task.record["space"], text)


def _test(task: Task, program: str) -> list[Check]:
    code = f"{program}\n{task.record['tests']}"
    timeout = TIMEOUTS.get(task.group, 15.0)
    return [Check(Program(task.task_id, task.group, code, timeout))]
