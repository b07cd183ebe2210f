"""How attention to a distant token decays with the RoPE base (Code Llama, figure 9a)."""

from __future__ import annotations

import numpy as np


def decay(
    distances_N: np.ndarray, theta: float, scaling: float = 1.0, dim: int = 1024
) -> np.ndarray:
    """Returns the expected product of a query and a key that are alike, so many tokens apart, as a share of that at distance 0.

    It is the mean of cos(distance / scaling x theta^(-2i / dim)) over the pairs i of a head, whatever the head has learned
    (after Sun et al. 2023); `dim` is the paper's. float64 [N].
    """
    frequencies_I = theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    return np.cos(
        np.asarray(distances_N, np.float64)[:, None] / scaling * frequencies_I[None]
    ).mean(axis=1)
