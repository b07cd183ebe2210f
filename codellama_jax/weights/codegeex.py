"""The layout of CodeGeeX: one file of torch.save, nested dicts of tensors, without a config.

The model follows from the shapes: a published size with as many layers of that width.
"""

from __future__ import annotations

import numpy as np
from etils import epath

from codellama_jax.errors import UserError, name_list
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.gpt.published import CODEGEEX_NAMES
from codellama_jax.models.gpt.sizes import CODEGEEX
from codellama_jax.weights.inputs import file_names
from codellama_jax.weights.layout import Index, Source, check_tensors, names
from codellama_jax.weights.torch_file import Stored, read_pickled

ROOT = "language_model."  # the published names start after this


def file_name(name: str, layer: int) -> str:
    """Returns the name of a tensor in CodeGeeX's file."""
    return CODEGEEX_NAMES[name].format(layer)


def weight_files(folder: epath.Path) -> list[str]:
    """Returns the names of files in a folder that may hold a CodeGeeX."""
    return [name for name in file_names(folder) if name.endswith(".pt")]


def open_source(folder: epath.Path) -> Source:
    """Opens a folder with CodeGeeX's file, *.pt.

    Raises UserError for a missing or damaged file, for several, and for another model.
    """
    files = weight_files(folder)
    if len(files) != 1:
        shown = name_list(files) if files else "none"
        raise UserError(f"{folder} must hold one file *.pt of CodeGeeX, and has {shown}")
    path = folder / files[0]
    stored = {}
    for name, tensor in read_pickled(path).items():
        stored[name.partition(ROOT)[2] or name] = tensor
    model = _model(path, stored)
    known = {file_name(*key) for key in names(model)}
    extra = sorted(set(stored) - known)
    if extra:
        tensors = name_list(extra)
        raise UserError(f"{path} holds tensors that CodeGeeX has no place for: {tensors}")
    headers = {}
    for key in names(model):
        if file_name(*key) in stored:
            tensor = stored[file_name(*key)]
            headers[key] = (tensor.shape, tensor.dtype)
    dtypes = check_tensors(path, model, headers, file_name)

    def read(name: str, layer: int, index: Index) -> np.ndarray:
        return stored[file_name(name, layer)].read(index)

    return Source(str(folder), model, model.n_positions, dtypes, read)


def _model(path: epath.Path, stored: dict[str, Stored]) -> GPTConfig:
    """Returns the published size that the tensors are of. Raises UserError if there is none."""
    table = file_name("embedding", 0)
    if table not in stored or len(stored[table].shape) != 2:
        raise UserError(f"{path} has no {table}: is it CodeGeeX's file, and complete?")
    # The file has no number of heads, so the size must be known. A query bias per layer is counted.
    width = stored[table].shape[1]
    layers = 0
    while file_name("q_bias", layers) in stored:
        layers += 1
    for model in CODEGEEX.values():
        if (model.n_layers, model.d_model) == (layers, width):
            return model
    sizes = [f"{model.n_layers} x {model.d_model}" for model in CODEGEEX.values()]
    problem = f"{path} has {layers} layers of width {width} below the top query layer"
    raise UserError(f"{problem}, which no published CodeGeeX has: {', '.join(sizes)}")
