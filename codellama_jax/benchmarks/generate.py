"""Generates the samples of a benchmark with a model, batch by batch, and continues after a kill."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codellama_jax.benchmarks.answers import answers
from codellama_jax.benchmarks.benchmark import Benchmark, Sample
from codellama_jax.benchmarks.out_folder import open_folder
from codellama_jax.benchmarks.sample_forms import check_own
from codellama_jax.benchmarks.samples import Key, append, continue_file, key, name_of
from codellama_jax.benchmarks.settings import Settings
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.hosts import gather, is_first, on_all_hosts
from codellama_jax.system.progress import counted, note


def generate_samples(
    model: TrainedModel,
    benchmark: Benchmark,
    request: Mapping[str, Any],
    settings: Settings,
    out: Path,
) -> dict[Key, Sample]:
    """Draws the samples that `out`/samples.jsonl does not hold yet, and returns all of them.

    Args:
        model: draws the samples.
        benchmark: its tasks are the prompts.
        request: the settings that the samples depend on, from `evaluate.request_of`.
        settings: with a temperature.
        out: the folder; each batch is added to its samples.jsonl.

    Raises UserError if the folder holds samples that were drawn with other settings.
    """
    is_writer = is_first()

    def stored_samples() -> dict[str, Sample]:
        if not is_writer:
            return {}
        open_folder(out, {**request, "model": model.name})
        path = out / "samples.jsonl"
        lines = check_own(continue_file(path, {}), path, benchmark)
        return {name_of(*key(line)): line for line in lines}

    # Only the first host reads the file; the others get its samples and skip the same ones.
    stored = gather(on_all_hosts(stored_samples))
    samples = {key(line): line for line in stored.values()}
    # The number of samples, with those that a folder already holds.
    total = settings.samples * len(benchmark.tasks)
    if is_writer and len(samples) < total:
        # The first batch takes long without any visible progress.
        note(f"compiling for the first of {total - len(samples)} samples, longest prompts first")
    with counted("sampled", total, min(len(samples), total), quiet=not is_writer) as advance:
        for batch in answers(model, benchmark, settings, set(samples)):
            if is_writer:
                append(out / "samples.jsonl", batch)
            samples |= {key(sample): sample for sample in batch}
            advance(len(batch))
    if model.drafter and is_writer:
        note(model.drafter.report())
    # The folder may hold more samples per task than are requested now.
    requested = {}
    for (task_id, number), sample in samples.items():
        if number < settings.samples:
            requested[task_id, number] = sample
    return requested
