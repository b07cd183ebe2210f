"""Problems for Codex-S: traced functions of projects, and contests (Codex, section 4).

    traced.jsonl      the calls that each file of tests made, recorded in the sandbox
    reference.jsonl   whether a function alone passes the tests made of its calls, several times
    samples.jsonl     samples of a model, with the verdict of the sandbox
    dataset.jsonl     the problems that are kept: prompt, completion, tests and where they are from

The paper traces the integration tests of repositories and keeps values that can be pickled; here
they must be Python literals too, because a test that unpickles would run code of the project. It
repeats verification to drop stateful and random functions, and drops what none of 100 samples of
Codex-12B solves. The files continue after a kill, as those of self-instruct do.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from codellama_jax.alignment.answers import (
    Answerer,
    Failure,
    Reply,
    Request,
    line_of,
    overlapped,
    replies,
)
from codellama_jax.alignment.contests import Contest
from codellama_jax.alignment.outcomes import Candidate, passing
from codellama_jax.alignment.problems import Problem, problems
from codellama_jax.alignment.projects import (
    Example,
    Project,
    Traced,
    program,
    pytest_packages,
    result_of,
)
from codellama_jax.benchmarks.fields import ANY, TEXT, optional
from codellama_jax.benchmarks.programs import parse
from codellama_jax.benchmarks.samples import append, continue_file, key, make_folder
from codellama_jax.checked import Checked, Range
from codellama_jax.sandbox.executor import Executor
from codellama_jax.system.files import write_file

TRACED, REFERENCE = "traced.jsonl", "reference.jsonl"
SAMPLES, DATASET = "samples.jsonl", "dataset.jsonl"
RESULT = {"status": TEXT, "functions": ANY}
VERDICT = {"status": TEXT}
SAMPLE = {"text": TEXT, "status": TEXT, "failure": optional(TEXT)}


@dataclass(frozen=True)
class CodexS(Checked):
    """How problems are made. The number of samples is the paper's."""

    samples: Annotated[int, Range(0, 10_000)] = 100  # of a problem at most; 0 keeps all
    repeats: Annotated[int, Range(1, 100)] = 3  # runs of the function itself
    tests: Annotated[int, Range(1, 1_000)] = 10  # of one problem at most
    seconds: Annotated[float, Range(1, 3_600)] = 60.0  # processor time of one file of tests
    batch: Annotated[int, Range(1, 10_000)] = 64  # requests that are answered at once
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0  # of the samples


class Tested(NamedTuple):
    """A problem with tests made of the calls of its function."""

    name: str  # project/path:line
    problem: Problem
    tests: tuple[str, ...]  # statements; of a contest examples instead
    calls: int
    examples: tuple[tuple[str, str], ...] = ()  # standard input and output of a contest's tests


@dataclass(frozen=True)
class Counts:
    """What became of the functions.

    Attributes:
        projects, test_files, contests: that were read; contests count in `with_tests` too.
        functions: at the top level of files that are no tests.
        problems: of them, those that can be a problem alone.
        called: of them, those that a test called.
        with_tests: of them, those with calls that can be tests.
        stable: of them, those that pass their own tests every time.
        kept: of them, those that a sample of the model passes.
        reasons: why others were dropped, calls were no tests, or files of tests did not end.
    """

    projects: int
    test_files: int
    contests: int
    functions: int
    problems: int
    called: int
    with_tests: int
    stable: int
    kept: int
    reasons: dict[str, int]


def make_dataset(
    model: Answerer | None,
    executor: Executor,
    projects: Sequence[Project],
    params: CodexS,
    folder: Path,
    provenance: dict[str, Any],
    contests: Sequence[Contest] = (),
) -> Counts:
    """Writes the files of a folder, continuing those in it, and returns the counts of each step.

    Args:
        model: continues the prompts; None with 0 samples.
        executor: runs the tests of the projects, and the problems.
        projects: with different names.
        params: how problems are made.
        folder: holds one dataset; it belongs to these projects, the model and `params`.
        provenance: further fields of each line of the dataset, such as the model's name.
        contests: further problems, which need no tracing.
    """
    make_folder(folder)
    reasons: Counter[str] = Counter()
    # Each step drops functions and counts why. The order is by cost: parsing, then tracing once per
    # file of tests, then runs of the functions, then up to `samples` calls of the model.
    functions, candidates = _candidates(projects, reasons)
    calls = _trace(executor, projects, candidates, params, folder, reasons)
    tested = _tested(candidates, calls, params, reasons)
    for item in contests:
        examples = item.examples[: params.tests]
        # A contest brings its tests, so that it skips tracing. Its solution is verified all the
        # same.
        tested.append(Tested(item.name, item.problem, (), 0, examples))
    stable = _stable(executor, tested, params, folder, reasons)
    solved = stable
    if model and params.samples:
        passed = _sampled(model, executor, stable, params, folder, reasons)
        # A problem that no sample solves is taken to be ambiguous or too difficult (Codex, section
        # 4.3).
        solved = [item for item in stable if item.name in passed]
        reasons["model: no sample passes"] += len(stable) - len(solved)
    _write_dataset(folder, solved, params, provenance)
    return Counts(
        projects=len(projects),
        test_files=sum(len(project.tests()) for project in projects),
        contests=len(contests),
        functions=functions,
        problems=len(candidates),
        called=sum(name in calls for name in candidates),
        with_tests=len(tested),
        stable=len(stable),
        kept=len(solved),
        reasons=dict(sorted((reason, count) for reason, count in reasons.items() if count)),
    )


def _candidates(
    projects: Sequence[Project], reasons: Counter[str]
) -> tuple[int, dict[str, Problem]]:
    """Returns the number of all functions, and those that can be problems by project/path:line."""
    total, candidates = 0, {}
    texts: set[str] = set()
    for project in projects:
        sources = project.sources()
        # Every folder and module name of the project: an import of one of them needs files that a
        # problem alone does not have.
        packages = {part.removesuffix(".py") for path in sources for part in path.split("/")}
        for path in sources:
            text = project.files[path].decode(errors="replace")
            for problem, reason in problems(path, text, packages):
                total += 1
                # A function that was copied into several projects is one problem.
                same = problem.prompt + problem.solution
                if not reason and same in texts:
                    reason = "it is a duplicate"
                if reason:
                    reasons[f"function: {reason}"] += 1
                    continue
                texts.add(same)
                candidates[f"{project.name}/{path}:{problem.line}"] = problem
    return total, candidates


def _trace(
    executor: Executor,
    projects: Sequence[Project],
    candidates: dict[str, Problem],
    params: CodexS,
    folder: Path,
    reasons: Counter[str],
) -> dict[str, list[Traced]]:
    """Returns the calls of the candidates that each file of tests made, by name."""
    path = folder / TRACED
    lines = continue_file(path, RESULT)
    done = {line["task_id"] for line in lines}
    packages = pytest_packages()
    programs = []
    for project in projects:
        functions: dict[str, list[int]] = defaultdict(list)
        for name, problem in candidates.items():
            # The colon ends the path, which may be the beginning of another one.
            if name.startswith(f"{project.name}/{problem.path}:"):
                functions[problem.path].append(problem.line)
        for test in project.tests():
            if f"{project.name}/{test}" not in done:
                # One program per file of tests, so that a file that crashes or hangs loses only its
                # own calls.
                programs.append(program(project, functions, test, packages, params.seconds))
    for _, verdict in executor.run(programs):
        status, traced = result_of(verdict.stdout)
        if status == "no result":
            status = f"{verdict.status}, without a result"
        fields = {name: item._asdict() for name, item in traced.items()}
        result = {"task_id": verdict.task_id, "sample": 0, "status": status, "functions": fields}
        # Written as soon as it ends: a kill loses at most the files of tests that are running.
        append(path, [result])
        lines.append(result)
    calls: dict[str, list[Traced]] = defaultdict(list)
    # The file is in the order in which programs ended. Sorted, the dataset is the same every time.
    for line in sorted(lines, key=key):
        if line["status"] != "ended":
            reasons[f"file of tests: {line['status']}"] += 1
        project_name = line["task_id"].partition("/")[0]
        for place, fields in line["functions"].items():
            calls[f"{project_name}/{place}"].append(Traced.of(fields))
    return calls


def _tested(
    candidates: dict[str, Problem],
    calls: dict[str, list[Traced]],
    params: CodexS,
    reasons: Counter[str],
) -> list[Tested]:
    """Returns the candidates whose calls give tests; counts the reasons of the others."""
    tested = []
    for name, problem in candidates.items():
        if name not in calls:
            reasons["function: no test calls it"] += 1
            continue
        results: dict[str, str] = {}
        is_stateful = False
        for traced in calls[name]:
            for reason, count in traced.reasons.items():
                reasons[f"call: {reason}"] += count
            # Two sources of the same finding: within one run of tests the tracer saw it, and
            # between files of tests the loop below does.
            is_stateful |= "equal arguments gave different results" in traced.reasons
            for example in traced.examples:
                # The arguments' text is the key, so that the first result for them becomes the
                # test.
                result = results.setdefault(example.arguments, example.result)
                is_stateful |= result != example.result
        tests = _tests(problem.name, [Example(*item) for item in results.items()], params.tests)
        if is_stateful:
            reasons["function: equal arguments gave different results"] += 1
        elif not tests:
            reasons["function: no call can be a test"] += 1
        else:
            tested.append(Tested(name, problem, tests, sum(item.calls for item in calls[name])))
    return tested


def _tests(name: str, examples: Sequence[Example], most: int) -> tuple[str, ...]:
    """Returns assert statements; none for a function whose every result is None."""
    # Such a function works by its side effects, which an assert on the result cannot see: an empty
    # body would pass.
    if all(example.result == "None" for example in examples):
        return ()
    tests = []
    for example in examples[:most]:
        tests.append(f"assert {name}({example.arguments}) == {example.result}")
    return tuple(tests)


def _stable(
    executor: Executor,
    tested: Sequence[Tested],
    params: CodexS,
    folder: Path,
    reasons: Counter[str],
) -> list[Tested]:
    """Returns the problems whose own solution passes every time."""
    path = folder / REFERENCE
    statuses = {key(line): line["status"] for line in continue_file(path, VERDICT)}
    missing = []
    # Several runs, in different processes: hash seeds, clocks and random numbers differ between
    # them.
    for number in range(params.repeats):
        for item in tested:
            if (item.name, number) not in statuses:
                missing.append((item, number))
    candidates = [_candidate(item, item.problem.solution) for item, _ in missing]
    for position, status in passing(executor, candidates):
        item, number = missing[position]
        statuses[item.name, number] = status
        append(path, [{"task_id": item.name, "sample": number, "status": status}])
    stable = []
    for item in tested:
        ends = [statuses[item.name, number] for number in range(params.repeats)]
        failures = sorted(end for end in ends if end != "passed")
        if not failures:
            stable.append(item)
        # Some passed and some did not, so that the function or its tests are random.
        elif len(failures) < len(ends):
            reasons["function: it passes its own tests only sometimes"] += 1
        else:
            reasons[f"function: alone, its own tests end with {failures[0]}"] += 1
    return stable


def _candidate(item: Tested, completion: str) -> Candidate:
    return Candidate(item.name, item.problem.prompt + completion, item.tests, item.examples)


def _sampled(
    model: Answerer,
    executor: Executor,
    stable: Sequence[Tested],
    params: CodexS,
    folder: Path,
    reasons: Counter[str],
) -> set[str]:
    """Returns the names of the problems that a sample passes.

    Samples are drawn in rounds of 1, 2, 4, ... for the problems without one that passes: an easy
    problem needs few. Which are drawn does not depend on where a process was killed.
    """
    path = folder / SAMPLES
    lines = continue_file(path, SAMPLE)
    first, end = 0, 1
    while first < params.samples:
        numbers = range(first, min(end, params.samples))
        done = {key(line) for line in lines}
        # A problem that passes in this round stays in it until its end.
        solved = {line["task_id"] for line in lines if _is_pass(line) and line["sample"] < first}
        missing = []
        for number in numbers:
            for item in stable:
                if item.name not in solved and (item.name, number) not in done:
                    missing.append((item, number))
        # After one answer the server is known to work: later failures are those of single requests.
        has_answers = any("failure" not in line for line in lines)
        lines += _round(model, executor, missing, params.batch, has_answers, path)
        first, end = end, 2 * end + 1
    for line in lines:
        if not _is_pass(line):
            reasons[f"sample: {line['status']}"] += 1
    return {line["task_id"] for line in lines if _is_pass(line)}


def _round(
    model: Answerer,
    executor: Executor,
    missing: Sequence[tuple[Tested, int]],
    batch: int,
    has_answers: bool,
    path: Path,
) -> list[dict[str, Any]]:
    """Draws samples, appends a line for each to `path` and returns the lines.

    Args:
        model: continues the prompts.
        executor: runs the samples of a batch while the next one is drawn.
        missing: the problems, each with the number of a sample.
        batch: requests that are answered at once.
        has_answers: as in `answers.replies`.
        path: of the file.
    """
    requests = []
    for item, number in missing:
        # The name alone decides the PRNG key, so a sample does not depend on its round or batch.
        name, is_program = f"samples {item.name} {number}", bool(item.examples)
        requests.append(Request(name, [], item.problem.prompt, is_program))

    def judge(ready: list[tuple[int, Reply]]) -> list[dict[str, Any]]:
        return _judge(executor, [(*missing[position], reply) for position, reply in ready], path)

    lines = []
    for judged in overlapped(replies(model, requests, batch, has_answers), judge):
        lines += judged
    return lines


def _is_pass(line: dict[str, Any]) -> bool:
    return line["status"] == "passed"


def _judge(
    executor: Executor, batch: Sequence[tuple[Tested, int, Reply]], path: Path
) -> list[dict[str, Any]]:
    """Runs the samples of a batch, appends a line for each to `path` and returns the lines."""
    lines, candidates, owners = [], [], []
    for item, number, reply in batch:
        line = {"task_id": item.name, "sample": number, **line_of(reply)}
        lines.append(line)
        if isinstance(reply, Failure):
            line["status"] = f"the model {reply.reason}"
            continue
        candidate = _candidate(item, reply)
        line["status"] = "the code does not parse"
        # Code that does not parse needs no sandbox.
        if parse(candidate.code):
            owners.append(line)
            candidates.append(candidate)
    for position, status in passing(executor, candidates):
        owners[position]["status"] = status
    append(path, lines)
    return lines


def _write_dataset(
    folder: Path, solved: Sequence[Tested], params: CodexS, provenance: dict[str, Any]
) -> None:
    lines = []
    for item in solved:
        line = {
            "task_id": item.name,
            "prompt": item.problem.prompt,
            "completion": item.problem.solution,
            # One field for both kinds: asserts of functions, or pairs of input and output of
            # contests.
            "tests": list(item.tests or item.examples),
            "calls": item.calls,
            "seed": params.seed,
            **provenance,
        }
        lines.append(json.dumps(line) + "\n")
    write_file(folder / DATASET, "".join(lines).encode())
