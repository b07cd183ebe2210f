"""How attention to a distant token decays with the RoPE base (Code Llama, figure 9a)."""

from __future__ import annotations

import numpy as np


def decay(
    distances_N: np.ndarray, theta: float, scaling: float = 1.0, dim: int = 1024
) -> np.ndarray:
    """Returns the expected attention score of equal queries and keys, relative to distance 0.

    It is the mean of cos(distance / scaling x theta^(-2i / dim)) over the pairs i of a head, and
    depends on no trained parameter (after Sun et al. 2023).

    Args:
      distances_N: distances in tokens, [N].
      theta: the RoPE base.
      scaling: the divisor of positions under linear interpolation.
      dim: the size of a head; the paper's figure takes 1,024.

    Returns:
      float64 [N].
    """
    # Equal queries and keys keep the cosines only: the sines of a pair cancel.
    frequencies_I = theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    angles_NI = np.asarray(distances_N, np.float64)[:, None] / scaling * frequencies_I[None]
    # At distance 0 all cosines are 1, so that the mean is already relative to it.
    return np.cos(angles_NI).mean(axis=1)
