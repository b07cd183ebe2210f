"""The seeds of an experiment side by side on one machine, in processes with a share of its cores.

A small model keeps one core busy, and several cores not much faster: two processes with a core each
train two seeds in less time than one process with both cores trains them one after another. Each
has its own seeds, and helps with those of the others when they are done.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import TYPE_CHECKING

import jax

from codellama_jax.checkpoints.folder import RunFolder
from codellama_jax.checkpoints.loading import keep_compiled
from codellama_jax.command_line import BROKEN_PIPE, print_error, run_command
from codellama_jax.config import Experiment
from codellama_jax.errors import UserError
from codellama_jax.runs import experiment_file
from codellama_jax.runs.corpus import Corpus
from codellama_jax.runs.stages import ResolvedStage, resolve
from codellama_jax.runs.training import Training
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.system import locks
from codellama_jax.system.allocator import kept_by_children
from codellama_jax.system.files import reason
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
      Stopped: after a signal, also if one process alone received it.
      UserError: if a process was killed, or the experiment cannot be sent to one.
      SystemExit: with its exit code, if a process failed. The lines of errors are printed, an
        equal one of several processes once.
    """
    count = min(choice.processes, experiment.seeds)
    # Every count-th seed: with 5 seeds in 2 processes the shares are 0, 2, 4 and 1, 3.
    shares = [range(first, experiment.seeds, count) for first in range(count)]
    pickled = _pickled(experiment, choice.processes)
    # A forked child would have only one of the threads that JAX has started here.
    context = multiprocessing.get_context("spawn")
    workers: list[BaseProcess] = []
    error_lines = context.SimpleQueue()
    with noticing_signals() as signalled:
        try:
            for share, cores in zip(shares, _cores(count), strict=True):
                arguments = (choice, pickled, folder, share, cores, error_lines)
                process = context.Process(target=_train_seeds, args=arguments)
                with _blocked_interrupts(), kept_by_children():
                    process.start()
                workers.append(process)  # only now: one that did not start cannot be ended
            while running := [worker for worker in workers if worker.is_alive()]:
                # Wakes when a worker ends, and otherwise in time to look for a signal of the user.
                wait([worker.sentinel for worker in running], WAIT_SECONDS)
                if signalled() or any(worker.exitcode for worker in workers):
                    break
            # Before the others are stopped: their codes are those of this process's signal.
            codes = [worker.exitcode or 0 for worker in workers]
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()
        _print_errors(error_lines)
        if signalled():
            raise Stopped(signalled())
    _check_ended(codes)


def _print_errors(error_lines: SimpleQueue[str]) -> None:
    """Prints the lines of the errors of workers, each once: a full disk ends all of them."""
    printed: set[str] = set()
    while not error_lines.empty():
        line = error_lines.get()
        if line not in printed:
            print_error(line)
        printed.add(line)


def _pickled(experiment: Experiment, processes: int) -> bytes:
    """Returns the experiment as a worker unpickles it. Raises UserError where that is impossible.

    Args:
      experiment: the experiment; its file may define classes of its parts.
      processes: that the user asked for.
    """
    try:
        return pickle.dumps(experiment)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"--processes is {processes}: the experiment cannot be sent to a process"
            f" ({reason(error)}): define its classes and functions at the top of the experiment"
            " file, or leave --processes out"
        ) from None


@contextmanager
def _blocked_interrupts() -> Iterator[None]:
    """Keeps Ctrl-C from a process that is started in the block, and from this one until its end."""
    # A terminal sends its SIGINT to the workers too, which may be importing modules: Python would
    # print a traceback. The signal mask is inherited, and `_prepare_process` unblocks it.
    resource_tracker.ensure_running()  # it is started with the first worker, and unblocks SIGINT
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _check_ended(codes: Sequence[int]) -> None:
    """Raises Stopped, UserError or SystemExit if a worker did not end by itself with success.

    `codes` are the exit codes of the workers, as `multiprocessing` gives them.
    """
    for code in codes:
        # The reader of the pipe has ended, which is no signal to the workers.
        if 0 < code < 128 or code == BROKEN_PIPE:
            sys.exit(code)
    for code in codes:
        # A negative code is the number of the signal that killed a worker.
        if code < 0:
            raise UserError(
                f"a process that trained some of the seeds was killed by signal {-code}; 9 often"
                " means that memory was full: run the same command again, with fewer --processes"
            )
        if code:  # 128 + signal: it has saved
            raise Stopped(code - 128)


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
    choice: RunOptions,
    pickled: bytes,
    folder: RunFolder,
    numbers: Sequence[int],
    cores: Sequence[int],
    error_lines: SimpleQueue[str],
) -> None:
    """Trains and probes some seeds in a separate process.

    Args:
      choice: the options of the verb `run`.
      pickled: the experiment.
      folder: the run's folder.
      numbers: of the seeds.
      cores: of the processor; empty where the system cannot bind a process to cores.
      error_lines: gets the line of an error, which the first process prints.
    """
    _prepare_process(cores)
    run_command(lambda: _run_seeds(choice, pickled, folder, numbers), error_lines.put)


def _prepare_process(cores: Sequence[int]) -> None:
    """Prepares this process as one of several: its end, its signals, its output and its cores."""
    parent = multiprocessing.parent_process()
    assert parent, "the first process has no parent that it ends with"

    def end_with_parent() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    # The parent holds the folder's lock. It may have died before this line, so that a request to
    # the kernel for a signal at its death would come too late.
    threading.Thread(target=end_with_parent, name="end_with_parent", daemon=True).start()
    # Ctrl-C reaches the parent too, which then stops all processes with SIGTERM. In training it is
    # noticed (`noticing_signals`): a second one interrupts the saving.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    # Lines instead of progress bars, which several processes would draw over each other.
    os.environ["TTY_COMPATIBLE"] = "0"
    # Before JAX starts a thread for each core that it may use.
    if cores:
        os.sched_setaffinity(0, cores)


def _run_seeds(
    choice: RunOptions, pickled: bytes, folder: RunFolder, numbers: Sequence[int]
) -> None:
    """Trains and probes some seeds in this process."""
    # The file may define classes of the experiment's parts, and register a model family.
    experiment_file.load_file(choice.experiment, choice.traceback)
    experiment: Experiment = pickle.loads(pickled)
    keep_compiled(choice.cache)
    mesh = make_mesh(experiment.mesh)
    # Resolved as in the first process, with the same seeds and folders.
    stages = resolve(experiment, choice.arms_of(experiment), folder, mesh)
    preferred = [stage for stage in stages if stage.number in numbers]
    corpus = Corpus(experiment, choice.cache)
    try:
        with on_mesh(mesh):
            training = Training(experiment, corpus, folder, choice.reuse)
            # Data that a model writes have no claim: the arms of a seed share them in one process.
            if experiment.data_stages or not locks.can_claim(folder.path):
                for stage in preferred:
                    training.run(stage)
            else:
                ordered = _first_arm_early(preferred, experiment.seeds, choice.processes)
                training.run_unclaimed(ordered + _of_others(stages, numbers))
    except Stopped as stop:
        sys.exit(128 + stop.args[0])  # the first process prints the line about it


def _first_arm_early(
    preferred: Sequence[ResolvedStage], seeds: int, processes: int
) -> list[ResolvedStage]:
    """Returns the stages of a process, with the first arm of a surplus seed before another seed.

    With 5 seeds in 2 processes, the seed with number 4 is the surplus one. Its other arms often
    begin with stages of its first, and the process that helps with them would wait for those.

    Args:
      preferred: stages of the seeds of the process, in their order.
      seeds: of the experiment.
      processes: at most so many train them.
    """
    count = min(processes, seeds)
    first_surplus = seeds - seeds % count

    def place(stage: ResolvedStage) -> float:
        if stage.number >= first_surplus and stage.arm == preferred[0].arm:
            return stage.number - count - 0.5  # just before the last seed that is not surplus
        return stage.number

    return sorted(preferred, key=place)  # stable: stages stay in their order


def _of_others(stages: Sequence[ResolvedStage], numbers: Sequence[int]) -> list[ResolvedStage]:
    """Returns the stages of all seeds but `numbers`, in the order in which to help with them.

    The last seed comes first: its process is the last to begin it.
    """
    others = [stage for stage in stages if stage.number not in numbers]
    return sorted(others, key=lambda stage: -stage.number)  # stable: arms stay in their order
