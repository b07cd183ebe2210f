"""The table of chips, compared with JAX's own and checked for figures that no chip can have."""

import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels.static.chips import CHIPS, PEAK_FLOPS

JAX_NAMES = {"v4": "v4", "v5e": "v5e", "v5p": "v5p", "v6e": "v6e", "tpu7x": "7x"}


@pytest.mark.parametrize("name", CHIPS)
def test_the_table_agrees_with_jax(name):
    if not hasattr(pltpu, "get_tpu_info_for_chip"):
        pytest.skip("this JAX does not publish its table of chips")
    chip = CHIPS[name]
    version = next(version for version in pltpu.ChipVersion if str(version) == JAX_NAMES[name])
    per_core = pltpu.get_tpu_info_for_chip(version, 1)
    assert chip.vmem_bytes == per_core.vmem_capacity_bytes
    assert chip.matrix_side == per_core.mxu_column_size
    assert chip.peak_flops == pytest.approx(chip.cores * per_core.bf16_ops_per_second, rel=0.01)
    # The runtime keeps less than a tenth of the memory for itself.
    capacity = chip.cores * per_core.hbm_capacity_bytes / 2**30
    assert 0.9 * capacity < chip.hbm_gib <= capacity


def test_every_chip_has_a_peak_and_a_plausible_clock():
    for chip in CHIPS.values():
        assert 0.9e9 < chip.clock < 2.5e9
        assert PEAK_FLOPS[chip.kind] == chip.peak_flops


@pytest.mark.parametrize(
    ("name", "total", "network"),
    [("v5e", 400, 25), ("v5p", 1200, 50), ("v6e", 800, 100), ("tpu7x", 1200, 100)],
)
def test_links_and_network_add_up_to_the_published_figures_of_a_chip(name, total, network):
    # In GB/s over all links and both directions, and in Gbit/s, as the Cloud TPU pages have them.
    chip = CHIPS[name]
    assert 2 * chip.axes * 2 * chip.link == total * 1e9
    assert 8 * chip.network == network * 1e9
