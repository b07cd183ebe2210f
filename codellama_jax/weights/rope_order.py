"""The two orders of the rows of q and k within a head.

RoPE of Meta's code and of llama.cpp rotates the pairs (0, 1), (2, 3), ... of a head of width H;
this project's, like that of transformers, the pairs (i, i + H/2). So the rows of q and k, and their
biases, are permuted between the two orders; q times k is the same in both. v has no RoPE.
"""

from __future__ import annotations

import numpy as np


def half_split(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Returns q or k, [heads * head_dim, ...], with rows in this project's order.

    Rows 2i and 2i + 1 of a head, a pair in Meta's order, move to i and i + head_dim / 2.
    """
    # [heads, H / 2, 2, ...]: the last axis is (first, second) of a pair. Swapped to [heads, 2, H /
    # 2, ...], all first elements of a head come before all second ones.
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def interleaved(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Returns q or k with rows in Meta's order; the inverse of `half_split`."""
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)
