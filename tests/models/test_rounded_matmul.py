"""The bf16 matmul of a CPU: the numbers of a rounded fp32 matmul, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import print_saved_residuals

from codellama_jax.models import rounded_matmul as module
from codellama_jax.models.layers import REMAT_POLICIES, project
from codellama_jax.models.rounded_matmul import is_faster, rounded_matmul


def inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    x_BTD = jax.random.normal(keys[0], (2, 3, 64)).astype(jnp.bfloat16)
    w_DX = jax.random.normal(keys[1], (64, 32))
    dy_BTX = jax.random.normal(keys[2], (2, 3, 32)).astype(jnp.bfloat16)
    return x_BTD, w_DX, dy_BTX


def test_result_and_gradients_are_fp32_sums_of_rounded_operands():
    x_BTD, w_DX, dy_BTX = inputs()
    out_BTX, backward = jax.vjp(rounded_matmul, x_BTD, w_DX)
    dx_BTD, dw_DX = backward(dy_BTX)
    assert (out_BTX.dtype, dx_BTD.dtype, dw_DX.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    x, w, dy = (np.asarray(a.astype(jnp.bfloat16), np.float64) for a in (x_BTD, w_DX, dy_BTX))
    # The results in bf16 have 8 bits; the gradient of the weight has those of fp32.
    np.testing.assert_allclose(np.asarray(out_BTX, np.float64), x @ w, rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(np.asarray(dx_BTD, np.float64), dy @ w.T, rtol=2**-8, atol=1e-5)
    expected_DX = np.einsum("BTD,BTX->DX", x, dy)
    np.testing.assert_allclose(np.asarray(dw_DX), expected_DX, rtol=1e-5, atol=1e-5)


def test_a_projection_in_bf16_uses_it_on_a_cpu_and_keeps_the_dims_of_the_weight():
    x_BTD, w_DX, _ = inputs()
    assert is_faster(jnp.bfloat16) and not is_faster(jnp.float32)
    w_DNH = w_DX.reshape(64, 4, 8)
    out_BTNH = project(x_BTD, w_DNH)
    assert out_BTNH.shape == (2, 3, 4, 8)
    assert jnp.array_equal(out_BTNH.reshape(2, 3, 32), rounded_matmul(x_BTD, w_DX))
    # Two input dims, as of the attention's output.
    w_NHX = w_DX.reshape(4, 16, 32)
    assert jnp.array_equal(project(x_BTD, w_NHX, inputs=2), rounded_matmul(x_BTD, w_DX))
    jaxpr = str(jax.make_jaxpr(project)(x_BTD, w_DNH))
    assert "custom_vjp" in jaxpr


def saved_dots(dtype, capsys):
    """Returns what rematerialization keeps of two projections beside their arguments."""
    x_BTD, w_DX, _ = inputs()

    def loss(x_BTD, w_DX):
        hidden_BTX = jax.nn.silu(project(x_BTD, w_DX))
        return jnp.sum(jax.nn.silu(project(hidden_BTX, w_DX.T)))

    print_saved_residuals(
        jax.checkpoint(loss, policy=REMAT_POLICIES["dots"]), x_BTD.astype(dtype), w_DX
    )
    lines = [
        line.split()[0] for line in capsys.readouterr().out.splitlines() if "argument" not in line
    ]
    return sorted(lines)


def test_rematerialization_keeps_the_rounded_results(capsys, monkeypatch):
    rounded = ["bf16[2,3,32]", "bf16[2,3,64]"]
    assert saved_dots(jnp.bfloat16, capsys) == rounded
    assert saved_dots(jnp.float32, capsys) == ["f32[6,32]", "f32[6,64]"]
    # On a TPU, where the projections round themselves, the policy is JAX's.
    monkeypatch.setattr(module, "platform", lambda: "tpu")
    assert saved_dots(jnp.bfloat16, capsys) == ["bf16[6,32]", "bf16[6,64]"]
