"""Static cycles of a kernel on TPUs that are not at hand: `python -m kernels.static flash_attention --chip v5p --seq 4096`.

Every figure is a compiler estimate: scheduled bundles, one a cycle, without the memory stalls that hardware adds. Bundles
are counted by region and by how often that region runs in one causal pass over one head without document boundaries; a
branch that does not run counts nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import shutil
import sys
import tempfile

from kernels.schedule import UNITS, Schedule, read

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
VMEM_MIB = {"v4": 16, "v5e": 128, "v5p": 64, "v6e": 128, "tpu7x": 64}
SPLASH_BLOCKS = ((1024, 512), (1024, 256), (512, 512))  # block, compute block
HEADS = 8


@dataclasses.dataclass(frozen=True)
class Pass:
    """What one pass over one head costs: cycles, use of the units, spills, and the two kinds of block."""

    kernel: str
    cycles: int
    interior: int
    diagonal: int
    units: dict[str, float]
    fills: int
    spills: int
    vmem_mib: float


def total(kernel: str, schedule: Schedule, runs: list, interior: int, diagonal: int) -> Pass:
    """Adds up `runs`, a list of (region, times)."""
    uses = [(schedule.own(region), times) for region, times in runs]
    cycles = sum(len(use) * times for use, times in uses)
    slots = sum(use.sum(0) * times for use, times in uses)
    units = {unit: slots[n] / (cycles * schedule.slots[n]) for n, unit in enumerate(UNITS) if unit in ("MXU", "XLU", "VALU", "EUP")}
    fills, spills = (int(slots[UNITS.index(unit)]) for unit in ("FILL", "SPILL"))
    return Pass(kernel, int(cycles), interior, diagonal, units, fills, spills, schedule.vmem_bytes / 2**20)


def _grid_step(schedule: Schedule):
    """Returns the grid's loop and its body: what runs at each step, without the two steps that only start or end transfers."""
    loop = next(region for region in schedule.root.walk() if region.kind == "loop_body")
    return loop, max(loop.children, key=lambda region: region.end - region.start)


def _matmuls(schedule: Schedule, region) -> bool:
    return bool(schedule.own(region)[:, UNITS.index("MXU")].any())


def _holds_matmuls(schedule: Schedule, region) -> bool:
    return any(_matmuls(schedule, part) for part in region.walk())


def count_splash(kernel: str, schedule: Schedule, seq: int, block: int) -> Pass:
    """Splash runs whole blocks, masked ones too, in one region, between an initial and a final one for each row of blocks."""
    loop, step = _grid_step(schedule)
    rows = seq // block
    (body,) = [region for region in step.children if _holds_matmuls(schedule, region)]
    runs = [(loop, rows * rows), (step, rows * rows)]
    for region in step.children:
        runs += [(part, rows * (rows + 1) // 2 if region is body else rows) for part in region.walk()]
    cycles = len(schedule.own(body))
    return total(f"{kernel} {block}", schedule, runs, cycles, cycles)


def count_ours(kernel: str, schedule: Schedule, seq: int, block: int, stretch: int) -> Pass:
    """Ours has a region for blocks on the diagonal, one for whole blocks, and twins of them with a mask for boundaries.

    Backward, the diagonal is part of each step and needs no twin. What is left beside is what begins and ends a row.
    """
    forward = "forward" in kernel
    loop, step = _grid_step(schedule)
    rows, steps = seq // block, seq // block * (seq // stretch if forward else 1)
    busy = [region for region in step.children if _holds_matmuls(schedule, region)]
    order = ("crossed diagonal", "diagonal", "crossed", "whole") if forward else ("whole", "crossed")
    if len(busy) != len(order):
        raise ValueError(f"{kernel} has {len(busy)} regions with matrix products, not {len(order)}: the compiler merged or split some")
    named = dict(zip(order, busy))
    named.setdefault("diagonal", step)
    whole = next(region for region in named["whole"].walk() if _matmuls(schedule, region))
    runs = [(loop, steps), (step, steps), (whole, rows * (rows - 1) // 2)]
    runs += [(region, steps) for region in named["whole"].walk() if region is not whole]
    if forward:
        runs += [(region, rows) for region in named["diagonal"].walk()]
    for region in step.children:
        if region not in busy:
            once = not forward and region.start < busy[0].start
            runs += [(part, 1 if once else rows) for part in region.walk()]
    return total(f"{kernel} {block}", schedule, runs, len(schedule.own(whole)), len(schedule.own(named["diagonal"])))


def _shapes(chip: str, seq: int, head_dim: int):
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    device = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices[0]
    here = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
    return jax.ShapeDtypeStruct((1, HEADS, seq, head_dim), jnp.bfloat16, sharding=here), here


def compile_ours(chip: str, seq: int, head_dim: int, dump: str) -> list[Pass]:
    """Compiles our two kernels for `chip`; returns their passes, forward then backward."""
    import jax
    import jax.numpy as jnp

    from kernels.flash_attention import block_sizes, pallas_tpu

    x, here = _shapes(chip, seq, head_dim)
    first_BT = jax.ShapeDtypeStruct((1, seq), jnp.int32, sharding=here)
    sizes = block_sizes.choose(seq, VMEM_MIB[chip] << 20)
    loss = lambda q, k, v, first_BT: pallas_tpu.attend(q, k, v, first_BT, sizes, False).astype(jnp.float32).sum()
    jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x, first_BT).compile()
    names = ("flash_attention_forward", "flash_attention_backward")
    return [count_ours(name, read(dump, name), seq, sizes.block, sizes.keys) for name in names]


def compile_splash(chip: str, seq: int, head_dim: int, block: int, compute: int, dump: str) -> list[Pass]:
    """Compiles jax's splash attention, backward fused; returns its passes, forward then backward."""
    import jax
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    x, _ = _shapes(chip, seq, head_dim)
    blocks = dict.fromkeys(("block_q", "block_kv", "block_q_dkv", "block_kv_dkv"), block)
    blocks |= dict.fromkeys(("block_kv_compute", "block_kv_dkv_compute"), compute)
    sizes = splash.BlockSizes(**blocks, use_fused_bwd_kernel=True)
    mask = masks.MultiHeadMask([masks.CausalMask((seq, seq))] * HEADS)
    kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes)
    loss = lambda q, k, v: jax.vmap(kernel)(q, k, v).astype(jnp.float32).sum()
    options = {"xla_tpu_scoped_vmem_limit_kib": str((VMEM_MIB[chip] - VMEM_MIB[chip] // 16) << 10)}
    jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile(options)
    return [count_splash(f"{name} {compute}", read(dump, name), seq, block) for name in ("splash_mha_fwd", "splash_mha_dkv")]


def best_splash(chip: str, seq: int, head_dim: int, dump: str) -> list[Pass]:
    """Returns splash's cheapest forward and backward pass over SPLASH_BLOCKS; sizes that do not compile are left out."""
    found = []
    for block, compute in SPLASH_BLOCKS:
        try:
            found.append(compile_splash(chip, seq, head_dim, block, compute, dump))
        except (ValueError, RuntimeError) as error:  # sizes that do not divide seq or do not fit
            print(f"splash {block}/{compute} does not compile for {chip}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
    return [min(passes, key=lambda p: p.cycles) for passes in zip(*found)] or [None, None]


def show(chip: str, seq: int, p: Pass, baseline: Pass | None = None) -> None:
    """Prints one line."""
    units = " ".join(f"{unit} {share:.2f}" for unit, share in p.units.items())
    ratio = f" = {p.cycles / baseline.cycles:.3f} x {baseline.kernel}" if baseline else ""
    print(
        f"{chip} {seq} {p.kernel}: interior block {p.interior}, diagonal block {p.diagonal}, head {p.cycles}{ratio}; "
        f"{units}; fills {p.fills} spills {p.spills}; VMEM {p.vmem_mib:.1f} MiB",
        flush=True,
    )


def report(chip: str, seq: int, head_dim: int, compare: bool, dump: str) -> int:
    """Prints our passes on `chip`, beside splash's when asked; returns the exit code."""
    try:
        ours = compile_ours(chip, seq, head_dim, dump)
    except ValueError as error:  # rows too long for the chip's vector memory
        print(f"{chip}: {error}", file=sys.stderr)
        return 1
    theirs = best_splash(chip, seq, head_dim, dump) if compare else [None, None]
    for p, baseline in zip(ours, theirs):
        show(chip, seq, p, baseline)
        if baseline:
            show(chip, seq, baseline)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.static", description="Static cycles of a TPU kernel (compiler estimate).")
    parser.add_argument("kernel", choices=["flash_attention"])
    parser.add_argument("--chip", default="v5p", help=f"comma-separated, of {', '.join(TOPOLOGIES)}")
    parser.add_argument("--seq", type=int, default=4096)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--compare", choices=["splash"])
    args = parser.parse_args()
    chips = args.chip.split(",")
    if unknown := sorted(set(chips) - set(TOPOLOGIES)):
        parser.error(f"unknown chip {', '.join(unknown)}; there are {', '.join(TOPOLOGIES)}")
    if args.seq % 1024:
        parser.error(f"--seq must be a multiple of 1024, got {args.seq}")
    if importlib.util.find_spec("libtpu") is None:
        print('the TPU compiler is not installed: pip install "codellama_jax[tpu]"', file=sys.stderr)
        return 2
    dump = tempfile.mkdtemp(prefix="schedule-")
    environment = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3"}
    os.environ.update(environment, LIBTPU_INIT_ARGS=f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true")
    print("compiler estimate, cycles a head; blocks in tokens a side", flush=True)
    try:
        return max(report(chip, args.seq, args.head_dim, bool(args.compare), dump) for chip in chips)
    finally:
        shutil.rmtree(dump, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
