"""Inputs of `evaluate`: benchmark data, samples to score, the files that it writes, options."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import small_data
from suite_records import MORE, SUITES, load_all, use

from codellama_jax.benchmarks import evaluate
from codellama_jax.benchmarks.options import all_options, options_of
from codellama_jax.benchmarks.sample_forms import read_samples
from codellama_jax.benchmarks.samples import continue_file
from codellama_jax.benchmarks.scoring import FIELDS
from codellama_jax.benchmarks.settings import Checking, Options, Settings
from codellama_jax.benchmarks.suites import SUITES as SUITES_BY_NAME
from codellama_jax.benchmarks.suites import load
from tools.fuzz import mutations
from tools.fuzz.harness import shared_folder

ANSWERS = ["completion", "solution", "generation", "log_likelihoods"]
OWN = {"task_id": "HumanEval/0", "sample": 0, "passed": True, "result": "passed", "completion": ""}
REQUEST = {"benchmark": "humaneval", "model": None, "options": {}, "settings": {"samples": 1}}
OPTIONS = ["data", "shots", "source", "all_tasks", "lengths", "positions", "examples"]
SETTINGS = ["samples", "temperature", "top_p", "seed", "max_new_tokens", "context_tokens"]
SETTINGS += ["batch_tokens"]
# A task of each benchmark whose samples can be scored.
SCORED = {
    "humaneval": "HumanEval/0",
    "mbpp": "Mbpp/11",
    "truthfulqa": "0",
    "humaneval_infilling": "SingleLineInfilling/HumanEval/0/L1",
}


@functools.cache
def originals() -> dict[str, str]:
    """Returns a file of valid data for each benchmark."""
    files = {}
    for suite, record in SUITES.items():
        path = shared_folder() / "data" / f"{suite}.jsonl"
        files[suite] = str(small_data.write_lines(path, [record]))
    return files


@functools.cache
def benchmark(suite: str) -> Any:
    """Returns a benchmark with one task, loaded."""
    return load_all(suite, originals()[suite])


def changed(rng: Random, record: dict, names: list[str]) -> dict:
    """Returns a record in which up to two of the fields `names` have other values."""
    chosen = rng.sample(names, rng.randrange(min(3, len(names) + 1)))
    return {**record, **{name: mutations.value(rng) for name in chosen}}


def write(rng: Random, path: Path, records: list) -> None:
    """Writes records as JSON lines or as an array, sometimes damaged."""
    texts = [json.dumps(record) for record in records]
    text = f"[{','.join(texts)}]" if rng.random() < 0.2 else "".join(f"{line}\n" for line in texts)
    data = text.encode()
    path.write_bytes(mutations.damaged(rng, data) if rng.random() < 0.4 else data)
    if rng.random() < 0.05:
        mutations.replace_file(rng, path)


def data_files(rng: Random, folder: Path) -> Callable[[], object]:
    """Faulty records of a benchmark, which are loaded and made into programs."""
    suite = rng.choice(list(SUITES))
    record = rng.choice([SUITES[suite], MORE.get(suite, SUITES[suite])])
    path = folder / rng.choice(["data.jsonl", "data.json", "data.jsonl.gz", "é.txt"])
    # Half of the files have up to two wrong fields, which reach the later checks; the others are
    # changed anywhere.
    if rng.random() < 0.5:
        write(rng, path, [changed(rng, record, list(record))])
    else:
        write(rng, path, [mutations.mutate(rng, record) for _ in range(rng.choice([1, 1, 2]))])
    return lambda: use(suite, path)


def apps_folders(rng: Random, folder: Path) -> Callable[[], object]:
    """A folder of APPS with faulty files, which is loaded."""
    root = folder / "apps"
    small_data.write_apps(root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for _ in range(rng.choice([1, 1, 3])):
        path = rng.choice(files)
        if rng.random() < 0.1:
            mutations.replace_file(rng, path)
        elif path.suffix == ".json" and path.is_file() and rng.random() < 0.7:
            document = {"inputs": ["2\n"], "outputs": ["4\n"], "fn_name": "twice"}
            path.write_bytes(mutations.json_bytes(rng, mutations.mutate(rng, document, least=1)))
        elif path.is_file():
            path.write_bytes(mutations.damaged(rng, path.read_bytes()))
    shots = rng.choice([0, 0, 1, 2])

    def call() -> None:
        loaded = load("apps", data=str(root), shots=shots)
        for task in loaded.tasks:
            # Programs are made, not run: faults of the data appear here, and running takes seconds
            # each.
            evaluate.checks_of(loaded, task, {"completion": "x"})

    return call


def samples_files(rng: Random, folder: Path) -> Callable[[], object]:
    """A file of samples in a known or an unknown format, which is read for scoring."""
    path, lines = folder / "samples.jsonl", []
    suite, partial = rng.choice(list(SCORED)), rng.random() < 0.5
    for _ in range(rng.choice([0, 1, 1, 1, 1, 1, 2, 3])):
        task_id = SCORED[suite] if rng.random() < 0.9 else rng.choice(list(SCORED.values()))
        answer = rng.choice(ANSWERS[-1:] if suite == "truthfulqa" else ANSWERS)
        sample = {"task_id": task_id, answer: [-1.0, -2.0] if answer == ANSWERS[-1] else "x"}
        if rng.random() < 0.7:
            sample = changed(rng, sample, [*sample, "sample", "mean_logprob"])
        lines.append(sample if rng.random() < 0.9 else mutations.value(rng))
    # The form of BigCode's harness: a list per task.
    if rng.random() < 0.1:
        lines = [[mutations.value(rng)] for _ in range(2)]
    write(rng, path, lines)

    def call() -> None:
        scored = benchmark(suite)
        by_key = read_samples(path, scored, partial).by_key
        tasks = {task.task_id: task for task in scored.tasks}
        for (task_id, _), sample in by_key.items():
            if scored.checks:
                evaluate.checks_of(scored, tasks[task_id], sample)

    return call


def own_files(rng: Random, folder: Path) -> Callable[[], object]:
    """The faulty files of an evaluation's folder, which is resumed."""
    path = folder / rng.choice(["results.jsonl", "samples.jsonl"])
    results = [rng.choice([OWN, mutations.mutate(rng, OWN)]) for _ in range(rng.randrange(4))]
    write(rng, path, results)
    document = mutations.mutate(rng, REQUEST)
    settings = folder / "settings.json"
    settings.write_bytes(mutations.json_bytes(rng, document))
    if rng.random() < 0.1:
        mutations.replace_file(rng, settings)

    def call() -> None:
        if path.name == "results.jsonl":
            continue_file(path, FIELDS)
            return
        options = Options(data=originals()["humaneval"])
        evaluate.prepare("humaneval", True, options, Settings(), Checking(), folder, "", False)

    return call


def odd_or_good(rng: Random) -> Any:
    """Returns either a random JSON value or a number that many options allow."""
    return mutations.value(rng) if rng.random() < 0.5 else rng.choice([0, 1, 1, 2, 0.5, 1.0])


def requests(rng: Random, folder: Path) -> Callable[[], object]:
    """Faulty options of `evaluate`."""
    suite = rng.choice([*originals(), *SUITES_BY_NAME, rng.choice(mutations.TEXTS)])
    options: dict[str, Any] = {"data": originals().get(suite, str(folder))}
    settings: dict[str, Any] = {}
    # At most two options are changed, because the first mistake ends the command.
    for _ in range(rng.choice([0, 1, 1, 2])):
        name = rng.choice(OPTIONS)
        options[name] = odd_or_good(rng)
        if name in ("lengths", "positions") and rng.random() < 0.8:
            options[name] = tuple(odd_or_good(rng) for _ in range(rng.choice([0, 1, 1, 2])))
        if name in ("data", "source"):
            options[name] = rng.choice([*mutations.TEXTS, str(folder), originals()["humaneval"]])
        if name == "all_tasks":
            options[name] = rng.random() < 0.5
    if rng.random() < 0.5:
        settings[rng.choice(SETTINGS)] = odd_or_good(rng)
    out = str(folder / "out") if rng.random() < 0.8 else rng.choice(mutations.TEXTS)
    samples = "" if rng.random() < 0.8 else rng.choice(mutations.TEXTS)
    flags = [rng.random() < 0.5, rng.random() < 0.5]
    checking = {} if rng.random() < 0.7 else {rng.choice(["mode", "workers"]): odd_or_good(rng)}

    def call() -> None:
        # Made inside of `call`: the options check themselves, and their errors belong to the
        # outcome.
        given = options_of(suite, all_options()(**options))
        chosen = given, Settings(**settings), Checking(**checking)
        evaluate.prepare(suite, flags[0], *chosen, out, samples, flags[1])

    return call
