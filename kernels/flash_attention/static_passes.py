"""Cycles of flash attention and of JAX's splash attention, counted from their schedules.

A pass is one causal pass over one head without document boundaries. The counters know how often
each region of a schedule runs; `kernels.static` reads the regions from the compiler.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from kernels.flash_attention import block_sizes, pallas_tpu
from kernels.flash_attention.block_sizes import BlockSizes
from kernels.static.chips import CHIPS, compile_inputs
from kernels.static.passes import Pass, grid_step, inside, matrix_slots, total
from kernels.static.schedule import Region, Schedule, read
from kernels.tpu import ceil_div

# (block, compute block) of splash's forward and of its backward pass. Of fifteen combinations these
# three were each the fastest on some chip.
SPLASH_BLOCKS = (
    ((2048, 256), (1024, 1024)),
    ((2048, 1024), (2048, 1024)),
    ((1024, 512), (1024, 512)),
)
HEADS = 8  # heads of the compiled kernels; the cycles of one head do not depend on it


def _name_busy_regions(
    schedule: Schedule, step: Region, sizes: BlockSizes, per_query_block: int, *order: str
) -> dict[str, Region]:
    """Returns the regions of a grid step that have matmuls, by the names in `order`.

    The listing does not name its regions, so their numbers of matmuls are checked: a block on the
    diagonal computes only the strips below the diagonal, a known fraction of a full block.

    Args:
      schedule, step: the kernel's schedule and its grid step.
      sizes: the kernel's block sizes.
      per_query_block: key blocks per query block.
      *order: names of the regions in the order of the kernel's code, "full" among them.

    Raises:
      ValueError: for another number of regions or of matmuls than expected.
    """
    busy = [region for region in step.children if matrix_slots(schedule, region)]
    if len(busy) != len(order):
        raise ValueError(
            f"{len(busy)} regions with matmuls, not {len(order)}: the compiler merged or split some"
        )
    named = dict(zip(order, busy))
    # Of s strips, strip i computes i of s parts of its rows: (1 + 1 / s) / 2 of the square in all.
    inverse_strips = sizes.diagonal / (per_query_block * sizes.block)
    triangle = per_query_block * (1 + inverse_strips) / 2
    full = matrix_slots(schedule, named["full"])
    for name, region in named.items():
        slots = matrix_slots(schedule, region)
        expected = full * (triangle if "diagonal" in name else 1)
        if slots != expected:
            raise ValueError(
                f"{slots} matmuls in the {name} block, {full} in a full one: misread regions"
            )
    return named


def _full_blocks(region: Region, loops: int, times: int) -> tuple[Region, list[tuple[Region, int]]]:
    """Returns the body of the loop over full blocks, and the runs of the loop and of its body.

    Args:
      region: the region that contains the loop.
      loops: how often the loop is entered.
      times: how often its body runs in all.
    """
    (body,) = region.children
    return body, [(region, loops), *inside(body, times)]


def count_forward(schedule: Schedule, seq: int, sizes: BlockSizes) -> Pass:
    """Returns the figures of the forward pass over `seq` tokens.

    A grid step contains the block on the diagonal and a loop over full blocks, and a copy of both
    with the mask of document boundaries. Without boundaries the copies do not run.
    """
    loop, step = grid_step(schedule)
    query_blocks, per_query_block = seq // sizes.queries, sizes.queries // sizes.block
    steps = query_blocks * (seq // sizes.keys)
    order = ("boundary diagonal", "diagonal", "boundary", "full")
    named = _name_busy_regions(schedule, step, sizes, per_query_block, *order)
    # Query block i has i full query blocks of keys before it.
    full_blocks = per_query_block * query_blocks * (query_blocks - 1) // 2
    body, runs = _full_blocks(named["full"], steps, full_blocks)
    runs += [(loop, steps), (step, steps), *inside(named["diagonal"], query_blocks)]
    for region in step.children:
        if region not in named.values():  # writes the outputs of a query block
            runs += inside(region, query_blocks)
    blocks = {
        f"interior block {sizes.queries}x{sizes.block}": body,
        f"diagonal block {sizes.queries}": named["diagonal"],
    }
    return total(f"{seq} forward", schedule, runs, blocks)


def count_backward(schedule: Schedule, seq: int, sizes: BlockSizes) -> Pass:
    """Returns the figures of the backward pass over `seq` tokens.

    In a sequence of one segment every grid step has its block on the diagonal. It is therefore part
    of the step itself, before the loop over full blocks and that loop's copy with the mask of
    document boundaries. With several segments the block on the diagonal is a region.
    """
    loop, step = grid_step(schedule)
    key_blocks, segments = seq // sizes.block, ceil_div(seq, sizes.segment)
    pairs = segments * (segments + 1) // 2
    steps = pairs * key_blocks // segments
    is_split = segments > 1
    order = ("diagonal", "full", "boundary") if is_split else ("full", "boundary")
    named = _name_busy_regions(schedule, step, sizes, 1, *order)
    full_blocks = key_blocks * (key_blocks - 1) // 2
    body, runs = _full_blocks(named["full"], steps, full_blocks)
    runs += [(loop, steps), (step, steps)]
    if is_split:
        runs += inside(named["diagonal"], key_blocks)
    others = [region for region in step.children if region not in named.values()]
    for region, times in zip(others, _runs_of_others(others, named["full"], key_blocks, segments)):
        runs += inside(region, times)
    blocks = {
        f"interior block {sizes.block}x{sizes.block}": body,
        f"diagonal block {sizes.block}": named.get("diagonal", step),
    }
    return total(f"{seq} backward", schedule, runs, blocks)


def _runs_of_others(
    others: list[Region], full: Region, key_blocks: int, segments: int
) -> list[int]:
    """Returns how often each region of the backward pass without matmuls runs.

    Args:
      others: the regions without matmuls, in order.
      full: the loop over full blocks.
      key_blocks: blocks of the sequence.
      segments: segments of the sequence.

    Raises:
      ValueError: for another number of regions than expected.
    """
    if segments == 1:
        # Regions before the loops clear the accumulators, once per head. Those after them write the
        # gradients of a key block.
        return [1 if region.start < full.start else key_blocks for region in others]
    pairs = segments * (segments + 1) // 2
    copies = pairs - segments  # all pairs but those on the diagonal pass dq on
    times = {
        "clear dq": pairs,
        "clear dk and dv": key_blocks,
        "fetch dq": copies,
        "write dq": key_blocks,
        "write dk and dv": key_blocks,
        "keep dq": copies,
    }
    if len(others) != len(times):
        raise ValueError(
            f"{len(others)} regions without matmuls, not {len(times)}: the compiler merged or split"
            " some"
        )
    return list(times.values())


def count_splash(name: str, schedule: Schedule, seq: int, block: int, compute: int) -> Pass:
    """Returns the figures of a pass of splash attention.

    Splash computes every block in one region, with the mask. Another region starts each row of
    blocks, and a third one ends it. Its grid has a step for each block, also for those above the
    diagonal, where only the step itself runs.

    Args:
      name: label of the pass.
      schedule: the kernel's schedule.
      seq: tokens.
      block: queries and keys of a block.
      compute: keys of a block that are computed at once.
    """
    loop, step = grid_step(schedule)
    rows = seq // block  # rows of blocks
    (body,) = [region for region in step.children if matrix_slots(schedule, region)]
    runs = [(loop, rows * rows), (step, rows * rows)]
    for region in step.children:
        if region is body:
            runs += inside(region, rows * (rows + 1) // 2, block // compute)
        else:
            runs += inside(region, rows)
    blocks = {f"any block {block}x{block}": body}
    return total(f"{seq} {name} {block}/{compute}", schedule, runs, blocks)


def ours(chip: str, args: Any, dump: str) -> list[Pass]:
    """Compiles our kernels and returns the figures of the forward and of the backward pass.

    The backward pass is left out, with a line on stderr, if the chip's VMEM holds no segment of it.

    Args:
      chip: a key of `chips.CHIPS`.
      args: `seq`, which is padded as `pallas_tpu.attention` does, and `head_dim`.
      dump: folder of libtpu's dumps.
    """
    sizes = block_sizes.choose(args.seq, args.head_dim, 2, CHIPS[chip].vmem_bytes)
    seq = args.seq + sizes.padding(args.seq)
    heads = jax.ShapeDtypeStruct((1, HEADS, seq, args.head_dim), jnp.bfloat16)
    first_BT = jax.ShapeDtypeStruct((1, seq), jnp.int32)
    inputs = compile_inputs(chip, heads, heads, heads, first_BT)

    def loss(q, k, v, first_BT):
        return pallas_tpu.attend(q, k, v, first_BT, sizes, False).astype(jnp.float32).sum()

    counters = {
        "flash_attention_forward": count_forward,
        "flash_attention_backward": count_backward,
    }
    try:
        jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*inputs).compile()
    except ValueError as refusal:
        print(f"{chip} {seq} backward: {refusal}", file=sys.stderr)
        jax.jit(loss).lower(*inputs).compile()
        del counters["flash_attention_backward"]
    return [count(read(dump, name), seq, sizes) for name, count in counters.items()]


def _splash(
    chip: str, args: Any, forward: tuple[int, int], backward: tuple[int, int], dump: str
) -> list[Pass]:
    """Compiles splash attention with a fused backward pass and returns the figures of both passes.

    Args:
      chip: a key of `chips.CHIPS`.
      args: `seq` and `head_dim`.
      forward, backward: (block, compute block) of each pass.
      dump: folder of libtpu's dumps.
    """
    sizes = splash.BlockSizes(
        block_q=forward[0],
        block_kv=forward[0],
        block_kv_compute=forward[1],
        block_q_dkv=backward[0],
        block_kv_dkv=backward[0],
        block_kv_dkv_compute=backward[1],
        use_fused_bwd_kernel=True,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((args.seq, args.seq))] * HEADS)
    kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes)

    def loss(q, k, v):
        return jax.vmap(kernel)(q, k, v).astype(jnp.float32).sum()

    heads = jax.ShapeDtypeStruct((1, HEADS, args.seq, args.head_dim), jnp.bfloat16)
    inputs = compile_inputs(chip, heads, heads, heads)
    vmem_kib = (CHIPS[chip].vmem_mib - CHIPS[chip].vmem_mib // 16) << 10
    options: dict[str, str | bool] = {"xla_tpu_scoped_vmem_limit_kib": str(vmem_kib)}
    jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*inputs).compile(options)
    passes = []
    for name, blocks in {"splash_mha_fwd": forward, "splash_mha_dkv": backward}.items():
        passes.append(count_splash(name, read(dump, name), args.seq, *blocks))
    return passes


def best_splash(chip: str, args: Any, dump: str) -> list[Pass]:
    """Returns splash's cheapest forward and its cheapest backward pass over SPLASH_BLOCKS.

    Takes the arguments of `ours`. Sizes that do not compile are left out, with a line on stderr.

    Raises:
      ValueError: if no size compiles.
    """
    compiled = []
    for forward, backward in SPLASH_BLOCKS:
        try:
            compiled.append(_splash(chip, args, forward, backward, dump))
        except (ValueError, RuntimeError) as error:  # sizes that do not divide seq or do not fit
            message = str(error).splitlines()[0][:100]
            sizes = f"{forward}, {backward}"
            print(f"splash {sizes} does not compile for {chip}: {message}", file=sys.stderr)
    if not compiled:
        raise ValueError("no block sizes of splash compile")
    return [min(passes, key=lambda p: p.cycles) for passes in zip(*compiled)]


# Kernels to compare with, by the name that `--compare` takes.
BASELINES: dict[str, Callable[[str, Any, str], list[Pass]]] = {"splash": best_splash}
