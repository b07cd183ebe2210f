"""The seam between a model family and the rest of the code.

Training, generation, weights, plans and the pod compiler get everything that depends on the
architecture from a `Family`; nothing outside `models/` names one. To add a family:

1. Write a config: a subclass of `config.ModelConfig` with its own `family` tag.
2. Write a Linen module, a decoder and the table of published tensors, as `models/llama` does.
3. Subclass `Family`, or `PackageFamily` where these parts are modules of a package, and call
   `register(MyConfig, MyFamily())`.

This module imports no JAX, so that `launch.py plan` starts at once; a family's methods import what
they need.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from codellama_jax.errors import UserError

if TYPE_CHECKING:
    import flax.linen as nn
    import jax

    from codellama_jax.config import ModelConfig
    from codellama_jax.models.decoding import Cache
    from codellama_jax.models.published import Packing, Place
    from codellama_jax.system.settings import Settings

Config = TypeVar("Config", bound="ModelConfig")


class Family(abc.ABC, Generic[Config]):
    """Everything that the rest of the code needs to know about a model family.

    Parameters are a nested dict. By convention `embedding` is (V, D), `head` is (D, V) and absent
    where the embeddings are tied, and everything under `layers` is stacked along a leading L.
    """

    # Of transformers' config.json; empty if transformers has no such family.
    model_types: tuple[str, ...] = ()
    # The start of its tensors' names that files of a model saved without its head leave out.
    base_prefix = ""
    # The weights of the layers' matmuls by the last part of their dotted names, with the number of
    # their input dims, which come first. They can be quantized, if the module multiplies by them
    # with `layers.project` and the decoder with `quantized.multiply`. Empty: none can be.
    matmul_inputs: Mapping[str, int] = MappingProxyType({})

    @abc.abstractmethod
    def module(self, config: Config) -> nn.Module:
        """Returns the Linen module that trains.

        It is called with (tokens_BT, positions_BT, segment_ids_BT=None) and returns fp32
        logits_BTV. Its method `hidden(tokens_BT, positions_BT, segment_ids_BT=None)` returns the
        normalised last activations x_BTD, and `unembed(x_BTD)` fp32 logits_BTV. Parameters carry
        logical axes, which `sharding/mesh.py` maps to mesh axes. Where `config.has_dropout()`,
        `hidden` takes `sequences_B` after them in training (see `layers.Inputs`).
        """

    @abc.abstractmethod
    def positions(self, config: Config) -> str:
        """Returns how the model encodes positions, in a few words for plans and reports."""

    def depends_on_length(self, config: Config) -> bool:
        """Returns whether logits depend on how long the sequence is, and not on its tokens alone.

        Padding after a sequence must then be marked by segment ids.
        """
        return False

    @abc.abstractmethod
    def parameter_count(self, config: Config) -> int:
        """Returns the number of parameters, embedding and head included."""

    @abc.abstractmethod
    def multiplied_parameters(self, config: Config) -> int:
        """Returns the number of parameters that take part in a matmul for every token.

        The output head counts; an embedding lookup, norms and biases do not.
        """

    def attention_layers(self, config: Config) -> int:
        """Returns the number of layers with attention, each with its keys and values."""
        return config.n_layers

    @abc.abstractmethod
    def decays(self, path: str) -> bool:
        """Returns whether weight decay applies to the parameter of this dotted path."""

    @abc.abstractmethod
    def prepare(self, config: Config, params: dict) -> Any:
        """Returns the parameters in the compute dtype and the layout of `prefill` and `step`.

        It runs once per loaded model (`TrainedModel.decoding_weights`), so copies cost little. The
        layout should suit `step`, which reads every weight for one token per sequence.
        """

    @abc.abstractmethod
    def weight_specs(self, config: Config) -> Any:
        """Returns the PartitionSpec of each array that `prepare` returns."""

    @abc.abstractmethod
    def prefill(
        self, config: Config, weights: Any, tokens_BT: jax.Array, lengths_B: jax.Array
    ) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
        """Returns fp32 logits_BV after each prompt, and each layer's keys and values, both _BTKH.

        Args:
          config: the model.
          weights: as `prepare` returned them.
          tokens_BT: prompts, int32, padded on the right to T.
          lengths_B: their lengths in tokens, at least 1.
        """

    @abc.abstractmethod
    def step(
        self,
        config: Config,
        weights: Any,
        cache: Cache,
        tokens_B: jax.Array,
        positions_B: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """Returns fp32 logits_BV after one more token per sequence, and the cache with it.

        Args:
          config: the model.
          weights: as `prepare` returned them.
          cache: keys and values of the earlier tokens.
          tokens_B, positions_B: the tokens and their positions, int32.
        """

    def extend(
        self,
        config: Config,
        weights: Any,
        cache: Cache,
        tokens_RT: jax.Array,
        starts_R: jax.Array,
        lengths_R: jax.Array | None = None,
        slots_R: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Reads T more tokens per sequence after those in the cache, as T calls of `step` would.

        Returns fp32 logits_RV after the last token of each sequence, or logits_RTV after all tokens
        without `lengths_R`; and the cache. The default calls `step`: right, but slow. Padding is
        written to the cache too, where the next tokens will be.

        Args:
          config: the model.
          weights: as `prepare` returned them.
          cache: keys and values of the earlier tokens.
          tokens_RT: the tokens, int32, padded on the right.
          starts_R: how many tokens of each sequence precede them.
          lengths_R: how many of the tokens are no padding, at least 1.
          slots_R: the sequences of the cache that they belong to, as `decoding.rows_of` takes them;
            None for all, in order.
        """
        import jax.numpy as jnp

        from codellama_jax.models.decoding import extend_by_steps

        arrays = (tokens_RT, starts_R, slots_R)
        logits_RTV, cache = extend_by_steps(config, weights, cache, *arrays)
        if lengths_R is None:
            return logits_RTV, cache
        # The last real token of each sequence; padding follows it.
        ends_R11 = lengths_R[:, None, None] - 1
        return jnp.take_along_axis(logits_RTV, ends_R11, axis=1)[:, 0], cache

    @abc.abstractmethod
    def places(self, config: Config) -> dict[str, Place]:
        """Returns where each published tensor is in our parameters."""

    def transformers_names(self, config: Config) -> dict[str, str]:
        """Returns transformers' name of each published tensor, `{}` in place of the layer."""
        raise UserError(f"models of the family {config.family} have no layout of transformers")

    def packing(self, config: Config, model_type: str) -> dict[str, Packing]:
        """Returns how transformers' files of a type store published tensors, by their names.

        Tensors that are not listed are stored as they are.
        """
        return {}

    def config_from_transformers(self, settings: Settings) -> Config:
        """Returns the model that a config.json of one of `model_types` describes.

        Raises UserError naming the field for a value out of range and for what is not implemented.
        """
        raise UserError(f"{settings.file}: models of this type are not read")

    def config_to_transformers(self, config: Config) -> dict[str, Any]:
        """Returns the fields of config.json that describe the model."""
        raise UserError(f"models of the family {config.family} have no layout of transformers")


class PackageFamily(Family[Config]):
    """A family whose parts are modules of a package, imported when a method needs them.

    Methods: see `Family`.
    """

    @abc.abstractmethod
    def decoder(self) -> Any:
        """Returns the module with `prepare`, `weight_specs`, `prefill`, `step` and `extend`."""

    @abc.abstractmethod
    def published(self) -> Any:
        """Returns the module with `places` and `TRANSFORMERS_NAMES`."""

    @abc.abstractmethod
    def config_json(self) -> Any:
        """Returns the module with `model_config` and `config_of`."""

    def prepare(self, config: Config, params: dict) -> Any:
        return self.decoder().prepare(config, params)

    def weight_specs(self, config: Config) -> Any:
        return self.decoder().weight_specs(config)

    def prefill(
        self, config: Config, weights: Any, tokens_BT: jax.Array, lengths_B: jax.Array
    ) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
        return self.decoder().prefill(config, weights, tokens_BT, lengths_B)

    def step(
        self,
        config: Config,
        weights: Any,
        cache: Cache,
        tokens_B: jax.Array,
        positions_B: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        return self.decoder().step(config, weights, cache, tokens_B, positions_B)

    def extend(
        self,
        config: Config,
        weights: Any,
        cache: Cache,
        tokens_RT: jax.Array,
        starts_R: jax.Array,
        lengths_R: jax.Array | None = None,
        slots_R: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        arrays = (tokens_RT, starts_R, lengths_R, slots_R)
        return self.decoder().extend(config, weights, cache, *arrays)

    def places(self, config: Config) -> dict[str, Place]:
        return self.published().places(config)

    def transformers_names(self, config: Config) -> dict[str, str]:
        return self.published().TRANSFORMERS_NAMES

    def config_from_transformers(self, settings: Settings) -> Config:
        return self.config_json().model_config(settings)

    def config_to_transformers(self, config: Config) -> dict[str, Any]:
        return self.config_json().config_of(config)


# By the exact class of the config, since a subclass may be another architecture.
_FAMILIES: dict[type, Family[Any]] = {}


def register(config_class: type[Config], family: Family[Config]) -> None:
    """Makes `family_of` return `family` for configs of a class."""
    _FAMILIES[config_class] = family


def family_of(config: Config) -> Family[Config]:
    """Returns the family of a model. Raises TypeError for a config that none is registered for."""
    if type(config) not in _FAMILIES:
        raise TypeError(f"no model family is registered for {type(config).__name__}")
    return _FAMILIES[type(config)]


def family_of_model_type(settings: Settings) -> Family[Any]:
    """Returns the family of transformers' config.json. Raises UserError listing the known ones."""
    known: dict[str, Family[Any]] = {}
    for family in _FAMILIES.values():
        known |= dict.fromkeys(family.model_types, family)
    model_type = settings.values.get("model_type")
    if not isinstance(model_type, str) or model_type not in known:
        raise settings.error("model_type", " or ".join(repr(name) for name in known))
    return known[model_type]


def boxed_params(config: ModelConfig, key: jax.Array) -> dict:
    """Returns freshly drawn parameters that still carry their logical axes."""
    import jax.numpy as jnp

    # Parameters do not depend on the shape of the input, so a tiny one initialises them.
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    return family_of(config).module(config).init(key, tokens_BT, tokens_BT)["params"]


def output_head(params: dict) -> jax.Array:
    """Returns head_DV: the transposed embedding where the embeddings are tied."""
    return params["head"] if "head" in params else params["embedding"].T
