"""A trained model in memory, and the shapes of a model's parameters on a mesh."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
from flax.core import meta
from jax.sharding import Mesh

from codellama_jax.config import LoraConfig, ModelConfig
from codellama_jax.models import decoding
from codellama_jax.models.family import boxed_params
from codellama_jax.models.lora import boxed_adapters
from codellama_jax.sharding.mesh import check_sharded, on_mesh, on_mesh_of, shardings

if TYPE_CHECKING:
    from codellama_jax.generation.drafts import Drafter
    from codellama_jax.tokenizers.sentencepiece import Tokenizer


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with its tokenizer, as generation, probes and benchmarks use it."""

    config: ModelConfig
    params: dict
    tokenizer: Tokenizer
    name: str
    # How decoding stores keys and values: see `decoding.KV_CACHES`.
    kv_cache: str = "none"
    # The chat format that it was trained with, "" for none: see `tokenizers.chat.FORMATS`.
    chat: str = ""
    # Drafts tokens that decoding checks several at a time; None for none.
    drafter: Drafter | None = None

    @functools.cached_property
    def decoding_weights(self) -> Any:
        """The weights that prefill and decoding read, on the mesh of `params`.

        They are a copy of the parameters in another layout (`decoding.prepare`), made when first
        used and kept as long as the model.
        """
        config = decoding.for_decoding(self.config)
        with on_mesh_of(self.params, decoding.LOGICAL_AXES):
            return jax.block_until_ready(decoding.prepare(config, self.params))

    @property
    def is_prepared(self) -> bool:
        """Whether `decoding_weights` are in memory."""
        return "decoding_weights" in vars(self)


def placed_shapes(boxed: Any, mesh: Mesh) -> Any:
    """Returns shapes, dtypes and shardings of a tree.

    boxed: the result of `jax.eval_shape`, in which parameters carry their logical axes.
    """

    def is_box(leaf):
        return isinstance(leaf, meta.AxisMetadata)

    # Without the boxes, whose logical axes become the shardings below.
    plain = jax.tree.map(lambda leaf: leaf.value if is_box(leaf) else leaf, boxed, is_leaf=is_box)
    placed = shardings(boxed, mesh)
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), plain, placed
    )


def abstract_params(model: ModelConfig, mesh: Mesh) -> dict:
    """Returns shapes, dtypes and shardings of a model's parameters, without allocating them.

    Raises UserError if the mesh leaves too many of them replicated.
    """
    with on_mesh(mesh):
        boxed = jax.eval_shape(lambda: boxed_params(model, jax.random.key(0)))
        params = placed_shapes(boxed, mesh)
    check_sharded(params, jax.tree.map(lambda a: a.sharding, params), mesh)
    return params


def abstract_adapters(model: ModelConfig, lora: LoraConfig, mesh: Mesh) -> dict:
    """Returns shapes, dtypes and shardings of a model's adapters, without allocating them."""
    with on_mesh(mesh):
        boxed = jax.eval_shape(lambda: boxed_adapters(model, lora, jax.random.key(0)))
        return placed_shapes(boxed, mesh)
