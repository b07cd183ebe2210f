"""The memory allocator of a process that computes on the CPU."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Lets glibc reuse large freed blocks; call it before JAX starts its threads.

    XLA's CPU backend allocates the temporary arrays of a program at every call. By default glibc
    takes large blocks from the kernel and gives them back at once, and the kernel clears every page
    again: a quarter of the processor time of a small train step.

    Nothing changes with another C library, where JAX may run on an accelerator, and where the user
    has set glibc's own variables.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or _is_set_by_user() or _may_use_accelerator():
        return
    mallopt(_MMAP_MAX, 0)  # large blocks come from the heap as well
    mallopt(_TRIM_THRESHOLD, -1)  # the heap never shrinks
    # The heaps of other threads are at most 64 MiB large, and unmapped when they are empty.
    mallopt(_ARENA_MAX, 1)


def _is_set_by_user() -> bool:
    """Returns whether an environment variable of glibc's allocator is set."""
    return any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)


def _may_use_accelerator() -> bool:
    """Returns whether JAX may find another backend than the CPU's, without starting it."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms != "cpu"
    for module in ("libtpu", "jax_plugins"):
        if importlib.util.find_spec(module):
            return True
    return bool(importlib.metadata.entry_points(group="jax_plugins"))
