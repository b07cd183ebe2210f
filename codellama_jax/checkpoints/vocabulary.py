"""Resizes parameters for a vocabulary that grows by the infilling sentinels or sheds padding.

It may also grow to a multiple of STEP above the sentinels, so that a mesh divides it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from codellama_jax.errors import UserError
from codellama_jax.tokenizers.sentinels import SENTINEL_ROWS

# Published vocabularies are padded to a multiple of at most this; with more than LARGE entries, of
# LARGE_PADDING: Qwen2's 151,646 become 152,064.
PADDING, LARGE_PADDING, LARGE = 256, 512, 2**16
STEP = 64  # a vocabulary is padded to a multiple of this


def most_rows(vocab_size: int) -> int:
    """Returns the most rows that an embedding for that many ids has: padded, or with sentinels."""
    padding = PADDING if vocab_size <= LARGE else LARGE_PADDING
    return max(padding * -(-vocab_size // padding), vocab_size + SENTINEL_ROWS)


def is_padded(size: int, entries: int) -> bool:
    """Returns whether `size` is a vocabulary of that many entries, padded for a mesh."""
    return size % STEP == 0 and entries < size <= most_rows(entries)


def check_vocabulary(folder: object, saved: int, size: int) -> None:
    """Raises UserError unless a vocabulary can be resized from `saved` to `size` entries.

    It may stay, grow by the sentinels and by padding, or lose these.
    """
    grown = saved + SENTINEL_ROWS
    if size > saved and size != grown and not is_padded(size, grown):
        multiple = f"or above that to a multiple of {STEP} up to {most_rows(grown)}, not to {size}"
        sizes = f"by the {SENTINEL_ROWS} sentinels to {grown}, {multiple}"
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
    tokens that the model knows (Hewitt 2021, "Initializing New Word Embeddings").

    Where the embeddings are tied, a new row is both. It is drawn with the mean and the covariance
    of the existing ones, as Hewitt and transformers do: its logit is distributed like that of an
    existing token, so that new entries take their share of the vocabulary, rows / V, and not more.
    """
    embedding_VD = params["embedding"]
    V, _ = embedding_VD.shape
    if rows <= V:
        changed = {**params, "embedding": embedding_VD[:rows]}
    else:
        draw = _like_components if "head" in params else _like_rows
        new_VD = draw(embedding_VD, rows - V)
        changed = {**params, "embedding": jnp.concatenate([embedding_VD, new_VD])}
    if "head" in params:
        changed["head"] = _resized_head(params["head"], rows)
    return changed


def _like_components(embedding_VD: jax.Array, count: int) -> jax.Array:
    """Draws rows with the mean and the deviation of each component."""
    _, D = embedding_VD.shape
    # A fixed key: every host draws the same rows, and so does a resume.
    mean_D, deviation_D = embedding_VD.mean(0), embedding_VD.std(0)
    drawn_VD = jax.random.normal(jax.random.key(0), (count, D))
    return mean_D[None] + deviation_D[None] * drawn_VD


def _like_rows(embedding_VD: jax.Array, count: int) -> jax.Array:
    """Draws rows with the mean and the covariance of the existing ones."""
    V, _ = embedding_VD.shape
    centered_VD = embedding_VD - embedding_VD.mean(0)[None]
    # A sum of the rows with normal weights has their covariance, without a matrix of D x D.
    weights_NV = jax.random.normal(jax.random.key(0), (count, V)) / V**0.5
    return embedding_VD.mean(0)[None] + weights_NV @ centered_VD


def _resized_head(head_DV: jax.Array, rows: int) -> jax.Array:
    D, V = head_DV.shape
    if rows <= V:
        return head_DV[:, :rows]
    new_DV = jnp.broadcast_to(head_DV.mean(1, keepdims=True), (D, rows - V))
    return jnp.concatenate([head_DV, new_DV], 1)
