"""Ends of processes: of this one despite threads of a library, and why another one failed."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

SECONDS = 5.0  # that threads of a library get to end by themselves


def exit_within(seconds: float = SECONDS, code: int = 2) -> None:
    """Ends the process with `code` at the latest `seconds` after its main thread has ended.

    The interpreter waits for all threads that are not daemons, also for those that never end.
    """

    def end() -> None:
        threading.main_thread().join()
        time.sleep(seconds)
        # os._exit skips the flush at the interpreter's exit; the output may be closed already.
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)

    # A daemon: the thread itself must not keep the process alive.
    threading.Thread(target=end, name="exit_within", daemon=True).start()


def failure_line(output: str, code: int) -> str:
    """Returns the last line that a failed process printed, or how it ended if it printed nothing.

    Args:
      output: what it printed, usually on stderr.
      code: its exit code; minus the number of the signal that killed it.
    """
    if lines := output.strip().splitlines():
        return lines[-1]
    if code < 0:
        return f"killed by signal {-code}; 9 often means that memory was full"
    return f"it ended with exit code {code} and printed no error"
