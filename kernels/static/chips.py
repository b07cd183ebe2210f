"""TPUs that the compiler knows without having one: its environment, a topology to compile for, and each core's vector memory."""

from __future__ import annotations

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_ACCELERATOR_TYPE": "v5p-8",  # any one: without it libtpu looks for a TPU and complains
    "TPU_WORKER_HOSTNAMES": "localhost",
}
TOPOLOGIES = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
VMEM_MIB = {"v4": 16, "v5e": 128, "v5p": 64, "v6e": 128, "tpu7x": 64}


def placed(chip: str, *shapes):
    """Returns the `jax.ShapeDtypeStruct`s as arrays of one core of `chip`, for `jax.jit(f).lower(*arrays).compile()`."""
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    device = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices[0]
    here = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
    return [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for x in shapes]
