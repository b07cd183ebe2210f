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
    """Draws the samples that `out`/samples.jsonl lacks, adding each batch to it. Returns all.

    Args:
        model: the model.
        benchmark: its tasks are prompted.
        request: what decides the samples, as `evaluate.request_of` returns it without the model.
        settings: with a temperature.
        out: the folder.

    Raises UserError if the folder holds samples drawn in another way.
    """
    first = is_first()

    def stored_samples() -> dict[str, Sample]:
        if not first:
            return {}
        open_folder(out, {**request, "model": model.name})
        path = out / "samples.jsonl"
        lines = check_own(continue_file(path, {}), path, benchmark)
        return {name_of(*key(line)): line for line in lines}

    stored = gather(on_all_hosts(stored_samples))
    samples = {key(line): line for line in stored.values()}
    total = settings.samples * len(benchmark.tasks)
    if first and len(samples) < total:
        note(f"compiling for the first of {total - len(samples)} samples, longest prompts first")
    with counted("sampled", total, min(len(samples), total), quiet=not first) as advance:
        for batch in answers(model, benchmark, settings, set(samples)):
            if first:
                append(out / "samples.jsonl", batch)
            samples |= {key(sample): sample for sample in batch}
            advance(len(batch))
    return {name: sample for name, sample in samples.items() if name[1] < settings.samples}
