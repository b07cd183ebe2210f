"""The figures that `compile` prints of a program: memory, collectives, estimated time and MFU."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from codellama_jax.compile.collectives import Collective, Schedule
from codellama_jax.compile.hlo import Program
from codellama_jax.compile.interconnect import Interconnect
from codellama_jax.compile.kernel_cycles import cycles
from codellama_jax.errors import UserError
from codellama_jax.report.plan import short
from kernels.static.chips import CHIPS

GIB = 2**30
BUFFERS = 8  # buffers that are named of a program that does not fit


class TooLarge(Exception):
    """A program does not fit the memory. The message has its size and its largest buffers."""


@dataclass(frozen=True)
class Report:
    """Figures of a program that fits the memory, per device.

    Args:
      arguments, temporaries, output: bytes of each kind of buffer.
      aliased: bytes of the output that reuse the buffers of the arguments.
      collectives: the collectives of a step.
      seconds: compiler's estimate of a step's time, without collectives.
      kernel_seconds: the part of `seconds` that is in Pallas kernels.
      uncounted: names of the kernels whose cycles are not known.
      flops: FLOPs of the model per step, with the full square of attention and with the half that
        the causal mask leaves.
    """

    arguments: int
    temporaries: int
    output: int
    aliased: int
    collectives: list[Collective]
    seconds: float
    kernel_seconds: float
    uncounted: tuple[str, ...]
    flops: tuple[float, float] = (0.0, 0.0)

    @property
    def overlapped(self) -> float:
        """Seconds of a step with the part of the collectives that the schedule does not hide."""
        return self.seconds + sum(collective.exposed for collective in self.collectives)

    @property
    def unhidden(self) -> float:
        """Seconds of a step if computation hid no collective."""
        return self.seconds + sum(collective.seconds for collective in self.collectives)

    def mfu(self, chip: str, seconds: float) -> tuple[float, float]:
        """Returns the fraction of the chip's peak FLOP/s, for both counts of attention's FLOPs.

        Args:
          chip: a key of `chips.CHIPS`.
          seconds: time of a step: `seconds`, `overlapped` or `unhidden`.
        """
        # The flops are those of the model's formula per device, so the ratio needs no number of
        # chips.
        available = seconds * CHIPS[chip].peak_flops
        full, causal = self.flops
        return full / available, causal / available

    def reading(self, chip: str) -> float:
        """Returns the fraction of a step in which the memory can read the arguments once."""
        # A decoding step reads every weight and the cache once: 1 would mean that nothing else
        # takes time.
        return self.arguments / CHIPS[chip].hbm_bandwidth / self.seconds


def gib(number: float) -> str:
    """Returns a number of bytes as text in GiB."""
    return f"{number / GIB:.3g} GiB"


def compile_within_memory(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a program.

    Raises:
      TooLarge: if its arguments, temporaries and output do not fit the memory of a device.
      UserError: if the compiler refuses it for another reason.
    """
    # The compiler writes a program that it refuses into this folder.
    with tempfile.TemporaryDirectory() as dump:
        try:
            return lowered.compile({"xla_dump_to": dump, "xla_dump_hlo_as_text": True})
        except JaxRuntimeError as error:
            # The first line is the reason; pages of allocations and stack frames follow.
            problem = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
            # Only a lack of HBM is a result; other refusals, such as of VMEM, are defects of the
            # program.
            if "on HBM" not in problem and "memory space hbm" not in problem:
                raise UserError(f"the TPU compiler refuses this program: {problem}") from error
            buffers = "\n".join(refused_buffers(Path(dump)))
            raise TooLarge(f"{problem}\nlargest buffers:\n{buffers}") from error


def refused_buffers(dump: Path) -> list[str]:
    """Returns a line for each of the largest buffers of the refused program in `dump`."""
    buffers = []
    for file in dump.glob("*oom_intermediate_module.txt"):
        buffers += Program(file.read_text()).largest(BUFFERS)
    return [f"  {gib(buffer.bytes):>10}  {buffer.type:<32} {buffer.source}" for buffer in buffers]


def examine(
    lowered: jax.stages.Lowered, chip: str, mesh: Mesh, flops: tuple[float, float], cache: str
) -> Report:
    """Compiles a program and returns its figures.

    Args:
      lowered: the program.
      chip: a key of `chips.CHIPS`.
      mesh: the mesh that it was lowered for.
      flops: FLOPs of the model per step and device, as in `Report`.
      cache: folder that keeps the cycles of kernels.

    Raises:
      TooLarge, UserError: as `compile_within_memory` does.
    """
    compiled = compile_within_memory(lowered)
    program = Program(compiled.as_text() or "")
    device = CHIPS[chip]
    kernels: dict[str, float] = {}  # seconds of one run, by the name of the operation
    kernel_seconds, uncounted = 0.0, set()
    for name, kernel in program.kernels().items():
        core_cycles = cycles(chip, kernel, cache)
        if core_cycles is None:
            # Its time is missing from the estimate, and the report names it.
            uncounted.add(kernel.name)
            continue
        # A schedule does not contain memory stalls, so a kernel takes at least the time in which
        # the memory can read its operands.
        reading = kernel.bytes / device.hbm_bandwidth
        # `cycles` adds up the cores of a device, which share the work evenly.
        kernels[name] = max(core_cycles / device.cores / device.clock, reading)
        kernel_seconds += kernels[name] * kernel.times
    schedule = Schedule(program, Interconnect.of(mesh, chip), device.clock, kernels)
    memory = compiled.memory_analysis()
    if memory is None:
        raise UserError(
            "this libtpu does not report the memory of a program: install libtpu 0.0.42"
        )
    return Report(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        output=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        collectives=schedule.collectives(),
        # The HLO's estimates have no entry for Pallas kernels, so that their time is added here.
        seconds=program.cycles() / device.clock + kernel_seconds,
        kernel_seconds=kernel_seconds,
        uncounted=tuple(sorted(uncounted)),
        flops=flops,
    )


def lines(report: Report, chip: str, mesh: Mesh, tokens: int, decoding: bool) -> list[str]:
    """Returns the lines to print of a program that fits.

    Args:
      report: its figures.
      chip: a key of `chips.CHIPS`.
      mesh: the mesh that it was compiled for.
      tokens: tokens per step.
      decoding: whether it is a decoding step. Reading memory limits its speed, so the time that
        reading takes is printed in place of the MFU.
    """
    sizes = [f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1]
    axes = " x ".join(sizes) or "one device"
    buffers = f"arguments {gib(report.arguments)}, temporaries {gib(report.temporaries)}"
    output = f"output {gib(report.output)} ({gib(report.aliased)} of it in place)"
    shown = [
        f"mesh {axes}, {mesh.size} devices",
        f"fits {CHIPS[chip].hbm_gib} GiB of HBM: {buffers}, {output}",
    ]
    for collective in report.collectives:
        size = f"{short(collective.bytes, 'G')}B per device"
        time = f"{collective.seconds:.3g} s, {collective.exposed:.3g} s of it exposed"
        over = f"{collective.count} {collective.kind} over {collective.axes}"
        shown.append(f"collectives: {over}, {size}; bandwidth model: {time}")
    kernel_time = f"{report.kernel_seconds:.4g} s in Pallas kernels"
    time = f"{report.seconds:.4g} s per step ({kernel_time}), collectives left out"
    shown.append(f"compiler estimate: {time}; {tokens / report.seconds:,.0f} tokens/s")
    if report.uncounted:
        shown.append(f"not in the estimate: the kernels {', '.join(report.uncounted)}")
    if decoding:
        fraction = f"{report.reading(chip):.3f} of it"
        shown.append(f"compiler estimate: reading weights and cache once takes {fraction}")
    else:
        shown.append(f"compiler estimate: {_mfu(report, chip, report.seconds)}")
    if report.collectives:
        totals = {"overlapped as scheduled": report.overlapped, "fully exposed": report.unhidden}
        for name, seconds in totals.items():
            rate = f"{tokens / seconds:,.0f} tokens/s"
            mfu = "" if decoding else f"; {_mfu(report, chip, seconds)}"
            shown.append(
                f"bandwidth model: {seconds:.4g} s per step, collectives {name}; {rate}{mfu}"
            )
    return shown


def _mfu(report: Report, chip: str, seconds: float) -> str:
    """Returns the MFU of a step that takes `seconds` as text."""
    full, causal = report.mfu(chip, seconds)
    return f"MFU {full:.3f} with attention's full square, {causal:.3f} causal"
