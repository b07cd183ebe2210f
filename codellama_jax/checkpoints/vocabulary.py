"""Resizes parameters for a vocabulary that grows by the infilling sentinels or sheds padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from codellama_jax.errors import UserError
from codellama_jax.tokenizers.sentinels import SENTINEL_ROWS

# Published vocabularies are padded to a multiple of at most this; with more than LARGE entries, of
# LARGE_PADDING: Qwen2's 151,646 become 152,064.
PADDING, LARGE_PADDING, LARGE = 256, 512, 2**16


def most_rows(vocab_size: int) -> int:
    """Returns the most rows that an embedding for that many ids has: padded, or with sentinels."""
    padding = PADDING if vocab_size <= LARGE else LARGE_PADDING
    return max(padding * -(-vocab_size // padding), vocab_size + SENTINEL_ROWS)


def check_vocabulary(folder: object, saved: int, size: int) -> None:
    """Raises UserError unless a vocabulary can be resized from `saved` to `size` entries.

    It may stay, grow by the sentinels, or lose these or padding.
    """
    if size > saved and size != saved + SENTINEL_ROWS:
        sizes = f"by the {SENTINEL_ROWS} sentinels to {saved + SENTINEL_ROWS}, not to {size}"
        raise UserError(f"{folder} has vocab_size {saved}: it can grow {sizes}")
    # Fewer entries than that are no padding: their ids were trained and would become invalid.
    if saved > most_rows(size):
        sizes = f"vocab_size is {saved:,} there and {size:,} here"
        fix = "use its own tokenizer and vocab_size"
        raise UserError(f"{folder}: {sizes}: {saved - size:,} trained rows would be lost; {fix}")


def resized(params: dict, rows: int) -> dict:
    """Returns parameters with that many rows of embedding_VD and columns of head_DV.

    A new embedding is drawn from a normal with the mean and deviation of the existing ones, per
    component: it is as long as they are, and no two are equal. A new column of the head is the mean
    of the existing ones: its logit is the average one, which takes next to no probability from the
    tokens that the model knows (Hewitt 2021, "Initializing New Word Embeddings"). A model with tied
    embeddings has no head.
    """
    changed = {**params, "embedding": _resized_embedding(params["embedding"], rows)}
    if "head" in params:
        changed["head"] = _resized_head(params["head"], rows)
    return changed


def _resized_embedding(embedding_VD: jax.Array, rows: int) -> jax.Array:
    V, D = embedding_VD.shape
    if rows <= V:
        return embedding_VD[:rows]
    # A fixed key: every host draws the same rows, and so does a resume.
    mean_D, deviation_D = embedding_VD.mean(0), embedding_VD.std(0)
    drawn_VD = jax.random.normal(jax.random.key(0), (rows - V, D))
    return jnp.concatenate([embedding_VD, mean_D[None] + deviation_D[None] * drawn_VD])


def _resized_head(head_DV: jax.Array, rows: int) -> jax.Array:
    D, V = head_DV.shape
    if rows <= V:
        return head_DV[:, :rows]
    new_DV = jnp.broadcast_to(head_DV.mean(1, keepdims=True), (D, rows - V))
    return jnp.concatenate([head_DV, new_DV], 1)
