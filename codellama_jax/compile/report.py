"""What `launch.py compile` finds out and prints: memory, exchanges, and the compiler's estimate of time and MFU."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from codellama_jax.accounting import PEAK_FLOPS
from codellama_jax.compile.hlo import Buffer, Collective, Program
from codellama_jax.compile.kernel_cycles import cycles
from codellama_jax.compile.target import CHIPS
from codellama_jax.plan import short

GIB = 2**30
TOO_LARGE_TOO = {"xla_tpu_no_crash_on_oom": True}  # compiles what does not fit, to say what it holds


@dataclass(frozen=True)
class Report:
    """Figures of one device; bytes, and seconds of a step by the compiler's estimate."""

    fits: bool
    arguments: int
    temporaries: int
    output: int
    aliased: int
    collectives: list[Collective]
    buffers: list[Buffer]
    seconds: float
    kernel_seconds: float  # of those, in Pallas kernels
    uncounted: tuple[str, ...]  # kernels whose cycles are not known
    flops: tuple[float, float] = (0.0, 0.0)  # of the model a step and device: full square of attention, causal

    def mfu(self, chip: str) -> tuple[float, float]:
        full, causal = (flops / (self.seconds * PEAK_FLOPS[CHIPS[chip].kind]) for flops in self.flops)
        return full, causal


def examine(lowered: jax.stages.Lowered, chip: str, flops: tuple[float, float], cache: str) -> Report:
    """Compiles and reads the result. Raises JaxRuntimeError for what the compiler refuses for another reason than memory."""
    fits = True
    try:
        compiled = lowered.compile()
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fits, compiled = False, lowered.compile(TOO_LARGE_TOO)
    program, memory = Program(compiled.as_text()), compiled.memory_analysis()
    device = CHIPS[chip]
    total = sum(getattr(memory, f"{part}_size_in_bytes") for part in ("argument", "temp", "output")) - memory.alias_size_in_bytes
    kernel_cycles, uncounted = 0.0, set()
    for kernel in program.kernels():
        counted = cycles(chip, kernel, cache)
        if counted is None:
            uncounted.add(kernel.name)
        else:
            kernel_cycles += counted * kernel.times / device.cores
    clock = PEAK_FLOPS[device.kind] / (2 * device.multiply_adds)
    return Report(
        fits=fits and total <= device.hbm_gib * GIB,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        output=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        collectives=program.collectives(),
        buffers=program.largest(8),
        seconds=(program.cycles() + kernel_cycles) / clock,
        kernel_seconds=kernel_cycles / clock,
        uncounted=tuple(sorted(uncounted)),
        flops=flops,
    )


def lines(report: Report, chip: str, mesh: Mesh, tokens: int) -> list[str]:
    """Returns what to print."""
    r, hbm = report, CHIPS[chip].hbm_gib
    gib = lambda number: f"{number / GIB:.3g} GiB"
    axes = " x ".join(f"{axis} {n}" for axis, n in mesh.shape.items() if n > 1) or "one device"
    memory = f"arguments {gib(r.arguments)}, temporaries {gib(r.temporaries)}, output {gib(r.output)} ({gib(r.aliased)} of it in place)"
    shown = [f"mesh {axes}, {mesh.size} devices", f"{'fits' if r.fits else 'DOES NOT FIT'} {hbm} GiB of HBM: {memory}"]
    if not r.fits:
        shown += ["largest buffers:", *(f"  {gib(b.bytes):>10}  {b.type:<32} {b.source}" for b in r.buffers)]
    shown += [f"exchanged: {c.count} {c.kind}, {short(c.bytes, 'G')}B a device" for c in r.collectives]
    times = f"{r.seconds:.4g} s a step ({r.kernel_seconds:.4g} s in Pallas kernels), exchanges left out"
    shown.append(f"compiler estimate: {times}; {tokens / r.seconds:,.0f} tokens/s")
    if r.uncounted:
        shown.append(f"not in the estimate: the kernels {', '.join(r.uncounted)}")
    full, causal = r.mfu(chip)
    shown.append(f"compiler estimate: MFU {full:.3f} with attention's full square, {causal:.3f} causal")
    return shown
