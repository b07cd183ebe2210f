"""TPUs to compile for without having one: libtpu's environment, topologies, and VMEM per core."""

from __future__ import annotations

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_ACCELERATOR_TYPE": "v5p-8",  # any type: without one libtpu searches for a TPU and warns
    "TPU_WORKER_HOSTNAMES": "localhost",
}
TOPOLOGIES = {  # the smallest of each chip
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
VMEM_MIB = {"v4": 16, "v5e": 128, "v5p": 64, "v6e": 128, "tpu7x": 64}


def compile_inputs(chip: str, *shapes):
    """Returns `jax.ShapeDtypeStruct`s placed on one core of `chip`.

    `jax.jit(f).lower(*compile_inputs(...)).compile()` then compiles for that chip.
    """
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip])
    one_core = Mesh(np.array([topology.devices[0]]), ("x",))
    sharding = NamedSharding(one_core, PartitionSpec())
    return [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in shapes]
