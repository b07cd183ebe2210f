"""Writes a model as one GGUF file, which llama.cpp runs without a conversion.

Matrices are written in the type that the user names, vectors in float32, as llama.cpp's converter
does. Only one tensor is in memory at any time.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import quant_shape_to_byte_shape, quantize

from codellama_jax.errors import UserError
from codellama_jax.models.llama import gguf_metadata, gguf_rope
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.sharding.hosts import is_first
from codellama_jax.system.files import is_bucket
from codellama_jax.system.progress import counted
from codellama_jax.tokenizers import gguf_writing as tokenizers
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.weights.folders import complete_folder
from codellama_jax.weights.gguf_files import PERMUTED, file_name
from codellama_jax.weights.integrity import write_checksums
from codellama_jax.weights.layout import Source, names, shapes, source_bytes
from codellama_jax.weights.rope_order import interleaved

NAME = "model.gguf"
FILE_TYPES = {  # general.file_type of each type of weights
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
}
TYPE_OF = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}  # by dtype of the weights
QUANTIZATION_VERSION = 2  # of ggml's formats


def write(
    source: Source,
    tokenizer: Tokenizer,
    folder: epath.Path,
    kind: str = "",
    integrity: bool = False,
) -> None:
    """Writes a folder with the file model.gguf.

    Args:
      source: the model.
      tokenizer: its tokenizer.
      folder: a local folder that does not exist yet.
      kind: the type of matrices, a key of FILE_TYPES; "" for that of the source's embedding.
      integrity: whether to write checksums of the file as well.

    Raises UserError for a model or tokenizer that llama.cpp does not run, and if the folder cannot
    be written.
    """
    if is_bucket(folder):
        raise UserError(f"GGUF is written to a local folder, not {folder}: copy it then")
    model = _llama_config(source)
    kind = kind or TYPE_OF[source.dtypes["embedding"].name]
    metadata = {
        **gguf_metadata.metadata_of(model, source.context),
        "general.type": "model",
        "general.name": folder.name,
        "general.file_type": int(FILE_TYPES[kind]),
        "general.quantization_version": QUANTIZATION_VERSION,
        **tokenizers.metadata_of(tokenizer, model.vocab_size),
    }
    with complete_folder(folder) as part:
        _write_file(source, model, kind, metadata, part / NAME)
        if integrity:
            write_checksums(part)


def _llama_config(source: Source) -> LlamaConfig:
    """Returns the model's config. Raises UserError if llama.cpp cannot run it from this file."""
    model, fix = source.model, "export it --to hf"
    if not isinstance(model, LlamaConfig):
        kind = f"is of the family {model.family}, which is not written as GGUF"
        raise UserError(f"{source.name} {kind}: {fix}")
    if model.rope_type == "dynamic":
        raise UserError(f"{source.name} has dynamic RoPE, which llama.cpp lacks: {fix}")
    return model


def _write_file(
    source: Source, model: LlamaConfig, kind: str, metadata: dict[str, Any], path: epath.Path
) -> None:
    writer = GGUFWriter(str(path), metadata.pop("general.architecture"))
    for key, value in metadata.items():
        if value is not None:
            writer.add_key_value(key, value, _value_type(value))
    # The header comes first, so the sizes of all tensors are needed before their values.
    for name, shape, qtype in _described(model, kind):
        stored = shape
        # The writer takes the shapes of quantized and of bfloat16 tensors in bytes.
        if qtype.name not in ("F32", "F16"):
            stored = quant_shape_to_byte_shape(shape, qtype)
        block, size = GGML_QUANT_SIZES[qtype]
        nbytes = int(np.prod(shape)) // block * size
        dtype = {"F32": np.float32, "F16": np.float16}.get(qtype.name, np.uint8)
        writer.add_tensor_info(name, stored, np.dtype(dtype), nbytes, raw_dtype=qtype)
    total = source_bytes(source)
    with counted("exporting", total, unit="bytes", quiet=not is_first()) as advance:
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor, (_, _, qtype) in zip(_tensors(source, model), _described(model, kind)):
                # By way of float32, in which the values of every other dtype are exact.
                writer.write_tensor_data(quantize(tensor.astype(np.float32), qtype))
                advance(tensor.nbytes)
        except OSError as error:
            # numpy reports a short write without its cause, which is a full disk.
            if error.errno is None:
                raise OSError(errno.ENOSPC, "no space left on the device") from error
            raise
        finally:
            writer.close()


def _described(
    model: LlamaConfig, kind: str
) -> Iterator[tuple[str, tuple[int, ...], GGMLQuantizationType]]:
    """Yields name, shape and type of each tensor of the file, in its order."""
    described = shapes(model)
    for name, layer in names(model):
        yield file_name(name, layer), described[name], _type_of(described[name], kind)
    if model.rope_type == "llama3":
        # llama.cpp has no field for Llama 3's RoPE scaling: it reads the factors as a tensor.
        yield gguf_metadata.ROPE_FACTORS, (model.head_dim // 2,), GGMLQuantizationType.F32


def _type_of(shape: tuple[int, ...], kind: str) -> GGMLQuantizationType:
    """Returns the type of a tensor: vectors stay float32, rows that no block fits become F16."""
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    qtype = GGMLQuantizationType[kind.upper()]
    block, _ = GGML_QUANT_SIZES[qtype]
    # A block of Q8_0 has 32 values of one row: other widths cannot be divided into blocks.
    return GGMLQuantizationType.F16 if shape[-1] % block else qtype


def _tensors(source: Source, model: LlamaConfig) -> Iterator[np.ndarray]:
    """Yields the tensors in the order of `_described`."""
    is_permuted = gguf_metadata.architecture_of(model) == gguf_metadata.LLAMA
    for name, layer in names(model):
        tensor = source.tensor(name, layer)
        # llama.cpp rotates neighbouring rows of a head in this architecture: see `rope_order`.
        if is_permuted and name in PERMUTED:
            tensor = interleaved(tensor, model.head_dim)
        yield tensor
    if model.rope_type == "llama3":
        yield gguf_rope.factors_of(model)


def _value_type(value: Any) -> GGUFValueType:
    """Returns the type that llama.cpp expects of a value of the metadata."""
    if isinstance(value, bool):
        return GGUFValueType.BOOL
    if isinstance(value, int):
        return GGUFValueType.UINT32
    kinds = {float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING, list: GGUFValueType.ARRAY}
    return kinds[type(value)]
