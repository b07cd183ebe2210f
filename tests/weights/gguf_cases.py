"""GGUF files that the tests write with the package gguf, and changes to them."""

import gguf
import numpy as np
import published
from gguf.quants import quant_shape_to_byte_shape

from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.tokenizers import gguf_writing
from codellama_jax.weights.gguf_files import file_name
from codellama_jax.weights.layout import Source, names, shapes

F32 = gguf.GGMLQuantizationType.F32
# As wide as a block of a K-quant.
WIDE = LlamaConfig(20, d_model=256, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=64, d_ff=256)
KEYS = {
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 256,
    "llama.feed_forward_length": 256,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def kind_of(value):
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}
    return gguf.GGUFValueType[kinds[type(value)]]


def write(path, metadata, tensors, architecture="llama"):
    """Writes a file; `tensors` are arrays, or bytes of rows with their type, by name."""
    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in metadata.items():
        writer.add_key_value(key, value, kind_of(value))
    for name, tensor in tensors.items():
        data, qtype = tensor if isinstance(tensor, tuple) else (tensor, F32)
        writer.add_tensor(name, data, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(shape, qtype, rng):
    """Returns random rows of a quantized type. The scales in them are finite."""
    rows = rng.integers(0, 256, quant_shape_to_byte_shape(shape, qtype), np.uint8)
    # Scales are float16: with these bits in the high byte, none is infinite or NaN.
    return rows & 0x3B


def tokenizer_keys(vocab_size=0):
    """Returns the metadata of a trained SentencePiece tokenizer."""
    tokenizer = published.tokenizer()
    return gguf_writing.metadata_of(tokenizer, vocab_size or tokenizer.vocab_size)


def random_source(model, context=64):
    """Returns random tensors as a source, without the parameters that they are parts of."""
    rng = np.random.default_rng(0)
    described = shapes(model)
    tensors = {key: rng.normal(size=described[key[0]]).astype(np.float32) for key in names(model)}

    def read(name, layer, index):
        return tensors[name, layer][index]

    dtypes = dict.fromkeys(described, np.dtype("float32"))
    return Source("memory", model, context, dtypes, read)


def wide_tensors(qtype=F32, seed=0):
    """Returns the tensors of WIDE, matrices in a type."""
    rng = np.random.default_rng(seed)
    tensors = {}
    described = shapes(WIDE)
    for name, layer in names(WIDE):
        shape = described[name]
        if len(shape) == 2 and qtype != F32:
            tensors[file_name(name, layer)] = (blocks(shape, qtype, rng), qtype)
        else:
            tensors[file_name(name, layer)] = rng.normal(size=shape).astype(np.float32)
    return tensors
