"""The argument of every probe: a trained model, and the data to evaluate it on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from codellama_jax.models.trained import TrainedModel

Batch = dict[str, np.ndarray]  # see codellama_jax/data/pipeline.py


@dataclass(frozen=True)
class Subject:
    """A model after a stage, with held-out and training data; the same on every host."""

    model: TrainedModel
    files: Sequence[str]  # held-out files of the stage's main source, complete
    # The same files, split into documents as for the first stage of the arm.
    documents: Sequence[str]
    training_rows: Callable[[], Iterable[Batch]]  # the batches that the model was trained on
    validation_rows: Sequence[Batch]  # the batches of the validation loss
    # The maximum number of tokens of an infilling document. It is that of the first stage, so that
    # all stages fill in the same lines.
    seq_len: int
    seed: int
