"""Collectives in small schedules worked by hand: kinds, axes, bytes, times, and what is hidden.

Four v5e chips in a line and a clock of 1 GHz. Gathering the 4 MB of W takes 3/4 of 4 MB over a link
of 50 GB/s: 60,000 cycles.
"""

import re

import pytest

from codellama_jax.compile.collectives import Collective, Schedule
from codellama_jax.compile.hlo import Program
from codellama_jax.compile.interconnect import Interconnect
from kernels.static.chips import CHIPS

LINE = Interconnect(
    CHIPS["v5e"], ((0, 0), (0, 1), (0, 2), (0, 3)), (0,) * 4, (("fsdp", 2), ("tensor", 2))
)
GATHER = 60e-6  # seconds
ALL = "replica_groups=[1,4]<=[4]"

HEAD = """HloModule step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %sum = f32[] add(%a, %a)
}

%matmul (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %dot = f32[8,8]{1,0} dot(%p, %p)
}

%begin (p: W_PART) -> (W_PART, W) {
  %p.1 = W_PART parameter(0)
  %gather.1 = W all-gather(%p.1), channel_id=4, ALL, dimensions={0}
  ROOT %mark.1 = (W_PART, W) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%step (p: W_PART) -> f32[8,8] {
  %p.2 = W_PART parameter(0)
  %gather.2 = W all-gather(%p.2), channel_id=4, ALL, dimensions={0}
  ROOT %dot.2 = f32[8,8]{1,0} dot(%p.2, %gather.2)
}

%finish (p: W_PART) -> W {
  %p.3 = W_PART parameter(0)
  %gather.3 = W all-gather(%p.3), channel_id=4, ALL, dimensions={0}
  ROOT %mark.3 = W custom-call(%gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (p: W) -> W_PART {
  %p.4 = W parameter(0)
  %reduce.4 = W all-reduce(%p.4), channel_id=4, ALL, to_apply=%add
  ROOT %slice.4 = W_PART dynamic-slice(%reduce.4)
}

%condition (c: (s32[])) -> pred[] {
  %three = s32[] constant(3)
  %c = (s32[]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%i, %three), direction=LT
}
"""


def schedule(*lines, body=(), kernels=None):
    """Returns the schedule of an entry with these operations, and of a loop body of its own."""
    text = HEAD
    if body:
        text += "\n%body (b: (s32[])) -> (s32[]) {\n" + "\n".join(map("  ".__add__, body)) + "\n}\n"
    entry = "\n".join(map("  ".__add__, lines))
    text += f"\nENTRY %main (x: W_PART) -> W_PART {{\n{entry}\n}}\n"
    text = text.replace("W_PART", "f32[250,1000]{1,0}").replace("W", "f32[1000,1000]{1,0}")
    program = Program(re.sub(r"\bALL\b", ALL, text))
    return Schedule(program, LINE, 1e9, kernels or {})


def work(cycles):
    config = f'backend_config={{"estimated_cycles":"{cycles}"}}'
    return f"%work = f32[8,8] fusion(%x), calls=%matmul, {config}"


BEGIN = "%start.9 = (W_PART, W) fusion(%x), kind=kCustom, calls=%begin"
FINISH = "%done.9 = W fusion(%start.9), kind=kCustom, calls=%finish"


def step(cycles):
    return work(cycles).replace("%matmul", "%step")


def gathers(count, exposed):
    nbytes = count * 4_000_000
    return [
        Collective(
            "all-gather",
            "fsdp x tensor",
            count,
            nbytes,
            pytest.approx(count * GATHER),
            pytest.approx(exposed * 1e-6),
        )
    ]


@pytest.mark.parametrize(
    ("lines", "exposed"),
    [
        (["%g = W all-gather(%x), channel_id=4, ALL", work(50_000)], 60),
        ([BEGIN, FINISH, work(50_000)], 60),
        ([BEGIN, work(50_000), FINISH], 10),
        ([BEGIN, step(50_000), FINISH], 10),
        ([BEGIN, step(50_000), step(50_000), FINISH, work(50_000)], 0),
        ([step(50_000)], 10),  # one fusion that gathers and computes
        (["%s = (W_PART, W, u32[]) all-gather-start(%x), ALL", work(20_000)], 40),
        (
            [
                "%s = (W_PART, W, u32[]) all-gather-start(%x), ALL",
                "%copy = f32[8] copy-start(%x)",
                work(20_000),
                "%e = f32[8] copy-done(%copy)",
                work(10_000),
                "%d = W all-gather-done(%s)",
            ],
            30,
        ),
    ],
)
def test_what_runs_between_start_and_end_hides_a_gather(lines, exposed):
    assert schedule(*lines).collectives() == gathers(1, exposed)


def test_a_loop_repeats_its_collectives_and_a_loop_in_between_hides_one():
    loop = "%loop = (s32[]) while(%x), condition=%condition, body=%body"
    inside = schedule(loop, body=[BEGIN, step(40_000), FINISH])
    assert inside.collectives() == gathers(3, 3 * 20)
    around = schedule(BEGIN, loop, FINISH, body=[work(15_000)])
    assert around.seconds("main") == pytest.approx(45e-6)
    assert around.collectives() == gathers(1, 15)


@pytest.mark.parametrize(
    "branches",
    [
        "branch_computations={%matmul, %body, %body}",
        "true_computation=%body, false_computation=%begin",
        "true_computation=%begin, false_computation=%body",
    ],
)
def test_a_conditional_runs_its_longest_branch(branches):
    chosen = f"%c = W conditional(%p, %x, %x), {branches}"
    made = schedule(chosen, body=[BEGIN, work(20_000), FINISH])
    assert made.collectives() == gathers(1, 40)
    assert made.seconds("main") == pytest.approx(20e-6)
    assert made.program.cycles() == 20_000


def test_of_branches_without_cycles_the_one_with_more_operations_runs():
    chosen = "%c = W conditional(%p, %x, %x), true_computation=%body, false_computation=%matmul"
    gather = ["%g = W all-gather(%x), channel_id=4, ALL", "%d = W copy(%g)", "%e = W copy(%d)"]
    assert schedule(chosen, body=gather).collectives() == gathers(1, 60)


def test_a_kernel_hides_a_gather():
    kernel = '%flash.2 = f32[8] custom-call(%x), custom_call_target="tpu_custom_call"'
    made = schedule(BEGIN, kernel, FINISH, kernels={"flash.2": 25e-6})
    assert made.collectives() == gathers(1, 35)


def test_started_collectives_use_the_links_one_after_the_other():
    starts = [f"%s{i} = (W_PART, W) all-gather-start(%x), channel_id=1, ALL" for i in (1, 2)]
    ends = [f"%d{i} = W all-gather-done(%s{i})" for i in (1, 2)]
    # 70,000 cycles hide the first one and a sixth of the second one.
    assert schedule(*starts, work(70_000), *ends).collectives() == gathers(2, 50)
    # Waiting for the second one is waiting for both.
    assert schedule(*starts, work(20_000), ends[1], ends[0]).collectives() == gathers(2, 100)


def test_kinds_that_share_a_channel_are_counted_apart():
    rows = "channel_id=1, replica_groups=[2,2]<=[4]"
    found = schedule(
        f"%r = (f32[1000]{{0}}, f32[]) all-reduce(%x, %y), {rows}, to_apply=%add",
        "%c = W_PART fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1",
        f"%s = W_PART reduce-scatter(%x), {rows}, to_apply=%add",
        f"%t = (f32[500], f32[500]) all-to-all(%x, %y), {rows}",
        "%p = (f32[9], f32[9], u32[]) collective-permute-start(%x), source_target_pairs={{0,2}}",
        "%e = f32[9] collective-permute-done(%p)",
    ).collectives()
    shown = [(item.kind, item.axes, item.count, item.bytes) for item in found]
    assert shown == [
        ("all-reduce", "tensor", 1, 4004),
        ("all-to-all", "tensor", 1, 4000),
        ("collective-permute", "fsdp", 1, 36),
        ("reduce-scatter", "fsdp x tensor", 1, 4_000_000),
        ("reduce-scatter", "tensor", 1, 2_000_000),
    ]
    assert all(item.exposed == pytest.approx(item.seconds) for item in found)


def test_a_sum_over_slices_takes_the_network_and_hides_behind_work():
    # Two slices of two chips. Each chip receives half of 4 MB twice at 25 Gbit/s: 1,280,000 cycles.
    slices = Interconnect(
        CHIPS["v5e"], ((0, 0), (0, 1)) * 2, (0, 0, 1, 1), (("data", 2), ("fsdp", 2))
    )
    sends = '_xla_megascale_transfer_type="ALL_REDUCE"'
    made = schedule(
        f"%r = (W, u32[], token[]) recv(%t), channel_id=1, frontend_attributes={{{sends}}}",
        work(280_000),
        "%e = (W, token[]) recv-done(%r), channel_id=1",
        "%g = W all-gather(%x), channel_id=1, dimensions={0}",
    )
    made.interconnect = slices
    assert made.collectives() == [
        Collective("all-gather", "fsdp", 1, 4_000_000, pytest.approx(40e-6), pytest.approx(40e-6)),
        Collective("all-reduce", "data", 1, 4_000_000, pytest.approx(1.28e-3), pytest.approx(1e-3)),
    ]
