"""The one table of chips, and how to compile for a TPU that this machine does not have.

Sources of the TPU figures:

- FLOP/s, HBM bandwidth and largest pod: the pages of each generation under "System architecture"
  in the Cloud TPU documentation (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x).
- VMEM and the side of the matrix units: `pltpu.get_tpu_info_for_chip` of JAX 0.10, which also
  confirms the FLOP/s (tests/kernels/test_chips.py).
- Number of matrix units: the same for v4, v5e and v5p. For v6e and TPU7x JAX lists 2 per core, with
  which the published FLOP/s would need a clock above 3 GHz; 4 give 1.75 and 2.2 GHz.
- HBM that a program may use: the limit that libtpu reports for a program that does not fit. It is
  below the published capacity, because the runtime keeps a part for itself.
- Link between chips (ICI), one way: the pages give the sum over a chip's links and both directions
  (v5e 400 GB/s over 4 links; v6e 800 over 4; v5p and TPU7x 1,200 over 6). The page of v4 has none:
  its 45 GB/s is from "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus), which has the
  same figures for the others.
- Network of the data center (DCN), per chip: the page of TPU7x (v5p 50, v6e and TPU7x 100 Gbit/s)
  and of v5e (two cards of 100 Gbit/s for the 8 chips of a host). That of v4 is the book's 25 GB/s
  per host of 4 chips.
- The two devices of a TPU7x chip share its links. The interface between them is taken to be six
  times as fast as one link; that figure is not confirmed by the pages above.

The GPU figures are from NVIDIA's data sheets of the A100, the H100 SXM and the H200 SXM: dense
bf16, without sparsity.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

# Environment variables that let libtpu compile on a machine without a TPU.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_ACCELERATOR_TYPE": "v5p-8",  # any type: without one libtpu searches for a TPU and warns
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts devices.

    A device is both cores of a v4 or v5p chip, and one of the two cores of a TPU7x chip.

    Args:
      kind: JAX's `device_kind`.
      peak_flops: dense bf16 FLOP/s of a device.
      matrix_units: number of matrix units in a device, over all its cores.
      matrix_side: rows and columns of a matrix unit.
      cores: cores that share the work of a device.
      vmem_mib: VMEM per core in MiB.
      hbm_gib: HBM per device in GiB that a program may use.
      hbm_bandwidth: bytes per second between HBM and a device.
      link: bytes per second of one link between chips, in one direction. An axis of the topology
        has two links per chip.
      network: bytes per second and chip between slices, through the data center's network.
      axes: number of axes of a pod's topology.
      largest_pod: chips of the largest pod.
      smallest_topology: name of the smallest topology that libtpu compiles for.
      topology_options: keyword arguments of `get_topology_desc`.
      devices_per_chip: devices that share a chip's links and its network.
      between_devices: bytes per second between the devices of a chip, in one direction.
    """

    kind: str
    peak_flops: float
    matrix_units: int
    matrix_side: int
    cores: int
    vmem_mib: int
    hbm_gib: float
    hbm_bandwidth: float
    link: float
    network: float
    axes: int
    largest_pod: int
    smallest_topology: str
    topology_options: tuple[tuple[str, str], ...] = ()
    devices_per_chip: int = 1
    between_devices: float = 0.0

    @property
    def clock(self) -> float:
        """Cycles per second at which all multiply-adds of the matrix units make the peak FLOP/s."""
        # A multiply-add is two FLOPs, and a matrix unit makes side x side of them per cycle.
        multiply_adds = self.matrix_units * self.matrix_side**2
        return self.peak_flops / (2 * multiply_adds)

    @property
    def vmem_bytes(self) -> int:
        """VMEM per core in bytes."""
        return self.vmem_mib << 20


CHIPS = {
    "v4": Chip(
        kind="TPU v4",
        peak_flops=275e12,
        matrix_units=8,
        matrix_side=128,
        cores=2,
        vmem_mib=16,
        hbm_gib=30.75,
        hbm_bandwidth=1228e9,
        link=45e9,
        network=6.25e9,
        axes=3,
        largest_pod=4096,
        smallest_topology="v4:2x2x1",
        # Without this name libtpu would compile for two separate cores.
        topology_options=(("chip_config_name", "megacore"),),
    ),
    "v5e": Chip(
        kind="TPU v5 lite",
        peak_flops=197e12,
        matrix_units=4,
        matrix_side=128,
        cores=1,
        vmem_mib=128,
        hbm_gib=15.75,
        hbm_bandwidth=819e9,
        link=50e9,
        network=3.125e9,
        axes=2,
        largest_pod=256,
        smallest_topology="v5e:2x2",
    ),
    "v5p": Chip(
        kind="TPU v5p",
        peak_flops=459e12,
        matrix_units=8,
        matrix_side=128,
        cores=2,
        vmem_mib=64,
        hbm_gib=95.74,
        hbm_bandwidth=2765e9,
        link=100e9,
        network=6.25e9,
        axes=3,
        largest_pod=8960,
        smallest_topology="v5p:2x2x1",
    ),
    "v6e": Chip(
        kind="TPU v6 lite",
        peak_flops=918e12,
        matrix_units=4,
        matrix_side=256,
        cores=1,
        vmem_mib=128,
        hbm_gib=31.25,
        hbm_bandwidth=1638e9,
        link=100e9,
        network=12.5e9,
        axes=2,
        largest_pod=256,
        smallest_topology="v6e:2x2",
    ),
    # The page gives 2,307 TFLOP/s and 7,380 GB/s per chip; a device is one of its two cores.
    "tpu7x": Chip(
        kind="TPU7x",
        peak_flops=1153e12,
        matrix_units=4,
        matrix_side=256,
        cores=1,
        vmem_mib=64,
        hbm_gib=94.75,
        hbm_bandwidth=3690e9,
        link=100e9,
        network=12.5e9,
        axes=3,
        largest_pod=9216,
        smallest_topology="tpu7x:2x2x1",
        devices_per_chip=2,
        between_devices=600e9,
    ),
}
TOPOLOGIES = {name: chip.smallest_topology for name, chip in CHIPS.items()}

# Dense bf16 FLOP/s of a device by JAX's `device_kind`. No MFU is reported for other devices.
PEAK_FLOPS = {chip.kind: chip.peak_flops for chip in CHIPS.values()} | {
    "TPU v5": CHIPS["v5p"].peak_flops,  # the runtime's own name for a v5p
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def compile_inputs(chip: str, *shapes: jax.ShapeDtypeStruct) -> list[jax.ShapeDtypeStruct]:
    """Returns the shapes placed on one core of `chip`, a key of `CHIPS`.

    `jax.jit(f).lower(*compile_inputs(...)).compile()` then compiles for that chip.
    """
    # Importing JAX takes a second, and the command line reads the table without needing JAX.
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip])
    # A kernel runs on one core, so the schedule of one device is enough.
    one_core = Mesh(np.array([topology.devices[0]]), ("x",))
    sharding = NamedSharding(one_core, PartitionSpec())
    return [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in shapes]
