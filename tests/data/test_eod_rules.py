"""CodeGeeX's resets after each EOD, against the published rules on the stream of documents."""

import numpy as np

from codellama_jax.config import DataConfig, MixtureConfig
from codellama_jax.data import pipeline

EOD = 0


class NoBos:
    bos_id = eos_id = EOD
    adds_bos = False

    def encode(self, text, *, leading_space=True):
        return [ord(c) for c in text]


def published(stream):
    """Returns position, visible inputs and loss weight of every input of a stream of tokens."""
    rules, start = [], 0
    for t, token in enumerate(stream[:-1]):
        rules.append((t - start, list(range(start, t + 1)), 0.0 if token == EOD else 1.0))
        if token == EOD:
            start = t + 1
    return rules


def test_packed_documents_follow_the_rules_of_a_stream_with_resets():
    texts = ["abc", "defgh", "", "i", "jklmnop"]
    source = [{"id": b"%d" % i, "text": text.encode()} for i, text in enumerate(texts)]
    data = DataConfig(24, 1, MixtureConfig(code=1.0))
    (batch,) = pipeline.validation_batches({"code": source}, data, NoBos(), 1)
    stream = []
    for index in dict.fromkeys(batch["documents"][0][batch["segment_ids"][0] > 0].tolist()):
        stream += [*map(ord, texts[index]), EOD]
    expected = []
    for t, (position, visible, weight) in enumerate(published([*stream, EOD])):
        # Packing leaves out an input of weight 0, which no other input sees.
        if weight:
            expected.append((stream[t], stream[t + 1], position, [stream[i] for i in visible]))
    tokens, targets, segments, positions = (
        batch[key][0] for key in ("tokens", "targets", "segment_ids", "positions")
    )
    actual = []
    for t in np.flatnonzero(segments):
        visible = (segments == segments[t]) & (positions <= positions[t])
        actual.append((tokens[t], targets[t], positions[t], tokens[visible].tolist()))
    assert actual == expected
    assert batch["weights"][0].tolist() == (segments > 0).astype(float).tolist()
