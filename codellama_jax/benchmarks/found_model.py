"""A model before it is loaded, so that what it cannot do is refused without waiting for it."""

from __future__ import annotations

from typing import NamedTuple

from codellama_jax.checkpoints.folder import find_trained
from codellama_jax.generation.settings import Quantization
from codellama_jax.system.files import user_path
from codellama_jax.tokenizers.base import Tokenizer


class FoundModel(NamedTuple):
    """The attributes of a `TrainedModel` that are in the folder of its run."""

    name: str
    tokenizer: Tokenizer
    chat: str = ""


def find_model(run: str, arm: str, stage: str, quantization: Quantization) -> FoundModel:
    """Returns the model that `loading.load_run` loads, quantized. Imports no JAX.

    Raises UserError for a run that does not exist or has not trained.
    """
    folder, config = find_trained(user_path(run), arm, stage)
    name = quantization.named(folder.model_name)
    return FoundModel(name, folder.load_tokenizer(), config.data.chat)
