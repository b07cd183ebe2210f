"""Hugging Face's layout: config.json and *.safetensors, read and written without torch."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from codellama_jax.config import ModelConfig
from codellama_jax.errors import UserError
from codellama_jax.tokenizer import Tokenizer
from codellama_jax.weights.layout import DTYPES, Index, Source, check_tensors, names, shapes, some, source_bytes
from codellama_jax.weights.settings import check_heads, describing, number, read_json
from codellama_jax.weights.store import progress, whole_folder
from codellama_jax.weights.tokenizer_files import write_tokenizer

FILE_BYTES = 1_000_000_000  # of one file written, which is in memory as a whole
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
COMPUTED = "rotary_emb.inv_freq"  # some older files hold what config.json says already


def shown(name: str, layer: int) -> str:
    return NAMES[name].format(layer)


def open_source(folder: epath.Path) -> Source:
    """Opens a folder as transformers writes it. Raises UserError for what is missing, damaged, or another architecture."""
    config = read_json(folder / "config.json")
    with describing(f"{folder}/config.json"):
        model, context = model_config(config, str(folder)), number(config, "max_position_embeddings", 2048)
    tied = bool(config.get("tie_word_embeddings", False))
    files = {name: file for file in weight_files(folder) for name in _opened(file).keys()}  # noqa: SIM118, a file of safetensors is no dict
    slot = lambda name, layer: shown("embedding" if name == "head" and tied else name, layer)
    found, opened = {}, {file: _opened(file) for file in set(files.values())}
    for key in names(model):
        if slot(*key) in files:
            header = opened[files[slot(*key)]].get_slice(slot(*key))
            found[key] = (tuple(header.get_shape()), DTYPES.get(header.get_dtype(), header.get_dtype()))
    extra = sorted(n for n in set(files) - {shown(*key) for key in names(model)} if not n.endswith(COMPUTED))
    if extra:
        raise UserError(f"{folder} holds tensors that this model has no place for: {some(extra)}")
    dtypes = check_tensors(str(folder), model, found, slot)

    def read(name: str, layer: int, index: Index) -> np.ndarray:
        return opened[files[slot(name, layer)]].get_slice(slot(name, layer))[index]

    return Source(str(folder), model, context, dtypes, read)


def model_config(config: dict[str, Any], folder: str) -> ModelConfig:
    """Returns the model that a config.json describes. Raises UserError for what a Llama here cannot be, and as `number` does."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    refused = {
        "model_type": config.get("model_type") != "llama",
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "rope_scaling": kind not in ("default", "linear"),
        "quantization_config": config.get("quantization_config"),
    }
    wrong = [f"{name} {rope if name == 'rope_scaling' else config.get(name)!r}" for name, bad in refused.items() if bad]
    if wrong:
        raise UserError(f"{folder} is not a model that can be read here: {', '.join(wrong)}")
    D, N = number(config, "hidden_size"), number(config, "num_attention_heads")
    model = ModelConfig(
        vocab_size=number(config, "vocab_size"),
        d_model=D,
        n_layers=number(config, "num_hidden_layers"),
        n_heads=N,
        n_kv_heads=number(config, "num_key_value_heads", N),
        head_dim=number(config, "head_dim", D // N),
        d_ff=number(config, "intermediate_size"),
        norm_eps=number(config, "rms_norm_eps", 1e-6, float),
        rope_theta=number(config | rope, "rope_theta", 1e4, float),
        rope_scaling=number(rope, "factor", 1.0, float) if kind == "linear" else 1.0,
    )
    return check_heads(model)


def weight_files(folder: epath.Path) -> list[str]:
    """Returns the files that the index names, or all of them where there is none."""
    if "://" in str(folder):
        raise UserError(
            f"{folder}: safetensors are read from a local folder; copy it, or import it on one machine into {folder.parent}/RUN"
        )
    index = folder / "model.safetensors.index.json"
    if index.exists():
        with describing(str(index)):
            files = sorted({str(folder / file) for file in dict(read_json(index)["weight_map"]).values()})
    else:
        files = sorted(map(str, folder.glob("*.safetensors")))
    absent = [file for file in files if not epath.Path(file).exists()]
    if absent or not files:
        hint = "save it with safe_serialization=True" if list(folder.glob("*.bin")) else "is the download complete?"
        raise UserError(f"{folder} has no {some([epath.Path(f).name for f in absent]) if absent else '*.safetensors'}: {hint}")
    return files


def _opened(file: str) -> Any:
    try:
        return safe_open(file, framework="np", backend="pread")  # mapped pages would count as memory
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged: {error}; download it again") from None


def write(source: Source, tokenizer: Tokenizer, folder: epath.Path) -> None:
    """Writes a folder that transformers, vLLM and llama.cpp's converter load as it is. Raises UserError where it cannot be written."""
    if "://" in str(folder):
        raise UserError(f"safetensors are written to a local folder, not {folder}: export there, then copy")
    with whole_folder(folder) as part, progress("exporting", source_bytes(source)) as advance:
        files = _files(source)
        index = {}
        for number, keys in enumerate(files, 1):
            file = f"model-{number:05}-of-{len(files):05}.safetensors" if len(files) > 1 else "model.safetensors"
            tensors = {}
            for name, layer in keys:
                tensors[shown(name, layer)] = np.ascontiguousarray(source.tensor(name, layer))
                advance(tensors[shown(name, layer)].nbytes)
            try:
                save_file(tensors, str(part / file), metadata={"format": "pt"})
            except SafetensorError as error:
                raise UserError(f"cannot write {folder}: {error}") from None
            index |= dict.fromkeys(tensors, file)
        if len(files) > 1:
            text = json.dumps({"metadata": {"total_size": source_bytes(source)}, "weight_map": index}, indent=1)
            (part / "model.safetensors.index.json").write_text(text)
        write_tokenizer(tokenizer, source.model.vocab_size, source.context, part)
        (part / "config.json").write_text(json.dumps(config_of(source, tokenizer), indent=1))
        ends = [tokenizer.eos_id, tokenizer.eot_id]  # an infilled middle ends with EOT
        generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": [end for end in ends if end < source.model.vocab_size]}
        (part / "generation_config.json").write_text(json.dumps(generation, indent=1))


def _files(source: Source) -> list[list[tuple[str, int]]]:
    """Shares the tensors out over files."""
    files: list[list[tuple[str, int]]] = [[]]
    size = 0
    for name, layer in names(source.model):
        own = math.prod(shapes(source.model)[name]) * source.dtypes[name].itemsize
        if files[-1] and size + own > FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append((name, layer))
        size += own
    return files


def config_of(source: Source, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the config.json of a model, in the names that every version of transformers reads."""
    c = source.model
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.d_ff,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": c.rope_scaling} if c.rope_scaling != 1 else None,
        "max_position_embeddings": source.context,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "torch_dtype": source.dtypes["embedding"].name,
    }
