"""One host needs no JAX for what several hosts do together."""

import subprocess
import sys

from paths import ROOT

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
