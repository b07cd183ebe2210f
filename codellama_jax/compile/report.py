"""What `launch.py compile` finds out and prints: memory, exchanges, and the compiler's estimate of time and MFU."""

from __future__ import annotations

import re
from dataclasses import dataclass

import jax
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from codellama_jax.accounting import PEAK_FLOPS
from codellama_jax.compile.hlo import Buffer, Collective, Program
from codellama_jax.compile.kernel_cycles import cycles
from codellama_jax.compile.target import CHIPS
from codellama_jax.config import UserError
from codellama_jax.plan import short

GIB = 2**30
TOO_LARGE_TOO = {"xla_tpu_no_crash_on_oom": True}  # compiles what does not fit, to say what it holds


class TooLarge(Exception):
    """One array alone is larger than the memory, so that not even a program that does not fit comes out; says which."""


@dataclass(frozen=True)
class Report:
    """Figures of one device; bytes, and seconds of a step by the compiler's estimate."""

    fits: bool  # what the compiler says: arguments, temporaries and output, but for what is in place, within the memory
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


def exceeding(error: JaxRuntimeError) -> str:
    """Returns what the compiler says of memory that is not there. Raises UserError where it refuses for another reason."""
    said = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
    if "on HBM" not in said and "memory space hbm" not in said and not said.startswith("Allocation (size="):
        raise UserError(f"the TPU compiler refuses this program: {said}") from error
    return said


def one_array(said: str) -> str:
    """Returns the array, and the operation that makes it, of an allocation that the compiler refused."""
    size, shape, made_by = (re.search(p, said) for p in (r"Allocation \(size=(\d+)\)", r"shape: (\w+\[[\d,]*\])", r":: ([^:]+)$"))
    return f"  {short(int(size[1]), 'G')}B  {shape[1]:<32} {made_by[1]}" if size and shape and made_by else f"  {said}"


def compile_at_any_size(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, bool]:
    """Returns the program and whether the compiler laid it out within the memory. Raises TooLarge where there is none."""
    try:
        return lowered.compile(), True
    except JaxRuntimeError as error:
        needed = exceeding(error)
    try:
        return lowered.compile(TOO_LARGE_TOO), False
    except JaxRuntimeError as error:
        raise TooLarge(f"{needed}\nlargest buffer:\n{one_array(exceeding(error))}") from None


def examine(lowered: jax.stages.Lowered, chip: str, flops: tuple[float, float], cache: str) -> Report:
    """Compiles and reads the result. Raises TooLarge, and UserError for what the compiler refuses for another reason than memory."""
    compiled, fits = compile_at_any_size(lowered)
    program, memory = Program(compiled.as_text()), compiled.memory_analysis()
    device = CHIPS[chip]
    kernel_cycles, uncounted = 0.0, set()
    for kernel in program.kernels():
        counted = cycles(chip, kernel, cache)
        if counted is None:
            uncounted.add(kernel.name)
        else:
            kernel_cycles += counted * kernel.times / device.cores
    clock = PEAK_FLOPS[device.kind] / (2 * device.multiply_adds)
    return Report(
        fits=fits,
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
