"""What `launch.py compile` finds out and prints: memory, exchanges, and the compiler's estimate of time and MFU."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from codellama_jax.compile.hlo import Collective, Program
from codellama_jax.compile.kernel_cycles import cycles
from codellama_jax.errors import UserError
from codellama_jax.report.plan import short
from kernels.static.chips import CHIPS

GIB = 2**30
BUFFERS = 8  # shown of what does not fit


class TooLarge(Exception):
    """A program does not fit the memory; says by how much and what its largest buffers are."""


@dataclass(frozen=True)
class Report:
    """Figures of one device, of a program that fits; bytes, and seconds of a step by the compiler's estimate."""

    arguments: int
    temporaries: int
    output: int
    aliased: int
    collectives: list[Collective]
    seconds: float
    kernel_seconds: float  # of those, in Pallas kernels
    uncounted: tuple[str, ...]  # kernels whose cycles are not known
    flops: tuple[float, float] = (
        0.0,
        0.0,
    )  # of the model a step and device: full square of attention, causal

    def mfu(self, chip: str) -> tuple[float, float]:
        full, causal = (flops / (self.seconds * CHIPS[chip].peak_flops) for flops in self.flops)
        return full, causal

    def reading(self, chip: str) -> float:
        """Returns the share of a step that reading the arguments once takes."""
        return self.arguments / CHIPS[chip].hbm_bandwidth / self.seconds


def gib(number: float) -> str:
    """Returns a number of bytes as text, in GiB."""
    return f"{number / GIB:.3g} GiB"


def compile_within_memory(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles. What the compiler counts are arguments, temporaries and output, but for what is in place.

    Raises TooLarge, and UserError for what the compiler refuses for another reason than memory.
    """
    with tempfile.TemporaryDirectory() as dump:  # where it leaves a program that it refuses
        try:
            return lowered.compile({"xla_dump_to": dump, "xla_dump_hlo_as_text": True})
        except JaxRuntimeError as error:
            said = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
            if "on HBM" not in said and "memory space hbm" not in said:
                raise UserError(f"the TPU compiler refuses this program: {said}") from error
            raise TooLarge(
                f"{said}\nlargest buffers:\n{chr(10).join(refused_buffers(Path(dump)))}"
            ) from error


def refused_buffers(dump: Path) -> list[str]:
    """Returns lines for the largest buffers of the program that the compiler left in `dump` when it refused it."""
    buffers = [
        b
        for left in dump.glob("*oom_intermediate_module.txt")
        for b in Program(left.read_text()).largest(BUFFERS)
    ]
    return [f"  {gib(b.bytes):>10}  {b.type:<32} {b.source}" for b in buffers]


def examine(
    lowered: jax.stages.Lowered, chip: str, flops: tuple[float, float], cache: str
) -> Report:
    """Compiles and reads the result. Raises what `compile_within_memory` does."""
    compiled = compile_within_memory(lowered)
    program, memory = Program(compiled.as_text()), compiled.memory_analysis()
    device = CHIPS[chip]
    kernel_cycles, uncounted = 0.0, set()
    for kernel in program.kernels():
        counted = cycles(chip, kernel, cache)
        if counted is None:
            uncounted.add(kernel.name)
        else:
            reading = (
                kernel.bytes / device.hbm_bandwidth * device.clock
            )  # schedules know of no memory that is slow
            kernel_cycles += max(counted / device.cores, reading) * kernel.times
    return Report(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        output=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        collectives=program.collectives(),
        seconds=(program.cycles() + kernel_cycles) / device.clock,
        kernel_seconds=kernel_cycles / device.clock,
        uncounted=tuple(sorted(uncounted)),
        flops=flops,
    )


def lines(report: Report, chip: str, mesh: Mesh, tokens: int, decoding: bool) -> list[str]:
    """Returns what to print; what bounds decoding is the memory's speed."""
    r, hbm = report, CHIPS[chip].hbm_gib
    axes = " x ".join(f"{axis} {n}" for axis, n in mesh.shape.items() if n > 1) or "one device"
    memory = f"arguments {gib(r.arguments)}, temporaries {gib(r.temporaries)}, output {gib(r.output)} ({gib(r.aliased)} of it in place)"
    shown = [f"mesh {axes}, {mesh.size} devices", f"fits {hbm} GiB of HBM: {memory}"]
    shown += [
        f"exchanged: {c.count} {c.kind}, {short(c.bytes, 'G')}B a device" for c in r.collectives
    ]
    times = (
        f"{r.seconds:.4g} s a step ({r.kernel_seconds:.4g} s in Pallas kernels), exchanges left out"
    )
    shown.append(f"compiler estimate: {times}; {tokens / r.seconds:,.0f} tokens/s")
    if r.uncounted:
        shown.append(f"not in the estimate: the kernels {', '.join(r.uncounted)}")
    full, causal = r.mfu(chip)
    if decoding:
        return [
            *shown,
            f"compiler estimate: reading weights and cache once takes {r.reading(chip):.3f} of it",
        ]
    shown.append(
        f"compiler estimate: MFU {full:.3f} with attention's full square, {causal:.3f} causal"
    )
    return shown
