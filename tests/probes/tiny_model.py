"""Documents, and the probes of a tiny untrained model."""

import inspect
import json
import random
import string

import numpy as np

from codellama_jax.config import Probe
from codellama_jax.data.infilling import plain_ids
from codellama_jax.models.trained import TrainedModel
from codellama_jax.probes.run import run_probes
from codellama_jax.probes.subject import Subject

SOURCES = [inspect.getsource(module) for module in (random, string)]


DOCUMENTS = [block for source in SOURCES for block in source.split("\n\n") if block.count("\n") > 2]


SEQ_LEN, NEW_TOKENS = 256, 24


def packed(model: TrainedModel, texts: list[str]) -> dict[str, np.ndarray]:
    """Returns a batch with one document in each sequence."""
    ids_BT = np.zeros((len(texts), SEQ_LEN + 1), np.int32)
    weights_BT = np.zeros((len(texts), SEQ_LEN), np.float32)
    for row, text in enumerate(texts):
        ids = plain_ids(model.tokenizer, text)[: SEQ_LEN + 1]
        ids_BT[row, : len(ids)] = ids
        weights_BT[row, : len(ids) - 1] = 1
    return {"tokens": ids_BT[:, :-1], "targets": ids_BT[:, 1:], "weights": weights_BT}


def subject(model: TrainedModel, documents: list[str] = DOCUMENTS) -> Subject:
    training, validation = (packed(model, texts) for texts in (DOCUMENTS[::2], DOCUMENTS[1::2]))
    seq_len = validation["tokens"].shape[1]
    return Subject(model, SOURCES, documents, lambda: [training], [validation], seq_len, seed=0)


def ask(model: TrainedModel, *probes: Probe, documents: list[str] = DOCUMENTS) -> dict:
    by_name = {probe.name: probe for probe in probes}
    return json.loads(json.dumps(run_probes(by_name, subject(model, documents))))
