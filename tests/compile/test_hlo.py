"""The HLO reader on a small module: a scan of 3 in a scan of 2, collectives, a kernel, sources."""

import re

import pytest

from codellama_jax.compile.hlo import Buffer, Kernel, Program

TEXT = """HloModule step, is_scheduled=true

FileNames
1 "/here/site-packages/flax/core/lift.py"
2 "/here/codellama_jax/models/layers.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=10 end_line=10 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=36 end_line=36 column=1 end_column=2}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=1}

%fused_computation.1 (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %n = bf16[8,128]{1,0:T(8,128)(2,1)} negate(%p)
}

%all-reduce-scatter.1 (p: f32[64,128]) -> f32[8,128] {
  %p.1 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.5 = f32[64,128]{1,0:T(8,128)} all-reduce(%p.1), channel_id=7, to_apply=%add
  ROOT %slice.1 = f32[8,128]{1,0:T(8,128)} dynamic-slice(%all-reduce.5)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_condition (c: (s32[])) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  %c = (s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %three), direction=LT
}

%inner (b: (s32[])) -> (s32[]) {
  %b.1 = (s32[]{:T(128)}) parameter(0)
  %fusion.1 = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%b.1), calls=%fused_computation.1, CYCLES_100
  %gather.1 = (bf16[8,128]{1,0}, bf16[64,128]{1,0}) all-gather-start(%fusion.1), channel_id=1
  %gather.2 = bf16[64,128]{1,0} all-gather-done(%gather.1), channel_id=1
  %flash_attention_forward.3 = (bf16[2,4,1024,128], f32[8]) custom-call(%gather.2), CUSTOM_CALL
  ROOT %t = (s32[]{:T(128)}) tuple(%b.1)
}

%outer_condition (c: (s32[])) -> pred[] {
  %two = s32[]{:T(128)} constant(2)
  %c.1 = (s32[]{:T(128)}) parameter(0)
  ROOT %less = pred[]{:T(512)} fusion(%c.1, %two), kind=kLoop, calls=%compare_computation
}

%compare_computation (c: (s32[]), n: s32[]) -> pred[] {
  %c.2 = (s32[]{:T(128)}) parameter(0)
  %n.1 = s32[]{:T(128)} parameter(1)
  %j = s32[]{:T(128)} get-tuple-element(%c.2), index=0
  ROOT %lt.1 = pred[] compare(%j, %n.1), direction=LT
}

%outer (b: (s32[])) -> (s32[]) {
  %b.2 = (s32[]{:T(128)}) parameter(0)
  %while.1 = (s32[]{:T(128)}) while(%b.2), condition=%inner_condition, body=%inner
  %scatter.1 = f32[8,128]{1,0:T(8,128)} fusion(%while.1), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %fusion.2 = (s32[]{:T(128)}) fusion(%scatter.1), calls=%fused_computation.1, CYCLES_10
}

ENTRY %main (x: f32[1024,1024]) -> f32[1024,1024] {
  %x = f32[1024,1024]{1,0:T(8,128)} parameter(0)
  %small = f32[4096,1024]{1,0:T(8,128)S(1)} copy(%x)
  %while.2 = (s32[]{:T(128)}) while(%x), condition=%outer_condition, body=%outer
  ROOT %b = f32[1024,1024]{1,0} fusion(%x), calls=%fused_computation.1, FRAME_2, CYCLES_1
}
"""
# Attributes that would make the lines above too long.
ATTRIBUTES = {
    "CYCLES_100": 'backend_config={"estimated_cycles":"100"}',
    "CYCLES_10": 'backend_config={"estimated_cycles":"10"}',
    "CYCLES_1": 'config={"estimated_cycles":"1"}',
    "FRAME_2": "metadata={stack_frame_id=2}",
    "CUSTOM_CALL": 'custom_call_target="tpu_custom_call", operand_layout_constraints='
    "{s32[2,4]{1,0}, bf16[2,4,1024,128]{3,2,1,0}}, metadata={}",
}
for name, attribute in ATTRIBUTES.items():
    TEXT = re.sub(rf"\b{name}\b", attribute, TEXT)


@pytest.fixture
def program():
    return Program(TEXT)


def test_estimated_cycles_count_as_often_as_their_loops_run(program):
    assert program.cycles() == 2 * 3 * 100 + 2 * 10 + 1


def test_kernels_carry_their_shapes(program):
    assert program.kernels() == {
        "flash_attention_forward.3": Kernel(
            "flash_attention_forward",
            (2, 4, 1024, 128),
            (("s32", (2, 4)), ("bf16", (2, 4, 1024, 128))),
            6,
        )
    }


def test_the_largest_buffer_in_hbm_names_our_line(program):
    assert program.largest(1) == [
        Buffer(4 << 20, "f32[1024,1024]", "codellama_jax/models/layers.py:36")
    ]


def test_a_loop_of_another_form_is_refused():
    with pytest.raises(ValueError, match="outer_condition"):
        Program(TEXT.replace("fusion(%c.1, %two)", "fusion(%c.1)")).cycles()
