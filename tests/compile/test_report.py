"""What is said of a program that the compiler refuses, from its own messages."""

import jax
import pytest

from codellama_jax.compile.report import TooLarge, compile_at_any_size
from codellama_jax.config import UserError

IN_ALL = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (128.00G) exceeds available HBM (15.75G)."
)
ONE = (
    "RESOURCE_EXHAUSTED: Allocation (size=160051200000) would exceed memory (size=17179869184) :: %s3 = inlined_call_operand.hbm"
    " [shape: f32[200000,200000], index: 3, kind: output, shape index: {1}] /* operand 3 */ :: fusion.5.remat"
)


class Lowered:
    """Refuses with these messages, one after the other; then compiles."""

    def __init__(self, *messages):
        self.messages = list(messages)

    def compile(self, options=None):
        if self.messages:
            raise jax.errors.JaxRuntimeError(self.messages.pop(0))
        return "program", options


def test_what_does_not_fit_is_compiled_all_the_same():
    assert compile_at_any_size(Lowered()) == (("program", None), True)
    (program, options), fits = compile_at_any_size(Lowered(IN_ALL))
    assert (program, fits, options) == ("program", False, {"xla_tpu_no_crash_on_oom": True})


def test_an_array_larger_than_the_memory_is_named():
    with pytest.raises(TooLarge) as refusal:
        compile_at_any_size(Lowered(IN_ALL, ONE))
    assert str(refusal.value).splitlines()[0] == IN_ALL.removeprefix("RESOURCE_EXHAUSTED: ")
    for part in ("160GB", "f32[200000,200000]", "fusion.5.remat"):
        assert part in str(refusal.value)


def test_another_refusal_is_one_line():
    with pytest.raises(UserError, match="refuses this program: INTERNAL: no such thing"):
        compile_at_any_size(Lowered("INTERNAL: no such thing\nlong trace"))
