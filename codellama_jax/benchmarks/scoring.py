"""Scores samples: runs their programs, computes measures, and appends each result to a file.

Imports neither JAX nor Flax.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from codellama_jax.benchmarks import wrapping
from codellama_jax.benchmarks.benchmark import Benchmark, Check, Sample, Task
from codellama_jax.benchmarks.fields import Kind
from codellama_jax.benchmarks.samples import Key, append, continue_file, key
from codellama_jax.sandbox import Executor, Verdict
from codellama_jax.system.progress import counted

DETAIL = 500  # characters of the description of a verdict
Result = dict[str, Any]  # a sample with `passed` and `result`, or with the benchmark's measures
# Fields of a result that programs decided.
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
    """Scores the samples and appends each result to `out`/results.jsonl.

    Samples that already have a result of the same tests there are not scored again.

    Args:
        benchmark: has the checks and measures.
        samples: by task and number.
        executor: runs programs; None for a benchmark without programs.
        out: the folder of results.jsonl.
        extract_code: scores the code inside a markdown fence.
    """
    tasks = {task.task_id: task for task in benchmark.tasks}
    if extract_code:
        # The original answer stays in the result, beside the code that was scored.
        samples = {name: _extracted(sample) for name, sample in samples.items()}
    path = out / "results.jsonl"
    conditions = {}
    if benchmark.checks is not None and executor is not None:
        for task_id in {name[0] for name in samples}:
            conditions[task_id] = _conditions(benchmark, tasks[task_id], executor)
    results = {}
    for line in continue_file(path, FIELDS if executor else {}):
        if _is_result_of(line, samples.get(key(line)), conditions.get(line["task_id"], {})):
            # Measures are computed again: they are cheap, and their code may have changed.
            results[key(line)] = {**line, **_judged(benchmark, tasks[line["task_id"]], line)}
    unscored = {name: sample for name, sample in samples.items() if name not in results}
    with counted("scored", len(samples), len(results)) as advance:
        for name, checked in _checked(benchmark, tasks, unscored, executor):
            judged = _judged(benchmark, tasks[name[0]], samples[name])
            results[name] = {**samples[name], **checked, **conditions.get(name[0], {}), **judged}
            # One by one: a kill loses only the programs that are running.
            append(path, [results[name]])
            advance(1)
    return [results[name] for name in samples]


def _extracted(sample: Sample) -> Sample:
    """Adds the code inside the answer as `extracted`, if it differs from the answer."""
    text = program_text(sample)
    code = wrapping.extract(text)
    return sample if code == text else {**sample, "extracted": code}


def program_text(sample: Sample) -> str:
    """Returns the code of a sample, "" if it has none."""
    for field in ("extracted", "completion", "solution"):
        if field in sample:
            return sample[field]
    return ""


def _judged(benchmark: Benchmark, task: Task, sample: Sample) -> dict[str, float]:
    return benchmark.judge(task, sample) if benchmark.judge else {}


def _conditions(benchmark: Benchmark, task: Task, executor: Executor) -> dict[str, str]:
    """Returns the fields of a result that decide its verdict beside the sample.

    `mode` is the executor's. `tests` is a hash of the benchmark's name, the task's published record
    and the libraries that its programs lack on this machine.
    """
    assert benchmark.checks is not None
    # Where a record was read from is no part of the tests.
    record = {name: task.record[name] for name in task.record if name not in ("file", "place")}
    # All programs of a task are in one language and name the same libraries.
    missing = [executor.missing(check.program) for check in benchmark.checks(task, "")[:1]]
    decisive = json.dumps([benchmark.name, record, missing], sort_keys=True)
    return {"mode": executor.mode, "tests": hashlib.sha256(decisive.encode()).hexdigest()[:16]}


def _is_result_of(line: Result, sample: Sample | None, conditions: Mapping[str, str]) -> bool:
    """Returns whether a line holds the result of this sample under these conditions."""
    if sample is None or line.get("extracted") != sample.get("extracted"):
        return False
    # A changed answer under the same task and number is scored again, and so is one whose tests
    # changed: benchmarks such as HumanEval and HumanEval+ have tasks of the same names.
    expected = {**sample, **conditions}
    return all(line.get(field) == value for field, value in expected.items())


def checks_of(benchmark: Benchmark, task: Task, sample: Sample) -> list[Check]:
    """Returns the programs that test a sample, which is a completion or a complete program."""
    assert benchmark.checks is not None
    # A complete program must not be appended to the prompt.
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
        for name in samples:
            yield name, {}
        return
    # Round n runs program n of every sample that passed the programs before it. The executor then
    # has many programs to run at once, although those of one sample run in sequence.
    remaining = list(samples)
    number = 0
    while remaining:
        checks: list[Check] = []
        names: list[Key] = []
        for name in remaining:
            all_checks = checks_of(benchmark, tasks[name[0]], samples[name])
            if number < len(all_checks):
                checks.append(all_checks[number])
                names.append(name)
            else:
                # All programs have passed. Without any program nothing was shown, so that it does
                # not count.
                yield name, {"passed": number > 0, "result": "passed" if number else "no tests"}
        remaining = []
        number += 1
        for index, verdict in executor.run([check.program for check in checks]):
            if checks[index].accepts(verdict):
                remaining.append(names[index])
            else:
                text = description(verdict, program_text(samples[names[index]]))
                yield names[index], {"passed": False, "result": text}


def description(verdict: Verdict, text: str = "") -> str:
    """Returns the description of a verdict that was not accepted.

    If the detail is a syntax error and the sample's `text` shows its cause, that is named as well.
    """
    # A program that ran to its end was not accepted because of its output.
    status = "wrong output" if verdict.status == "passed" else verdict.status
    detail = verdict.detail
    if wrapping.is_syntax_error(detail):
        reason = wrapping.cause(text)
        if reason:
            detail = f"{reason} (--extract-code scores the code inside): {detail}"
    return f"{status}: {detail}"[:DETAIL] if detail else status
