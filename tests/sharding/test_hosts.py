"""One host needs no JAX for what several hosts do together."""

import subprocess
import sys

from paths import ROOT

from codellama_jax.sharding import hosts

PROGRAM = """
import sys
from codellama_jax.sharding import hosts
hosts.start_distributed()
assert hosts.is_first() and hosts.gather({"a": 1}) == {"a": 1}
assert hosts.on_all_hosts(lambda: 3) == 3
hosts.on_first_host(lambda: hosts.say("first"))
hosts.wait_for_all("done")
print("jax" in sys.modules)
"""


def test_a_single_host_never_imports_jax():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "first\nFalse\n", done.stderr


def test_a_line_is_printed_as_it_is(capsys):
    hosts.say("runs/:car:/[draft]/x")
    assert capsys.readouterr().out == "runs/:car:/[draft]/x\n"


def test_a_line_is_printed_by_a_thread_while_tfds_is_imported():
    """Its lazy imports refuse relative ones in all threads; rich had one with its first line."""
    program = """
import threading
from codellama_jax.sharding import hosts
from etils import epy
with epy.lazy_imports():
    thread = threading.Thread(target=hosts.say, args=["reading"])
    thread.start()
    thread.join()
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("reading\n", "")
