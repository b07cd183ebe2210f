"""GGUF, the format of llama.cpp: one file with the config, the tokenizer and the weights.

Quantized weights are read as float32. Only the part that is asked for is dequantized, so that no
more than one tensor is in memory.
"""

from __future__ import annotations

import functools

import numpy as np
from etils import epath

from codellama_jax.errors import UserError, name_list
from codellama_jax.models.llama import gguf_metadata, gguf_rope
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.system.files import is_bucket
from codellama_jax.tokenizers import gguf_vocabulary
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.weights.gguf_header import GgufFile, read_header
from codellama_jax.weights.inputs import check_file, file_names
from codellama_jax.weights.layout import Index, Source, check_tensors, names
from codellama_jax.weights.rope_order import half_split

ENDING = ".gguf"
# The tensors whose rows have another order in files of the architecture `llama`.
PERMUTED = ("q", "k", "q_bias", "k_bias")


def file_name(name: str, layer: int) -> str:
    """Returns the name of a tensor in the file."""
    return gguf_metadata.TENSOR_NAMES[name].format(layer)


def is_file(path: epath.Path) -> bool:
    """Returns whether a path is that of a GGUF file, by its name, and not of a folder."""
    return path.name.endswith(ENDING) and not path.is_dir()


def check_none(folder: epath.Path) -> None:
    """Raises UserError if a folder has GGUF files, of which the user must name one."""
    files = [name for name in file_names(folder) if name.endswith(ENDING)]
    if files:
        raise UserError(f"{folder} holds GGUF files: name one, such as {folder / files[0]}")


def open_header(path: epath.Path) -> GgufFile:
    """Returns the header of a GGUF file. Raises UserError if it is missing or cannot be read."""
    if is_bucket(path):
        raise UserError(f"{path}: GGUF is read from a local file; copy it")
    check_file(path)
    return read_header(path)


def read_tokenizer(path: epath.Path) -> Tokenizer | None:
    """Returns the tokenizer in a GGUF file, None if it has none."""
    return gguf_vocabulary.read(open_header(path).metadata, str(path))


def padding(path: epath.Path) -> dict[int, str]:
    """Returns the tokens, by id, that only fill up the vocabulary of a GGUF file."""
    return gguf_vocabulary.padding(open_header(path).metadata, str(path))


def open_source(path: epath.Path) -> Source:
    """Opens a GGUF file.

    Raises UserError for a damaged or incomplete file and for another architecture.
    """
    stored = open_header(path)
    settings = gguf_metadata.architecture_settings(stored.metadata, str(stored.path))
    # Before the model is described: a part of a divided model has few of its tensors.
    _check_undivided(stored)
    model = gguf_metadata.model_config(settings, _rows(stored), stored.tensors)
    if gguf_metadata.ROPE_FACTORS in stored.tensors:
        # Llama 3's RoPE scaling is stored as a factor for each frequency, not as fields of the
        # config.
        factors_H = stored.read(gguf_metadata.ROPE_FACTORS, 0, 1)
        model = gguf_rope.with_factors(model, factors_H, str(stored.path))
    _check_known(stored, model)
    headers = {}
    for key in names(model):
        if file_name(*key) in stored.tensors:
            tensor = stored.tensors[file_name(*key)]
            headers[key] = (tensor.shape, tensor.dtype)
    # Messages name the folder and the file of the config, which are both this file.
    dtypes = check_tensors(stored.path / "its metadata", model, headers, file_name)
    # Only files of the architecture `llama` have Meta's order; qwen2 and others keep transformers'.
    is_permuted = settings.prefix == f"{gguf_metadata.LLAMA}."
    read = functools.partial(_read, stored, model.head_dim if is_permuted else 0)
    context = gguf_metadata.context(settings)
    return Source(str(stored.path), model, context, dtypes, read)


def _rows(stored: GgufFile) -> int:
    """Returns the rows of the embedding. Raises UserError if there is none."""
    name = file_name("embedding", 0)
    table = stored.tensors.get(name)
    if table is None or len(table.shape) != 2:
        problem = f"{stored.path} has no matrix {name}"
        raise UserError(f"{problem}: is it a language model, and complete?")
    return table.shape[0]


def _check_undivided(stored: GgufFile) -> None:
    """Raises UserError for one of the files that a model is divided into."""
    count = stored.metadata.get("split.count", 1)
    if count != 1:
        part = f"one of {count} files of a model"
        raise UserError(f"{stored.path} is {part}: join them with `llama-gguf-split --merge`")


def _check_known(stored: GgufFile, model: LlamaConfig) -> None:
    """Raises UserError for a tensor that would be dropped silently, such as one of a LoRA."""
    known = {file_name(*key) for key in names(model)} | {gguf_metadata.ROPE_FACTORS}
    extra = sorted(set(stored.tensors) - known)
    if extra:
        tensors = name_list(extra)
        raise UserError(f"{stored.path} holds tensors that this model has no place for: {tensors}")


def _read(stored: GgufFile, head_dim: int, name: str, layer: int, index: Index) -> np.ndarray:
    """Returns a part of a tensor; of q and k it consists of complete heads.

    `head_dim` is 0 for files in which q and k have this project's order.
    """
    stored_name = file_name(name, layer)
    shape = stored.tensors[stored_name].shape
    # Rows are consecutive in the file, so that only those of the index are read and dequantized.
    start, stop, _ = index[0].indices(shape[0])
    rows = stored.read(stored_name, start, stop)
    if head_dim and name in PERMUTED:
        # The permutation is inside of heads, so that complete heads can be permuted by themselves.
        rows = half_split(rows, head_dim)
    # A vector is read in full, a matrix only in these rows.
    return rows[index] if len(shape) == 1 else rows[(slice(None), *index[1:])]
