"""The passes of a device for any backend: loops over square blocks of scores."""

from __future__ import annotations

from kernels.flash_attention import blocked
from kernels.ring_attention.ring import Blocks


def blocks(length: int) -> tuple[Blocks, int]:
    """Returns the passes for rows of `length` tokens, and 0: the rows need no padding."""
    return Blocks(_forward, _backward), 0


def _queries(length: int) -> list[slice]:
    return pieces(length, max(BLOCK, -(-length // BLOCKS)))


def _matmul(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _grouped(x_BNTH: jax.Array, heads: int) -> jax.Array:
    return x_BNTH.reshape(x_BNTH.shape[0], heads, -1, *x_BNTH.shape[2:])


def _scores(q_BKGCH: jax.Array, k_BKSH: jax.Array, first_BC: jax.Array) -> jax.Array:
    """Returns the scores of the last C of S queries, in powers of two."""
    C, S = q_BKGCH.shape[3], k_BKSH.shape[2]
    key_S = jnp.arange(S)
    causal_CS = key_S[None] <= jnp.arange(S - C, S)[:, None]
    visible_BCS = (key_S[None, None] >= first_BC[..., None]) & causal_CS[None]
    s_BKGCS = _matmul("BKGCH,BKSH->BKGCS", q_BKGCH, k_BKSH) * score_scale(k_BKSH.shape[-1])
    return jnp.where(visible_BCS[:, None, None], s_BKGCS, MASKED)


def _forward(q_BNTH, k_BKTH, v_BKTH, first_BT):
    B, N, T, H = q_BNTH.shape
    q_BKGTH, outs, lses = _grouped(q_BNTH, k_BKTH.shape[1]), [], []
    for at in _queries(T):
        s_BKGCS = _scores(q_BKGTH[:, :, :, at], k_BKTH[:, :, : at.stop], first_BT[:, at])
        m_BKGC1 = s_BKGCS.max(axis=-1, keepdims=True)
        p_BKGCS = jnp.exp2(s_BKGCS - m_BKGC1)
        l_BKGC1 = p_BKGCS.sum(axis=-1, keepdims=True)
        out_BKGCH = _matmul(
            "BKGCS,BKSH->BKGCH", p_BKGCS.astype(v_BKTH.dtype), v_BKTH[:, :, : at.stop]
        )
        outs.append((out_BKGCH / l_BKGC1).reshape(B, N, -1, H))
        lses.append((m_BKGC1 + jnp.log2(l_BKGC1)).reshape(B, N, 1, -1))
    return jnp.concatenate(outs, axis=2), jnp.concatenate(lses, axis=3)


def _backward(q_BNTH, k_BKTH, v_BKTH, first_BT, lse_BN1T, delta_BN1T, do_BNTH):
    K, scale = k_BKTH.shape[1], k_BKTH.shape[-1] ** -0.5
    q_BKGTH, do_BKGTH = (_grouped(x, K) for x in (q_BNTH, do_BNTH))
    lse_BKGT1, delta_BKGT1 = (_grouped(x.swapaxes(2, 3), K) for x in (lse_BN1T, delta_BN1T))
    dk_BKTH, dv_BKTH = (jnp.zeros(x.shape, jnp.float32) for x in (k_BKTH, v_BKTH))
    parts = []
    for at in _queries(q_BNTH.shape[2]):
        q_BKGCH, do_BKGCH = q_BKGTH[:, :, :, at], do_BKGTH[:, :, :, at]
        k_BKSH, v_BKSH = k_BKTH[:, :, : at.stop], v_BKTH[:, :, : at.stop]
        p_BKGCS = jnp.exp2(_scores(q_BKGCH, k_BKSH, first_BT[:, at]) - lse_BKGT1[:, :, :, at])
        dp_BKGCS = _matmul("BKGCH,BKSH->BKGCS", do_BKGCH, v_BKSH)
        ds_BKGCS = (p_BKGCS * (dp_BKGCS - delta_BKGT1[:, :, :, at]) * scale).astype(q_BNTH.dtype)
        parts.append(_matmul("BKGCS,BKSH->BKGCH", ds_BKGCS, k_BKSH))
        dk_BKTH = dk_BKTH.at[:, :, : at.stop].add(_matmul("BKGCS,BKGCH->BKSH", ds_BKGCS, q_BKGCH))
        dv_BKTH = dv_BKTH.at[:, :, : at.stop].add(
            _matmul("BKGCS,BKGCH->BKSH", p_BKGCS.astype(do_BNTH.dtype), do_BKGCH)
        )
    return jnp.concatenate(parts, axis=3).reshape(q_BNTH.shape), dk_BKTH, dv_BKTH
