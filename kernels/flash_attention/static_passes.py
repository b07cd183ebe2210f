"""Static cycles of flash attention and of jax's splash attention: one causal pass over one head without document boundaries."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from kernels.flash_attention import block_sizes, pallas_tpu
from kernels.static.chips import VMEM_MIB, placed
from kernels.static.passes import Pass, grid_step, inside, products, total
from kernels.static.schedule import Region, Schedule, read

SPLASH_BLOCKS = (  # block/compute block, forward and backward: what was best of fifteen sizes on some chip
    ((2048, 256), (1024, 1024)),
    ((2048, 1024), (2048, 1024)),
    ((1024, 512), (1024, 512)),
)
HEADS = 8


def _busy(
    schedule: Schedule, step: Region, sizes: block_sizes.BlockSizes, per_row: int, *order: str
) -> dict[str, Region]:
    """Names the step's regions with matrix products, in their order; how many they compute proves that they are these.

    The block on the diagonal is `per_row` whole blocks wide and computes the triangle below it, in steps.
    """
    busy = [region for region in step.children if products(schedule, region)]
    if len(busy) != len(order):
        raise ValueError(
            f"{len(busy)} regions with matrix products, not {len(order)}: the compiler merged or split some"
        )
    named = dict(zip(order, busy))
    triangle = per_row * (1 + sizes.diagonal / (per_row * sizes.block)) / 2
    whole = products(schedule, named["whole"])
    for name, region in named.items():
        if products(schedule, region) != whole * (triangle if "diagonal" in name else 1):
            raise ValueError(
                f"{products(schedule, region)} matrix products in the {name} block, {whole} in a whole one: misread regions"
            )
    return named


def _whole_blocks(region: Region, loops: int, times: int):
    """Returns the body of the loop over whole blocks, and runs of the loop, entered `loops` times, and of its body."""
    (body,) = region.children
    return body, [(region, loops), *inside(body, times)]


def count_forward(schedule: Schedule, seq: int, sizes: block_sizes.BlockSizes) -> Pass:
    """A step has the block on the diagonal and a loop over whole blocks, and twins of both with a mask for boundaries."""
    loop, step = grid_step(schedule)
    rows, per_row = seq // sizes.queries, sizes.queries // sizes.block
    steps = rows * (seq // sizes.keys)
    named = _busy(
        schedule, step, sizes, per_row, "crossed diagonal", "diagonal", "crossed", "whole"
    )
    body, runs = _whole_blocks(named["whole"], steps, per_row * rows * (rows - 1) // 2)
    runs += [(loop, steps), (step, steps), *inside(named["diagonal"], rows)]
    for region in step.children:
        if region not in named.values():  # the end of a row
            runs += inside(region, rows)
    blocks = {
        f"interior block {sizes.queries}x{sizes.block}": body,
        f"diagonal block {sizes.queries}": named["diagonal"],
    }
    return total(f"{seq} forward", schedule, runs, blocks)


def count_backward(schedule: Schedule, seq: int, sizes: block_sizes.BlockSizes) -> Pass:
    """The diagonal is part of each step, before a loop over whole blocks and its twin with a mask for boundaries."""
    loop, step = grid_step(schedule)
    rows = seq // sizes.block
    named = _busy(schedule, step, sizes, 1, "whole", "crossed")
    body, runs = _whole_blocks(named["whole"], rows, rows * (rows - 1) // 2)
    runs += [(loop, rows), (step, rows)]
    for region in step.children:
        if region not in named.values():  # before the loops: the start of a head
            runs += inside(region, 1 if region.start < named["whole"].start else rows)
    blocks = {
        f"interior block {sizes.block}x{sizes.block}": body,
        f"diagonal block {sizes.block}": step,
    }
    return total(f"{seq} backward", schedule, runs, blocks)


def count_splash(name: str, schedule: Schedule, seq: int, block: int, compute: int) -> Pass:
    """Splash runs whole blocks, masked ones too, in one region, between an initial and a final one for each row of blocks."""
    loop, step = grid_step(schedule)
    rows = seq // block
    (body,) = [region for region in step.children if products(schedule, region)]
    runs = [(loop, rows * rows), (step, rows * rows)]
    for region in step.children:
        runs += (
            inside(region, rows * (rows + 1) // 2, block // compute)
            if region is body
            else inside(region, rows)
        )
    return total(
        f"{seq} {name} {block}/{compute}", schedule, runs, {f"any block {block}x{block}": body}
    )


def ours(chip: str, args, dump: str) -> list[Pass]:
    """Compiles our two kernels for `chip`; returns their passes, forward and, where the chip has room for it, backward."""
    seq = args.seq
    x = jax.ShapeDtypeStruct((1, HEADS, seq, args.head_dim), jnp.bfloat16)
    inputs = placed(chip, x, x, x, jax.ShapeDtypeStruct((1, seq), jnp.int32))
    sizes = block_sizes.choose(seq, VMEM_MIB[chip] << 20)
    forward = lambda q, k, v, first_BT: (
        pallas_tpu.attend(q, k, v, first_BT, sizes, False).astype(jnp.float32).sum()
    )
    counters = {
        "flash_attention_forward": count_forward,
        "flash_attention_backward": count_backward,
    }
    try:
        jax.jit(jax.grad(forward, argnums=(0, 1, 2))).lower(*inputs).compile()
    except ValueError as refusal:
        print(f"{chip} {seq} backward: {refusal}", file=sys.stderr)
        jax.jit(forward).lower(*inputs).compile()
        del counters["flash_attention_backward"]
    return [count(read(dump, name), seq, sizes) for name, count in counters.items()]


def _splash(
    chip: str,
    seq: int,
    head_dim: int,
    forward: tuple[int, int],
    backward: tuple[int, int],
    dump: str,
) -> list[Pass]:
    """Compiles jax's splash attention, backward fused, with (block, compute block) of each pass; returns both."""
    blocks = dict.fromkeys(("block_q", "block_kv"), forward[0]) | dict.fromkeys(
        ("block_q_dkv", "block_kv_dkv"), backward[0]
    )
    sizes = splash.BlockSizes(
        **blocks,
        block_kv_compute=forward[1],
        block_kv_dkv_compute=backward[1],
        use_fused_bwd_kernel=True,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((seq, seq))] * HEADS)
    kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes)
    loss = lambda q, k, v: jax.vmap(kernel)(q, k, v).astype(jnp.float32).sum()
    x = jax.ShapeDtypeStruct((1, HEADS, seq, head_dim), jnp.bfloat16)
    options = {"xla_tpu_scoped_vmem_limit_kib": str((VMEM_MIB[chip] - VMEM_MIB[chip] // 16) << 10)}
    jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*placed(chip, x, x, x)).compile(options)
    names = {"splash_mha_fwd": forward, "splash_mha_dkv": backward}
    return [count_splash(name, read(dump, name), seq, *blocks) for name, blocks in names.items()]


def best_splash(chip: str, args, dump: str) -> list[Pass]:
    """Returns splash's cheapest forward and backward pass over SPLASH_BLOCKS; sizes that do not compile are left out."""
    found = []
    for forward, backward in SPLASH_BLOCKS:
        try:
            found.append(_splash(chip, args.seq, args.head_dim, forward, backward, dump))
        except (ValueError, RuntimeError) as error:  # sizes that do not divide seq or do not fit
            message = str(error).splitlines()[0][:100]
            print(
                f"splash {forward}, {backward} does not compile for {chip}: {message}",
                file=sys.stderr,
            )
    if not found:
        raise ValueError("no block sizes of splash compile")
    return [min(passes, key=lambda p: p.cycles) for passes in zip(*found)]


BASELINES = {"splash": best_splash}
