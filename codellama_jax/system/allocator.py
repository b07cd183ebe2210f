"""The memory allocator of a process that computes on the CPU."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class _Setting:
    """A parameter of mallopt(3), and glibc's environment variable for it."""

    parameter: int
    variable: str
    value: int


_SETTINGS = (
    _Setting(-4, "MALLOC_MMAP_MAX_", 0),  # large blocks come from the heap as well
    _Setting(-1, "MALLOC_TRIM_THRESHOLD_", -1),  # the heap never shrinks
    # The heaps of other threads are at most 64 MiB large, and unmapped when they are empty.
    _Setting(-8, "MALLOC_ARENA_MAX", 1),
)


def keep_freed_memory() -> None:
    """Lets glibc reuse large freed blocks; call it before a library starts its first thread.

    XLA's CPU backend allocates the temporary arrays of a program at every call. By default glibc
    takes large blocks from the kernel and gives them back at once, and the kernel clears every page
    again: a quarter of the processor time of a small train step.

    A thread that exists already keeps its heap, which later threads then share: importing pyarrow
    starts one, and so does the backend of JAX.

    Nothing changes with another C library, where JAX may run on an accelerator, and where the user
    has set glibc's own variables.
    """
    if _applies():
        for setting in _SETTINGS:
            ctypes.CDLL(None).mallopt(setting.parameter, setting.value)


@contextlib.contextmanager
def kept_by_children() -> Iterator[None]:
    """Lets processes that are started in the block reuse freed blocks too, from their start."""
    # Variables, because a new Python process imports the modules of its function, with their
    # threads, before it calls the function.
    variables = {setting.variable: str(setting.value) for setting in _SETTINGS}
    if not _applies():
        variables = {}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def _applies() -> bool:
    has_parameters = hasattr(ctypes.CDLL(None), "mallopt")
    return has_parameters and not _is_set_by_user() and not _may_use_accelerator()


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
