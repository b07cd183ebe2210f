"""Runs Beam pipelines on the runner that the user chose.

Pipelines are file to file and linear (Create, FlatMap, GroupByKey, Map), without side inputs, state
or metrics, because runners such as Dask's support these partly. Their functions are module-level
functions or frozen dataclasses with `__call__`, so that every runner can send them to workers.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from codellama_jax.errors import UserError
from codellama_jax.system.files import reason

IN_PROCESS = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


class Runner:
    """Runs pipelines with Beam's own options, such as `--runner=FlinkRunner`.

    Without options pipelines run in this process. With `processes` above 1 they run in that many
    processes of this machine.
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

        Raises UserError with the message of a UserError that a worker raised.
        """
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        options = PipelineOptions(self.options)
        with _quiet_logs(), _plain_errors():
            with beam.Pipeline(options=options) as pipeline:
                build(pipeline)

    def map(self, function: Callable[[Any], Any], items: list[Any]) -> None:
        """Calls `function(item)` for every item, each on some worker. Results are discarded."""
        import apache_beam as beam

        def build(pipeline: Any) -> None:
            created = pipeline | "Items" >> beam.Create(items, reshuffle=False)
            # Otherwise the first worker would get all the items.
            spread = created | "Spread" >> beam.Reshuffle()
            spread | "Work" >> beam.Map(function)

        if items:
            self.run(build)
