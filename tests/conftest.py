"""Eight CPU devices for every test, set before JAX's backend starts; arrays' ranks must agree."""

import collections
import importlib.metadata
import os

from paths import ROOT

# Tests compile far longer than they compute. So their programs are barely optimised, and each is
# compiled once: both pytest workers, every subprocess and the next `make test` read it from here.
# JAX reads these variables at import, and subprocesses inherit them.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# XLA's fusion emitters write an LLVM module per loop, which takes twice as long to compile. Later
# releases have nothing else, and end the process at a flag that they do not know.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_terminal_summary(terminalreporter):
    """Prints how many tests were skipped, by what they need, in one visible line."""
    reasons = collections.Counter()
    for report in terminalreporter.stats.get("skipped", []):
        _, _, reason = report.longrepr
        reasons[reason.removeprefix("Skipped: ")] += 1
    if reasons:
        counts = "; ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items()))
        terminalreporter.write_line(f"skipped: {counts}", yellow=True)
