"""A process ends although a thread never does."""

import subprocess
import sys
import time

from paths import ROOT

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
