"""Targets are checked before the TPU compiler, which aborts on some, sees them."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from codellama_jax.compile.table import PODS
from codellama_jax.compile.target import parse
from codellama_jax.errors import UserError
from kernels.static.chips import CHIPS


@pytest.mark.parametrize(
    "target",
    [
        *(pod for pods in PODS.values() for pod in pods),
        *(chip.smallest_topology for chip in CHIPS.values()),
        "v5p:2x2x2",
        "v5p:2x2x4",
        "v5e:2x4",
        "v5e:8x16",
        "v6e:4x4",
        "v5p:16x20x28",
        "v4:4x4x12",
        "v4:1x1x1",
        "v5e:1x1",
        "v5p:1x1x1",
        "v6e:1x1",
        "tpu7x:1x1x1",
    ],
)
def test_a_pod_that_exists_is_accepted(target):
    assert parse(target) is CHIPS[target.partition(":")[0]]


@pytest.mark.parametrize(
    "target, line",
    [
        ("v5e:4x4x4", "no topology v5e:4x4x4: a v5e pod has two axes of 2, 4, 8, 16 chips"),
        ("v6e:32x32", "a v6e pod has two axes"),
        ("v5e:1x1x1", "a v5e pod has two axes .*, such as v5e:16x16, or one chip, v5e:1x1"),
        ("v5e:1x2", "a v5e pod has two axes"),
        ("v5e:1", "a v5e pod has two axes"),
        ("v5p:16x16", "a v5p pod has three axes, each 2 or a multiple of 4 chips"),
        ("v5p:3x5x7", "a v5p pod has three axes"),
        ("v5p:64x64x64", "at most 8960 in all"),
        ("v4:1x1x2", "a v4 pod has three axes"),
        ("v5p:1x1", "a v5p pod has three axes, .*, such as v5p:4x4x4, or one chip, v5p:1x1x1"),
        ("v5p:0x4x4", "a v5p pod has three axes"),
        ("v5p:4x4x-4", "a v5p pod has three axes"),
        ("v5p:", "such as v5p:4x4x4"),
        ("v5p", "such as v5p:4x4x4"),
        ("v5q:2x2", "no chip 'v5q': did you mean v5"),
        ("", "no chip ''"),
        ("v5e:" + "9" * 5000, "a v5e pod has two axes"),
    ],
)
def test_a_pod_that_cannot_be_is_one_line(target, line):
    with pytest.raises(UserError, match=line) as raised:
        parse(target)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 250


@given(st.sampled_from(sorted(CHIPS)), st.lists(st.integers(-1, 40), max_size=4))
def test_any_shape_is_accepted_with_whole_hosts_or_refused(chip, sides):
    try:
        parse(f"{chip}:{'x'.join(map(str, sides))}")
    except UserError:
        return
    assert len(sides) == CHIPS[chip].axes
    assert set(sides) == {1} or sides[0] % 2 == sides[1] % 2 == 0
