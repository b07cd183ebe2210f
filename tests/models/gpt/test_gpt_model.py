import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from characters import Characters
from published import random_params as drawn_params

from codellama_jax.checked import FieldError, from_dict
from codellama_jax.checkpoints import checkpoint
from codellama_jax.config import MeshConfig, Stage, to_dict
from codellama_jax.errors import UserError
from codellama_jax.generation.sampler import generate
from codellama_jax.generation.scoring import document_losses
from codellama_jax.generation.settings import Sampling
from codellama_jax.models.accounting import flops_per_token, parameter_count
from codellama_jax.models.family import family_of
from codellama_jax.models.gpt.layers import activate
from codellama_jax.models.trained import TrainedModel, abstract_params
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.training.objectives import next_token
from codellama_jax.training.step import compile_train_step, decayed, init_state


def random_params(model):
    return jax.tree.map(jnp.asarray, drawn_params(model))


def logits(model, params, rows):
    inputs = (rows["tokens"], rows["positions"], rows["segment_ids"])
    return family_of(model).module(model).apply({"params": params}, *inputs)


@functools.cache
def compiled_step(config, mesh):
    """Returns the train step, traced once for all calls of `trained`."""
    return compile_train_step(config, mesh)


def trained(mesh, state, steps, config):
    step, losses = compiled_step(config, mesh), []
    for number in steps:
        state, metrics = step(state, {**toy.batch(seed=number % 2), "stop": np.zeros(8, np.int32)})
        losses.append(float(metrics["loss"]))
    return state, losses


def test_its_config_is_written_and_read(model):
    stage = toy.stage(model=model)
    written = to_dict(stage)
    assert written["model"]["family"] == "gpt"
    assert from_dict(Stage, written) == stage


def test_mistakes_name_the_field(multi_head):
    with pytest.raises(FieldError, match=r"attention_dropout is 0\.1: only attention 'reference'"):
        dataclasses.replace(multi_head, attention_dropout=0.1)
    with pytest.raises(FieldError, match="activation is 'relu': it must be one of"):
        dataclasses.replace(multi_head, activation="relu")
    with pytest.raises(FieldError, match=r"data\.seq_len is 128: it must be at most 64"):
        toy.stage(seq_len=128, model=multi_head)


def test_no_sequence_is_longer_than_the_positions(multi_head):
    model = TrainedModel(multi_head, random_params(multi_head), Characters(), "toy")
    with pytest.raises(UserError, match="prompt 0 with up to 63 new tokens has 65 tokens"):
        generate(model, [[1, 2]], Sampling(max_new_tokens=63))
    with pytest.raises(UserError, match="the longest document has 65 tokens, and the model 64"):
        document_losses(model, [[1] * 66])
    assert len(generate(model, [[1, 2]], Sampling(max_new_tokens=62))[0]) == 62
    assert len(document_losses(model, [[1] * 65])[0]) == 64


def test_parameters_and_flops_are_counted(model):
    params = random_params(model)
    assert parameter_count(model) == sum(leaf.size for leaf in jax.tree.leaves(params))
    layers = model.n_layers + model.top_query
    attention = 12 * layers * model.n_heads * model.head_dim * 16
    multiplied = family_of(model).multiplied_parameters(model)
    assert flops_per_token(model, 16, causal=False) == 6 * multiplied + attention
    matrices = [leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    assert multiplied < sum(matrices)


def test_weight_decay_leaves_out_norms_and_biases(top_query):
    decays = decayed(top_query, random_params(top_query))
    block = {
        "attention_norm": {"scale": False, "bias": False},
        "attention": dict.fromkeys(("q", "kv", "out"), True)
        | dict.fromkeys(("q_bias", "kv_bias", "out_bias"), False),
        "ffn_norm": {"scale": False, "bias": False},
        "ffn": {"up": True, "up_bias": False, "down": True, "down_bias": False},
    }
    assert decays == {
        "embedding": True,
        "positions": True,
        "layers": block,
        "final_norm": {"scale": False, "bias": False},
        "top_queries": True,
        "top_layer": block,
    }


def test_weights_that_end_in_the_residual_stream_are_drawn_smaller(top_query):
    wide = dataclasses.replace(top_query, d_model=128, head_dim=32)
    init = jax.jit(family_of(wide).module(wide).init)
    params = init(jax.random.key(0), *np.zeros((2, 1, 2), int))
    params = jax.tree.map(np.std, nn.unbox(params["params"]))
    smaller = wide.init_std / np.sqrt(2 * 3)
    for layer in (params["layers"], params["top_layer"]):
        for name in ("q", "kv"):
            assert layer["attention"][name] == pytest.approx(wide.init_std, rel=0.05)
        assert layer["attention"]["out"] == pytest.approx(smaller, rel=0.05)
        assert layer["ffn"]["down"] == pytest.approx(smaller, rel=0.05)
        assert layer["attention"]["q_bias"] == layer["ffn"]["up_bias"] == 0
    assert params["positions"] == pytest.approx(wide.init_std, rel=0.05)


def test_quick_gelu_is_codegeex_formula():
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    expected = x / (1 + np.exp(-1.702 * np.abs(x))) * np.exp(0.851 * (x - np.abs(x)))
    np.testing.assert_allclose(activate(jnp.array(x), "quick_gelu"), expected, atol=1e-6)


def test_no_logit_sees_a_later_token_or_another_document(model):
    rows, params = toy.batch(4, 32), random_params(model)
    apply = jax.jit(lambda rows: logits(model, params, rows))
    plain, real = apply(rows), rows["segment_ids"] > 0
    for column in (0, 5, 16, 30):
        changed = rows | {"tokens": rows["tokens"].copy()}
        changed["tokens"][:, column] = (changed["tokens"][:, column] + 1) % model.vocab_size
        moved = np.abs(apply(changed) - plain).max(axis=-1) > 0
        same = rows["segment_ids"] == rows["segment_ids"][:, [column]]
        allowed = same & (np.arange(32) >= column)
        assert not (moved & ~allowed)[real].any()
        assert moved[:, column].all()


def test_packed_documents_lose_what_they_lose_alone(model):
    rows, params = toy.batch(2, 32), random_params(model)

    @jax.jit
    def losses(rows):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(model, params, rows), rows["targets"]
        )

    packed = losses(rows)
    for row in range(2):
        for segment in range(1, rows["segment_ids"][row].max() + 1):
            here = rows["segment_ids"][row] == segment
            alone = {k: np.zeros_like(v[:1]) for k, v in rows.items()}
            for key, value in rows.items():
                alone[key][0, : here.sum()] = value[row, here]
            np.testing.assert_allclose(packed[row, here], losses(alone)[0, : here.sum()], atol=1e-5)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(top_query, remat):
    rows, params = toy.batch(2, 16), random_params(top_query)

    def gradient(model):
        module = family_of(model).module(model)
        return jax.jit(jax.grad(lambda p: next_token(module, p, rows)[0]))(params)

    def same(a, b):
        return np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    jax.tree.map(same, gradient(top_query), gradient(dataclasses.replace(top_query, remat=remat)))


def test_it_decodes_with_a_cache_as_without(model):
    params = random_params(model)
    module = family_of(model).module(model)
    prompts = [[1, 2, 3], [5]]
    trained_model = TrainedModel(model, params, Characters(), "toy")
    for prompt, answer in zip(
        prompts, generate(trained_model, prompts, Sampling(max_new_tokens=40))
    ):
        ids = np.array([prompt + answer])
        logits_BTV = module.apply({"params": params}, ids, np.arange(ids.shape[1])[None])
        greedy = np.argmax(logits_BTV[0, len(prompt) - 1 : -1], axis=-1)
        assert greedy.tolist() == answer


@functools.cache
def losses_on(model, *axes):
    """Returns the losses of two steps on a mesh with data, fsdp, context and tensor axes."""
    config = toy.stage(steps=2, model=model)
    mesh = make_mesh(MeshConfig(*axes), jax.devices()[: math.prod(axes)])
    with on_mesh(mesh):
        return trained(mesh, init_state(config, mesh, 0), range(2), config)[1]


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        pytest.param("multi_query", (1, 8, 1, 1), marks=pytest.mark.slow),
        ("multi_query", (2, 2, 1, 2)),
        # The axes of the others, and a sharded length.
        pytest.param("top_query", (1, 2, 2, 2), marks=pytest.mark.slow),
    ],
)
def test_a_mesh_changes_nothing(request, name, axes):
    model = request.getfixturevalue(name)
    one_device = losses_on(model, 1, 1, 1, 1)
    np.testing.assert_allclose(losses_on(model, *axes), one_device, rtol=1e-5)


def test_a_mesh_shards_the_query_heads_of_multi_query_attention(multi_query):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4), jax.devices())
    attention = abstract_params(multi_query, mesh)["layers"]["attention"]
    shapes = {name: leaf.sharding.shard_shape(leaf.shape) for name, leaf in attention.items()}
    assert shapes["q"] == (2, 32, 1, 16)
    assert shapes["kv"] == (2, 32, 2, 1, 16)
    assert shapes["out"] == (2, 1, 16, 32)


def test_it_trains_and_resumes_from_a_checkpoint(tmp_path, top_query):
    config = toy.stage(steps=6, model=top_query)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    with on_mesh(mesh):
        state, first = trained(mesh, init_state(config, mesh, 0), range(4), config)
        store = checkpoint.Checkpoints(tmp_path / "checkpoints", config)
        store.save(4, state, {}, 0)
        store.wait()
        _, uninterrupted = trained(mesh, state, range(4, 6), config)
        step, restored, _ = store.restore(init_state(config, mesh, 1))
        store.close()
        _, resumed = trained(mesh, restored, range(4, 6), config)
    assert step == 4
    assert resumed == uninterrupted
    assert np.mean(uninterrupted) < np.mean(first[:2])


def test_it_decodes_on_a_mesh_as_on_one_device(model):
    params, prompts = random_params(model), [[1, 2, 3], [5]]
    expected = generate(
        TrainedModel(model, params, Characters(), "toy"), prompts, Sampling(max_new_tokens=12)
    )
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices())
    shapes = abstract_params(model, mesh)
    placed = jax.tree.map(lambda a, s: jax.device_put(a, s.sharding), params, shapes)
    sharded = TrainedModel(model, placed, Characters(), "toy")
    assert generate(sharded, prompts, Sampling(max_new_tokens=12)) == expected
