"""From results to measures, and to the table beside the papers' numbers."""

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


def summarise(benchmark: Benchmark, results: Sequence[Result]) -> dict[str, Any]:
    """Returns the measures of all tasks and of each group, in percent.

    pass@k has its interval; those of the benchmark's judge are means over tasks. A result that does not cover every
    task has `partial`, the number of tasks of the benchmark.
    """
    groups: dict[str, list[Result]] = defaultdict(list)
    group_of = {task.task_id: task.group for task in benchmark.tasks}
    for result in results:
        groups[group_of[result["task_id"]]].append(result)
    tasks = len({result["task_id"] for result in results})
    summary: dict[str, Any] = {"benchmark": benchmark.name, "tasks": tasks, "samples": len(results)}
    if tasks < len(benchmark.tasks):
        summary["partial"] = {"tasks": tasks, "of": len(benchmark.tasks)}
    names = _judged(benchmark, results[0])
    summary["measures"] = _measures(results, names)
    if set(groups) != {""}:
        summary["groups"] = {}
        for group, members in groups.items():
            summary["groups"][group] = _measures(members, names)
    return summary


def _judged(benchmark: Benchmark, result: Result) -> list[str]:
    """Returns the names of the measures that the benchmark's judge gives each result."""
    if benchmark.judge is None:
        return []
    [task] = [task for task in benchmark.tasks if task.task_id == result["task_id"]]
    return list(benchmark.judge(task, result))


def _measures(results: Sequence[Result], names: Sequence[str]) -> dict[str, Any]:
    by_task: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_task[result["task_id"]].append(result)
    measures: dict[str, Any] = {}
    if "passed" in results[0]:
        measures |= _pass_measures(list(by_task.values()))
    for name in names:
        means = [np.mean([result[name] for result in rows]) for rows in by_task.values()]
        measures[name] = 100 * float(np.mean(means))
    return measures


def _pass_measures(by_task: Sequence[Sequence[Result]]) -> dict[str, Any]:
    counts = []
    for results in by_task:
        counts.append((len(results), sum(result["passed"] for result in results)))
    measures: dict[str, Any] = {"correct": sum(passed for _, passed in counts)}
    fewest = min(samples for samples, _ in counts)
    ranked = all(isinstance(r.get("mean_logprob"), float) for results in by_task for r in results)
    for k in KS:
        if fewest < k:
            continue
        rate = estimate(counts, k)
        measures[f"pass@{k}"] = 100 * rate.mean
        measures[f"pass@{k} interval"] = [100 * rate.low, 100 * rate.high]
        if fewest > k and ranked:
            shares = [_ranked(results, k) for results in by_task]
            measures[f"pass@{k} ranked"] = 100 * float(np.mean(shares))
    return measures


def _ranked(results: Sequence[Result], k: int) -> float:
    passed = [result["passed"] for result in results]
    return ranked_pass_at_k(passed, [result["mean_logprob"] for result in results], k)


def show(summary: Mapping[str, Any], model: str, paper: Paper | None = None) -> Table:
    """Returns the table of a result, beside the papers' numbers if they are given.

    Models are rows or columns, whichever needs fewer columns.
    """
    ours = _numbers(summary["measures"])
    for group, measures in summary.get("groups", {}).items():
        ours |= _numbers(measures, f"{group} ")
    rows = {model: ours, **(paper.numbers() if paper else {})}
    measures = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = Table(title=_title(summary))
    if len(measures) <= len(rows):
        for heading in ("", *measures):
            table.add_column(heading)
        for name in rows:
            table.add_row(name, *(_cell(rows[name], measure) for measure in measures))
    else:
        for heading in ("", *rows):
            table.add_column(heading)
        for measure in measures:
            table.add_row(measure, *(_cell(row, measure) for row in rows.values()))
    return table


def _title(summary: Mapping[str, Any]) -> str:
    tasks = str(summary["tasks"])
    if "partial" in summary:
        tasks = f"partial, {tasks} of {summary['partial']['of']}"
    unit = summary.get("unit", "; percent")
    return f"{summary['benchmark']}: {tasks} tasks, {summary['samples']} samples{unit}"


def _numbers(measures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    return {f"{prefix}{name}": v for name, v in measures.items() if isinstance(v, float)}


def _cell(row: Mapping[str, float], measure: str) -> str:
    return f"{row[measure]:.1f}" if measure in row else ""
