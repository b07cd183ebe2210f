"""The layout of Hugging Face's transformers: config.json and *.safetensors.

Read and written without torch and transformers.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import save_file

from codellama_jax.config import ModelConfig
from codellama_jax.errors import UserError, name_list
from codellama_jax.models.family import family_of, family_of_model_type
from codellama_jax.models.published import Packing
from codellama_jax.sharding.hosts import is_first
from codellama_jax.system.files import is_bucket, reason, write_json
from codellama_jax.system.progress import counted
from codellama_jax.system.settings import Settings, read_settings
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.tokenizers.transformers_files import write_tokenizer
from codellama_jax.weights.folders import complete_folder
from codellama_jax.weights.integrity import write_checksums
from codellama_jax.weights.layout import (
    DTYPES,
    Index,
    Source,
    check_tensors,
    names,
    shapes,
    source_bytes,
)
from codellama_jax.weights.packing import pack, packed_shape, read_part
from codellama_jax.weights.safetensors_files import INDEX, SINGLE, Tensors

MAX_CONTEXT = 1_000_000_000  # tokens; no model has so many, so a larger value is damage
COMPARED_ROWS = 16_384  # of two tables, in memory at once
FILE_BYTES = 1_000_000_000  # largest file written; a file is in memory as one piece
# Ends of names in some older files: RoPE, and masks. They follow from config.json.
COMPUTED = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


def model_config(config: Settings) -> ModelConfig:
    """Returns the config of the model that a config.json describes.

    Raises UserError naming the field whose value is out of range or not implemented.
    """
    return family_of_model_type(config).config_from_transformers(config)


def file_names_of(model: ModelConfig, omitted: str = "") -> Callable[[str, int], str]:
    """Returns a function of (tensor, layer) that returns the tensor's name in the files.

    `omitted` is the start of the names that the files leave out.
    """
    templates = family_of(model).transformers_names(model)

    def file_name(name: str, layer: int) -> str:
        return templates[name].format(layer).removeprefix(omitted)

    return file_name


def open_source(folder: epath.Path) -> Source:
    """Opens a folder that transformers wrote.

    Raises UserError for a missing or damaged file, for more than one model in the folder, and for
    another architecture.
    """
    config = read_settings(folder / "config.json")
    model = model_config(config)
    context = model.longest_sequence()
    context = context or config.integer("max_position_embeddings", MAX_CONTEXT, default=2048)
    tensors = Tensors(folder)
    prefix = family_of(model).base_prefix
    # transformers also saves the base model without the head, whose names lack the first part.
    is_complete = any(name.startswith(prefix) for name in tensors.files)
    file_name = file_names_of(model, "" if is_complete else prefix)
    packings = family_of(model).packing(model, config.values["model_type"])
    described = shapes(model)
    file_shapes = dict(described)
    # Shapes are compared as they are in the file, where one tensor may hold several of the model.
    for name, packing in packings.items():
        file_shapes[name] = packed_shape(packing, described)
    headers = {}
    for key in names(model):
        if file_name(*key) in tensors.files:
            shape, dtype = tensors.header(file_name(*key))
            headers[key] = (shape, DTYPES.get(dtype, dtype))
    known = {file_name(*key) for key in names(model)}
    # Some files of a model with tied embeddings hold the embedding a second time, as the head.
    if model.tied_embeddings:
        known.add(file_name("head", 0))
    # A tensor without a place would be dropped silently, such as a bias or a LoRA adapter.
    extra = [n for n in sorted(tensors.files) if n not in known and not n.endswith(COMPUTED)]
    if extra:
        raise UserError(
            f"{folder} holds tensors that this model has no place for: {name_list(extra)}"
        )
    dtypes = check_tensors(folder / "config.json", model, headers, file_name, file_shapes)
    if model.tied_embeddings and file_name("head", 0) in tensors.files:
        _check_tied(config, tensors, file_name("embedding", 0), file_name("head", 0))

    def read(name: str, layer: int, index: Index) -> np.ndarray:
        stored = functools.partial(tensors.read, file_name(name, layer))
        if name in packings:
            return read_part(packings[name], name, described, index, stored)
        return stored(index)

    return Source(str(folder), model, context, dtypes, read)


def _check_tied(config: Settings, tensors: Tensors, embedding: str, head: str) -> None:
    """Raises UserError if the file of a tied model holds a head that is not its embedding.

    transformers 4 then computes with the embedding, version 5 with the head.
    """
    shape, _ = tensors.header(embedding)
    is_equal = tensors.header(head)[0] == shape
    for start in range(0, shape[0] if is_equal else 0, COMPARED_ROWS):
        index = (slice(start, min(start + COMPARED_ROWS, shape[0])), slice(None))
        first, second = (tensors.read(name, index).astype(np.float32) for name in (embedding, head))
        is_equal = is_equal and np.array_equal(first, second, equal_nan=True)
    if not is_equal:
        raise UserError(
            f"{config.file}: tie_word_embeddings is true, but {head} differs from {embedding}: set"
            f" it to false to keep the separate head, or remove {head} from the weights"
        )


def write(
    source: Source, tokenizer: Tokenizer, folder: epath.Path, integrity: bool = False
) -> None:
    """Writes a folder that transformers, vLLM and llama.cpp's converter load.

    Args:
      source: the model.
      tokenizer: its tokenizer.
      folder: a local folder that does not exist yet.
      integrity: whether to write checksums of the files as well.

    Raises UserError if the folder cannot be written.
    """
    if is_bucket(folder):
        raise UserError(f"safetensors are written to a local folder, not {folder}: copy it then")
    with complete_folder(folder) as part:
        index = _write_tensors(source, part, folder)
        # A single file, model.safetensors, is found without an index.
        if len(set(index.values())) > 1:
            sizes = {"total_size": source_bytes(source)}
            write_json(part / INDEX, {"metadata": sizes, "weight_map": index})
        write_tokenizer(tokenizer, source.model.vocab_size, source.context, part)
        write_json(part / "config.json", _config_of(source, tokenizer))
        # Generation stops at EOS, in infilling at EOT, which a vocabulary without sentinels lacks.
        ends = list(dict.fromkeys((tokenizer.eos_id, tokenizer.eot_id)))
        ends = [end for end in ends if end < source.model.vocab_size]
        generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends}
        write_json(part / "generation_config.json", generation)
        if integrity:
            write_checksums(part)


def _config_of(source: Source, tokenizer: Tokenizer) -> dict[str, Any]:
    model = source.model
    return {
        "max_position_embeddings": model.longest_sequence() or source.context,
        **family_of(model).config_to_transformers(model),
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        # transformers has one type for a model: that of most of its weights.
        "torch_dtype": source.dtypes["embedding"].name,
    }


def _write_tensors(source: Source, part: epath.Path, folder: epath.Path) -> dict[str, str]:
    """Writes the weight files to `part`. Returns the file name of each tensor."""
    model = source.model
    packings = family_of(model).packing(model, model_type(model))
    files = _files(source, packings)
    file_name = file_names_of(model)
    index: dict[str, str] = {}
    with counted("exporting", source_bytes(source), unit="bytes", quiet=not is_first()) as advance:
        for number, keys in enumerate(files, 1):
            count = f"{number:05}-of-{len(files):05}"
            file = f"model-{count}.safetensors" if len(files) > 1 else SINGLE
            tensors = {}
            for name, layer in keys:
                if name in packings:
                    packing = packings[name]
                    parts = [source.tensor(other, layer) for other in packing.parts]
                    tensor = pack(packing, parts)
                else:
                    tensor = source.tensor(name, layer)
                # safetensors writes the buffer as it is, so a transposed view must be copied.
                tensors[file_name(name, layer)] = np.ascontiguousarray(tensor)
                advance(tensor.nbytes)
            save_tensors(tensors, part / file, folder)
            index |= dict.fromkeys(tensors, file)
    return index


def model_type(model: ModelConfig) -> str:
    """Returns the `model_type` of the config.json that describes a model."""
    return family_of(model).config_to_transformers(model)["model_type"]


def save_tensors(tensors: dict[str, np.ndarray], path: epath.Path, folder: epath.Path) -> None:
    """Writes one file of tensors. Raises UserError naming `folder` if the disk is full."""
    try:
        path.touch()  # gives the file the mode that the umask of the user asks for
        mode = path.stat().mode
        # transformers refuses a file without this format.
        save_file(tensors, str(path), metadata={"format": "pt"})
        os.chmod(path, mode)  # safetensors makes it private to the user and ignores the umask
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot write {folder}: {reason(error)}") from error


def _files(source: Source, packings: dict[str, Packing]) -> list[list[tuple[str, int]]]:
    """Returns the (tensor, layer) of each file. Files have at most FILE_BYTES, or one tensor.

    Of tensors that are stored as one, only the first is listed.
    """
    files: list[list[tuple[str, int]]] = [[]]
    size = 0
    described = shapes(source.model)
    # In the order of the layers, so that a reader of one layer opens few files.
    for name, layer in names(source.model):
        parts = packings[name].parts if name in packings else (name,)
        if name != parts[0]:
            continue
        elements = sum(math.prod(described[part]) for part in parts)
        tensor_bytes = elements * source.dtypes[name].itemsize
        if files[-1] and size + tensor_bytes > FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append((name, layer))
        size += tensor_bytes
    return files
