"""Toy stages and batches that several tests share."""

import dataclasses

import jax
import numpy as np

from codellama_jax.config import DataConfig, MixtureConfig, ModelConfig, OptimizerConfig, Stage
from codellama_jax.models.llama.config import LlamaConfig

MODEL = LlamaConfig(
    64,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=64,
    compute_dtype="float32",
    remat="none",
)


def stage(seq_len: int = 16, batch_size: int = 8, model: ModelConfig = MODEL, **changes) -> Stage:
    data = DataConfig(seq_len, batch_size, MixtureConfig(code=1.0))
    return dataclasses.replace(
        Stage(model, data, OptimizerConfig(1e-2, warmup_steps=2), steps=10, init="scratch"),
        **changes,
    )


def segments(rng: np.random.Generator, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random segment ids with padding at the end, and the positions in each segment."""
    ids, positions = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
    for row in range(rows):
        cuts = np.sort(rng.choice(np.arange(1, length), 3, replace=False))
        for number, (start, end) in enumerate(zip([0, *cuts[:-1]], cuts)):
            ids[row, start:end] = number + 1
            positions[row, start:end] = np.arange(end - start)
    return ids, positions


def batch(rows: int = 8, length: int = 16, vocab: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    segment_ids, positions = segments(rng, rows, length)
    tokens, targets = (rng.integers(0, vocab, (rows, length)).astype(np.int32) for _ in range(2))
    return {
        "tokens": tokens,
        "targets": targets,
        "segment_ids": segment_ids,
        "positions": positions,
        "weights": (segment_ids > 0).astype(np.float32),
    }


def bytes_by_device(tree: object) -> list[int]:
    """Returns the bytes of arrays on each device."""
    sizes = dict.fromkeys(jax.devices(), 0)
    for array in jax.tree.leaves(tree):
        for shard in array.addressable_shards:
            sizes[shard.device] += shard.data.nbytes
    return list(sizes.values())
