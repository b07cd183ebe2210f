"""Freed memory of a process that computes on the CPU is used again."""

import os
import subprocess
import sys

import pytest
from paths import ROOT

# Prints the page faults of filling a block of 64 MiB that was allocated and freed before.
SCRIPT = """
import ctypes, resource
from codellama_jax.system.allocator import keep_freed_memory

keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(1 << 26)
    libc.memset(block, 1, 1 << 26)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(**variables: str) -> int:
    inherited = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    environment = inherited | {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_is_used_again_on_a_cpu_only():
    assert page_faults(JAX_PLATFORMS="cpu") < 100
    # 64 MiB are 16,384 pages of 4 KiB.
    assert page_faults(JAX_PLATFORMS="tpu") > 10_000
    assert page_faults(JAX_PLATFORMS="cpu", MALLOC_MMAP_MAX_="65536") > 10_000
