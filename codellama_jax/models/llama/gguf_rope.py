"""llama3 scaling of RoPE in GGUF files: a tensor of factors in place of its settings.

Frequency i of RoPE is divided by factor i: 1 for high frequencies, the largest factor for low ones,
between them interpolated (`llama3_frequencies`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from codellama_jax.errors import UserError
from codellama_jax.models.layers import rope_frequencies
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.llama.rope import llama3_frequencies
from codellama_jax.models.llama.rope_json import MAX_FACTOR

# The settings of Llama 3.1 to 3.3, tried before others are computed from the factors.
LOW, HIGH, ORIGINAL = 1.0, 4.0, 8192
TOLERANCE = 1e-4  # of a factor, relative; the file has them in float32


def factors_of(model: LlamaConfig) -> np.ndarray:
    """Returns the factors of a model with llama3 scaling, fp32 [H / 2]."""
    frequencies_H = rope_frequencies(model.head_dim, model.rope_theta)
    return (frequencies_H / llama3_frequencies(model)).astype(np.float32)


def with_factors(model: LlamaConfig, factors_H: np.ndarray, file: str) -> LlamaConfig:
    """Returns the model with the llama3 scaling that gives these factors, [H / 2].

    Raises UserError, naming the file, for factors that no llama3 scaling gives.
    """
    is_usable = factors_H.shape == (model.head_dim // 2,) and np.isfinite(factors_H).all()
    if is_usable and np.allclose(factors_H, 1, rtol=TOLERANCE):
        return model
    is_usable = is_usable and factors_H.min() > 0 and factors_H.max() <= MAX_FACTOR
    if is_usable and model.rope_scaling == 1:
        scaled = replace(
            model,
            # The lowest frequencies are divided by the full factor, which is therefore the largest
            # one. Via `str` the float32 becomes the decimal number that was meant.
            rope_scaling=float(str(factors_H.max())),
            rope_type="llama3",
            rope_low_factor=LOW,
            rope_high_factor=HIGH,
            rope_original_length=ORIGINAL,
        )
        for candidate in (scaled, _fitted(scaled, factors_H)):
            if candidate and np.allclose(factors_of(candidate), factors_H, rtol=TOLERANCE):
                return candidate
    problem = "rope_freqs.weight holds factors that are not those of llama3 scaling"
    raise UserError(f"{file}: {problem}: no other scaling by factors is implemented")


def _fitted(model: LlamaConfig, factors_H: np.ndarray) -> LlamaConfig | None:
    """Returns the model with the settings that the interpolated factors follow from.

    None if fewer than two are interpolated. Only original / low and original / high count, so that
    low may be 1.
    """
    inverse = 1 / model.rope_scaling
    share_H = (1 / factors_H.astype(np.float64) - inverse) / (1 - inverse)
    between_H = (share_H > TOLERANCE) & (share_H < 1 - TOLERANCE)
    if between_H.sum() < 2:
        return None
    # share = (original / wavelength - low) / (high - low) is a line in 1 / wavelength.
    rates_H = rope_frequencies(model.head_dim, model.rope_theta).astype(np.float64) / (2 * np.pi)
    slope, intercept = np.polyfit(rates_H[between_H], share_H[between_H], 1)
    if slope <= 0 or intercept >= 0:
        return None
    # The line is 0 at original / low and 1 at original / high; with low set to 1, its slope and
    # intercept give the other two settings.
    width = -LOW / intercept
    return replace(
        model,
        rope_low_factor=LOW,
        rope_high_factor=round(LOW + width, 4),
        rope_original_length=max(1, round(slope * width)),
    )
