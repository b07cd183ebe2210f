"""Ends of a process that threads of a library would keep alive."""

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
