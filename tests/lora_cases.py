"""Adapters of toy models that several tests share, and runs that hold them."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import toy

from codellama_jax.checkpoints.base import Base
from codellama_jax.checkpoints.checkpoint import Checkpoints
from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.config import LoraConfig, MeshConfig, ModelConfig, Stage, to_dict
from codellama_jax.models.lora import boxed_adapters, freezer
from codellama_jax.models.parameters import dotted
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.training.step import with_fresh_optimizer


def random_adapters(model: ModelConfig, lora: LoraConfig, seed: int = 0) -> dict:
    """Returns adapters whose B is not 0, so that they change the model."""
    adapters = nn.unbox(boxed_adapters(model, lora, jax.random.key(seed)))
    leaves, tree = jax.tree.flatten(adapters)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    drawn = [a + 0.1 * jax.random.normal(key, a.shape) for key, a in zip(keys, leaves)]
    return jax.tree.unflatten(tree, drawn)


def frozen(model: ModelConfig, lora: LoraConfig, params: dict) -> dict:
    """Returns copies of parameters as they are frozen; a train step deletes its arguments."""
    freeze = freezer(model, lora)

    def leaf(path, w):
        return freeze(dotted(path), jnp.array(w, copy=True))

    return jax.tree_util.tree_map_with_path(leaf, params)


def write_stage(folder: Path, stage: Stage, params: dict, base: Base | None = None) -> StageFolder:
    """Writes the checkpoint of a stage that has trained 0 steps."""
    written = StageFolder(folder)
    checkpoints = Checkpoints(written.checkpoints, stage)
    with on_mesh(make_mesh(MeshConfig())):
        state = with_fresh_optimizer(stage, jax.tree.map(jnp.asarray, params))
        checkpoints.save(0, state, {}, 0, base.reference(written) if base else None)
    checkpoints.wait()
    checkpoints.close()
    (folder / "config.json").write_text(json.dumps(to_dict(stage)))
    written.mark_done(0, 0)
    return written


def adapted_stage(lora: LoraConfig, **changes) -> Stage:
    return toy.stage(init="run:base", lora=lora, **changes)
