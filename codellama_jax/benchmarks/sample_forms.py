"""Reads samples to score, in the formats of this project and of other harnesses.

Every format is converted to {"task_id", "sample", ANSWER}, where ANSWER is one of `completion` (it
continues the prompt), `solution` (a complete program) and `log_likelihoods` (of a task's choices).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from codellama_jax.benchmarks.benchmark import Benchmark, Sample, Task
from codellama_jax.benchmarks.fields import NUMBER, Kind, check_record, list_of, shown
from codellama_jax.benchmarks.samples import Key, key
from codellama_jax.errors import UserError
from codellama_jax.system.json_files import ARRAY, Value, read_values

COUNT = Kind("an integer from 0", lambda value: type(value) is int and value >= 0)
# Unlike TEXT it allows lone surrogates: the program then fails, not the file.
CODE = Kind("a string", lambda value: isinstance(value, str))
OWN, LIKELIHOODS = "completion", "log_likelihoods"
SOLUTION, GENERATION = "solution", "generation"
# The field that holds the answer -> the format, for messages.
FORMS = {
    OWN: "task_id and completion, as the public harness of HumanEval",
    SOLUTION: "task_id and solution, a complete program, as EvalPlus",
    GENERATION: "task_id and generation, as CodeGeeX",
}
BIGCODE = "a list of complete programs for each task in order, as BigCode's harness"
KNOWN = f"known forms, plain or gzipped: {'; '.join([*FORMS.values(), BIGCODE])}"


class Samples(NamedTuple):
    """Samples that were read.

    Attributes:
        by_key: the samples by task and number.
        form: the format that the file was read as, for messages.
        lacking: ids of tasks without a sample.
    """

    by_key: dict[Key, Sample]
    form: str
    lacking: list[str]


def read_samples(path: Path, benchmark: Benchmark, partial: bool = False) -> Samples:
    """Reads samples to score. Samples without a number are numbered in their order per task.

    Args:
        path: a file in one of the known formats.
        benchmark: has the tasks that samples may answer.
        partial: whether some tasks may have no sample.

    Raises UserError naming the file, line and fault: another format, an unknown task, no answer, a
    sample that occurs twice, or tasks without a sample.
    """
    stored = read_values(path)
    if not stored.values:
        raise UserError(f"{path} holds no samples")
    kind = f"gzipped {stored.form}" if stored.gzipped else stored.form
    # BigCode's harness writes one JSON array, with a list per task.
    are_lists = all(isinstance(value, list) for _, value in stored.values)
    if are_lists and stored.form == ARRAY:
        lines, form = _from_bigcode(stored.values, benchmark, path), BIGCODE
    else:
        lines, form = _from_records(stored.values, benchmark), _form_of(stored.values)
    samples: dict[Key, Sample] = {}
    seen: Counter[str] = Counter()
    for place, line in lines:
        # Public harnesses do not number samples: the first of a task becomes sample 0.
        sample = {**line, "sample": line.get("sample", seen[line["task_id"]])}
        if key(sample) in samples:
            number = sample["sample"]
            raise UserError(
                f"{place} is sample {number} of {line['task_id']} again: keep one of them"
            )
        samples[key(sample)] = sample
        seen[line["task_id"]] += 1
    # A list of empty lists: not even --partial has anything to score.
    if not samples:
        raise UserError(f"{path} holds no samples")
    # A task without a sample would silently be left out of the mean.
    lacking = [task.task_id for task in benchmark.tasks if not seen[task.task_id]]
    if lacking and not partial:
        more = ", ..." if len(lacking) > 3 else ""
        count = f"{len(lacking)} of {len(benchmark.tasks)} tasks: {', '.join(lacking[:3])}{more}"
        raise UserError(f"{path} has no sample of {count}; --partial scores the others")
    unfinished = "; its last line is not complete and is ignored" if stored.unfinished else ""
    return Samples(samples, f"{kind}: {form}{unfinished}", lacking)


def check_own(lines: Sequence[Sample], path: Path, benchmark: Benchmark) -> Sequence[Sample]:
    """Returns the lines of a samples.jsonl of this project, checked as samples of the benchmark."""
    values = [Value(f"sample {n} of {path}", line) for n, line in enumerate(lines, 1)]
    _from_records(values, benchmark)
    return lines


def _form_of(values: Sequence[Value]) -> str:
    """Returns the format of the first record; the records may differ."""
    for field, form in FORMS.items():
        if field in values[0].value:
            return form
    return "task_id and log_likelihoods"


def _from_records(values: Sequence[Value], benchmark: Benchmark) -> list[Value]:
    by_name = {}
    for task in benchmark.tasks:
        # A file may use either name, and the sample gets the benchmark's.
        for name in _names(task.task_id):
            by_name[name] = task
    return [Value(place, _from_record(value, place, benchmark, by_name)) for place, value in values]


def _names(task_id: str) -> tuple[str, ...]:
    """Returns the names of a task in samples: EvalPlus writes Mbpp/11 for MBPP's 11."""
    return (task_id, f"Mbpp/{task_id}", f"MBPP/{task_id}") if task_id.isdigit() else (task_id,)


def _from_record(
    record: Any, place: str, benchmark: Benchmark, by_name: Mapping[str, Task]
) -> dict[str, Any]:
    """Returns the sample of a record, with only the fields that are used.

    Args:
        record: one value of the file.
        place: where it is, for messages.
        benchmark: the benchmark that is scored.
        by_name: the task of each name.
    """
    if not isinstance(record, dict) or "task_id" not in record:
        description = shown(record)
        if isinstance(record, dict):
            description = f"an object with {', '.join(record) or 'no fields'}"[:200]
        raise UserError(f"{place} must be an object with task_id, not {description}; {KNOWN}")
    name = record["task_id"]
    # Some harnesses write MBPP's ids as numbers.
    name = str(name) if type(name) is int else name
    task = by_name.get(name) if isinstance(name, str) else None
    if task is None:
        known = f"{benchmark.tasks[0].task_id!r} to {benchmark.tasks[-1].task_id!r}"
        raise UserError(
            f"{place}: task_id is {shown(record['task_id'])}, which is no task of "
            f"{benchmark.name} ({known})"
        )
    number = _checked(record, "sample", COUNT, place)
    sample = {"task_id": task.task_id, **number, **_answer(record, place, task, benchmark)}
    for field in ("mean_logprob", "sum_logprob"):
        sample |= _checked(record, field, NUMBER, place)
    return sample


def _checked(record: Mapping[str, Any], field: str, kind: Kind, place: str) -> dict[str, Any]:
    """Returns {field: value} of an optional field, {} if the record does not have it."""
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
        numbers = list_of(NUMBER)

        def is_number_per_choice(value: Any) -> bool:
            return numbers.accepts(value) and len(value) == count

        kind = Kind(f"a list of {count} numbers, one for each choice", is_number_per_choice)
        check_record(record, {LIKELIHOODS: kind}, place)
        return {LIKELIHOODS: record[LIKELIHOODS]}
    fields = [field for field in FORMS if field in record]
    if not fields:
        raise UserError(f"{place} has no completion, solution or generation; {KNOWN}")
    # Where a record has several forms of its answer, the order of FORMS decides.
    field = fields[0]
    check_record(record, {field: CODE}, place)
    text = record[field]
    if field == GENERATION:
        # CodeGeeX's files hold the complete generated text; its harness truncates when it scores.
        return {OWN: benchmark.finish(task, benchmark.truncate(task, text))}
    # Infilling benchmarks need the text between prefix and suffix.
    if field == SOLUTION and benchmark.program_checks is None:
        raise UserError(f"{place} has a solution, and {benchmark.name} takes a completion only")
    return {field: text}


def _from_bigcode(values: Sequence[Value], benchmark: Benchmark, path: Path) -> list[Value]:
    """Returns the samples of a file with one list of complete programs per task, in task order."""
    if benchmark.program_checks is None:
        message = f"{path} holds complete programs, and {benchmark.name} takes completions only"
        raise UserError(message)
    # The lists have no task ids, so their number is the only check.
    if len(values) > len(benchmark.tasks):
        counts = f"{len(values)} lists of programs for {len(benchmark.tasks)} tasks"
        raise UserError(f"{path} holds {counts} of {benchmark.name}: is it of another benchmark?")
    lines = []
    # There may be fewer lists than tasks: BigCode's harness has --limit.
    for (place, programs), task in zip(values, benchmark.tasks):
        check_record({"programs": programs}, {"programs": list_of(CODE)}, place)
        for program in programs:
            lines.append(Value(place, {"task_id": task.task_id, SOLUTION: program}))
    return lines
