"""Static cycles of a kernel on TPUs that are not at hand: `python -m kernels.static.command flash_attention --chip v5p --seq 4096`.

Every figure is a compiler estimate: scheduled bundles, one a cycle, without the memory stalls that hardware adds. Bundles
are counted by region and by how often that region runs; a branch that does not run counts nothing. How often is known next
to each kernel, in its `static_passes.py`: `ours(chip, args, dump)` compiles and returns its passes, `BASELINES` holds the same
for kernels to compare with.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile

from kernels.static.chips import ENVIRONMENT, TOPOLOGIES
from kernels.static.passes import Pass
from kernels.static.schedule import flags

KERNELS = ("cross_entropy", "decode_attention", "flash_attention")


def show(chip: str, p: Pass, baseline: Pass | None = None) -> None:
    """Prints one line."""
    blocks = ", ".join(f"{name} {cycles}" for name, cycles in p.blocks.items())
    units = " ".join(f"{unit} {share:.2f}" for unit, share in p.units.items())
    ratio = f" = {p.cycles / baseline.cycles:.3f} x {baseline.kernel}" if baseline else ""
    memory = f"fills {p.fills} spills {p.spills}; VMEM {p.vmem_mib:.1f} MiB"
    print(
        f"{chip} {p.kernel}: {blocks}, whole pass {p.cycles}{ratio}; {units}; {memory}", flush=True
    )


def report(chip: str, args: argparse.Namespace, passes, dump: str) -> int:
    """Prints our passes on `chip`, each beside the baseline's when asked; returns the exit code."""
    try:
        ours = passes.ours(chip, args, dump)
        theirs = (
            passes.BASELINES[args.compare](chip, args, dump) if args.compare else [None] * len(ours)
        )
    except ValueError as error:
        print(f"error: {chip}: {error}", file=sys.stderr)
        return 1
    for p, baseline in zip(ours, theirs):
        show(chip, p, baseline)
        if baseline:
            show(chip, baseline)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.static.command",
        description="Static cycles of a TPU kernel (compiler estimate).",
    )
    parser.add_argument("kernel", choices=KERNELS)
    parser.add_argument(
        "--chip", default="v5p", help=f"comma-separated, of {', '.join(TOPOLOGIES)}"
    )
    parser.add_argument("--seq", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--compare", help="a kernel to compile beside it, such as splash")
    args = parser.parse_args()
    if unknown := sorted(set(args.chip.split(",")) - set(TOPOLOGIES)):
        parser.error(f"unknown chip {', '.join(unknown)}; there are {', '.join(TOPOLOGIES)}")
    if args.seq <= 0 or args.seq % 1024:
        parser.error(f"--seq must be a multiple of 1024, got {args.seq}")
    return args


def main() -> int:
    args = arguments()
    if importlib.util.find_spec("libtpu") is None:
        print(
            "error: the TPU compiler is not installed: pip install -e '.[tpu]' in the project's folder",
            file=sys.stderr,
        )
        return 2
    dump = tempfile.mkdtemp(prefix="schedule-")
    os.environ.update(ENVIRONMENT, LIBTPU_INIT_ARGS=flags(dump))
    passes = importlib.import_module(
        f"kernels.{args.kernel}.static_passes"
    )  # after the environment: it starts JAX
    if args.compare not in (None, *passes.BASELINES):
        print(
            f"error: nothing called {args.compare} to compare with; there is {', '.join(passes.BASELINES)}",
            file=sys.stderr,
        )
        return 2
    print("compiler estimate, cycles; blocks in tokens a side", flush=True)
    try:
        return max(report(chip, args, passes, dump) for chip in args.chip.split(","))
    finally:
        shutil.rmtree(dump, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
