"""The report of a program that the compiler refuses: its message and its largest buffers."""

from pathlib import Path

import jax
import pytest

from codellama_jax.compile.report import TooLarge, compile_within_memory
from codellama_jax.errors import UserError

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
