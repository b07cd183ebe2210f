"""Decides whether a result may be compared with the papers' numbers.

Only a result on all of the published tasks may.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from codellama_jax.benchmarks.benchmark import Benchmark
from codellama_jax.benchmarks.settings import Options
from codellama_jax.benchmarks.suite import Suite
from codellama_jax.data import downloads
from codellama_jax.system.json_files import read_values


def checksum(records: Iterable[Any]) -> str:
    """Returns the SHA-256 of records as a hexadecimal string.

    It does not depend on the order of the records or on the layout of their file, so a published
    file may be unpacked, sorted or written anew.
    """
    # Sorted keys and records: only the content counts.
    lines = sorted(json.dumps(record, sort_keys=True) for record in records)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def why_not(
    name: str, suite: Suite, benchmark: Benchmark | None, options: Options, partial: bool
) -> str:
    """Returns why a result must not be compared with the papers', or "" if it may be.

    Args:
        name: of the benchmark on the command line.
        suite: its entry in the registry.
        benchmark: the tasks that were measured; None for a suite without tasks.
        options: with the path of the data.
        partial: whether some tasks have no sample.
    """
    if benchmark is None or benchmark.paper is None:
        return "no paper's number of this measure is known"
    # A mean over some tasks is not comparable with one over all.
    if partial:
        return "only some of the tasks have samples"
    if benchmark.task_difference:
        return benchmark.task_difference
    if options.data.startswith(downloads.PREFIX):
        # The download has checked the file's checksum.
        return ""
    if suite.published_tasks:
        tasks = len(benchmark.tasks)
        count = f"{tasks:,} tasks, and the paper's numbers are for {suite.published_tasks:,}"
        return "" if tasks == suite.published_tasks else f"{options.data} holds {count}"
    if not suite.checksums:
        return f"no checksum of the published data of {name} is known"
    for file in suite.published_files(options):
        # One changed record changes the checksum.
        if checksum(value for _, value in read_values(file).values) not in suite.checksums:
            return f"the records of {file} are not those that the papers' numbers are for"
    return ""
