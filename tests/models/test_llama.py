import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import published
import pytest
from toy import MODEL, batch

from codellama_jax.config import MeshConfig
from codellama_jax.models import layers
from codellama_jax.models.layers import rope_angles, rotate
from codellama_jax.models.llama.model import Llama
from codellama_jax.models.trained import abstract_params
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.training.objectives import next_token


@pytest.fixture(scope="module")
def params():
    tokens = jnp.zeros((1, 2), jnp.int32)
    return jax.jit(
        lambda: nn.unbox(Llama(MODEL).init(jax.random.key(0), tokens, tokens))["params"]
    )()


@jax.jit
def logits(params, tokens, positions, segment_ids):
    return Llama(MODEL).apply({"params": params}, tokens, positions, segment_ids)


def inputs(rows):
    return rows["tokens"], rows["positions"], rows["segment_ids"]


def test_no_logit_sees_a_later_token_or_another_document(params):
    rows = batch(4, 32)
    plain, real = logits(params, *inputs(rows)), rows["segment_ids"] > 0
    for column in range(32):
        changed = rows | {"tokens": rows["tokens"].copy()}
        changed["tokens"][:, column] = (changed["tokens"][:, column] + 1) % MODEL.vocab_size
        moved = np.abs(logits(params, *inputs(changed)) - plain).max(axis=-1) > 0
        same = rows["segment_ids"] == rows["segment_ids"][:, [column]]
        allowed = same & (np.arange(32) >= column)
        assert not (moved & ~allowed)[real].any()
        assert moved[:, column].all()


def test_gradients_reach_only_earlier_tokens_of_the_document(params):
    rows = batch(1, 32)
    table = params["embedding"]
    model = Llama(dataclasses.replace(MODEL, vocab_size=MODEL.vocab_size + 32))

    def logit_of(x_TD, column):
        """Returns the logit at a column when token t, which occurs once, is embedded as x_TD[t]."""
        own = params | {
            "embedding": jnp.concatenate([x_TD, table]),
            "head": jnp.tile(params["head"], (1, 2))[:, : MODEL.vocab_size + 32],
        }
        tokens = jnp.arange(32)[None]
        return model.apply({"params": own}, tokens, rows["positions"], rows["segment_ids"])[
            0, column, 0
        ]

    gradient = jax.jit(jax.grad(logit_of))
    for column in np.flatnonzero(rows["segment_ids"][0])[[3, 7, -1]]:
        reached = np.abs(gradient(table[rows["tokens"][0]], column)).max(axis=-1) > 0
        visible = (rows["segment_ids"][0] == rows["segment_ids"][0, column]) & (
            np.arange(32) <= column
        )
        assert (reached == visible).all()


def test_packed_documents_lose_what_they_lose_alone(params):
    rows = batch(4, 32)

    def losses(rows):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, *inputs(rows)), rows["targets"]
        )

    packed = losses(rows)
    for row in range(4):
        for segment in range(1, rows["segment_ids"][row].max() + 1):
            here = rows["segment_ids"][row] == segment
            length = here.sum()
            alone = {k: np.zeros_like(v[:1]) for k, v in rows.items()}
            for key, value in rows.items():
                alone[key][0, :length] = value[row, here]
            np.testing.assert_allclose(packed[row, here], losses(alone)[0, :length], atol=1e-5)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(params, remat):
    rows = batch(2, 16)

    def gradient(model):
        return jax.jit(jax.grad(lambda p: next_token(Llama(model), p, rows)[0]))(params)

    def same(a, b):
        return np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    jax.tree.map(same, gradient(MODEL), gradient(dataclasses.replace(MODEL, remat=remat)))


@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_rope_angles_are_exact_at_far_positions(theta):
    positions = np.array([[0, 1, 4095, 16_383, 100_000]])
    exact = positions[..., None] * theta ** (-np.arange(0, 128, 2) / 128)
    cos, sin = rope_angles(jnp.asarray(positions), 128, theta)
    np.testing.assert_allclose(cos, np.cos(exact), atol=2e-2)  # fp32 holds 100,000 radians to 0.008
    np.testing.assert_allclose(sin[:, :3], np.sin(exact[:, :3]), atol=1e-3)


def test_rope_scores_depend_on_distance_only():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 1, 64)).astype(np.float32)

    def at(x, position):
        return rotate(x, [a[:, :, None] for a in rope_angles(jnp.array([[position]]), 64, 1e4)])

    def score(i, j):
        return float((at(q, i) * at(k, j)).sum())

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert abs(score(7, 3) - score(8, 3)) > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_rotation_of_tpus_is_that_of_other_platforms(dtype, monkeypatch):
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=(2, 8, 3, 16)), dtype) for _ in range(2))
    angles = [a[:, :, None] for a in rope_angles(jnp.tile(jnp.arange(8), (2, 1)), 16, 1e4)]

    def both_passes():
        rotated, transpose = jax.vjp(lambda x: rotate(x, angles), x)
        return rotated, *transpose(dy)

    plain = both_passes()
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    for ours, expected in zip(both_passes(), plain):
        assert ours.dtype == expected.dtype
        # Fused multiply-adds may round the last bit differently.
        error = np.abs((ours - expected).astype(np.float32))
        assert error.max() <= 4 * float(jnp.finfo(dtype).eps)


def test_interpolation_divides_positions():
    stretched, plain = (
        rope_angles(jnp.array([[p]]), 64, 1e4, s) for p, s in ((400, 4.0), (100, 1.0))
    )
    np.testing.assert_array_equal(stretched, plain)


# What Llama 2 lacks, together: the biases have shards, and ring attention stripes the lengths.
TODAY = dataclasses.replace(
    MODEL,
    n_layers=1,
    tied_embeddings=True,
    attention_bias="all",
    rope_type="dynamic",
    rope_scaling=2.0,
    rope_original_length=4,
)


def test_a_mesh_changes_nothing_for_a_tied_head_and_biases():
    """Decoding on a mesh is compared in `weights/test_llama_shapes.py`."""
    drawn, rows = published.random_params(TODAY), batch(4, 16)
    apply = jax.jit(Llama(TODAY).apply)
    one_BTV = np.asarray(apply({"params": drawn}, *inputs(rows)))
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2), jax.devices())
    shapes = abstract_params(TODAY, mesh)
    placed = jax.tree.map(lambda a, s: jax.device_put(a, s.sharding), drawn, shapes)
    assert not placed["layers"]["attention"]["qkv_bias"].sharding.is_fully_replicated
    with on_mesh(mesh):
        eight_BTV = np.asarray(apply({"params": placed}, *inputs(rows)))
    is_text = rows["segment_ids"] > 0
    assert one_BTV.std() > 0.5
    np.testing.assert_allclose(eight_BTV[is_text], one_BTV[is_text], atol=1e-4)


def test_the_separate_matmuls_of_tpus_change_nothing(monkeypatch):
    model, rows = TODAY, batch(2, 16)
    drawn = published.random_params(model)

    def loss(params):
        return next_token(Llama(model), params, rows)[0]

    def matmuls():
        return str(jax.make_jaxpr(loss)(drawn)).count("dot_general")

    fused, count = jax.jit(jax.grad(loss))(drawn), matmuls()
    jax.clear_caches()
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    # The layers' scan holds one block, in which qkv becomes three matmuls and gate_up two. Rotating
    # queries and keys takes one matmul each.
    assert matmuls() == count + 5
    separate = jax.jit(jax.grad(lambda params: loss(params)))(drawn)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), separate, fused
    )
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2), jax.devices())
    shapes = abstract_params(model, mesh)
    placed = jax.tree.map(lambda a, s: jax.device_put(a, s.sharding), drawn, shapes)
    with on_mesh(mesh):
        on_eight = jax.jit(lambda params: loss(params))(placed)
    np.testing.assert_allclose(on_eight, jax.jit(lambda params: loss(params))(drawn), rtol=1e-5)
