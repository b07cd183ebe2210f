"""Cycles of attention in decoding: one key head with a full cache.

`--seq` is the number of slots, `--group` that of query heads per key head, `--cache` the dtype of
keys and values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels.decode_attention import pallas_tpu
from kernels.static.chips import CHIPS, compile_inputs
from kernels.static.passes import Pass, inside, matrix_slots, total
from kernels.static.schedule import Schedule, read
from kernels.tpu import LANES, ceil_div, round_up

HEADS, GROUP = 8, 8  # key heads of all sequences, and query heads per key head


def slot_bytes(head_dim: int, dtype: str) -> int:
    """Returns the bytes of a slot of one key head in HBM: its key, its value and their scales."""
    scales = 2 * 4 if dtype == "int8" else 0
    # The layout of a kernel's operands pads keys and values to full registers.
    return 2 * round_up(head_dim, LANES) * jnp.dtype(dtype).itemsize + scales


def read_cycles(chip: str, size: float) -> float:
    """Returns the cycles in which one core reads `size` bytes with its share of the bandwidth."""
    # The cores of a device work on different heads and share its published bandwidth.
    description = CHIPS[chip]
    return size / (description.hbm_bandwidth / description.cores) * description.clock


def count(
    name: str, schedule: Schedule, slots: int, block: int, slot_cycles: float, clears: bool = True
) -> Pass:
    """Returns the figures of a pass over one key head.

    The loop with matmuls runs for each block but the last one. The code around it runs once per
    head. Another loop clears free slots, 128 per iteration, and a full cache has none.

    Args:
      name: label of the pass.
      schedule: the kernel's schedule.
      slots: filled slots of the head.
      block: slots per block.
      slot_cycles: cycles in which the core reads a slot.
      clears: whether the kernel clears free slots, as it does unless the cache is int8.
    """
    (loop,) = [region for region in schedule.root.children if region.kind == "loop_body"]
    inner = [region for region in loop.walk() if region.kind == "loop_body" and region is not loop]
    (full,) = [region for region in inner if matrix_slots(schedule, region)]
    once = [region for region in loop.walk() if region is loop or region not in inner]
    blocks = ceil_div(slots, block)
    runs = [(region, 1) for region in once] + list(inside(full, blocks - 1))
    p = total(name, schedule, runs, {"full block": full})
    full_cycles = len(schedule.exclusive_use(full))
    last_cycles = p.cycles - (blocks - 1) * full_cycles
    # A block is copied while the one before it is computed, so each takes the longer of both times.
    copy = block * slot_cycles
    full_time, last_time = max(full_cycles, copy), max(last_cycles, copy)
    # The last block of a sequence is free from a random slot on, on average from its middle.
    clear = [len(schedule.exclusive_use(region)) for region in inner if region is not full]
    clear_cycles = sum(clear) if clears else 0
    ragged_time = max(last_cycles + clear_cycles * block / LANES / 2, copy)
    # Lengths of i full blocks and a part are equally frequent for every i.
    ragged = slots / 2 * slot_cycles / ((blocks - 1) / 2 * full_time + ragged_time)
    return dataclasses.replace(
        p,
        reads=round(slots * slot_cycles),
        with_reads=round((blocks - 1) * full_time + last_time),
        ragged=ragged,
    )


def compile_for(
    chip: str, slots: int, head_dim: int, dtype: str = "bfloat16", group: int = GROUP
) -> None:
    """Compiles the kernel.

    Args:
      chip: a key of `chips.CHIPS`.
      slots: slots of the cache.
      head_dim: size of a head.
      dtype: of the cache: bfloat16, float32 or int8.
      group: query heads per key head.
    """
    q_dtype = "bfloat16" if dtype == "int8" else dtype
    q_MGH = jax.ShapeDtypeStruct((HEADS, group, head_dim), q_dtype)
    kv_MSH = jax.ShapeDtypeStruct((HEADS, slots, head_dim), dtype)
    lengths_M = jax.ShapeDtypeStruct((HEADS,), jnp.int32)
    scales_MS = jax.ShapeDtypeStruct((HEADS, slots), jnp.float32)
    scales = (scales_MS,) * 2 if dtype == "int8" else ()

    def kernel(*arrays):
        return pallas_tpu.decode_attention(*arrays, interpret=False)

    jax.jit(kernel).lower(
        *compile_inputs(chip, q_MGH, kv_MSH, kv_MSH, lengths_M, *scales)
    ).compile()


def ours(chip: str, args: Any, dump: str) -> list[Pass]:
    """Compiles the kernel and returns the figures of its pass over a full cache.

    Args:
      chip: a key of `chips.CHIPS`.
      args: `seq`, the slots, `head_dim`, `cache`, the dtype, and `group`.
      dump: folder of libtpu's dumps.
    """
    compile_for(chip, args.seq, args.head_dim, args.cache, args.group)
    block = pallas_tpu.block_slots(args.seq, args.head_dim, args.cache)
    label = f"{args.seq} {args.cache} cache {block}, group {args.group}"
    slot_cycles = read_cycles(chip, slot_bytes(args.head_dim, args.cache))
    schedule = read(dump, "decode_attention")
    return [count(label, schedule, args.seq, block, slot_cycles, clears=args.cache != "int8")]


BASELINES: dict[str, Callable[[str, Any, str], list[Pass]]] = {}  # none to compare with
