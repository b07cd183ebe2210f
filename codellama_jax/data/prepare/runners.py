"""Runs Beam pipelines on the runner that the user chose.

Pipelines are file to file and linear (Create, FlatMap, GroupByKey, Map), without side inputs, state
or metrics, because runners such as Dask's support these partly. Their functions are module-level
functions or frozen dataclasses with `__call__`, so that every runner can send them to workers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import codellama_jax
from codellama_jax.errors import UserError
from codellama_jax.system.files import reason

IN_PROCESS = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
# A worker's exception arrives as text inside another exception, which depends on the runner.
_WORKER_ERROR = re.compile(r"(UserError|OSError): (.*?) \[while running ", re.DOTALL)


class Runner:
    """Runs pipelines with Beam's own options, such as `--runner=FlinkRunner`.

    Without a runner among the options, pipelines run in this process, or in `processes` processes
    of this machine if there are more than one.
    """

    def __init__(self, options: Iterable[str] = (), processes: int = 1):
        self.options = list(options)
        if not any(option.startswith("--runner") for option in self.options):
            self.options.append(f"--runner={IN_PROCESS}")
            if processes > 1:
                self.options.append(f"--direct_num_workers={processes}")
                self.options.append("--direct_running_mode=multi_processing")

    def run(self, build: Callable[[Any], Any]) -> None:
        """Runs the pipeline that `build(pipeline)` makes, and waits for its end.

        Raises UserError for options that Beam refuses, and with the message of a UserError or
        OSError that a worker raised.
        """
        with _worker_path(), _quiet_logs():
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions

            try:
                with beam.Pipeline(options=PipelineOptions(self.options)) as pipeline:
                    build(pipeline)
            except Exception as error:
                problem = worker_error(error)
                if not problem:
                    raise
                raise UserError(problem) from error

    def map(self, function: Callable[[Any], Any], items: list[Any]) -> None:
        """Calls `function(item)` for every item, each on some worker. Results are discarded."""

        def build(pipeline: Any) -> None:
            import apache_beam as beam

            created = pipeline | "Items" >> beam.Create(items, reshuffle=False)
            # Otherwise the first worker would get all the items.
            spread = created | "Spread" >> beam.Reshuffle()
            _ = spread | "Work" >> beam.Map(function)

        if items:
            self.run(build)


def worker_error(error: Exception) -> str:
    """Returns the message of a UserError or OSError that a worker raised, "" for a defect."""
    # In this process the exception keeps its type, and Beam appends the name of the step.
    text = str(error)
    if isinstance(error, UserError):
        return text.partition(" [while running ")[0]
    if isinstance(error, OSError):
        return f"{reason(error)}: {error.filename or 'a worker'}"
    matches = _WORKER_ERROR.findall(text)
    return matches[-1][1] if matches else ""


@contextlib.contextmanager
def _worker_path() -> Iterator[None]:
    """Lets the processes that a runner starts import this library where it is not installed."""
    root = str(Path(codellama_jax.__file__).parents[1])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([root, before] if before else [root])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Hides what Beam and its runners log about their own work, errors of workers included.

    Their exceptions arrive here as well, and would be printed twice.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
