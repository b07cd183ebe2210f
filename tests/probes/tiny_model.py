"""Documents, and the probes of a tiny untrained model."""

import inspect
import json
import random
import string

import numpy as np

from codellama_jax.checkpoints.checkpoint import Run
from codellama_jax.config import ProbesConfig
from codellama_jax.data.infilling import plain_ids
from codellama_jax.probes.run import run_probes
from codellama_jax.system.progress import Say, silent

SOURCES = [inspect.getsource(module) for module in (random, string)]


DOCUMENTS = [block for source in SOURCES for block in source.split("\n\n") if block.count("\n") > 2]


SEQ_LEN, NEW_TOKENS = 256, 24


def packed(run: Run, texts: list[str]) -> dict[str, np.ndarray]:
    """A document a row."""
    ids_BT = np.zeros((len(texts), SEQ_LEN + 1), np.int32)
    segment_ids_BT = np.zeros((len(texts), SEQ_LEN), np.int32)
    for row, text in enumerate(texts):
        ids = plain_ids(run.tokenizer, text)[: SEQ_LEN + 1]
        ids_BT[row, : len(ids)] = ids
        segment_ids_BT[row, : len(ids) - 1] = 1
    return {"tokens": ids_BT[:, :-1], "targets": ids_BT[:, 1:], "segment_ids": segment_ids_BT}


def ask(
    run: Run, probes: ProbesConfig, documents: list[str] = DOCUMENTS, say: Say = silent
) -> dict:
    training, validation = (packed(run, texts) for texts in (DOCUMENTS[::2], DOCUMENTS[1::2]))
    found = run_probes(
        probes,
        run,
        {"files": SOURCES, "documents": documents},
        iter([training]),
        [validation],
        validation["tokens"].shape[1],
        seed=0,
        say=say,
    )
    return json.loads(json.dumps(found))
