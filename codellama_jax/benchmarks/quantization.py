"""Evaluates a model in several quantizations: memory, speed and score of each in one table.

It is PanGu-Coder2's table 4 (Shen et al. 2023) as one command. Every quantization has a
separate folder in --out, so that the samples of one are never taken for another's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from codellama_jax.benchmarks.evaluate import evaluate
from codellama_jax.benchmarks.out_folder import local_folder
from codellama_jax.benchmarks.settings import Checking, Options, Settings
from codellama_jax.benchmarks.summary import PERCENT
from codellama_jax.generation.settings import Quantization
from codellama_jax.sharding.hosts import is_first
from codellama_jax.system.console import plain_console
from codellama_jax.system.files import read_json, write_json

if TYPE_CHECKING:
    from codellama_jax.benchmarks.found_model import FoundModel
    from codellama_jax.models.trained import TrainedModel


def compare(
    name: str,
    options: Options,
    settings: Settings,
    checking: Checking,
    load_model: Callable[[], TrainedModel],
    quantizations: Sequence[Quantization],
    out: str | Path,
    find_model: Callable[[Quantization], FoundModel],
) -> None:
    """Evaluates a model in each quantization, prints a table and writes quantization.json.

    After a kill, the same call continues.

    Args:
        name: one of `suites.SUITES`.
        options, settings, checking: see `evaluate.evaluate`.
        load_model: returns the model in full precision; called once.
        quantizations: they differ in their weights.
        out: the folder; the results of each quantization are in a folder in it.
        find_model: see `evaluate.evaluate`.
    """
    # Loaded once in full precision: each scheme quantizes these weights anew.
    folder, load_once = local_folder(out), functools.cache(load_model)
    models: dict[str, TrainedModel] = {}

    def load(quantization: Quantization) -> TrainedModel:
        from codellama_jax.generation.quantize import quantized

        # Kept until the end, because the speeds of all schemes are measured together.
        models[quantization.weights] = quantized(load_once(), quantization)
        return models[quantization.weights]

    for quantization in quantizations:
        load_this = functools.partial(load, quantization)
        # Samples are resumed by folder, so that each scheme needs one.
        inner = folder / quantization.weights
        find_this = functools.partial(find_model, quantization)
        evaluate(name, load_this, options, settings, checking, inner, find_model=find_this)
    # On all hosts, over which a model may be sharded; only the first host writes.
    rows = _measured(models)
    if not is_first():
        return
    for scheme, row in rows.items():
        results = read_json(folder / scheme / "results.json")
        measures, unit = results["measures"], results.get("unit", PERCENT)
        row["measures"] = {key: value for key, value in measures.items() if _is_real(value)}
    record = {"quantizations": [dataclasses.asdict(each) for each in quantizations], "rows": rows}
    write_json(folder / "quantization.json", record)
    console = plain_console()
    console.print(table_of(name, quantizations[0].kv_cache, rows, unit))
    console.print(f"results: {folder / 'quantization.json'}", soft_wrap=True)


def _is_real(value: Any) -> bool:
    # Intervals are lists and counts are integers, neither of which fits a cell of the table.
    return isinstance(value, float)


def _measured(models: Mapping[str, TrainedModel]) -> dict[str, dict[str, Any]]:
    """Returns memory and speed of each model."""
    from codellama_jax.generation.speed import cache_bytes, decoding_speeds, weight_bytes

    rows: dict[str, dict[str, Any]] = {}
    speeds = decoding_speeds(models)
    for scheme, model in models.items():
        rows[scheme] = {
            "weights, bytes": weight_bytes(model),
            "cache, bytes per token": cache_bytes(model),
            "tokens per second": speeds[scheme],
        }
    return rows


def table_of(
    name: str, kv_cache: str, rows: Mapping[str, Mapping[str, Any]], unit: str = PERCENT
) -> Table:
    """Returns the table: a row per quantization.

    Args:
        name: the benchmark.
        kv_cache: how all of them store keys and values.
        rows: bytes, tokens per second and measures by scheme.
        unit: of the measures, as in the table of one result.
    """
    cache = "" if kv_cache == "none" else f", {kv_cache} cache"
    table = Table(title=f"{name} by quantization of the weights{cache}{unit}")
    measures = list(next(iter(rows.values()))["measures"])
    for heading in ("weights", "MB", "cache, kB/token", "tokens/s", *measures):
        table.add_column(heading)
    for scheme, row in rows.items():
        megabytes, kilobytes = row["weights, bytes"] / 1e6, row["cache, bytes per token"] / 1e3
        numbers = f"{megabytes:,.1f}", f"{kilobytes:,.2f}", f"{row['tokens per second']:,.1f}"
        scores = [f"{row['measures'][measure]:.2f}" for measure in measures]
        table.add_row(scheme, *numbers, *scores)
    return table
