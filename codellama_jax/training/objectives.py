"""The objectives that a stage can train on.

To add one, write a function with the signature of `next_token`, register it in OBJECTIVES and its
sums in SUMS, and add its name to `Stage.objective`. The loss weights come from the encoder of the
documents (data/pipeline.py): an objective that learns from only some of the tokens gives the others
weight 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from codellama_jax.models.family import output_head
from codellama_jax.sharding.mesh import loss_specs
from kernels.cross_entropy import cross_entropy, token_losses

Sums = dict[str, jax.Array]  # fp32 scalars: `tokens`, by which the loss is divided, and its parts


def next_token(
    model: nn.Module, params: dict, batch: dict[str, jax.Array], key: jax.Array | None = None
) -> tuple[jax.Array, Sums]:
    """Returns the weighted sum of the cross-entropies in nats, and as `tokens` that of the weights.

    All are fp32 scalars. Sums and not means are returned, so that micro-batches and hosts with
    different numbers of tokens can be added up before dividing.

    Args:
      model: the module.
      params: its parameters.
      batch: arrays (B, T): int32 `tokens`, `targets`, `segment_ids` and `positions`, and float32
        `weights`, which are 0 in padding. With a key also int32 `sequences` (B,), the number of
        each sequence in the global batch.
      key: for dropout; None drops nothing.
    """
    x_BTD = _hidden(model, params, batch, key)
    weights_BT, head_DV = batch["weights"], output_head(params)
    # The kernel multiplies with the head itself: the logits of all tokens are never in memory.
    loss = cross_entropy(x_BTD, head_DV, batch["targets"], weights_BT, **loss_specs())
    return loss, {"tokens": jnp.sum(weights_BT)}


def _hidden(
    model: nn.Module, params: dict, batch: dict[str, jax.Array], key: jax.Array | None
) -> jax.Array:
    """Returns x_BTD before the head; `key` is for dropout, as for `next_token`."""
    arrays = [batch["tokens"], batch["positions"], batch["segment_ids"]]
    rngs = None
    if key is not None:
        arrays.append(batch["sequences"])
        rngs = {"dropout": key}
    hidden: Any = model.apply({"params": params}, *arrays, method="hidden", rngs=rngs)
    return hidden


def ranked(
    model: nn.Module,
    params: dict,
    batch: dict[str, jax.Array],
    key: jax.Array | None = None,
    *,
    mean: bool = False,
    unit_gaps: bool = False,
    has_rank: bool = True,
) -> tuple[jax.Array, Sums]:
    """Returns the sum over pairs of L_rank + L_ft (PanGu-Coder2, section 3.2), and its parts.

    They are `rank_loss` and `tuning_loss`, the sums of L_rank and of L_ft, and `tokens`, which is
    the number of pairs here: all losses are in nats per pair.

    With p the mean log-probability of an answer's tokens, L_rank is the difference of the scores
    times max(0, p_student - p_teacher), and L_ft the sum of -log p of the teacher's tokens.

    Args:
      model: the module.
      params: its parameters.
      batch: as for `next_token`. The two answers of a pair are consecutive segments of one
        sequence, the teacher's first. The weights hold the difference of their scores: positive on
        tokens of the teacher's answer, negative on those of the student's, 0 elsewhere.
      key: for dropout, as for `next_token`.
      mean: whether L_ft is the mean over the teacher's tokens. The paper prints the sum, beside
        which L_rank is small.
      unit_gaps: whether every difference of scores counts as 1, as in RRHF.
      has_rank: False leaves L_rank out: supervised fine-tuning on the same pairs.
    """
    x_BTD = _hidden(model, params, batch, key)
    head_DV, targets_BT = output_head(params), batch["targets"]
    # Which pairs count is decided by the losses, but the objective is constant in that decision:
    # it needs no gradient, and each token's loss then has one weight.
    arrays = jax.lax.stop_gradient((x_BTD, head_DV))
    losses_BT = token_losses(*arrays, targets_BT, **loss_specs())
    tuning_BT, rank_BT, pairs = rank_weights(
        losses_BT,
        batch["weights"],
        batch["segment_ids"],
        mean=mean,
        unit_gaps=unit_gaps,
        has_rank=has_rank,
    )
    weights_BT = tuning_BT + rank_BT
    sums = {
        "tokens": pairs,
        "rank_loss": jnp.sum(rank_BT * losses_BT),
        "tuning_loss": jnp.sum(tuning_BT * losses_BT),
    }
    return cross_entropy(x_BTD, head_DV, targets_BT, weights_BT, **loss_specs()), sums


def rank_weights(
    losses_BT: jax.Array,
    signed_BT: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    mean: bool,
    unit_gaps: bool,
    has_rank: bool = True,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the weights of L_ft and those of L_rank, (B, T), and the number of pairs.

    The sums of the losses with them are L_ft and L_rank. The gradient takes them for constants.

    Args:
      losses_BT: fp32 -log p of each token.
      signed_BT: differences of scores, as `ranked` describes them.
      segment_ids_BT: int32; 0 is padding.
      mean, unit_gaps, has_rank: as in `ranked`.
    """
    segments = signed_BT.shape[1] + 2  # one more than any id, and the student after the last

    def totals(values_BT: jax.Array) -> jax.Array:
        """Returns the sum of each segment's values, [B, segments]."""
        add = functools.partial(jax.ops.segment_sum, num_segments=segments)
        return jax.vmap(add)(values_BT, segment_ids_BT)

    def by_token(values_BS: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values_BS, segment_ids_BT, axis=1)

    is_answer_BT = (signed_BT != 0).astype(jnp.float32)
    is_teacher_BT = signed_BT > 0
    # At least 1: most segments of the static size are empty, and 0 / 0 would make every sum NaN.
    length_BS = jnp.maximum(totals(is_answer_BT), 1)
    loss_BS = totals(losses_BT * is_answer_BT) / length_BS
    # The sign of a weight is the role of its token, and its size the difference of the scores.
    gap_BT = jnp.where(signed_BT != 0, 1.0, 0.0) if unit_gaps else jnp.abs(signed_BT)
    # Segment s + 1 holds the student of the teacher in segment s.
    is_wrong_BS = loss_BS > jnp.roll(loss_BS, -1, axis=1)
    # L_rank is 0 where the teacher's answer is more likely already. Elsewhere its gradient raises
    # the teacher's tokens (weight +) and lowers the student's (weight -).
    wrong_teacher_BT = by_token(is_wrong_BS)
    wrong_student_BT = by_token(jnp.roll(is_wrong_BS, 1, axis=1))
    length_BT = by_token(length_BS)
    tuning_BT = 1 / length_BT if mean else jnp.ones_like(length_BT)
    # p is the mean over an answer's tokens, so that each token has 1 / length of the gap.
    rank_BT = gap_BT / length_BT * has_rank
    student_BT = -rank_BT * wrong_student_BT * is_answer_BT
    signed_rank_BT = jnp.where(is_teacher_BT, rank_BT * wrong_teacher_BT, student_BT)
    # Segments with tokens of a teacher: padding and the answers of the student have none.
    pairs = jnp.sum(totals(is_teacher_BT.astype(jnp.float32)) > 0).astype(jnp.float32)
    weights = jax.lax.stop_gradient((tuning_BT * is_teacher_BT, signed_rank_BT))
    return *weights, pairs


# The names of the sums that an objective returns beside its loss, by `Stage.objective`.
RANKED = ("tokens", "rank_loss", "tuning_loss")
SUMS = {
    "next_token": ("tokens",),
    "rrtf": RANKED,
    "rrtf_mean": RANKED,
    "rrhf": RANKED,
    "chosen": RANKED,
}
OBJECTIVES: dict[str, Callable[..., tuple[jax.Array, Sums]]] = {
    "next_token": next_token,
    "rrtf": ranked,
    "rrtf_mean": functools.partial(ranked, mean=True),
    "rrhf": functools.partial(ranked, mean=True, unit_gaps=True),
    "chosen": functools.partial(ranked, has_rank=False),
}
