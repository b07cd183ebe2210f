"""The seeds of an experiment side by side on one machine, in processes with a share of its cores.

A small model keeps one core busy, and several cores not much faster: two processes with a core each
train two seeds in less time than one process with both cores trains them one after another.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

import jax

from codellama_jax.checkpoints.folder import RunFolder
from codellama_jax.checkpoints.loading import keep_compiled
from codellama_jax.command_line import run_command
from codellama_jax.config import Experiment
from codellama_jax.errors import UserError
from codellama_jax.runs.corpus import Corpus
from codellama_jax.runs.stages import resolve
from codellama_jax.runs.training import run_stages
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.system import linux
from codellama_jax.system.allocator import keep_freed_memory
from codellama_jax.training.loop import Stopped, noticing_signals

if TYPE_CHECKING:
    from codellama_jax.runs.commands import RunOptions

WAIT_SECONDS = 0.2  # between two looks for a signal


def check_processes(processes: int) -> None:
    """Raises UserError where seeds cannot be trained side by side."""
    if processes == 1:
        return
    if jax.default_backend() != "cpu":
        raise UserError(
            f"--processes is {processes}: seeds are trained side by side only on a CPU, and the"
            f" device here is {jax.default_backend()}, which one process holds: leave it out"
        )
    if jax.process_count() > 1:
        raise UserError(
            f"--processes is {processes}: seeds are trained side by side only on one host, and"
            f" this run has {jax.process_count()}: leave it out"
        )


def train_side_by_side(experiment: Experiment, folder: RunFolder, choice: RunOptions) -> None:
    """Trains and probes all seeds, in as many processes as `choice` states.

    A signal stops them all. If one fails the others save and end too.

    Args:
      experiment: the experiment.
      folder: the run's folder, whose lock the caller holds.
      choice: the options of the verb `run`.

    Raises:
      Stopped: after a signal.
      UserError: if a process was killed.
      SystemExit: with its exit code, if a process failed; it has printed why.
    """
    count = min(choice.processes, experiment.seeds)
    # Every count-th seed: with 5 seeds in 2 processes the shares are 0, 2, 4 and 1, 3.
    shares = [range(first, experiment.seeds, count) for first in range(count)]
    # A forked child would have only one of the threads that JAX has started here.
    context = multiprocessing.get_context("spawn")
    workers: list[BaseProcess] = []
    with noticing_signals() as signalled:
        try:
            for share, cores in zip(shares, _cores(count), strict=True):
                arguments = (experiment, folder, choice, share, cores)
                workers.append(context.Process(target=_train_seeds, args=arguments))
                workers[-1].start()
            while running := [worker for worker in workers if worker.is_alive()]:
                # Wakes when a worker ends, and otherwise in time to look for a signal of the user.
                wait([worker.sentinel for worker in running], WAIT_SECONDS)
                if signalled() or any(worker.exitcode for worker in workers):
                    break
        finally:
            # SIGTERM, because a terminal has sent them its SIGINT, and a second one would end them
            # before they have saved.
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()
        if signalled():
            raise Stopped(signalled())
    _check_ended(workers)


def _check_ended(workers: Sequence[BaseProcess]) -> None:
    """Raises UserError or SystemExit if a worker failed by itself."""
    # A negative code is the number of the signal that killed a worker. Codes from 128 are those of
    # workers that saved after a signal, as they do when another one fails, and are no failure.
    codes = [worker.exitcode or 0 for worker in workers]
    killed = [code for code in codes if code < 0]
    failed = [code for code in codes if 0 < code < 128]
    if failed:
        sys.exit(failed[0])
    if killed:
        raise UserError(
            f"a process that trained some of the seeds was killed by signal {-killed[0]}; 9 often"
            " means that memory was full: run the same command again, with fewer --processes"
        )


def _cores(count: int) -> list[list[int]]:
    """Returns the processor cores of each of `count` processes: equal shares, or all for each."""
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(count)]
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // count
    if not each:
        return [cores for _ in range(count)]
    return [cores[number * each : (number + 1) * each] for number in range(count)]


def _train_seeds(
    experiment: Experiment,
    folder: RunFolder,
    choice: RunOptions,
    numbers: Sequence[int],
    cores: Sequence[int],
) -> None:
    """Trains and probes some seeds in a separate process.

    Args:
      experiment: the experiment.
      folder: the run's folder.
      choice: the options of the verb `run`.
      numbers: of the seeds.
      cores: of the processor; empty where the system cannot bind a process to cores.
    """
    if sys.platform == "linux":
        linux.die_with_parent()  # which holds the folder's lock
    # Before JAX starts a thread for each core that it may use.
    if cores:
        os.sched_setaffinity(0, cores)
    run_command(lambda: _run_seeds(experiment, folder, choice, numbers))


def _run_seeds(
    experiment: Experiment, folder: RunFolder, choice: RunOptions, numbers: Sequence[int]
) -> None:
    """Trains and probes some seeds in this process."""
    keep_freed_memory()
    keep_compiled(choice.cache)
    mesh = make_mesh(experiment.mesh)
    stages = resolve(experiment, choice.arms_of(experiment), folder, mesh)
    # Resolved as in the first process, with the same seeds and folders, and then limited to the
    # share of this worker.
    stages = [stage for stage in stages if stage.number in numbers]
    corpus = Corpus(experiment, choice.cache)
    try:
        with on_mesh(mesh):
            run_stages(experiment, corpus, folder, stages, choice.reuse)
    except Stopped as stop:
        sys.exit(128 + stop.args[0])  # the first process prints the line about it
    # All seeds read the same documents, and one process writes the file.
    if 0 in numbers:
        corpus.save_counts(folder.corpus)
