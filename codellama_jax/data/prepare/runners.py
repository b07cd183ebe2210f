"""Runs Beam pipelines on the runner that the user chose.

Pipelines are file to file and linear (Create, FlatMap, GroupByKey, Map), without side inputs, state
or metrics, because runners such as Dask's support these partly. Their functions are module-level
functions or frozen dataclasses with `__call__`, so that every runner can send them to workers.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from codellama_jax.checked import choices_problem, nearest
from codellama_jax.errors import UserError
from codellama_jax.system.files import reason

IN_PROCESS = "FnApiRunner"
# Beam knows this one by its module only.
MODULES = {"DaskRunner": "apache_beam.runners.dask.dask_runner.DaskRunner"}
# A worker's exception arrives as text inside another exception, which depends on the runner.
_WORKER_END = re.compile(r"subprocess exited with return code (-?\d+)")
STOPPED = (-signal.SIGINT, 128 + signal.SIGINT)  # exit codes of a worker after Ctrl-C
_WORKER_ERROR = re.compile(r"(UserError|OSError): (.*?) \[while running ", re.DOTALL)


class Runner:
    """Runs pipelines on a runner of Beam, with Beam's own options.

    Args:
        name: such as `DaskRunner`; "" is this machine.
        options: of the runner, such as `--dask_client_address=HOST:PORT`.
        processes: number of processes of this machine that `map` uses where `name` is "". `run`
            uses this process alone: it groups short keys, and starting workers takes longer.
    """

    def __init__(self, name: str = "", options: Iterable[str] = (), processes: int = 1):
        self.options = [f"--runner={MODULES.get(name, name) or IN_PROCESS}", *options]
        self.name = name
        self._workers: list[str] = []
        if not name and processes > 1:
            self._workers.append(f"--direct_num_workers={processes}")
            self._workers.append("--direct_running_mode=multi_processing")

    def check(self) -> None:
        """Raises UserError for a runner or an option that Beam does not have."""
        with _quiet_logs():
            from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
            from apache_beam.runners.runner import create_runner

            options = PipelineOptions(self.options)
            name = options.view_as(StandardOptions).runner
            try:
                create_runner(name)
            except ValueError:
                known = sorted([*StandardOptions.KNOWN_RUNNER_NAMES, *MODULES])
                raise UserError(f"--runner{choices_problem(name, known)}") from None
            except ImportError as error:
                fix = "install the package that it needs, such as apache-beam[dask] or [gcp]"
                raise UserError(f"--runner is {name!r}: {reason(error)}; {fix}") from None
            allowed = options.get_all_options()
            # Beam itself ignores options that it does not know, so that a misspelt one would have
            # no effect.
            unknown = set(options.get_all_options(retain_unknown_options=True)) - set(allowed)
        if unknown:
            first = min(unknown)
            hint = nearest(first, allowed)
            raise UserError(f"--{first} is no option of Apache Beam or of its runner {name}{hint}")

    def run(self, build: Callable[[Any], Any]) -> None:
        """Runs the pipeline that `build(pipeline)` makes, and waits for its end.

        Raises UserError with the message of a UserError or OSError that a worker raised.
        """
        self._run(build, self.options)

    def _run(self, build: Callable[[Any], Any], flags: list[str]) -> None:
        # Imported only where a pipeline runs, because Beam takes long to import.
        with _worker_path(), _quiet_logs(), _plain_errors():
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions

            with beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
                build(pipeline)

    def map(self, function: Callable[[Any], Any], items: list[Any]) -> None:
        """Calls `function(item)` for every item, each on some worker. Results are discarded."""

        def build(pipeline: Any) -> None:
            import apache_beam as beam

            created = pipeline | "Items" >> beam.Create(items, reshuffle=False)
            # Otherwise the first worker would get all the items.
            spread = created | "Spread" >> beam.Reshuffle()
            _ = spread | "Work" >> beam.Map(function)

        # Starting worker processes takes longer than most single parts do.
        if len(items) == 1 and not self.name:
            with _plain_errors():
                function(items[0])  # nothing to distribute
        elif items and self._workers:
            with _watched_workers(), _quiet_workers():
                self._run(build, self.options + self._workers)
        elif items:
            self._run(build, self.options)


def worker_error(error: Exception) -> str:
    """Returns the message of a UserError or OSError that a worker raised, "" for a defect."""
    # In this process the exception keeps its type, and Beam appends the name of the step.
    # Runners disagree on how an exception of a worker arrives: with its type, or as a traceback in
    # the text of another exception. Only expected errors become a message; the traceback of a
    # defect must stay visible.
    text = str(error)
    if isinstance(error, UserError):
        return text.partition(" [while running ")[0]
    if isinstance(error, OSError):
        return f"{reason(error)}: {error.filename or 'a worker'}"
    # The last match is the innermost error that Beam reports.
    matches = _WORKER_ERROR.findall(text)
    return matches[-1][1] if matches else ""


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Raises a UserError with the message of a worker's UserError or OSError in the block."""
    try:
        yield
    except Exception as error:
        # Ctrl-C during a step in this process, which Beam makes an error of the step.
        if str(error).startswith("KeyboardInterrupt"):
            raise KeyboardInterrupt from None
        problem = worker_error(error)
        if not problem:
            raise
        raise UserError(problem) from error


@contextlib.contextmanager
def _worker_path() -> Iterator[None]:
    """Lets the processes that a runner starts import what this process can import."""
    before = os.environ.get("PYTHONPATH")
    # Worker processes import the functions of a step by their module's name. They inherit the
    # environment of this process, but not the entries added to sys.path while it ran.
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
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


@contextlib.contextmanager
def _watched_workers() -> Iterator[None]:
    """Ends the program with one line and code 2 if a worker process on this machine is killed.

    Beam reports that in a thread only, and then waits for the process for ever. Complete parts are
    kept, as after any kill.
    """
    # Never released: full memory ends several workers at once, each with a thread that reports it.
    reported = threading.Lock()

    def ended(arguments: threading.ExceptHookArgs) -> None:
        match = _WORKER_END.search(str(arguments.exc_value))
        # Other errors of Beam's threads only follow from the end of the workers.
        if match and int(match[1]) not in STOPPED and reported.acquire(blocking=False):
            print(
                f"error: a worker process ended with exit code {match[1]}, as it does where there"
                " is too little memory: run the same command again, with fewer --processes",
                file=sys.stderr,
                flush=True,
            )
            # A worker that is left behind would continue to write parts.
            for child in _descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            # This runs in one of Beam's threads, where sys.exit would end the thread only.
            os._exit(2)

    before, threading.excepthook = threading.excepthook, ended
    # Not reset after an error: then threads whose workers are gone end with errors later.
    yield
    threading.excepthook = before


def _descendants(process: int) -> list[int]:
    """Returns the processes that a process has started, and those that they have."""
    processes: list[int] = []
    for path in glob.glob(f"/proc/{process}/task/*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            for child in Path(path).read_text().split():
                processes += [int(child), *_descendants(int(child))]
    return processes


@contextlib.contextmanager
def _quiet_workers() -> Iterator[None]:
    """Hides what processes started in the block print on stderr; this process still prints there.

    Beam's workers log every step, and no option of Beam reaches those on this machine.
    """
    sys.stderr.flush()
    # Workers inherit file descriptor 2, not sys.stderr, so the descriptor itself is redirected.
    # This process prints to a copy of the original one.
    kept, python_stderr = os.dup(2), sys.stderr
    with open(os.devnull, "w") as nothing, os.fdopen(kept, "w", buffering=1) as visible:
        os.dup2(nothing.fileno(), 2)
        sys.stderr = visible
        try:
            yield
        finally:
            sys.stderr = python_stderr
            os.dup2(kept, 2)
