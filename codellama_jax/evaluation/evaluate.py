"""One benchmark from answers to a table: generate or read samples, check them, and print the result beside the paper's numbers."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from codellama_jax.config import differences
from codellama_jax.errors import UserError
from codellama_jax.evaluation.ask import answers, sampling_of
from codellama_jax.evaluation.benchmarks import LOADERS, long_files, paper
from codellama_jax.evaluation.benchmarks.benchmark import Benchmark, Check, Sample, Task
from codellama_jax.evaluation.execute import Executor, Verdict, languages
from codellama_jax.evaluation.pass_at_k import estimate, ranked_pass_at_k
from codellama_jax.evaluation.samples import Key, append, continue_file, key, name_of, read_samples
from codellama_jax.evaluation.settings import Checking, Options, Settings
from codellama_jax.training.checkpoint import Run, gather

KS = (1, 5, 10, 100)
FREE = ("settings.samples", "settings.batch_tokens")  # may change when a run goes on
DETAIL = 500  # characters kept of what went wrong
Result = dict[str, Any]  # a sample with what was found: `passed` and `result`, or the benchmark's own measures


def evaluate(
    name: str,
    run: Run | None,
    options: Options,
    settings: Settings,
    checking: Checking,
    out: Path,
    samples_file: str = "",
    reference: bool = False,
) -> None:
    """Answers, checks and reports one benchmark; the same call goes on where a kill left it. All hosts call it, the first one writes."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder with --out")
    if name == "perplexity":
        summary = long_files.measure(run, options)
    else:
        benchmark = on_all_hosts(lambda: load(name, options, run))
        with on_all_hosts(lambda: start_executor(benchmark, checking)) as executor:
            if samples_file:
                samples = read_samples(Path(samples_file), benchmark)
            else:
                samples = reference_samples(benchmark) if reference else generate_samples(run, benchmark, options, settings, out)
            summary = {} if jax.process_index() else _summary(benchmark, samples, executor, out)
    if jax.process_index() == 0:
        model = samples_file or ("canonical solutions" if reference else run.name)
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps({"model": model, **summary}, indent=1))
        Console().print(show(summary, model), f"results: {out / 'results.json'}")
    if jax.process_count() > 1:  # or JAX would end the first host, which scores, minutes after the others are done
        multihost_utils.sync_global_devices("evaluated")


def on_all_hosts(action: Callable[[], Any]) -> Any:
    """Calls `action` on every host. A UserError on one of them is raised on all, or the others would wait for it for ever."""
    found, wrong = None, ""
    try:
        found = action()
    except UserError as error:
        wrong = str(error)
    for said in filter(None, gather({str(jax.process_index()): wrong}).values()):
        raise UserError(said)
    return found


def start_executor(benchmark: Benchmark, checking: Checking) -> contextlib.AbstractContextManager[Executor | None]:
    """Starts what runs programs before anything is generated: a missing sandbox or compiler is told at once."""
    if benchmark.checks is None or jax.process_index():
        return contextlib.nullcontext()
    for language in {check.program.language for task in benchmark.tasks for check in benchmark.checks(task, "")[:1]}:
        languages.require(language)
    return Executor(checking.workers, checking.mode, checking.allow_unsafe, jars=checking.jars)


def _summary(benchmark: Benchmark, samples: Mapping[Key, Sample], executor: Executor | None, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    summary = summarise(benchmark, score(benchmark, samples, executor, out))
    return {**summary, "mode": executor.mode, "layers": executor.layers} if executor else summary


def load(name: str, options: Options, run: Run | None) -> Benchmark:
    if name not in LOADERS:
        raise UserError(f"no benchmark {name}: there are {', '.join(LOADERS)} and perplexity")
    return LOADERS[name](options, run.tokenizer if run else None)


def generate_samples(run: Run, benchmark: Benchmark, options: Options, settings: Settings, out: Path) -> dict[Key, Sample]:
    """Answers what is not yet in `out`/samples.jsonl, adding each batch to it. Returns all samples asked for.

    Raises UserError if the folder holds samples drawn in another way.
    """
    first = jax.process_index() == 0
    settings = replace(settings, temperature=sampling_of(benchmark, settings).temperature)  # which the number of samples may decide
    asked = {"benchmark": benchmark.name, "model": run.name, "options": asdict(options), "settings": asdict(settings)}
    there = gather(on_all_hosts(lambda: {name_of(*key(line)): line for line in _open_folder(out, asked)} if first else {}))
    samples = {key(line): line for line in there.values()}
    total = settings.samples * len(benchmark.tasks)
    with Progress(console=Console(stderr=True), disable=not first) as progress:
        bar = progress.add_task("samples", total=total, completed=min(len(samples), total))
        for batch in answers(run, benchmark, settings, set(samples)):
            if first:
                append(out / "samples.jsonl", batch)
            samples |= {key(sample): sample for sample in batch}
            progress.advance(bar, len(batch))
    return {name: sample for name, sample in samples.items() if name[1] < settings.samples}


def reference_samples(benchmark: Benchmark) -> dict[Key, Sample]:
    """Returns what a model would be credited with that writes each canonical solution and then goes on."""
    known = [task for task in benchmark.tasks if task.reference is not None]
    if not known:
        raise UserError(f"the data of {benchmark.name} holds no canonical solutions")
    return {
        (task.task_id, 0): {"task_id": task.task_id, "sample": 0, "completion": benchmark.finish(task, benchmark.cut(task, task.reference))}
        for task in known
    }


def score(benchmark: Benchmark, samples: Mapping[Key, Sample], executor: Executor | None, out: Path) -> list[Result]:
    """Checks and judges the samples, adding each to `out`/results.jsonl. What stands there for the same answer is not done again."""
    tasks = {task.task_id: task for task in benchmark.tasks}
    path = out / "results.jsonl"
    done = {key(line): line for line in continue_file(path) if _same_answer(line, samples.get(key(line)))}
    todo = {name: sample for name, sample in samples.items() if name not in done}
    results = dict(done)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("scores", total=len(samples), completed=len(done))
        for name, checked in _checked(benchmark, tasks, todo, executor):
            judged = benchmark.judge(tasks[name[0]], samples[name]) if benchmark.judge else {}
            results[name] = {**samples[name], **checked, **judged}
            append(path, [results[name]])
            progress.advance(bar)
    return [results[name] for name in samples]


def _same_answer(line: Result, sample: Sample | None) -> bool:
    return sample is not None and all(line.get(field) == value for field, value in sample.items())


def _checked(benchmark: Benchmark, tasks: Mapping[str, Task], samples: Mapping[Key, Sample], executor: Executor | None) -> Iterator:
    """Yields (key, verdict) of each sample: its programs run one after the other, and the first that is not accepted ends it."""
    if benchmark.checks is None or executor is None:
        yield from ((name, {}) for name in samples)
        return
    alive, number = list(samples), 0
    while alive:
        checks: list[Check] = []
        names: list[Key] = []
        for name in alive:
            found = benchmark.checks(tasks[name[0]], samples[name]["completion"])
            if number < len(found):
                checks.append(found[number])
                names.append(name)
            else:
                yield name, {"passed": number > 0, "result": "passed" if number else "no tests"}
        alive, number = [], number + 1
        for index, verdict in executor.run([check.program for check in checks]):
            if checks[index].accepts(verdict):
                alive.append(names[index])
            else:
                yield names[index], {"passed": False, "result": _said(verdict)}


def _said(verdict: Verdict) -> str:
    status = "wrong output" if verdict.status == "passed" else verdict.status
    return f"{status}: {verdict.detail}"[:DETAIL] if verdict.detail else status


def summarise(benchmark: Benchmark, results: Sequence[Result]) -> dict[str, Any]:
    """Returns the measures of all tasks and of each group, in percent: pass@k with its interval, means over tasks of the rest."""
    groups: dict[str, list[Result]] = defaultdict(list)
    group_of = {task.task_id: task.group for task in benchmark.tasks}
    for result in results:
        groups[group_of[result["task_id"]]].append(result)
    found = {"benchmark": benchmark.name, "tasks": len({r["task_id"] for r in results}), "samples": len(results)}
    found |= {"measures": _measures(results)}
    if set(groups) != {""}:
        found["groups"] = {group: _measures(some) for group, some in groups.items()}
    return found


def _measures(results: Sequence[Result]) -> dict[str, Any]:
    by_task: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_task[result["task_id"]].append(result)
    measures: dict[str, Any] = {}
    if "passed" in results[0]:
        counts = [(len(some), sum(r["passed"] for r in some)) for some in by_task.values()]
        measures["correct"] = sum(c for _, c in counts)
        for k in KS:
            if min(n for n, _ in counts) >= k:
                found = estimate(counts, k)
                measures |= {f"pass@{k}": 100 * found.mean, f"pass@{k} interval": [100 * found.low, 100 * found.high]}
                if min(n for n, _ in counts) > k and all(isinstance(r.get("mean_logprob"), float) for r in results):
                    measures[f"pass@{k} ranked"] = 100 * float(np.mean([_ranked(some, k) for some in by_task.values()]))
    for name in ("exact", "bleu", "solved", "retrieved", "mc1", "mc2"):
        if name in results[0]:
            measures[name] = 100 * float(np.mean([np.mean([r[name] for r in some]) for some in by_task.values()]))
    return measures


def _ranked(results: Sequence[Result], k: int) -> float:
    return ranked_pass_at_k([r["passed"] for r in results], [r["mean_logprob"] for r in results], k)


def show(summary: Mapping[str, Any], model: str) -> Table:
    """Returns the table of a result beside the papers' numbers for the same benchmark, whichever way round has fewer columns."""
    ours = {name: value for name, value in summary["measures"].items() if isinstance(value, float)}
    for group, measures in summary.get("groups", {}).items():
        ours |= {f"{group} {name}": value for name, value in measures.items() if isinstance(value, float)}
    rows = {model: ours, **paper.numbers(summary["benchmark"])}
    measures = list(dict.fromkeys(column for row in rows.values() for column in row))
    cell = lambda name, measure: f"{rows[name][measure]:.1f}" if measure in rows[name] else ""
    table = Table(
        title=f"{summary['benchmark']}: {summary['tasks']} tasks, {summary['samples']} samples{summary.get('unit', '; per cent')}"
    )
    down, across = (rows, measures) if len(measures) <= len(rows) else (measures, rows)
    for heading in ("", *across):
        table.add_column(heading)
    for name in down:
        table.add_row(name, *(cell(name, other) if down is rows else cell(other, name) for other in across))
    return table


def _open_folder(out: Path, asked: dict[str, Any]) -> list[Sample]:
    """Makes the folder of a run, or checks that it is the same run. Returns the samples that are there."""
    settings = out / "settings.json"
    if settings.exists():
        changed = [d for d in differences(json.loads(settings.read_text()), json.loads(json.dumps(asked))) if not d.startswith(FREE)]
        if changed:
            raise UserError(f"{out} holds samples drawn in another way ({'; '.join(changed)}): choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(asked, indent=1))
    return continue_file(out / "samples.jsonl")
