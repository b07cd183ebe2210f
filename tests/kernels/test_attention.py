import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import segments

from kernels.flash_attention import IMPLEMENTATIONS, attention


def problem(T=24, N=4, K=2, H=8, seed=0, B=3, dtype=np.float32):
    rng = np.random.default_rng(seed)
    q, k, v, g = (rng.normal(size=(B, T, n, H)).astype(dtype) for n in (N, K, K, N))
    segment_ids, positions = segments(rng, B, T)
    layout = {"q_positions_BT": positions, "kv_positions_BS": positions, "q_segments_BT": segment_ids, "kv_segments_BS": segment_ids}
    return (q, k, v), g, layout


def run(qkv, g, layout, implementation):
    """Returns the output, zero in padding, and the gradients of q, k and v under the cotangent g."""
    mask = (layout["q_segments_BT"] > 0)[..., None, None]
    call = lambda *qkv: jnp.where(mask, attention(*qkv, **layout, implementation=implementation), 0)
    out, back = jax.vjp(call, *qkv)
    return [out, *back(jnp.asarray(g, out.dtype))]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("T, N, K, block", [(24, 4, 4, 512), (37, 4, 2, 16), (64, 8, 1, 16)])
def test_agrees_with_float64(monkeypatch, implementation, T, N, K, block):
    monkeypatch.setattr("kernels.flash_attention.xla.BLOCK", block)
    qkv, g, layout = problem(T, N, K)
    with jax.enable_x64(True):
        exact = run([x.astype(np.float64) for x in qkv], g, layout, "reference")
    for a, b in zip(run(qkv, g, layout, implementation), exact):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_documents_do_not_leak(monkeypatch, implementation):
    """Changing one document changes no output and no gradient of its neighbours."""
    monkeypatch.setattr("kernels.flash_attention.xla.BLOCK", 8)
    qkv, g, layout = problem(32)
    second = layout["q_segments_BT"] == 2
    changed = [np.where(second[..., None, None], x + 3, x) for x in qkv]
    new_g = np.where(second[..., None, None], g - 2, g)
    for before, after in zip(run(qkv, g, layout, implementation), run(changed, new_g, layout, implementation)):
        np.testing.assert_array_equal(np.asarray(before)[~second], np.asarray(after)[~second])
        assert (np.asarray(before)[second] != np.asarray(after)[second]).any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_token_reads_a_cache_up_to_its_position(implementation):
    (q, k, v), _, _ = problem(16)
    positions = np.array([[3], [9], [15]])
    slots = np.broadcast_to(np.arange(16), (3, 16))
    one = attention(q[:, :1], k, v, q_positions_BT=positions, kv_positions_BS=slots, implementation=implementation)
    for row, (position,) in enumerate(positions):
        short = slots[:1, : position + 1]
        part = [x[row : row + 1, : position + 1] for x in (k, v)]
        alone = attention(
            q[row : row + 1, :1], *part, q_positions_BT=positions[row : row + 1], kv_positions_BS=short, implementation=implementation
        )
        np.testing.assert_allclose(one[row], alone[0], atol=1e-6)


def test_refuses_what_it_cannot_do():
    qkv, _, layout = problem(N=4, K=3)
    with pytest.raises(ValueError, match="4 query heads do not divide over 3 key heads"):
        attention(*qkv, **layout)
    with pytest.raises(ValueError, match="no attention implementation 'fast'; there are"):
        attention(*problem()[0], **layout, implementation="fast")
