"""Processes in the place of those that train seeds; imports no JAX, so that they start fast."""

import multiprocessing
import os
import signal
import sys
import time

SECONDS = 60


def _first(numbers):
    return 0 in numbers


def killed(choice, pickled, folder, numbers, cores, error_lines):
    """The second is killed as the kernel does when memory is full; the first would run on."""
    if _first(numbers):
        time.sleep(SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def stopped(choice, pickled, folder, numbers, cores, error_lines):
    """The second alone gets a signal and saves."""
    if _first(numbers):
        time.sleep(SECONDS)
    sys.exit(128 + signal.SIGTERM)


def without_reader(choice, pickled, folder, numbers, cores, error_lines):
    """All end as `run_command` does when the reader of the output has ended."""
    sys.exit(141)


def without_space(choice, pickled, folder, numbers, cores, error_lines):
    """All end with the same error."""
    error_lines.put("error: No space left on device")
    time.sleep(1)  # so that none is ended by the end of another
    sys.exit(2)


def interruptible(choice, pickled, folder, numbers, cores, error_lines):
    """Fails if a Ctrl-C of the terminal would end it before it has prepared itself."""
    sys.exit(0 if signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []) else 3)


def orphan():
    """Prepares itself after its parent has died, as one that has imported JAX meanwhile."""
    from codellama_jax.runs import seeds

    multiprocessing.parent_process().join()
    seeds._prepare_process([])
    time.sleep(5)
    print("survived", flush=True)
