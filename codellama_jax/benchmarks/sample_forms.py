"""Reads samples to score in the forms that other harnesses and models' authors publish.

Every form becomes {"task_id", "sample", ANSWER}: `completion` continues the prompt, `solution` is a
complete program, `log_likelihoods` are those of a task's choices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from codellama_jax.benchmarks.benchmark import Benchmark, Sample, Task
from codellama_jax.benchmarks.data_files import ARRAY, Value, read_values
from codellama_jax.benchmarks.fields import NUMBER, Kind, check_record, list_of, shown
from codellama_jax.benchmarks.samples import Key, key
from codellama_jax.errors import UserError

COUNT = Kind("an integer from 0", lambda value: type(value) is int and value >= 0)
CODE = Kind("a string", lambda value: isinstance(value, str))
OWN, LIKELIHOODS = "completion", "log_likelihoods"
SOLUTION, GENERATION = "solution", "generation"
FORMS = {  # the field that holds the answer -> whose form it is
    OWN: "task_id and completion, as the public harness of HumanEval",
    SOLUTION: "task_id and solution, a complete program, as EvalPlus",
    GENERATION: "task_id and generation, as CodeGeeX",
}
BIGCODE = "a list of complete programs for each task in order, as BigCode's harness"
KNOWN = f"known forms, plain or gzipped: {'; '.join([*FORMS.values(), BIGCODE])}"


class Samples(NamedTuple):
    """Samples by key, the form they were recognised as, and the tasks that have none."""

    by_key: dict[Key, Sample]
    form: str
    lacking: list[str]


def read_samples(path: Path, benchmark: Benchmark, partial: bool = False) -> Samples:
    """Reads samples to score. Those without a number are numbered in their order.

    Args:
        path: a file in one of the known forms.
        benchmark: its tasks are those that samples may answer.
        partial: whether tasks may lack a sample.

    Raises UserError naming the file, line and fault: another form, an unknown task, no answer, a
    sample that is given twice, tasks without a sample.
    """
    stored = read_values(path)
    if not stored.values:
        raise UserError(f"{path} holds no samples")
    kind = f"gzipped {stored.form}" if stored.gzipped else stored.form
    if all(isinstance(value, list) for _, value in stored.values) and stored.form == ARRAY:
        lines, form = _from_bigcode(stored.values, benchmark, path), BIGCODE
    else:
        lines, form = _from_records(stored.values, benchmark), _form_of(stored.values)
    samples: dict[Key, Sample] = {}
    seen: Counter[str] = Counter()
    for place, line in lines:
        sample = {**line, "sample": line.get("sample", seen[line["task_id"]])}
        if key(sample) in samples:
            number = sample["sample"]
            raise UserError(
                f"{place} is sample {number} of {line['task_id']} again: keep one of them"
            )
        samples[key(sample)] = sample
        seen[line["task_id"]] += 1
    lacking = [task.task_id for task in benchmark.tasks if not seen[task.task_id]]
    if lacking and not partial:
        more = ", ..." if len(lacking) > 3 else ""
        count = f"{len(lacking)} of {len(benchmark.tasks)} tasks: {', '.join(lacking[:3])}{more}"
        raise UserError(f"{path} has no sample of {count}; --partial scores the others")
    unfinished = "; its last line is not complete and is ignored" if stored.unfinished else ""
    return Samples(samples, f"{kind}: {form}{unfinished}", lacking)


def check_own(lines: Sequence[Sample], path: Path, benchmark: Benchmark) -> Sequence[Sample]:
    """Returns the lines of a samples.jsonl of ours, checked as samples of the benchmark."""
    values = [Value(f"sample {n} of {path}", line) for n, line in enumerate(lines, 1)]
    _from_records(values, benchmark)
    return lines


def _form_of(values: Sequence[Value]) -> str:
    """Names the form of the first record; the records may differ."""
    for field, form in FORMS.items():
        if field in values[0].value:
            return form
    return "task_id and log_likelihoods"


def _from_records(values: Sequence[Value], benchmark: Benchmark) -> list[Value]:
    by_name = {name: task for task in benchmark.tasks for name in _names(task.task_id)}
    return [Value(place, _from_record(value, place, benchmark, by_name)) for place, value in values]


def _names(task_id: str) -> tuple[str, ...]:
    """Returns what a task may be called: EvalPlus writes Mbpp/11 for MBPP's 11."""
    return (task_id, f"Mbpp/{task_id}", f"MBPP/{task_id}") if task_id.isdigit() else (task_id,)


def _from_record(
    record: Any, place: str, benchmark: Benchmark, by_name: Mapping[str, Task]
) -> dict[str, Any]:
    """Returns our form of a record, only the fields that are used."""
    if not isinstance(record, dict) or "task_id" not in record:
        what = shown(record)
        if isinstance(record, dict):
            what = f"an object with {', '.join(record) or 'no fields'}"[:200]
        raise UserError(f"{place} must be an object with task_id, not {what}; {KNOWN}")
    name = record["task_id"]
    name = str(name) if type(name) is int else name
    task = by_name.get(name) if isinstance(name, str) else None
    if task is None:
        known = f"{benchmark.tasks[0].task_id!r} to {benchmark.tasks[-1].task_id!r}"
        what = f"{shown(record['task_id'])}, which is no task of {benchmark.name} ({known})"
        raise UserError(f"{place}: task_id is {what}")
    number = _checked(record, "sample", COUNT, place)
    mean = _checked(record, "mean_logprob", NUMBER, place)
    return {"task_id": task.task_id, **number, **_answer(record, place, task, benchmark), **mean}


def _checked(record: Mapping[str, Any], field: str, kind: Kind, place: str) -> dict[str, Any]:
    """Returns {field: value} of a field that the record may lack."""
    if record.get(field) is None:
        return {}
    check_record(record, {field: kind}, place)
    return {field: record[field]}


def _answer(
    record: Mapping[str, Any], place: str, task: Task, benchmark: Benchmark
) -> dict[str, Any]:
    """Returns the field that holds the answer to a task."""
    if task.choices:
        count = len(task.choices)
        right_length = Kind(
            f"a list of {count} numbers, one for each choice",
            lambda value: list_of(NUMBER).accepts(value) and len(value) == count,
        )
        check_record(record, {LIKELIHOODS: right_length}, place)
        return {LIKELIHOODS: record[LIKELIHOODS]}
    field = next((field for field in FORMS if field in record), None)
    if field is None:
        raise UserError(f"{place} has no completion, solution or generation; {KNOWN}")
    check_record(record, {field: CODE}, place)
    text = record[field]
    if field == GENERATION:  # CodeGeeX's harness truncates when it scores
        return {OWN: benchmark.finish(task, benchmark.cut(task, text))}
    if field == SOLUTION and benchmark.program_checks is None:
        raise UserError(f"{place} has a solution, and {benchmark.name} takes a completion only")
    return {field: text}


def _from_bigcode(values: Sequence[Value], benchmark: Benchmark, path: Path) -> list[Value]:
    """Returns our form of one list of complete programs per task, in the tasks' order."""
    if benchmark.program_checks is None:
        message = f"{path} holds complete programs, and {benchmark.name} takes completions only"
        raise UserError(message)
    if len(values) > len(benchmark.tasks):
        counts = f"{len(values)} lists of programs for {len(benchmark.tasks)} tasks"
        raise UserError(f"{path} holds {counts} of {benchmark.name}: is it of another benchmark?")
    lines = []
    for (place, programs), task in zip(values, benchmark.tasks):
        check_record({"programs": programs}, {"programs": list_of(CODE)}, place)
        for program in programs:
            lines.append(Value(place, {"task_id": task.task_id, SOLUTION: program}))
    return lines
