"""A second family in one file: it trains, resumes, decodes and compiles with no other file changed.

It differs from Llama where families differ: learned positions, LayerNorm with biases, a GELU layer,
tied embeddings and one key head (multi-query attention).
"""

import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from characters import Characters
from flax import struct
from jax.sharding import PartitionSpec

from codellama_jax.checked import FieldError, Range, from_dict
from codellama_jax.checkpoints import checkpoint
from codellama_jax.compile import target
from codellama_jax.compile.program import lower_decode, lower_prefill, lower_train_step
from codellama_jax.config import MeshConfig, ModelConfig, Stage, to_dict
from codellama_jax.generation.sampler import generate
from codellama_jax.generation.settings import Sampling
from codellama_jax.models.accounting import flops_per_token, parameter_count
from codellama_jax.models.decoding import (
    BY_INPUTS,
    BY_OUTPUTS,
    REPLICATED,
    Cache,
    cache_spec,
    constrain,
)
from codellama_jax.models.family import Family, boxed_params, family_of, register
from codellama_jax.models.layers import Inputs, attend, parameter, project, stacked
from codellama_jax.models.published import Place
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.training.step import compile_train_step, init_state
from kernels.decode_attention import decode_attention


@dataclass(frozen=True)
class ToyConfig(ModelConfig):
    family: ClassVar[str] = "toy_gpt"

    max_positions: Annotated[int, Range(1, 2**20)] = 128  # rows of the position table


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    normed = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    ranks = (1,) * (x.ndim - 1) + (-1,)
    return (normed * scale.reshape(ranks) + bias.reshape(ranks)).astype(x.dtype)


class LayerNorm(nn.Module):
    epsilon: float

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
        scale_D = self.param("scale", ones, x_BTD.shape[-1:], jnp.float32)
        bias_D = self.param("bias", zeros, x_BTD.shape[-1:], jnp.float32)
        return layer_norm(x_BTD, scale_D, bias_D, self.epsilon)


class Block(nn.Module):
    config: ToyConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, inputs: Inputs) -> tuple[jax.Array, Any]:
        c = self.config
        D, N, K, H, F = c.d_model, c.n_heads, c.n_kv_heads, c.head_dim, c.d_ff
        w_q = parameter(self, "q", (D, N, H), ("embed", "heads", None), 1 / D)
        w_kv = parameter(self, "kv", (D, 2, K, H), ("embed", None, None, None), 1 / D)
        w_out = parameter(self, "out", (N * H, D), ("heads", "embed"), 1 / D)
        w_up = parameter(self, "up", (D, F), ("embed", "ffn"), 1 / D)
        w_down = parameter(self, "down", (F, D), ("ffn", "embed"), 1 / F)
        normed_BTD = LayerNorm(c.norm_eps, name="attention_norm")(x_BTD)
        kv_BTXKH = project(normed_BTD, w_kv)
        k_BTKH, v_BTKH = kv_BTXKH[:, :, 0], kv_BTXKH[:, :, 1]
        out_BTNH = attend(project(normed_BTD, w_q), k_BTKH, v_BTKH, inputs, c.attention)
        x_BTD = x_BTD + project(out_BTNH.reshape(*x_BTD.shape[:2], N * H), w_out)
        normed_BTD = LayerNorm(c.norm_eps, name="ffn_norm")(x_BTD)
        x_BTD = x_BTD + project(nn.gelu(project(normed_BTD, w_up)), w_down)
        return x_BTD, (k_BTKH, v_BTKH) if inputs.keep_kv else None


class ToyGPT(nn.Module):
    config: ToyConfig

    def setup(self):
        c = self.config
        self.embedding_VD = parameter(
            self, "embedding", (c.vocab_size, c.d_model), ("vocab", "embed"), 1 / c.d_model
        )
        self.position_PD = parameter(
            self, "position", (c.max_positions, c.d_model), (None, "embed"), 1 / c.d_model
        )
        self.layers = stacked(Block, c)
        self.final_norm = LayerNorm(c.norm_eps)

    def hidden(self, tokens_BT, positions_BT, segment_ids_BT=None):
        dtype = self.config.compute_dtype
        x_BTD = (self.embedding_VD[tokens_BT] + self.position_PD[positions_BT]).astype(dtype)
        x_BTD, _ = self.layers(x_BTD, Inputs(positions_BT, segment_ids_BT))
        return self.final_norm(x_BTD)

    def unembed(self, x_BTD):
        head_DV = self.embedding_VD.T.astype(x_BTD.dtype)
        return jnp.matmul(x_BTD, head_DV, preferred_element_type=jnp.float32)

    def __call__(self, tokens_BT, positions_BT, segment_ids_BT=None):
        return self.unembed(self.hidden(tokens_BT, positions_BT, segment_ids_BT))


@struct.dataclass
class Weights:
    """The parameters as they are, in the compute dtype, with the layers apart."""

    embedding_VD: jax.Array
    position_PD: jax.Array
    layers: tuple[dict, ...]
    final_norm: dict


class ToyFamily(Family[ToyConfig]):
    def module(self, config):
        return ToyGPT(config)

    def positions(self, config):
        return f"{config.max_positions} learned positions"

    def parameter_count(self, config):
        norms = (2 * config.n_layers + 1) * 2 * config.d_model
        return self.multiplied_parameters(config) + config.max_positions * config.d_model + norms

    def multiplied_parameters(self, config):
        c = config
        attention = 2 * c.d_model * (c.n_heads + c.n_kv_heads) * c.head_dim
        layer = attention + 2 * c.d_model * c.d_ff
        return c.n_layers * layer + c.vocab_size * c.d_model

    def decays(self, path):
        return not path.endswith(("scale", "bias"))

    def prepare(self, config, params):
        cast = jax.tree.map(lambda a: a.astype(config.compute_dtype), params)
        layers = [jax.tree.map(lambda a, i=i: a[i], cast["layers"]) for i in range(config.n_layers)]
        return Weights(cast["embedding"], cast["position"], tuple(layers), cast["final_norm"])

    def weight_specs(self, config):
        norm = {"scale": REPLICATED, "bias": REPLICATED}
        layer = {
            "q": PartitionSpec("fsdp", "tensor"),
            "kv": PartitionSpec("fsdp"),
            "out": BY_OUTPUTS,
            "up": BY_INPUTS,
            "down": BY_OUTPUTS,
            "attention_norm": norm,
            "ffn_norm": norm,
        }
        return Weights(BY_OUTPUTS, PartitionSpec(None, "fsdp"), (layer,) * config.n_layers, norm)

    def prefill(self, config, weights, tokens_BT, lengths_B):
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        inputs, layers = Inputs(positions_BT, None, keep_kv=True), []
        x_BTD = weights.embedding_VD[tokens_BT] + weights.position_PD[positions_BT]
        for layer in weights.layers:
            x_BTD, kv = Block(config).apply({"params": layer}, x_BTD, inputs)
            layers.append(kv)
        last_BD = jnp.take_along_axis(x_BTD, lengths_B[:, None, None] - 1, axis=1)[:, 0]
        last_BD = layer_norm(last_BD, **weights.final_norm, epsilon=config.norm_eps)
        logits_BV = jnp.matmul(last_BD, weights.embedding_VD.T, preferred_element_type=jnp.float32)
        return logits_BV, layers

    def step(self, config, weights, cache, tokens_B, positions_B):
        c, B = config, tokens_B.shape[0]
        keys, values = [], []
        x_BD = weights.embedding_VD[tokens_B] + weights.position_PD[positions_B]
        row_M, slot_M = jnp.arange(c.n_kv_heads * B), jnp.tile(positions_B, c.n_kv_heads)
        for layer, k_MSH, v_MSH in zip(weights.layers, cache.k_MSH, cache.v_MSH):
            normed_BD = layer_norm(x_BD, **layer["attention_norm"], epsilon=c.norm_eps)
            q_BNH = jnp.einsum("BD,DNH->BNH", normed_BD, layer["q"])
            k_MH, v_MH = jnp.einsum("BD,DXKH->XKBH", normed_BD, layer["kv"]).reshape(
                2, -1, c.head_dim
            )
            spec = cache_spec(c)
            keys.append(constrain(k_MSH.at[row_M, slot_M].set(k_MH), spec))
            values.append(constrain(v_MSH.at[row_M, slot_M].set(v_MH), spec))
            q_MGH = jnp.einsum("BKGH->KBGH", q_BNH.reshape(B, c.n_kv_heads, -1, c.head_dim))
            q_MGH = q_MGH.reshape(c.n_kv_heads * B, -1, c.head_dim)
            out_MGH = decode_attention(q_MGH, keys[-1], values[-1], positions_B + 1)
            out_KBGH = out_MGH.reshape(c.n_kv_heads, B, -1, c.head_dim)
            x_BD += jnp.einsum("KBGH->BKGH", out_KBGH).reshape(B, -1) @ layer["out"]
            normed_BD = layer_norm(x_BD, **layer["ffn_norm"], epsilon=c.norm_eps)
            x_BD += nn.gelu(normed_BD @ layer["up"]) @ layer["down"]
        x_BD = layer_norm(x_BD, **weights.final_norm, epsilon=c.norm_eps)
        logits_BV = jnp.matmul(x_BD, weights.embedding_VD.T, preferred_element_type=jnp.float32)
        return logits_BV, Cache(tuple(keys), tuple(values))

    def places(self, config):
        return {"embedding": Place("embedding", (0, 1)), "position": Place("position", (0, 1))}


MODEL = ToyConfig(
    64, 32, 2, 4, 1, 8, 64, compute_dtype="float32", remat="none", tied_embeddings=True
)


@pytest.fixture(scope="module", autouse=True)
def family() -> Iterator[None]:
    register(ToyConfig, ToyFamily())
    yield
    del ModelConfig.families[ToyConfig.family]  # other tests list the families of the library


def stage(**changes: Any) -> Stage:
    return toy.stage(model=MODEL, **changes)


@functools.cache
def compiled_step(config, mesh):
    """Returns the train step, traced once for all calls of `trained`."""
    return compile_train_step(config, mesh)


def trained(mesh: Any, state: Any, steps: range, config: Stage) -> tuple[Any, list[float]]:
    step, losses = compiled_step(config, mesh), []
    for number in steps:
        batch = toy.batch(seed=number % 2)
        state, metrics = step(state, {**batch, "stop": np.zeros(8, np.int32)})
        losses.append(float(metrics["loss"]))
    return state, losses


def test_its_config_is_written_and_read():
    written = to_dict(stage())
    assert written["model"]["family"] == "toy_gpt"
    assert from_dict(Stage, written) == stage()
    with pytest.raises(FieldError, match=r"model\.family is 'gone': it must be one of"):
        from_dict(Stage, {**written, "model": {**written["model"], "family": "gone"}})


def test_the_base_of_all_families_is_no_model():
    fields = {field.name: getattr(MODEL, field.name) for field in dataclasses.fields(ModelConfig)}
    with pytest.raises(
        FieldError,
        match=r"use codellama_jax\.models\.gpt\.config\.GPTConfig or codellama_jax\.models\.llama",
    ):
        ModelConfig(**fields)


def test_its_parameters_are_counted():
    params = jax.eval_shape(lambda: nn.unbox(boxed_params(MODEL, jax.random.key(0))))
    assert parameter_count(MODEL) == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert flops_per_token(MODEL, 16, causal=False) > 6 * MODEL.vocab_size * MODEL.d_model


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2])
def test_it_trains_and_goes_on_from_a_checkpoint(tmp_path, tensor):
    config = stage(steps=6)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=tensor), jax.devices()[: 2 * tensor])
    with on_mesh(mesh):
        state = init_state(config, mesh, 0)
        state, first = trained(mesh, state, range(4), config)
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


@pytest.mark.slow
def test_a_mesh_that_splits_the_heads_changes_nothing():
    config, losses = stage(steps=2), []
    for fsdp, tensor in ((1, 1), (2, 2), (1, 4)):
        mesh = make_mesh(MeshConfig(fsdp=fsdp, tensor=tensor), jax.devices()[: fsdp * tensor])
        with on_mesh(mesh):
            losses.append(trained(mesh, init_state(config, mesh, 0), range(2), config)[1])
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-5)


def test_it_decodes_with_a_cache_as_without():
    params = jax.jit(lambda: nn.unbox(boxed_params(MODEL, jax.random.key(0))))()
    module = family_of(MODEL).module(MODEL)
    prompts = [[1, 2, 3], [5]]
    model = TrainedModel(MODEL, params, Characters(), "toy")
    answers = generate(model, prompts, Sampling(max_new_tokens=12))
    for prompt, answer in zip(prompts, answers):
        ids = np.array([prompt + answer])
        positions_BT = np.arange(ids.shape[1])[None]
        logits_BTV = module.apply({"params": params}, ids, positions_BT)
        greedy = np.argmax(logits_BTV[0, len(prompt) - 1 : -1], axis=-1)
        assert greedy.tolist() == answer


def compile_for_a_pod() -> None:
    """Compiles all programs for 16 chips; runs in a process of its own, which starts libtpu."""
    register(ToyConfig, ToyFamily())
    model = dataclasses.replace(
        MODEL, vocab_size=512, d_model=512, head_dim=128, d_ff=1024, compute_dtype="bfloat16"
    )
    mesh = make_mesh(MeshConfig(fsdp=8, tensor=2), target.devices("v5e:4x4", 1))
    config = dataclasses.replace(toy.stage(seq_len=256, batch_size=16), model=model)
    for lowered in (
        lower_train_step(config, mesh),
        lower_prefill(model, 16, 128, mesh),
        lower_decode(model, 16, 128, mesh),
    ):
        assert lowered.compile().cost_analysis()["flops"] > 0


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (the extra `tpu`)"
)
def test_it_compiles_for_a_pod():
    command = [sys.executable, "-c", f"import {__name__} as test; test.compile_for_a_pod()"]
    settings = {**target.ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, env=os.environ | settings, check=True)
