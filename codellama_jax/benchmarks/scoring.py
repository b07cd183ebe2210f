"""Scores samples: runs their programs, judges them, and writes each result as it comes.

Imports neither JAX nor Flax.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from codellama_jax.benchmarks import wrapping
from codellama_jax.benchmarks.benchmark import Benchmark, Check, Sample, Task
from codellama_jax.benchmarks.fields import Kind
from codellama_jax.benchmarks.samples import Key, append, continue_file, key
from codellama_jax.sandbox import Executor, Verdict
from codellama_jax.system.progress import counted

DETAIL = 500  # characters kept of what went wrong
Result = dict[str, Any]  # a sample with `passed` and `result`, or with the benchmark's measures
FIELDS = {
    "passed": Kind("true or false", lambda value: isinstance(value, bool)),
    "result": Kind("a string", lambda value: isinstance(value, str)),
}


def score(
    benchmark: Benchmark,
    samples: Mapping[Key, Sample],
    executor: Executor | None,
    out: Path,
    extract_code: bool = False,
) -> list[Result]:
    """Scores the samples and adds each to `out`/results.jsonl; what is there is not done again.

    Args:
        benchmark: how samples are checked and judged.
        samples: by task and number.
        executor: runs programs; None for a benchmark that is judged without any.
        out: the folder of results.jsonl.
        extract_code: scores the code inside a markdown fence.
    """
    tasks = {task.task_id: task for task in benchmark.tasks}
    if extract_code:
        samples = {name: _extracted(sample) for name, sample in samples.items()}
    path, results = out / "results.jsonl", {}
    for line in continue_file(path, FIELDS if executor else {}):
        if _is_result_of(line, samples.get(key(line)), executor):
            results[key(line)] = {**line, **_judged(benchmark, tasks[line["task_id"]], line)}
    todo = {name: sample for name, sample in samples.items() if name not in results}
    with counted("scored", len(samples), len(results)) as advance:
        for name, checked in _checked(benchmark, tasks, todo, executor):
            judged = _judged(benchmark, tasks[name[0]], samples[name])
            results[name] = {**samples[name], **checked, **judged}
            append(path, [results[name]])
            advance(1)
    return [results[name] for name in samples]


def _extracted(sample: Sample) -> Sample:
    """Adds the code inside the answer as `extracted`, where that differs."""
    text = program_text(sample)
    code = wrapping.extract(text)
    return sample if code == text else {**sample, "extracted": code}


def program_text(sample: Sample) -> str:
    """Returns the code of a sample, "" for one that has none."""
    for field in ("extracted", "completion", "solution"):
        if field in sample:
            return sample[field]
    return ""


def _judged(benchmark: Benchmark, task: Task, sample: Sample) -> dict[str, float]:
    return benchmark.judge(task, sample) if benchmark.judge else {}


def _is_result_of(line: Result, sample: Sample | None, executor: Executor | None) -> bool:
    """Returns whether a line holds the result of the same answer, scored in the same way."""
    if sample is None or line.get("extracted") != sample.get("extracted"):
        return False
    if executor is not None and line.get("mode", executor.mode) != executor.mode:
        return False
    return all(line.get(field) == value for field, value in sample.items())


def checks_of(benchmark: Benchmark, task: Task, sample: Sample) -> list[Check]:
    """Returns the programs that check a sample: a completion, or a complete program."""
    assert benchmark.checks is not None
    if "solution" in sample and benchmark.program_checks is not None:
        return benchmark.program_checks(task, program_text(sample))
    return benchmark.checks(task, program_text(sample))


def _checked(
    benchmark: Benchmark,
    tasks: Mapping[str, Task],
    samples: Mapping[Key, Sample],
    executor: Executor | None,
) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Yields (key, fields of the result) of each sample.

    A sample's programs run one after the other; the first that is not accepted ends it.
    """
    if benchmark.checks is None or executor is None:
        yield from ((name, {}) for name in samples)
        return
    alive, number = list(samples), 0
    while alive:
        checks: list[Check] = []
        names: list[Key] = []
        for name in alive:
            all_checks = checks_of(benchmark, tasks[name[0]], samples[name])
            if number < len(all_checks):
                checks.append(all_checks[number])
                names.append(name)
            else:
                result = {"passed": number > 0, "result": "passed" if number else "no tests"}
                yield name, {**result, "mode": executor.mode}
        alive, number = [], number + 1
        for index, verdict in executor.run([check.program for check in checks]):
            if checks[index].accepts(verdict):
                alive.append(names[index])
            else:
                text = description(verdict, program_text(samples[names[index]]))
                yield names[index], {"passed": False, "result": text, "mode": executor.mode}


def description(verdict: Verdict, text: str = "") -> str:
    """Returns a verdict in words, with the cause of a syntax error where `text` shows it."""
    status = "wrong output" if verdict.status == "passed" else verdict.status
    detail = verdict.detail
    if wrapping.is_syntax_error(detail) and (reason := wrapping.cause(text)):
        detail = f"{reason} (--extract-code scores the code inside): {detail}"
    return f"{status}: {detail}"[:DETAIL] if detail else status
