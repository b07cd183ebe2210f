"""The bandwidth model against times worked by hand. A link of a v5e carries 50 GB/s."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from codellama_jax.compile.interconnect import Interconnect
from kernels.static.chips import CHIPS

GB = 10**9


def pod(chip, *sides, shape=(), slices=1):
    """Returns the interconnect of a pod whose devices are numbered with the last axis first."""
    places = list(itertools.product(*map(range, sides)))
    per_chip = CHIPS[chip].devices_per_chip
    positions = [place for place in places for _ in range(per_chip)] * slices
    numbers = [number for number in range(slices) for _ in range(len(places) * per_chip)]
    return Interconnect(CHIPS[chip], tuple(positions), tuple(numbers), shape)


RING, LINE = pod("v5e", 16, 16), pod("v5e", 2, 8)
ROW, FIRST_EIGHT, EVERY_FOURTH = list(range(16)), list(range(8)), [0, 4, 8, 12]


@pytest.mark.parametrize(
    ("interconnect", "group", "seconds"),
    [
        (RING, ROW, 15 / 16 / 100),  # both directions of a ring
        (RING, list(range(256)), 255 / 256 / 200),  # two rings at once
        (RING, FIRST_EIGHT, 7 / 8 / 50),  # half a ring is a line: its end has one link
        (RING, EVERY_FOURTH, 3 / 4 / 25),  # four such groups share the links of the ring
        (LINE, FIRST_EIGHT, 7 / 8 / 50),  # 8 chips have no wraparound
        (LINE, list(range(16)), 15 / 16 / 100),  # lines of 2 and of 8
        (pod("v5p", 4, 4, 4), list(range(64)), 63 / 64 / 600),  # a cube: three rings
        (pod("v5p", 2, 2, 4), list(range(16)), 15 / 16 / 300),  # less than a cube: no ring
        (RING, [5], 0.0),
    ],
)
def test_gathering_a_gigabyte_takes_the_time_of_the_links(interconnect, group, seconds):
    assert interconnect.seconds("all-gather", GB, [group]) == pytest.approx(seconds)
    assert interconnect.seconds("reduce-scatter", GB, [group]) == pytest.approx(seconds)
    assert interconnect.seconds("all-reduce", GB, [group]) == pytest.approx(2 * seconds)


def test_every_device_sends_every_other_one_its_part():
    # On average 4 links apart in a ring of 16, which has two directions. Of the 8 devices of a
    # line, 4 send half of their gigabyte over its middle link.
    assert RING.seconds("all-to-all", GB, [ROW]) == pytest.approx(4 / 2 / 50)
    assert LINE.seconds("all-to-all", GB, [FIRST_EIGHT]) == pytest.approx(2 / 50)


@pytest.mark.parametrize(
    ("interconnect", "pairs", "messages"),
    [
        (RING, [(i, (i + 1) % 16) for i in range(16)], 1),
        (RING, [(i, (i + 3) % 16) for i in range(16)], 3),  # three messages over each link
        (RING, [(0, 15)], 1),  # over the wraparound
        (LINE, [(i, (i + 1) % 8) for i in range(8)], 1),  # the way back has its own direction
        (LINE, [(0, 2), (1, 3)], 2),
        (LINE, [(0, 0)], 0),
    ],
)
def test_a_permutation_takes_the_time_of_its_busiest_link(interconnect, pairs, messages):
    assert interconnect.seconds("collective-permute", GB, pairs) == pytest.approx(messages / 50)


def test_two_devices_of_a_chip_share_its_links():
    tpu7x = pod("tpu7x", 2, 2, 1)
    all_devices, first_cores = list(range(8)), [0, 2, 4, 6]
    assert tpu7x.seconds("all-gather", GB, [[0, 1]]) == pytest.approx(1 / 2 / 600)
    assert tpu7x.seconds("all-gather", GB, [all_devices]) == pytest.approx(3 / 4 / 200)
    assert tpu7x.seconds("all-gather", GB, [first_cores]) == pytest.approx(3 / 4 / 100)
    # In a chip half of each gigabyte is for the other device. Between chips half of a chip's two
    # gigabytes crosses the one link of a line of 2.
    assert tpu7x.seconds("all-to-all", GB, [[0, 1], [2, 3]]) == pytest.approx(1 / 2 / 600)
    assert tpu7x.seconds("all-to-all", GB, [all_devices]) == pytest.approx(2 / 2 / 100)
    assert tpu7x.seconds("all-to-all", GB, [first_cores]) == pytest.approx(2 / 2 / 100)
    assert tpu7x.seconds("collective-permute", GB, [(0, 1)]) == pytest.approx(1 / 600)
    assert tpu7x.seconds("collective-permute", GB, [(0, 2), (1, 3)]) == pytest.approx(2 / 100)


def test_slices_communicate_over_the_network():
    two = pod("v5e", 2, 2, slices=2)
    # 25 Gbit/s per chip; inside a slice two lines of 2.
    across = [[i, i + 4] for i in range(4)]
    assert two.seconds("all-reduce", GB, across) == pytest.approx(2 * 1 / 2 / 3.125)
    both = 3 / 4 / 100 + 1 / 4 / 2 / 3.125
    assert two.seconds("all-gather", GB, [list(range(8))]) == pytest.approx(both)
    assert two.seconds("collective-permute", GB, across) == pytest.approx(1 / 3.125)
    assert two.seconds("all-to-all", GB, across) == pytest.approx(1 / 2 / 3.125)


def test_groups_name_their_mesh_axes():
    mesh = pod("v5e", 2, 4, shape=(("data", 1), ("fsdp", 4), ("context", 1), ("tensor", 2)))
    assert mesh.mesh_axes([[0, 1], [2, 3]]) == "tensor"
    assert mesh.mesh_axes([[0, 2, 4, 6]]) == "fsdp"
    assert mesh.mesh_axes([list(range(8))]) == "fsdp x tensor"
    assert mesh.mesh_axes([[3]]) == "no axis"


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="no bandwidth model of the collective broadcast"):
        RING.seconds("broadcast", GB, [ROW])


def test_positions_follow_the_order_of_the_mesh():
    # The order in which the HLO numbers devices; a v5e's coordinates have a third one, 0.
    devices = np.empty((2, 2), object)
    for number, coords in enumerate([(0, 1, 0), (0, 0, 0), (1, 1, 0), (1, 0, 0)]):
        devices[divmod(number, 2)] = SimpleNamespace(coords=coords)
    mesh = SimpleNamespace(devices=devices, shape={"fsdp": 2, "tensor": 2})
    found = Interconnect.of(mesh, "v5e")
    assert found.positions == ((0, 1), (0, 0), (1, 1), (1, 0))
    assert found.slices == (0, 0, 0, 0) and found.sides == (2, 2)
    assert found.mesh_axes([[0, 2], [1, 3]]) == "fsdp"
