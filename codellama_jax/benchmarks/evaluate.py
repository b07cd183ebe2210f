"""Evaluates one benchmark: generates or reads samples, scores them and prints the result.

Arguments, data and samples are checked before JAX is imported, so that a mistake is reported at
once. Scoring alone never imports it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from codellama_jax.benchmarks import chat, comparable, effects
from codellama_jax.benchmarks.benchmark import Benchmark, Sample, files_of, with_defaults
from codellama_jax.benchmarks.out_folder import check_same, local_folder, removed_if_empty
from codellama_jax.benchmarks.ranking import (
    back_translated,
    check_ranking,
    ranking_table,
    summarise_ranking,
)
from codellama_jax.benchmarks.sample_forms import Samples, read_samples
from codellama_jax.benchmarks.samples import Key, make_folder
from codellama_jax.benchmarks.scoring import Result, checks_of, score
from codellama_jax.benchmarks.settings import Checking, Options, Ranking, Settings
from codellama_jax.benchmarks.suite import Suite
from codellama_jax.benchmarks.suites import suite_of
from codellama_jax.benchmarks.summary import summarise, tables
from codellama_jax.errors import UserError
from codellama_jax.sandbox import Executor, languages
from codellama_jax.sharding.hosts import is_first, on_all_hosts, wait_for_all
from codellama_jax.system import locks
from codellama_jax.system.console import plain_console
from codellama_jax.system.files import user_path, write_json
from codellama_jax.system.progress import note

if TYPE_CHECKING:
    from codellama_jax.benchmarks.found_model import FoundModel
    from codellama_jax.models.trained import TrainedModel

# A function, because loading a model takes minutes and the inputs are checked first.
LoadModel = Callable[[], "TrainedModel"]
NO_RANKING = Ranking()
# Takes the place of a model's name in results.
CANONICAL = "canonical solutions"
# Statuses of programs that isolated mode could neither pass nor fail.
UNDECIDED = ("not_comparable", "too_large")


@dataclass(frozen=True)
class Prepared:
    """The checked inputs of an evaluation, before a model is loaded.

    Attributes:
        out: the folder to write to.
        settings: with the temperature, unless the benchmark is not loaded yet.
        suite: the benchmark's entry in the registry.
        benchmark: None if loading it needs the model's tokenizer, or if it has no tasks.
        samples: None if the model draws them.
    """

    out: Path
    settings: Settings
    suite: Suite
    benchmark: Benchmark | None = None
    samples: Samples | None = None


def evaluate(
    name: str,
    load_model: LoadModel | None,
    options: Options,
    settings: Settings,
    checking: Checking,
    out: str | Path,
    samples_file: str = "",
    reference: bool = False,
    ranking: Ranking = NO_RANKING,
    load_docstring_model: LoadModel | None = None,
    find_model: Callable[[], FoundModel] | None = None,
) -> None:
    """Generates or reads samples, scores them and prints the result of one benchmark.

    After a kill, the same call continues. All hosts call this; the first one writes.

    Args:
        name: one of `suites.SUITES`.
        load_model: returns the model; None to score a file of samples or canonical solutions.
        options: the data and prompts, an instance of the suite's options class.
        settings: how samples are drawn.
        checking: how samples are scored.
        out: the folder to write to.
        samples_file: samples to score instead of generating them.
        reference: scores the canonical solutions instead.
        ranking: how one sample per task is chosen, for a further table.
        load_docstring_model: returns the model that ranks by back-translation.
        find_model: returns what is known of the model before it is loaded; without it, what the
            model cannot do is refused afterwards.
    """
    scores_only = bool(samples_file or reference)
    has_model = load_model is not None
    # `on_all_hosts` raises an error of one host on all of them: the others would wait for it.
    prepared = on_all_hosts(
        lambda: prepare(
            name, has_model, options, settings, checking, out, samples_file, reference, ranking
        )
    )
    model_name = samples_file or CANONICAL
    with contextlib.ExitStack() as stack:
        # The lock is held until the results are written: two evaluations of one folder would mix
        # their samples.
        if is_first():
            stack.enter_context(removed_if_empty(prepared.out))
        on_all_hosts(lambda: stack.enter_context(only_writer(prepared.out)))
        executor = stack.enter_context(on_all_hosts(lambda: start_executor(prepared, checking)))
        if find_model and not scores_only:
            prepared = on_all_hosts(lambda: with_model(prepared, options, find_model()))
        model = None
        # Suites of text files need the tokenizer even to score: their tasks have a number of
        # tokens.
        if load_model and (not scores_only or prepared.suite.texts):
            model = load_model()
            model_name = model_name if scores_only else model.name
        inputs = prepared, model, options, checking, executor, ranking, load_docstring_model
        summary, benchmark = _measure(*inputs)
    if is_first():
        # Results on other data, or on some of the tasks, must not be beside the papers' numbers.
        why_not = comparable.why_not(name, prepared.suite, benchmark, options, "partial" in summary)
        _report(summary, model_name, benchmark, why_not, prepared.out)
    wait_for_all("evaluated")


def prepare(
    name: str,
    has_model: bool,
    options: Options,
    settings: Settings,
    checking: Checking,
    out: str | Path,
    samples_file: str,
    reference: bool,
    ranking: Ranking = NO_RANKING,
) -> Prepared:
    """Checks the arguments of `evaluate`, and reads data and samples. Imports no JAX.

    Args:
        name: one of `suites.SUITES`.
        has_model: whether a model will be loaded.
        options: see `evaluate`, also for the arguments below.
        settings: how samples are drawn.
        checking: how samples are scored.
        out: the folder to write to.
        samples_file: samples to score.
        reference: scores the canonical solutions.
        ranking: how one sample per task is chosen.

    Raises UserError for a mistake in any of them.
    """
    folder = local_folder(out)
    suite = suite_of(name)
    if not isinstance(options, suite.options):
        expected, actual = suite.options.__name__, type(options).__name__
        raise UserError(f"the options of {name} must be {expected}, not {actual}")
    if suite.texts:
        if not has_model:
            raise UserError(f"{name} needs a model and its tokenizer: pass --run")
        # Only checks that the files exist: loading them needs the tokenizer.
        files_of(options.data, suite.texts)
    if suite.measure:
        effects.check_measured(name, settings, checking)
    if ranking.rank and (suite.texts or suite.load is None or reference):
        raise UserError(f"--rank chooses among samples of programs, and {name} has none here")
    effects.check_sources(settings, checking, samples_file, bool(samples_file or reference))
    if suite.texts or suite.load is None:
        return Prepared(folder, settings, suite)
    benchmark = suite.load(options, None)
    settings = checked(benchmark, settings, checking, draws=not (samples_file or reference))
    chat.check(settings.chat_format, benchmark, options)
    prepared = Prepared(folder, settings, suite, benchmark)
    samples = None
    if samples_file:
        samples = read_samples(Path(user_path(samples_file)), benchmark, checking.partial)
        # A file may be read in another format than the user expects, so the format is printed.
        note(f"{samples_file}: {len(samples.by_key)} samples, read as {samples.form}")
    elif reference:
        samples = reference_samples(benchmark)
    else:
        # The model is compared once it is loaded: see `out_folder.open_folder`.
        check_same(folder, request_of(prepared, benchmark, options), model_known=False)
    check_ranking(ranking, benchmark, settings, samples.by_key if samples else None)
    return replace(prepared, samples=samples)


def with_model(prepared: Prepared, options: Options, model: FoundModel) -> Prepared:
    """Returns the inputs with the model's chat format in the place of `auto`.

    Raises UserError for a chat format that the model lacks, and for a folder with samples of
    another model. Tasks that are made with the model's tokenizer are checked once it is loaded.
    """
    benchmark = prepared.benchmark
    if benchmark is None:
        return prepared
    settings = chat.resolved(prepared.settings, benchmark, options, model)
    prepared = replace(prepared, settings=settings)
    check_same(prepared.out, {**request_of(prepared, benchmark, options), "model": model.name})
    return prepared


def checked(benchmark: Benchmark, settings: Settings, checking: Checking, draws: bool) -> Settings:
    """Returns settings with the temperature itself, which settings.json records.

    Raises UserError for an option that has no effect on the benchmark; `draws` is whether a model
    draws samples.
    """
    effects.check_effects(benchmark, settings, checking)
    complete = with_defaults(benchmark, settings)
    if draws and complete.temperature is not None and not benchmark.tasks[0].choices:
        effects.check_drawing(settings, complete.temperature)
    return complete


def only_writer(out: Path) -> contextlib.AbstractContextManager[None]:
    """Locks the folder on the host that writes to it. Raises UserError if another process does."""
    return locks.sole_writer(epath.Path(out)) if is_first() else contextlib.nullcontext()


def request_of(prepared: Prepared, benchmark: Benchmark, options: Options) -> dict[str, Any]:
    """Returns the settings that samples depend on, for settings.json; `model` is not filled in."""
    return {
        "benchmark": benchmark.name,
        "model": None,
        "options": asdict(options),
        "tasks": benchmark.fingerprint(),
        "settings": asdict(prepared.settings),
    }


def start_executor(
    prepared: Prepared, checking: Checking
) -> contextlib.AbstractContextManager[Executor | None]:
    """Starts the executor of programs; the context is None for a benchmark without programs.

    This happens before a model is loaded, so that a missing compiler is reported at once.
    """
    benchmark = prepared.benchmark
    if benchmark is None or benchmark.checks is None or not is_first():
        return contextlib.nullcontext()
    required = set()
    for task in benchmark.tasks:
        # All programs of a task are in one language.
        for check in checks_of(benchmark, task, {"completion": ""})[:1]:
            required.add(check.program.language)
    if checking.jars and "java" not in required:
        jars = f"--jars {' '.join(checking.jars)}"
        raise UserError(
            f"{jars} has no effect on {benchmark.name}, which runs no Java: leave it out"
        )
    # In a fixed order, so that the same message appears every time.
    for language in sorted(required):
        languages.require(language)
    return Executor(checking.workers, checking.mode, checking.allow_unsafe, jars=checking.jars)


def _measure(
    prepared: Prepared,
    model: TrainedModel | None,
    options: Options,
    checking: Checking,
    executor: Executor | None,
    ranking: Ranking,
    load_docstring_model: LoadModel | None,
) -> tuple[dict[str, Any], Benchmark | None]:
    """Generates samples unless they were read, and scores them on the first host.

    Args:
        prepared: the checked inputs.
        model: None to score a file or canonical solutions.
        options: an instance of the suite's options class.
        checking: how samples are scored.
        executor: runs programs; None for a benchmark without programs.
        ranking: how one sample per task is chosen.
        load_docstring_model: returns the model that ranks by back-translation.

    Returns the summary, which is empty on the other hosts, and the benchmark, None for a suite
    without tasks.
    """
    benchmark, settings, suite = prepared.benchmark, prepared.settings, prepared.suite
    if suite.measure:
        assert model is not None
        # All hosts measure: the model may be sharded over them.
        return suite.measure(model, options), None
    if benchmark is None:
        assert model is not None and suite.load is not None
        load, tokenizer = suite.load, model.tokenizer
        benchmark = on_all_hosts(lambda: load(options, tokenizer))
        settings = checked(benchmark, settings, checking, draws=prepared.samples is None)
    if prepared.samples is None:
        # Imported only here, because it imports JAX.
        from codellama_jax.benchmarks.generate import generate_samples

        assert model is not None
        settings = on_all_hosts(lambda: chat.resolved(settings, benchmark, options, model))
        check_ranking(ranking, benchmark, settings, None)
        request = request_of(replace(prepared, settings=settings), benchmark, options)
        samples = generate_samples(model, benchmark, request, settings, prepared.out)
    else:
        samples = prepared.samples.by_key
    # Again, because a folder of an earlier version may hold samples without their sums.
    check_ranking(ranking, benchmark, settings, samples)
    ranked = samples
    if load_docstring_model:
        scored = load_docstring_model(), ranking.docstring_run, benchmark, samples
        ranked = back_translated(*scored, prepared.out)
    if not is_first():
        # The other hosts only help to sample.
        return {}, benchmark
    make_folder(prepared.out)
    results = score(benchmark, samples, executor, prepared.out, checking.extract_code)
    summary = summarise(benchmark, results)
    if ranking.rank:
        summary["ranking"] = summarise_ranking(ranking, results, ranked)
    if prepared.samples is None:
        summary["prompt"] = chat.prompt_used(options, settings)
        if chat.problems(results):
            summary["answers without a program"] = chat.problems(results)
    elif prepared.samples.form != CANONICAL:
        # The format is part of the result: it decides how answers were read.
        summary["samples form"] = prepared.samples.form
    return {**summary, **_conditions(executor, checking, results)}, benchmark


def _conditions(
    executor: Executor | None, checking: Checking, results: Sequence[Result]
) -> dict[str, Any]:
    """Returns the conditions under which programs ran, for results.json."""
    if executor is None:
        return {}
    conditions: dict[str, Any] = {"mode": executor.mode, "layers": executor.layers}
    conditions["timeouts"] = sum(result["result"].startswith("timeout") for result in results)
    conditions["undecided"] = _undecided(results)
    # Timeouts depend on the machine's speed, so both are recorded.
    conditions["machine"] = executor.machine()
    if checking.extract_code:
        conditions["extract_code"] = True
    return conditions


def _undecided(results: Sequence[Result]) -> dict[str, int]:
    """Returns the number of verdicts of each status of UNDECIDED; they count as not passed."""
    # Also zeros: a reader of results.json sees that nothing was undecided.
    counts = dict.fromkeys(UNDECIDED, 0)
    for result in results:
        status = result["result"].partition(":")[0]
        if status in counts:
            counts[status] += 1
    return counts


def reference_samples(benchmark: Benchmark) -> Samples:
    """Returns the samples of a model that writes each canonical solution."""
    samples: dict[Key, Sample] = {}
    for task in benchmark.tasks:
        if task.reference is not None:
            completion = benchmark.finish(task, benchmark.truncate(task, task.reference))
            # Truncated like a model's text: this shows whether a stop string occurs in a solution.
            sample = {"task_id": task.task_id, "sample": 0, "completion": completion}
            samples[task.task_id, 0] = sample
    if not samples:
        raise UserError(f"the data of {benchmark.name} holds no canonical solutions")
    lacking = [task.task_id for task in benchmark.tasks if task.reference is None]
    return Samples(samples, CANONICAL, lacking)


def _report(
    summary: Mapping[str, Any], model: str, benchmark: Benchmark | None, reason: str, out: Path
) -> None:
    """Writes results.json and prints the table.

    Args:
        summary: the measures.
        model: name of the model or of the samples.
        benchmark: has the papers' numbers.
        reason: why the result must not be compared with them; "" if it may be.
        out: the folder.
    """
    paper = benchmark.paper if benchmark and not reason else None
    # Written before the table is printed: a closed terminal loses nothing.
    file = out / "results.json"
    result = {"model": model, **summary, "compared with the papers": not reason}
    make_folder(out)
    write_json(file, result)
    console = plain_console()
    for table in tables(summary, model, paper):
        console.print(table)
    if "ranking" in summary:
        console.print(ranking_table(summary["ranking"]))
    lines = _remarks(summary)
    if reason:
        lines.append(f"not compared with the papers: {reason}")
    for line in lines:
        console.print(line, soft_wrap=True)
    console.print(f"results: {file}", soft_wrap=True)


def _remarks(summary: Mapping[str, Any]) -> list[str]:
    """Returns lines that are printed below the table."""
    remarks = []
    if "partial" in summary:
        remarks.append(
            f"partial: {summary['tasks']} of {summary['partial']['of']} tasks have samples; "
            "the measures are means over these"
        )
    if "machine" in summary:
        machine = summary["machine"]
        remarks.append(
            f"{summary['timeouts']} of {summary['samples']} verdicts are timeouts "
            f"({machine['retried']} retried alone, {machine['retried and finished']} finished "
            f"then); machine speed {machine['speed']:.2f} (1: an idle server processor)"
        )
    # Neither passed nor failed: the user should know how many there are, and how to decide them.
    if any(summary.get("undecided", {}).values()):
        counts = ", ".join(f"{count} {status}" for status, count in summary["undecided"].items())
        remarks.append(
            f"undecided: {counts}; these count as not passed. results.jsonl gives the reasons; "
            "--mode compatible decides them as the public harnesses do, and trusts the program"
        )
    return remarks
