"""Checks the free memory of a device before weights are prepared and prompts are read."""

from __future__ import annotations

from pathlib import Path

import jax

from codellama_jax.errors import UserError

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def check_weights_memory(size: int) -> None:
    """Raises UserError if decoding weights of `size` bytes per device do not fit."""
    fix = "split the model over more devices (--mesh.tensor, --mesh.fsdp)"
    _check("the weights in the layout for decoding need", size, fix)


def check_cache_memory(size: int, sequences: int, tokens: int) -> None:
    """Raises UserError if a cache of `size` bytes per device does not fit.

    Args:
      size: bytes.
      sequences: how many it holds at once.
      tokens: of the longest one, with its new tokens.
    """
    subject = f"the cache of {sequences} sequences of up to {tokens:,} tokens needs"
    fix = "use fewer at once, shorten them, or use more devices"
    _check(subject, size, fix)


def check_prompt_memory(
    compiled: jax.stages.Compiled, prompts: int, tokens: int, beams: int = 1
) -> None:
    """Raises UserError if a program that reads or continues prompts needs more memory than is free.

    Args:
      compiled: the program; its arguments are on the devices already.
      prompts: how many prompts are read at once.
      tokens: length of the longest one.
      beams: continuations of each prompt.
    """
    # Some backends give no analysis. Then the program runs, and an allocation may fail.
    memory = compiled.memory_analysis()
    if memory is None:
        return
    subject = f"a prompt of {tokens:,} tokens needs"
    fix = "shorten it, or split it over more devices (--mesh.tensor, --mesh.context)"
    if prompts > 1:
        subject = f"{prompts} prompts of up to {tokens:,} tokens need"
        fix = "use fewer at once, shorten them, or use more devices"
    if beams > 1:
        subject, fix = f"{beams} beams of {subject}", f"use fewer --beams, or {fix}"
    # Donated arguments hold a part of the output.
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    _check(subject, output + memory.temp_size_in_bytes, fix)


def _check(subject: str, needed: int, fix: str) -> None:
    free = free_bytes()
    if free is not None and needed > free:
        sizes = f"{needed / 1e9:,.2f} GB beside the model and {free / 1e9:,.2f} GB are free"
        raise UserError(f"{subject} {sizes}: {fix}")


def free_bytes() -> int | None:
    """Returns the free memory of a device in use; None where the system does not report it."""
    mesh = jax.sharding.get_abstract_mesh()
    device = jax.local_devices()[0]
    statistics = device.memory_stats()
    # Accelerators report their allocator's limit. For a CPU the operating system is read below.
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics["bytes_in_use"]
    if device.platform != "cpu":
        return None
    # The devices of a CPU share the memory of the host.
    shares = max(1, min(mesh.size, jax.local_device_count()))
    sizes = [size for size in (_host_free(), _cgroup_free()) if size is not None]
    return min(sizes) // shares if sizes else None


def _host_free() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _cgroup_free() -> int | None:
    """Returns the free bytes of the container's limit; None without a limit."""
    try:
        # A container may allow much less than the machine has, and exceeding it kills the process.
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((CGROUP / "memory.current").read_text())
        lines = (CGROUP / "memory.stat").read_text().splitlines()
        statistics = dict(line.split() for line in lines)
        # The kernel drops cached files before it refuses memory.
        return int(limit) - used + int(statistics["inactive_file"])
    except (OSError, KeyError, ValueError):
        return None
