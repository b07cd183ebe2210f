"""MultiPL-E (Cassano et al. 2022; Code Llama, table 4): HumanEval in C++, Java, PHP, TypeScript, C# and Bash, zero-shot."""

from __future__ import annotations

from codellama_jax.evaluation.benchmarks.benchmark import Benchmark, Check, Record, Task, after_space, read_records, stripped
from codellama_jax.evaluation.execute import Program
from codellama_jax.evaluation.settings import Options
from codellama_jax.generation.text import until as cut_before

TIMEOUTS = {"cpp": 15.0, "java": 15.0, "php": 15.0, "ts": 15.0, "cs": 5.0, "sh": 15.0, "js": 5.0, "rs": 15.0, "go": 30.0}


def load(options: Options, tokenizer: object = None) -> Benchmark:
    tasks = [_task(record) for record in read_records(options.data, ("name", "language", "prompt", "tests", "stop_tokens"))]
    return Benchmark("multipl_e", tasks, cut=_cut, finish=_finish, checks=_checks)


def _task(record: Record) -> Task:
    prompt, space = stripped(record["prompt"])
    name = f"{record['language']}/{record['name']}"
    return Task(name, prompt, group=record["language"], record={**record, "space": space})


def _cut(task: Task, text: str) -> str:
    return cut_before(text, task.record["stop_tokens"])


def _finish(task: Task, text: str) -> str:
    return after_space(task.record["space"], text)


def _checks(task: Task, completion: str) -> list[Check]:
    code = f"{task.record['prompt']}{completion}\n{task.record['tests']}"
    return [Check(Program(task.task_id, task.group, code, TIMEOUTS.get(task.group, 15.0)))]
