"""The barrier to fusion: kept in the compiled program, on one CPU device only, equal numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codellama_jax.config import MeshConfig
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from kernels.flash_attention import xla
from kernels.fusion import materialized

T = 160  # two blocks of queries


def attention_loss(q_BTNH, k_BTKH, v_BTKH):
    positions_BT = jnp.arange(T)[None]
    out_BTNH = xla.attention(q_BTNH, k_BTKH, v_BTKH, positions_BT, positions_BT)
    return (out_BTNH.astype(jnp.float32) ** 2).sum()


gradients = functools.partial(jax.value_and_grad, argnums=(0, 1, 2))


def arguments(dtype="float32"):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(1, T, heads, 8)), dtype) for heads in (2, 1, 1)]


def compiled(function, *arrays, devices=1):
    """Returns the program of a function of arrays on a mesh of some devices."""
    with on_mesh(make_mesh(MeshConfig(data=devices), jax.devices()[:devices])):
        return jax.jit(function).lower(*arrays).compile()


def calls(program):
    """Returns the number of calls in a program, without those that XLA makes of small loops."""
    lines = program.as_text().splitlines()
    return sum(" call(" in line and "xla_cpu_small_call" not in line for line in lines)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keeps_numbers_and_gradients(dtype, monkeypatch):
    arrays = arguments(dtype)
    actual = compiled(gradients(attention_loss), *arrays)
    monkeypatch.setattr(xla, "materialized", lambda x: x)
    # Another function, so that JAX traces it again.
    expected = compiled(gradients(lambda *qkv: attention_loss(*qkv)), *arrays)
    assert calls(actual) == 6 and calls(expected) == 0
    # In bf16, fused operations round less often.
    tolerance = {"float32": 1e-6, "bfloat16": 1e-2}[dtype]
    for a, b in zip(jax.tree.leaves(actual(*arrays)), jax.tree.leaves(expected(*arrays))):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


def chain(x):
    return jnp.sin(materialized(jnp.cos(x))).sum()


@jax.jit
def inlined(x):
    return jax.lax.optimization_barrier(x)


# Functions of the same gradient, and the number of calls in it: one where the value is computed, or
# computed again, and one where its gradient is.
GRADIENTS = {
    "plain": (jax.grad(chain), 2),
    "vmap": (jax.vmap(jax.grad(chain)), 2),
    "remat": (jax.grad(jax.checkpoint(chain, prevent_cse=False)), 2),
    "scan": (jax.grad(lambda x: jax.lax.map(chain, x).sum()), 2),
    # XLA inlines calls here, so the tests above would find out if it inlined all of them.
    "inlined": (jax.grad(lambda x: jnp.sin(inlined(jnp.cos(x))).sum()), 0),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_compiled_program_keeps_the_calls(name):
    function, count = GRADIENTS[name]
    x = jnp.linspace(-1, 1, 12).reshape(3, 4)
    program = compiled(function, x)
    assert calls(program) == count
    np.testing.assert_allclose(program(x), -jnp.cos(jnp.cos(x)) * jnp.sin(x), atol=1e-6)


def test_second_derivatives():
    x = jnp.linspace(0.1, 1, 4)
    hessian = jax.jacrev(jax.grad(lambda x: (materialized(x) ** 3).sum()))
    with on_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        np.testing.assert_allclose(hessian(x), jnp.diag(6 * x), rtol=1e-6)


def test_several_devices_have_no_barrier():
    """Without a mesh in use, arguments may be sharded over all devices of the process."""
    function, arrays = gradients(attention_loss), arguments()
    assert calls(compiled(function, *arrays, devices=8)) == 0
    assert "inlineable" not in jax.jit(function).lower(*arrays).as_text()
