"""MultiPL-E: HumanEval in C++, Java, PHP, TypeScript, C# and Bash, zero-shot.

Cassano et al. 2022; Code Llama, table 4.
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
from codellama_jax.benchmarks.paper import Paper, crossed
from codellama_jax.benchmarks.settings import Options
from codellama_jax.benchmarks.suite import Suite
from codellama_jax.generation import stop
from codellama_jax.sandbox import Program

# Seconds of processor time. MultiPL-E's default is 15.
TIMEOUTS = {"cs": 5.0, "js": 5.0, "go": 30.0}
DEFAULT_TIMEOUT = 15.0
FIELDS = {
    "name": TEXT,
    "language": WORD,
    "prompt": TEXT,
    "tests": TEXT,
    "stop_tokens": list_of(WORD),
}
# Code Llama, table 4.
PAPER = Paper(
    crossed(("cpp", "java", "php", "ts", "cs", "sh"), ("pass@1",)),
    """
        CodeGeeX 13B 16.9 19.1 13.5 10.1 8.5 2.8
        Llama 2 7B 6.8 10.8 9.9 12.6 6.3 3.2
        Code Llama 7B 28.6 34.2 24.2 33.3 25.3 12.0
        Code Llama 13B 39.1 38.0 34.2 29.6 27.3 15.2
        Code Llama 34B 47.8 45.6 44.1 33.3 30.4 17.1
        Code Llama 70B 52.8 51.9 50.9 49.1 38.0 29.1
        Code Llama Python 7B 32.3 35.4 32.3 23.9 24.7 16.5
        Code Llama Python 34B 42.2 44.9 42.9 34.3 31.7 14.6""",
)


def load(options: Options, tokenizer: object = None) -> Benchmark:
    """Returns the tasks of one or several languages."""
    tasks = [_task(record) for record in read_records(options.data, FIELDS)]
    return Benchmark(
        "multipl_e",
        tasks,
        truncate=_truncate,
        finish=_finish,
        checks=_checks,
        program_checks=_program_checks,
        paper=PAPER,
    )


def _task(record: Record) -> Task:
    # Stripped as in HumanEval, and the space is given back in `_finish`.
    prompt, space = stripped(record["prompt"])
    name = f"{record['language']}/{record['name']}"
    return Task(name, prompt, group=record["language"], record={**record, "space": space})


def _truncate(task: Task, text: str) -> str:
    # Each language, and some tasks, have their own stop strings.
    return stop.until(text, task.record["stop_tokens"])


def _finish(task: Task, text: str) -> str:
    return after_space(task.record["space"], text)


def _checks(task: Task, completion: str) -> list[Check]:
    return _program_checks(task, task.record["prompt"] + completion)


def _program_checks(task: Task, program: str) -> list[Check]:
    # The published tests contain everything that follows the function, such as main.
    code = f"{program}\n{task.record['tests']}"
    timeout = TIMEOUTS.get(task.group, DEFAULT_TIMEOUT)
    return [Check(Program(task.task_id, task.group, code, timeout))]


SUITE = Suite(
    load,
    checksums=(
        "c666769088ded6cfa193b1abc563b442743b27237f3d3b162abd9c43ca47df08",  # C++
        "de39f1559f4eb13d35595249414869c50ad0d8f66d1046ec0ff81374d1cd301e",  # Java
        "a26756f2f618363085468e972873cc0b54fbc9165c3cc11a0483a515278d23b5",  # PHP
        "f566e92c79db43fede8f0e5cf55093cdc50453dff99ae74e71ac5def36a3cc54",  # TypeScript
        "4478b2c81baa12350d4cbaec228648593b682ac7a5ac6cec24b6164f59b4a025",  # C#
        "d50e80e5232d91bf2ef57bc7ba6ed4e5a521106741bbeffaffcfd773c94f73ff",  # Bash
    ),
)
