"""TPUs that the compiler knows without having one: a topology to compile for, and each core's vector memory."""

from __future__ import annotations

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
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
