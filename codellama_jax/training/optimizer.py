"""AdamW with linear warm-up and cosine decay (Code Llama, section 2.2; what it leaves open is Llama 2's)."""

from __future__ import annotations

import jax
import optax

from codellama_jax.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns step -> rate: step 0 takes the first part of the warm-up, the last step ends at `final_fraction` of the peak."""
    cosine = optax.warmup_cosine_decay_schedule(
        0.0, config.peak_lr, config.warmup_steps, max(steps, config.warmup_steps + 1), config.peak_lr * config.final_fraction
    )
    return lambda step: cosine(step + 1)


def decayed(params: dict) -> dict:
    """True for every parameter that weight decay applies to: all but the scales of the norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "scale" not in jax.tree_util.keystr(path), params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clips by the global norm, then AdamW."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate(config, steps), config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decayed),
    )
