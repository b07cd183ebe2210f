"""Static cycles of flash attention and of jax's splash attention.

A pass is one causal pass over one head without document boundaries.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from kernels.flash_attention import block_sizes, pallas_tpu
from kernels.flash_attention.block_sizes import BlockSizes
from kernels.static.chips import CHIPS, compile_inputs
from kernels.static.passes import Pass, grid_step, inside, matrix_slots, total
from kernels.static.schedule import Region, Schedule, read

# (block, compute block) of the forward and of the backward pass: the best of fifteen sizes on some
# chip.
SPLASH_BLOCKS = (
    ((2048, 256), (1024, 1024)),
    ((2048, 1024), (2048, 1024)),
    ((1024, 512), (1024, 512)),
)
HEADS = 8


def _name_busy_regions(
    schedule: Schedule, step: Region, sizes: BlockSizes, per_row: int, *order: str
) -> dict[str, Region]:
    """Names the step's regions with matmuls, in their order.

    Their numbers of matmuls prove that the names are right: the block on the diagonal is `per_row`
    blocks wide and computes the triangle below it, in steps.

    Args:
      schedule, step: the kernel's schedule and its grid step.
      sizes: the kernel's block sizes.
      per_row: key blocks per query block.
      order: the names.

    Raises:
      ValueError: for another number of regions or of matmuls than expected.
    """
    busy = [region for region in step.children if matrix_slots(schedule, region)]
    if len(busy) != len(order):
        raise ValueError(
            f"{len(busy)} regions with matmuls, not {len(order)}: the compiler merged or split some"
        )
    named = dict(zip(order, busy))
    triangle = per_row * (1 + sizes.diagonal / (per_row * sizes.block)) / 2
    whole = matrix_slots(schedule, named["whole"])
    for name, region in named.items():
        found = matrix_slots(schedule, region)
        expected = whole * (triangle if "diagonal" in name else 1)
        if found != expected:
            raise ValueError(
                f"{found} matmuls in the {name} block, {whole} in a whole one: misread regions"
            )
    return named


def _whole_blocks(region: Region, loops: int, times: int):
    """Returns the body of the loop over whole blocks, and the runs of the loop and of its body.

    The loop is entered `loops` times, its body runs `times` times.
    """
    (body,) = region.children
    return body, [(region, loops), *inside(body, times)]


def count_forward(schedule: Schedule, seq: int, sizes: BlockSizes) -> Pass:
    """Counts the forward pass.

    A step has the block on the diagonal and a loop over whole blocks, and a copy of both with a
    mask for document boundaries.
    """
    loop, step = grid_step(schedule)
    rows, per_row = seq // sizes.queries, sizes.queries // sizes.block
    steps = rows * (seq // sizes.keys)
    order = ("boundary diagonal", "diagonal", "boundary", "whole")
    named = _name_busy_regions(schedule, step, sizes, per_row, *order)
    whole_blocks = per_row * rows * (rows - 1) // 2
    body, runs = _whole_blocks(named["whole"], steps, whole_blocks)
    runs += [(loop, steps), (step, steps), *inside(named["diagonal"], rows)]
    for region in step.children:
        if region not in named.values():  # the end of a row of blocks
            runs += inside(region, rows)
    blocks = {
        f"interior block {sizes.queries}x{sizes.block}": body,
        f"diagonal block {sizes.queries}": named["diagonal"],
    }
    return total(f"{seq} forward", schedule, runs, blocks)


def count_backward(schedule: Schedule, seq: int, sizes: BlockSizes) -> Pass:
    """Counts the backward pass.

    The diagonal is part of each step, before a loop over whole blocks and its copy with a mask for
    document boundaries.
    """
    loop, step = grid_step(schedule)
    rows = seq // sizes.block
    named = _name_busy_regions(schedule, step, sizes, 1, "whole", "boundary")
    body, runs = _whole_blocks(named["whole"], rows, rows * (rows - 1) // 2)
    runs += [(loop, rows), (step, rows)]
    for region in step.children:
        if region not in named.values():
            # Regions before the loops clear the accumulators, once per head.
            before_loops = region.start < named["whole"].start
            runs += inside(region, 1 if before_loops else rows)
    blocks = {
        f"interior block {sizes.block}x{sizes.block}": body,
        f"diagonal block {sizes.block}": step,
    }
    return total(f"{seq} backward", schedule, runs, blocks)


def count_splash(name: str, schedule: Schedule, seq: int, block: int, compute: int) -> Pass:
    """Counts a pass of splash attention.

    It runs all blocks, masked ones too, in one region, between an initial and a final region for
    each row of blocks.

    Args:
      name: label of the pass.
      schedule: the kernel's schedule.
      seq: tokens.
      block, compute: block size, and the part of it that is computed at once.
    """
    loop, step = grid_step(schedule)
    rows = seq // block
    (body,) = [region for region in step.children if matrix_slots(schedule, region)]
    runs = [(loop, rows * rows), (step, rows * rows)]
    for region in step.children:
        if region is body:
            runs += inside(region, rows * (rows + 1) // 2, block // compute)
        else:
            runs += inside(region, rows)
    blocks = {f"any block {block}x{block}": body}
    return total(f"{seq} {name} {block}/{compute}", schedule, runs, blocks)


def ours(chip: str, args, dump: str) -> list[Pass]:
    """Compiles our kernels for `chip`; returns the forward and the backward pass.

    The backward pass is left out where the chip's VMEM does not hold it.
    """
    seq = args.seq
    heads = jax.ShapeDtypeStruct((1, HEADS, seq, args.head_dim), jnp.bfloat16)
    first_BT = jax.ShapeDtypeStruct((1, seq), jnp.int32)
    inputs = compile_inputs(chip, heads, heads, heads, first_BT)
    sizes = block_sizes.choose(seq, CHIPS[chip].vmem_bytes)

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


def _splash(chip: str, args, forward: tuple, backward: tuple, dump: str) -> list[Pass]:
    """Compiles splash attention with a fused backward pass; returns both passes.

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
    options = {"xla_tpu_scoped_vmem_limit_kib": str(vmem_kib)}
    jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*inputs).compile(options)
    passes = []
    for name, blocks in {"splash_mha_fwd": forward, "splash_mha_dkv": backward}.items():
        passes.append(count_splash(name, read(dump, name), args.seq, *blocks))
    return passes


def best_splash(chip: str, args, dump: str) -> list[Pass]:
    """Returns splash's cheapest forward and backward pass over SPLASH_BLOCKS.

    Sizes that do not compile are left out. Raises ValueError if none compiles.
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


BASELINES = {"splash": best_splash}
