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


# Prints how many heaps glibc has: threads that have one of their own give it back when it is empty.
HEAPS = """
def heaps():
    import ctypes, tempfile
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    with tempfile.NamedTemporaryFile("r") as written:
        file = ctypes.c_void_p(libc.fopen(written.name.encode(), b"w"))
        libc.malloc_info(0, file)
        libc.fclose(file)
        return written.read().count("<heap nr")
"""
# As in training, the number is of the moment at which the backend has its threads.
RUN = """
import sys
from unittest import mock
import jax
from codellama_jax import cli

def work():
    jax.devices()
    print(heaps())

sys.argv[1:] = ["%s", "quickstart", *"%s".split()]
parse = cli.parse
with mock.patch.object(cli, "parse", lambda *a: parse(*a) and work):
    cli.main()
"""
WORKER = """
import multiprocessing
from codellama_jax.system.allocator import kept_by_children

def work():
    import jax
    import pyarrow
    jax.devices()
    print(heaps())

if __name__ == "__main__":
    with kept_by_children():
        process = multiprocessing.get_context("spawn").Process(target=work)
        process.start()
    process.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
@pytest.mark.parametrize("script", [RUN % ("run", ""), RUN % ("complete", "prompt"), WORKER])
def test_threads_of_a_command_share_one_heap(tmp_path, script):
    (tmp_path / "script.py").write_text(HEAPS + script)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "1\n"
