"""Computes the measures of a benchmark from results, and the table beside the papers' numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from codellama_jax.benchmarks.benchmark import Benchmark
from codellama_jax.benchmarks.paper import Paper
from codellama_jax.benchmarks.pass_at_k import estimate, ranked_pass_at_k
from codellama_jax.benchmarks.scoring import Result

KS = (1, 5, 10, 100)
PERCENT = "; percent"  # the unit of measures in titles, unless a summary has another


def summarise(benchmark: Benchmark, results: Sequence[Result]) -> dict[str, Any]:
    """Returns the measures of all tasks and of each group, in percent.

    pass@k comes with its confidence interval. Measures of the benchmark's judge are means over
    tasks. If some tasks have no result, the summary has `partial` with the numbers of tasks.
    """
    groups: dict[str, list[Result]] = defaultdict(list)
    # A group is a language, a difficulty or a context length.
    group_of = {task.task_id: task.group for task in benchmark.tasks}
    for result in results:
        groups[group_of[result["task_id"]]].append(result)
    tasks = len({result["task_id"] for result in results})
    summary: dict[str, Any] = {"benchmark": benchmark.name, "tasks": tasks, "samples": len(results)}
    if tasks < len(benchmark.tasks):
        summary["partial"] = {"tasks": tasks, "of": len(benchmark.tasks)}
    names = _judged_measures(benchmark, results[0])
    scale = 100.0
    if benchmark.unit != "percent":
        scale, summary["unit"], summary["decimals"] = 1.0, f"; {benchmark.unit}", 3
    summary["measures"] = _measures(results, names, scale)
    # Tasks without a group have the group "".
    if set(groups) != {""}:
        summary["groups"] = {}
        for group, members in groups.items():
            summary["groups"][group] = _measures(members, names, scale)
    return summary


def _judged_measures(benchmark: Benchmark, result: Result) -> list[str]:
    """Returns the names of the measures that the benchmark's judge adds to each result."""
    if benchmark.judge is None:
        return []
    [task] = [task for task in benchmark.tasks if task.task_id == result["task_id"]]
    return list(benchmark.judge(task, result))


def _measures(results: Sequence[Result], names: Sequence[str], scale: float) -> dict[str, Any]:
    """Returns pass@k in percent and the judge's measures `names`, times `scale`, of results."""
    by_task: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_task[result["task_id"]].append(result)
    measures: dict[str, Any] = {}
    if "passed" in results[0]:
        measures |= _pass_measures(list(by_task.values()))
    for name in names:
        # Every task counts the same, however many samples it has.
        task_means = []
        for task_results in by_task.values():
            task_means.append(np.mean([result[name] for result in task_results]))
        measures[name] = scale * float(np.mean(task_means))
    return measures


def _pass_measures(by_task: Sequence[Sequence[Result]]) -> dict[str, Any]:
    """Returns the number of correct samples, and pass@k for each k that has enough samples."""
    counts = []
    has_logprobs = True
    for results in by_task:
        counts.append((len(results), sum(result["passed"] for result in results)))
        for result in results:
            has_logprobs = has_logprobs and isinstance(result.get("mean_logprob"), float)
    measures: dict[str, Any] = {"correct": sum(passed for _, passed in counts)}
    # pass@k is undefined for a task with fewer than k samples.
    fewest = min(samples for samples, _ in counts)
    for k in KS:
        if fewest < k:
            continue
        # Results hold percentages, like the papers' tables.
        rate = estimate(counts, k)
        measures[f"pass@{k}"] = 100 * rate.mean
        measures[f"pass@{k} interval"] = [100 * rate.low, 100 * rate.high]
        # With exactly k samples, ranking selects all of them.
        if fewest > k and has_logprobs:
            shares = [_ranked(results, k) for results in by_task]
            measures[f"pass@{k} ranked"] = 100 * float(np.mean(shares))
    return measures


def _ranked(results: Sequence[Result], k: int) -> float:
    passed = [result["passed"] for result in results]
    return ranked_pass_at_k(passed, [result["mean_logprob"] for result in results], k)


def tables(summary: Mapping[str, Any], model: str, paper: Paper | None = None) -> list[Table]:
    """Returns the tables of a result: the groups have their own if the paper has none of them."""
    columns: set[str] = set()
    for group, measures in summary.get("groups", {}).items():
        columns |= set(_numbers(measures, f"{group} "))
    if not paper or not columns or columns & set(paper.columns):
        return [show(summary, model, paper)]
    overall = {name: value for name, value in summary.items() if name != "groups"}
    return [show(overall, model, paper), show({**summary, "measures": {}}, model)]


def show(summary: Mapping[str, Any], model: str, paper: Paper | None = None) -> Table:
    """Returns the table of a result, beside the papers' numbers if `paper` is given.

    Models are rows or columns of the table, whichever needs fewer columns.
    """
    measured = _numbers(summary["measures"])
    for group, measures in summary.get("groups", {}).items():
        measured |= _numbers(measures, f"{group} ")
    by_model = {model: measured}
    if paper:
        by_model |= paper.numbers()
    names: list[str] = []
    # A model may lack measures that another has; the order is that of first appearance.
    for numbers in by_model.values():
        names += [name for name in numbers if name not in names]
    table, decimals = Table(title=_title(summary)), summary.get("decimals", 1)
    # A terminal is narrow: the longer list becomes rows.
    if len(names) <= len(by_model):
        for heading in ("", *names):
            table.add_column(heading)
        for model_name, numbers in by_model.items():
            table.add_row(model_name, *[_cell(numbers, name, decimals) for name in names])
    else:
        for heading in ("", *by_model):
            table.add_column(heading)
        for name in names:
            table.add_row(name, *[_cell(numbers, name, decimals) for numbers in by_model.values()])
    return table


def _title(summary: Mapping[str, Any]) -> str:
    tasks = str(summary["tasks"])
    if "partial" in summary:
        tasks = f"partial, {tasks} of {summary['partial']['of']}"
    unit = summary.get("unit", PERCENT)
    return f"{summary['benchmark']}: {tasks} tasks, {summary['samples']} samples{unit}"


def _numbers(measures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the measures that a table shows: neither intervals nor counts."""
    numbers = {}
    for name, value in measures.items():
        if isinstance(value, float):
            numbers[f"{prefix}{name}"] = value
    return numbers


def _cell(numbers: Mapping[str, float], measure: str, decimals: int) -> str:
    return f"{numbers[measure]:.{decimals}f}" if measure in numbers else ""
