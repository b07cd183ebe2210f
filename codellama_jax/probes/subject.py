"""What a probe is given: a trained model and data to evaluate it on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from codellama_jax.models.trained import TrainedModel

Batch = dict[str, np.ndarray]  # `tokens`, `targets`, `segment_ids`, int [rows, T]


@dataclass(frozen=True)
class Subject:
    """A model after a stage, with held-out and training data: the same on every host."""

    model: TrainedModel
    files: Sequence[str]  # held-out texts of the stage's main source, each a complete file
    # The same texts as the first stage of the arm trains on them; it may split files.
    documents: Sequence[str]
    training_rows: Callable[[], Iterable[Batch]]  # packed, as the model was trained on them
    validation_rows: Sequence[Batch]  # packed, those of the validation loss
    # Tokens that a document to fill in may have: those of the first stage's sequences, so that all
    # stages fill in the same lines.
    seq_len: int
    seed: int
