"""Hugging Face's layout: config.json and *.safetensors, read and written without torch."""

from __future__ import annotations

import math
import os

import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import save_file

from codellama_jax.errors import UserError
from codellama_jax.sharding.hosts import is_first
from codellama_jax.system.files import is_bucket, reason, write_json
from codellama_jax.system.progress import counted
from codellama_jax.tokenizers.sentencepiece import Tokenizer
from codellama_jax.tokenizers.transformers_files import write_tokenizer
from codellama_jax.weights.config_files import read_settings
from codellama_jax.weights.config_json import config_of, context_length, model_config
from codellama_jax.weights.folders import whole_folder
from codellama_jax.weights.integrity import write_checksums
from codellama_jax.weights.layout import (
    DTYPES,
    Index,
    Source,
    check_tensors,
    names,
    shapes,
    some,
    source_bytes,
)
from codellama_jax.weights.safetensors_files import INDEX, SINGLE, Tensors

FILE_BYTES = 1_000_000_000  # of one file written, all of which is in memory at once
NAMES = {
    "embedding": "model.embed_tokens.weight",
    "attention_norm": "model.layers.{}.input_layernorm.weight",
    "q": "model.layers.{}.self_attn.q_proj.weight",
    "k": "model.layers.{}.self_attn.k_proj.weight",
    "v": "model.layers.{}.self_attn.v_proj.weight",
    "o": "model.layers.{}.self_attn.o_proj.weight",
    "ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
}
COMPUTED = "rotary_emb.inv_freq"  # some older files store it, though config.json determines it


def file_name(name: str, layer: int) -> str:
    """Returns the name of a tensor in the files."""
    return NAMES[name].format(layer)


def open_source(folder: epath.Path) -> Source:
    """Opens a folder that transformers wrote.

    Raises UserError for what is missing, damaged, ambiguous, or another architecture.
    """
    config = read_settings(folder / "config.json")
    model, context = model_config(config), context_length(config)
    tied = config.flag("tie_word_embeddings")
    tensors = Tensors(folder)

    def stored_name(name: str, layer: int) -> str:
        return file_name("embedding" if name == "head" and tied else name, layer)

    found = {}
    for key in names(model):
        if stored_name(*key) in tensors.files:
            shape, dtype = tensors.header(stored_name(*key))
            found[key] = (shape, DTYPES.get(dtype, dtype))
    known = {file_name(*key) for key in names(model)}
    extra = [n for n in sorted(tensors.files) if n not in known and not n.endswith(COMPUTED)]
    if extra:
        raise UserError(f"{folder} holds tensors that this model has no place for: {some(extra)}")
    dtypes = check_tensors(folder / "config.json", model, found, stored_name)

    def read(name: str, layer: int, index: Index) -> np.ndarray:
        return tensors.read(stored_name(name, layer), index)

    return Source(str(folder), model, context, dtypes, read)


def write(
    source: Source, tokenizer: Tokenizer, folder: epath.Path, integrity: bool = False
) -> None:
    """Writes a folder that transformers, vLLM and llama.cpp's converter load.

    Args:
      source: the model.
      tokenizer: its tokenizer.
      folder: a local folder that does not exist yet.
      integrity: writes checksums of the files, too.

    Raises UserError where the folder cannot be written.
    """
    if is_bucket(folder):
        raise UserError(f"safetensors are written to a local folder, not {folder}: copy it then")
    with whole_folder(folder) as part:
        index = _write_tensors(source, part, folder)
        if len(set(index.values())) > 1:
            sizes = {"total_size": source_bytes(source)}
            write_json(part / INDEX, {"metadata": sizes, "weight_map": index})
        write_tokenizer(tokenizer, source.model.vocab_size, source.context, part)
        write_json(part / "config.json", config_of(source, tokenizer))
        ends = [tokenizer.eos_id, tokenizer.eot_id]  # an infilled middle ends with EOT
        ends = [end for end in ends if end < source.model.vocab_size]
        generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends}
        write_json(part / "generation_config.json", generation)
        if integrity:
            write_checksums(part)


def _write_tensors(source: Source, part: epath.Path, folder: epath.Path) -> dict[str, str]:
    """Writes the files of weights. Returns the file of each tensor."""
    files = _files(source)
    index: dict[str, str] = {}
    with counted("exporting", source_bytes(source), unit="bytes", quiet=not is_first()) as advance:
        for number, keys in enumerate(files, 1):
            count = f"{number:05}-of-{len(files):05}"
            file = f"model-{count}.safetensors" if len(files) > 1 else SINGLE
            tensors = {}
            for name, layer in keys:
                tensors[file_name(name, layer)] = np.ascontiguousarray(source.tensor(name, layer))
                advance(tensors[file_name(name, layer)].nbytes)
            _save(tensors, part / file, folder)
            index |= dict.fromkeys(tensors, file)
    return index


def _save(tensors: dict[str, np.ndarray], path: epath.Path, folder: epath.Path) -> None:
    """Writes one file. Raises UserError naming the folder if there is no room."""
    try:
        path.touch()
        mode = path.stat().mode
        save_file(tensors, str(path), metadata={"format": "pt"})
        os.chmod(path, mode)  # safetensors makes it private to the user, whatever the umask
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot write {folder}: {reason(error)}") from error


def _files(source: Source) -> list[list[tuple[str, int]]]:
    """Distributes the tensors over files of at most FILE_BYTES."""
    files: list[list[tuple[str, int]]] = [[]]
    size = 0
    for name, layer in names(source.model):
        tensor_bytes = math.prod(shapes(source.model)[name]) * source.dtypes[name].itemsize
        if files[-1] and size + tensor_bytes > FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append((name, layer))
        size += tensor_bytes
    return files
