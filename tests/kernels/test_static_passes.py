"""How often each region of the attention kernels runs, on schedules built by hand."""

import itertools

import numpy as np
import pytest
from attention_cases import SMALL

from kernels.decode_attention import static_passes as decode
from kernels.flash_attention.static_passes import count_backward, count_forward, count_splash
from kernels.static.schedule import UNITS, Region, Schedule


def build(tree):
    """Returns the schedule of a tree of (kind, bundles, matmuls per bundle, children).

    The bundles of a region come before those of its children.
    """
    numbers, rows = itertools.count(), []

    def lay(node, parent):
        kind, bundles, matmuls, children = node
        region = Region(next(numbers), parent, kind, start=len(rows))
        rows.extend([[matmuls] + [0] * (len(UNITS) - 1)] * bundles)
        region.children = [lay(child, region.number) for child in children]
        region.end = len(rows)
        return region

    return Schedule(
        root=lay(tree, None), use=np.array(rows), slots=np.full(len(UNITS), 4), vmem_bytes=0
    )


def kernel(*children):
    """Returns a kernel whose grid step has these children.

    It has 1 bundle outside the loop, 10 of the loop and 100 of the step.
    """
    return build(("root", 1, 0, [("loop_body", 10, 0, [("pred_region", 100, 0, list(children))])]))


def block(bundles, matmuls=1):
    return ("pred_region", bundles, matmuls, [])


def loop(bundles):
    return ("pred_region", 1, 0, [("loop_body", bundles, 1, [])])


def test_forward_counts_the_regions_that_run():
    """512 tokens: 2 query blocks of 256 with 2 key groups each, so 4 steps.

    The second query block has two full key blocks before it.
    """
    p = count_forward(
        kernel(block(3000), block(3000), loop(2000), loop(2000), block(7, 0)), 512, SMALL
    )
    assert p.cycles == 4 * (10 + 100) + 4 * 1 + 2 * 2000 + 2 * 3000 + 2 * 7
    assert p.blocks == {"interior block 256x128": 2000, "diagonal block 256": 3000}
    assert p.units["MXU"] == pytest.approx((2 * 2000 + 2 * 3000) / (4 * p.cycles))


def test_backward_counts_the_regions_that_run():
    """512 tokens: 4 key blocks, 6 full pairs below the diagonal; accumulators are cleared once."""
    p = count_backward(kernel(block(5, 0), loop(2000), loop(2000), block(7, 0)), 512, SMALL)
    assert p.cycles == 4 * (10 + 100) + 5 + 4 * 1 + 6 * 2000 + 4 * 7


def test_splash_counts_every_grid_step_and_the_trips_of_inner_loops():
    body = ("pred_region", 50, 0, [("loop_body", 2000, 1, [])])
    p = count_splash("splash", kernel(block(5, 0), body, block(7, 0)), 512, 128, 64)
    assert p.cycles == 16 * (10 + 100) + 4 * (5 + 7) + 10 * (50 + 2 * 2000)


def test_decoding_counts_each_block_with_the_longer_of_computation_and_copy():
    """1,000 slots are 3 full blocks of 256, and a last one in the code around their loop."""
    head = ("pred_region", 700, 1, [("loop_body", 600, 1, []), ("loop_body", 5, 0, [])])
    schedule = build(("root", 1, 0, [("loop_body", 10, 0, [("pred_region", 90, 0, [head])])]))
    fast = decode.count("fast", schedule, 1000, 256, slot_cycles=0.25)
    assert fast.cycles == fast.with_reads == 3 * 600 + 10 + 90 + 700
    # The last block, 800 cycles, and one of its two tiles of 128 slots is cleared on average.
    assert fast.ragged == pytest.approx(500 * 0.25 / (1.5 * 600 + 800 + 5))
    slow = decode.count("slow", schedule, 1000, 256, slot_cycles=4)
    assert (slow.reads, slow.with_reads) == (4000, 4 * 1024)
    int8 = decode.count("int8", schedule, 1000, 256, slot_cycles=0.25, clears=False)
    assert int8.ragged == pytest.approx(500 * 0.25 / (1.5 * 600 + 800))


def test_both_cores_of_a_chip_share_its_bandwidth():
    """2.765 TB/s at 1.75 GHz: 1,580 bytes per cycle and chip."""
    size = 16_384 * decode.slot_bytes(128, "bfloat16")
    assert decode.read_cycles("v5p", size) == pytest.approx(2 * size / 1580, rel=1e-3)
    assert decode.read_cycles("v5e", size) == pytest.approx(size * 1.503 / 819, rel=1e-3)
    assert decode.slot_bytes(128, "int8") == 2 * (128 + 4)
    # A head of 64 elements is stored as one of 128.
    assert decode.slot_bytes(64, "bfloat16") == decode.slot_bytes(128, "bfloat16")


def test_misread_regions_are_refused():
    with pytest.raises(ValueError, match="2000 matmuls in the diagonal block"):
        count_forward(kernel(block(3000), block(2000), loop(2000), loop(2000)), 512, SMALL)
    with pytest.raises(ValueError, match="3 regions with matmuls, not 4"):
        count_forward(kernel(block(3000), loop(2000), loop(2000)), 512, SMALL)
