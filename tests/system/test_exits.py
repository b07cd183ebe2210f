"""A process ends although a thread never does."""

import subprocess
import sys
import time

from paths import ROOT

from codellama_jax.system.exits import failure_line

PROGRAM = """
import sys, threading
from codellama_jax.system.exits import exit_within
threading.Thread(target=threading.Event().wait).start()
exit_within(0.2)
print("last words")
print("error: a line", file=sys.stderr)
sys.exit(2)
"""


def test_a_thread_that_never_ends_is_left_behind():
    begun = time.monotonic()
    argv = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (2, "last words\n", "error: a line\n")
    assert time.monotonic() - begun < 5


def test_a_failed_process_is_described_by_its_last_line_or_by_its_end():
    assert failure_line("a warning\nerror: no file\n", 2) == "error: no file"
    # A process that the kernel kills prints nothing: this was an IndexError.
    assert failure_line("", -9) == "killed by signal 9; 9 often means that memory was full"
    assert failure_line(" \n", 1) == "it ended with exit code 1 and printed no error"
