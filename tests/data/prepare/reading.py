"""Reads every record of an input."""

from codellama_jax.data.prepare.inputs import InputOptions, parts_of, read_part
from codellama_jax.data.prepare.records import Dropped

TABLES = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow")


def read_all(path, options=None):
    options = options or InputOptions()
    results = []
    for part in parts_of(str(path), "in", options):
        results += read_part(part, options)
    return results


def reasons(results):
    return [result.reason if isinstance(result, Dropped) else "" for result in results]
