"""The report of a program that the compiler refuses: its message and its largest buffers."""

from pathlib import Path

import jax
import pytest

from codellama_jax.compile.collectives import Collective
from codellama_jax.compile.report import Report, TooLarge, compile_within_memory, lines
from codellama_jax.config import MeshConfig
from codellama_jax.errors import UserError
from codellama_jax.sharding.mesh import make_mesh
from kernels.static.chips import CHIPS

HBM = (
    "Ran out of memory on HBM, the total memory required for HLO temporaries (128.00G)"
    " exceeds available HBM (15.75G)."
)
REFUSED = """HloModule step

ENTRY %main (x: f32[65536,65536]) -> f32[65536,65536] {
  %x = f32[65536,65536]{1,0:T(8,128)} parameter(0)
  ROOT %square = f32[65536,65536]{1,0:T(8,128)} fusion(%x), calls=%fused_computation
}

%fused_computation (p: f32[65536,65536]) -> f32[65536,65536] {
  %p = f32[65536,65536]{1,0:T(8,128)} parameter(0)
  ROOT %n = f32[65536,65536]{1,0:T(8,128)} negate(%p)
}
"""


class Lowered:
    """A lowered program that the compiler refuses with `message`."""

    def __init__(self, message):
        self.message = message

    def compile(self, options):
        Path(options["xla_dump_to"], "module_0000.oom_intermediate_module.txt").write_text(REFUSED)
        raise jax.errors.JaxRuntimeError(self.message)


def test_a_program_that_does_not_fit_names_its_largest_buffers():
    with pytest.raises(TooLarge) as refusal:
        compile_within_memory(Lowered("RESOURCE_EXHAUSTED: " + HBM))
    first, _, buffer = str(refusal.value).splitlines()
    assert first == HBM
    assert buffer.split() == ["16", "GiB", "f32[65536,65536]", "square"]


def test_another_refusal_is_one_line():
    with pytest.raises(UserError, match="refuses this program: INTERNAL: no such thing"):
        compile_within_memory(Lowered("INTERNAL: no such thing\nlong trace"))


def report(seconds, *collectives):
    """Returns a report of a step at a tenth of a v5e's peak FLOP/s if it took 10 s."""
    flops = CHIPS["v5e"].peak_flops
    return Report(1, 1, 1, 1, list(collectives), seconds, 0.0, (), (flops, flops / 2))


def test_three_totals_have_their_own_rate_and_mfu():
    gather = Collective("all-gather", "fsdp", 64, 2 * 10**9, seconds=4.0, exposed=1.0)
    reduce = Collective("all-reduce", "tensor", 2, 10**9, seconds=2.0, exposed=2.0)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shown = lines(report(2.0, gather, reduce), "v5e", mesh, tokens=40_000, decoding=False)
    over = "64 all-gather over fsdp, 2GB per device"
    assert f"collectives: {over}; bandwidth model: 4 s, 1 s of it exposed" in shown
    assert "MFU 0.500 with attention's full square, 0.250 causal" in shown[-3]
    square = "with attention's full square"
    assert shown[-2:] == [
        "bandwidth model: 5 s per step, collectives overlapped as scheduled; 8,000 tokens/s;"
        f" MFU 0.200 {square}, 0.100 causal",
        "bandwidth model: 8 s per step, collectives fully exposed; 5,000 tokens/s;"
        f" MFU 0.125 {square}, 0.062 causal",
    ]
    decoding = lines(report(2.0, gather), "v5e", mesh, tokens=40, decoding=True)
    assert decoding[-1].endswith("fully exposed; 7 tokens/s")


def test_one_device_has_one_total():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shown = lines(report(2.0), "v5e", mesh, tokens=40, decoding=False)
    assert not any("bandwidth model" in line for line in shown)
