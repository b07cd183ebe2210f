import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codellama_jax.config import MeshConfig
from codellama_jax.models.lookup import look_up
from codellama_jax.sharding.mesh import batch_sharding, make_mesh, on_mesh

V, D, B, T = 16, 8, 4, 512


def gradient(table_VD, indices_BT, dx_BTD, rows):
    def total(table_VD):
        return jnp.sum(look_up(table_VD, indices_BT, "bfloat16", rows) * dx_BTD)

    return jax.jit(jax.grad(total))(table_VD)


def expected(indices_BT, dx_BTD):
    sums_VD = np.zeros((V, D))
    np.add.at(sums_VD, np.clip(indices_BT, 0, V - 1), dx_BTD.astype(np.float64))
    return sums_VD


def frequent():
    """Returns indices of which most are equal, and gradients of one sign, as bf16."""
    generator = np.random.default_rng(0)
    indices_BT = generator.integers(0, V + 2, (B, T)).astype(np.int32)
    indices_BT[:, ::4] = 3
    dx_BTD = jnp.asarray(generator.normal(1, 1, (B, T, D)), jnp.bfloat16)
    return indices_BT, dx_BTD


def test_the_gradient_of_a_frequent_token_is_added_in_fp32():
    indices_BT, dx_BTD = frequent()
    found = gradient(jnp.zeros((V, D)), indices_BT, dx_BTD, None)
    # In bf16 the sum of more than 500 numbers would be wrong by percents.
    np.testing.assert_allclose(found, expected(indices_BT, np.asarray(dx_BTD)), rtol=1e-5)


@pytest.mark.parametrize("rows", ["vocab", None])
@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(data=2, fsdp=2, tensor=2),
        MeshConfig(data=1, fsdp=2, context=2, tensor=2),
        # Neither its rows nor its sequences can be sharded over so many devices.
        MeshConfig(data=1, fsdp=8),
    ],
)
def test_a_mesh_changes_no_gradient(mesh, rows):
    indices_BT, dx_BTD = frequent()
    with on_mesh(make_mesh(mesh)) as devices:
        if B % devices.shape["fsdp"] == 0:
            indices = jax.device_put(indices_BT, batch_sharding(devices))
        else:
            indices = jnp.asarray(indices_BT)
        found = gradient(jnp.zeros((V, D)), indices, dx_BTD, rows)
    np.testing.assert_allclose(found, expected(indices_BT, np.asarray(dx_BTD)), rtol=1e-5)


def test_an_index_past_the_end_takes_the_last_row():
    table_VD = jnp.arange(V * D, dtype=jnp.float32).reshape(V, D)
    found = look_up(table_VD, jnp.array([[0, V - 1, V, V + 9]]), "float32")
    np.testing.assert_array_equal(found[0], table_VD[jnp.array([0, V - 1, V - 1, V - 1])])
