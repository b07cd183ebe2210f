"""Static cycles of a kernel on TPUs that are not attached: `launch.py kernels flash_attention`.

Every figure is a compiler estimate: scheduled bundles, one per cycle, without the memory stalls
that hardware adds. Bundles are counted by region and by how often that region runs; a branch that
does not run counts nothing. How often is known next to each kernel, in its `static_passes.py`:
`ours(chip, args, dump)` compiles and returns its passes, `BASELINES` holds the same for kernels to
compare with.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from kernels import UnsupportedError
from kernels.static.chips import ENVIRONMENT
from kernels.static.passes import Pass
from kernels.static.schedule import flags


def show(chip: str, p: Pass, baseline: Pass | None = None) -> None:
    """Prints one pass, and its cycles over those of `baseline`, as one line."""
    blocks = ", ".join(f"{name} {cycles}" for name, cycles in p.blocks.items())
    units = " ".join(f"{unit} {share:.2f}" for unit, share in p.units.items())
    ratio = f" = {p.cycles / baseline.cycles:.3f} x {baseline.kernel}" if baseline else ""
    memory = f"fills {p.fills} spills {p.spills}; VMEM {p.vmem_mib:.1f} MiB"
    if p.reads:
        share = f"{p.reads / p.with_reads:.2f}, of any length {p.ragged:.2f}"
        ratio += f", {p.with_reads} with reads, which alone take {p.reads}: {share}"
    print(
        f"{chip} {p.kernel}: {blocks}, complete pass {p.cycles}{ratio}; {units}; {memory}",
        flush=True,
    )


def report(chip: str, args: Any, passes: ModuleType, compare: str, dump: str) -> None:
    """Prints a kernel's passes on a chip, each followed by the pass of the kernel to compare with.

    Args:
      chip: a key of `TOPOLOGIES`.
      args: the shapes, as `static_passes` reads them.
      passes: the module `static_passes` of the kernel.
      compare: a key of its `BASELINES`; "" for none.
      dump: the folder into which the compiler writes schedules.
    """
    try:
        ours = passes.ours(chip, args, dump)
        theirs = passes.BASELINES[compare](chip, args, dump) if compare else [None] * len(ours)
    except ValueError as error:
        raise UnsupportedError(f"{chip}: {error}") from error
    # A kernel and its baseline have the same passes in the same order, such as forward and
    # backward.
    for p, baseline in zip(ours, theirs):
        show(chip, p, baseline)
        if baseline:
            show(chip, baseline)


def print_schedules(kernel: str, chips: Sequence[str], args: Any, compare: str = "") -> None:
    """Compiles a kernel for each chip and prints its passes.

    Starts JAX: nothing may have imported it before, because the environment is set here. Raises
    UnsupportedError for a kernel to compare with that does not exist, and for a shape or chip that
    a kernel does not support.

    Args:
      kernel: a package of `kernels` with a module `static_passes`.
      chips: keys of `TOPOLOGIES`.
      args: the shapes, as `static_passes` reads them, such as `seq` and `head_dim`.
      compare: a key of the kernel's `BASELINES`; "" for none.
    """
    # The compiler writes its schedules as files; they are read and removed.
    dump = tempfile.mkdtemp(prefix="schedule-")
    os.environ.update(ENVIRONMENT, LIBTPU_INIT_ARGS=flags(dump))
    try:
        # Imported after the environment is set: libtpu reads it when JAX starts.
        passes = importlib.import_module(f"kernels.{kernel}.static_passes")
        if compare and compare not in passes.BASELINES:
            known = ", ".join(passes.BASELINES) or "none for this kernel"
            raise UnsupportedError(
                f"--compare is {compare!r}: the kernels to compare with: {known}"
            )
        print("compiler estimate, cycles; blocks in tokens a side", flush=True)
        problems = []
        for chip in chips:
            # A chip that the kernel does not support must not hide the figures of the others.
            try:
                report(chip, args, passes, compare, dump)
            except UnsupportedError as error:
                problems.append(str(error))
        if problems:
            raise UnsupportedError("; ".join(problems))
    finally:
        shutil.rmtree(dump, ignore_errors=True)
