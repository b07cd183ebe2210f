"""StarCoder's infilling in packed sequences, against the published rules written a second time."""

from random import Random

import numpy as np
import pytest

from codellama_jax.config import DataConfig, InfillingConfig, MixtureConfig
from codellama_jax.data import infilling, pipeline
from codellama_jax.data.packed_infilling import infill_sequence

ALWAYS = InfillingConfig(rate=1.0, form="starcoder")
# StarCoder's ids: <|endoftext|>, <fim_prefix>, <fim_middle>, <fim_suffix>.
EOD, PRE, MID, SUF = 0, 1, 2, 3


class StarCoder:
    """A tokenizer without BOS and EOT, of pairs of characters: `ab` encoded apart is two tokens."""

    bos_id = eos_id = eot_id = EOD
    adds_bos = False
    pre_id, mid_id, suf_id = PRE, MID, SUF

    def encode(self, text, *, leading_space=True):
        pairs = [text[i : i + 2] for i in range(0, len(text), 2)]
        return [10 + sum(ord(c) << (9 * i) for i, c in enumerate(pair)) for pair in pairs]

    def decode(self, ids, *, leading_space=True):
        text = ""
        for i in ids:
            if i >= 10:
                first, second = (i - 10) & 511, (i - 10) >> 9
                text += chr(first) + (chr(second) if second else "")
        return text


TOKENIZER = StarCoder()
TEXTS = ["abcdefg", "ABCD", "0123456789"]


def packed(documents: list[list[int]], length: int) -> dict[str, np.ndarray]:
    """Returns a sequence as the pipeline packs ids of documents, without padding inside."""
    sequence = {
        "ids": np.zeros((length, 3), np.int32),
        "ids_segment_ids": np.zeros(length, np.int32),
        "ids_positions": np.zeros(length, np.int32),
        "weights": np.zeros(length, np.float32),
    }
    start = 0
    for number, ids in enumerate(documents):
        part = slice(start, start + len(ids) - 1)
        sequence["ids"][part] = np.stack([ids[:-1], ids[1:], [number] * (len(ids) - 1)], axis=1)
        sequence["ids_segment_ids"][part] = number + 1
        sequence["ids_positions"][part] = np.arange(len(ids) - 1)
        sequence["weights"][part] = 1
        start = part.stop
    return sequence


def documents_of(sequence: dict[str, np.ndarray]) -> list[list[int]]:
    documents = []
    for number in range(1, sequence["ids_segment_ids"].max() + 1):
        rows = sequence["ids"][sequence["ids_segment_ids"] == number]
        np.testing.assert_array_equal(rows[1:, 0], rows[:-1, 1])
        assert set(rows[:, 2]) == {number - 1}
        documents.append([*rows[:, 0].tolist(), int(rows[-1, 1])])
    return documents


def test_a_vocabulary_without_bos_begins_no_document_and_no_prompt_with_a_marker():
    encode = TOKENIZER.encode
    assert infilling.plain_ids(TOKENIZER, "abc") == [*encode("abc"), EOD]
    psm = infilling.prompt_ids(TOKENIZER, "abc", "xyz", spm=False)
    assert psm == [PRE, *encode("abc"), SUF, *encode("xyz"), MID]
    spm = infilling.prompt_ids(TOKENIZER, "abc", "xyz", spm=True)
    assert spm == [PRE, SUF, *encode("xyz"), MID, *encode("abc")]


@pytest.mark.parametrize("spm", [0.0, 1.0])
def test_documents_have_the_published_orders(spm):
    """Cut points are uniform over characters; prefix and middle are encoded apart in both."""
    rng, encode = Random(5), TOKENIZER.encode
    expected = []
    for text in TEXTS:
        rng.random(), rng.random()  # whether to transform, and the order
        points = sorted(int(rng.random() * (len(text) + 1)) for _ in range(2))
        prefix, middle, suffix = text[: points[0]], text[points[0] : points[1]], text[points[1] :]
        p, m, s = encode(prefix), encode(middle), encode(suffix)
        order = [PRE, SUF, *s, MID, *p, *m] if spm else [PRE, *p, SUF, *s, MID, *m]
        expected.append([*order, EOD])
    sequence = packed([[*encode(text), EOD] for text in TEXTS], 60)
    config = InfillingConfig(rate=1.0, spm=spm, form="starcoder")
    infilled = infill_sequence(TOKENIZER, sequence, Random(5), config)
    assert documents_of(infilled) == expected
    rows = sum(len(ids) - 1 for ids in expected)
    assert infilled["weights"].tolist() == [1.0] * rows + [0.0] * (60 - rows)
    assert infilled["ids_positions"][:rows].tolist() == [
        position for ids in expected for position in range(len(ids) - 1)
    ]


def test_a_full_sequence_loses_its_end_and_a_part_of_a_document_has_no_eos():
    ids = TOKENIZER.encode("abcdefghijkl" * 2)  # a part from the middle of a long document
    infilled = infill_sequence(TOKENIZER, packed([ids], len(ids) - 1), Random(1), ALWAYS)
    (document,) = documents_of(infilled)
    assert len(document) == len(ids) and {PRE, SUF, MID} <= set(document)
    assert EOD not in document
    assert infilled["weights"].all()


def test_a_document_keeps_its_bos(characters):
    t = characters
    config = InfillingConfig(rate=1.0, spm=0.0, form="starcoder")
    sequence = packed([infilling.plain_ids(t, "abcdef")], 40)
    (ids,) = documents_of(infill_sequence(t, sequence, Random(3), config))
    suf, mid = ids.index(t.suf_id), ids.index(t.mid_id)
    assert ids[:2] == [t.bos_id, t.pre_id] and ids[-1] == t.eos_id
    prefix = t.decode(ids[2:suf])
    suffix, middle = (t.decode(part, leading_space=False) for part in (ids[suf:mid], ids[mid:-1]))
    assert prefix + middle + suffix == "abcdef"


def test_half_of_the_documents_are_transformed_and_half_of_those_are_spm():
    config, texts = InfillingConfig(rate=0.5, form="starcoder"), ["abcdefghij"] * 1000
    sequence = packed([[*TOKENIZER.encode(text), EOD] for text in texts], 12_000)
    documents = documents_of(infill_sequence(TOKENIZER, sequence, Random(2), config))
    transformed = [ids for ids in documents if ids[0] == PRE]
    spm = [ids for ids in transformed if ids[1] == SUF]
    # Four standard deviations. An empty prefix in PSM order looks like SPM: 1 / 6 of them.
    assert len(documents) == 1000 and abs(len(transformed) - 500) < 64
    expected = (0.5 + 0.5 / 6) * len(transformed)
    assert abs(len(spm) - expected) < 2 * len(transformed) ** 0.5


SOURCE = [{"id": b"%d" % i, "text": b"abcdefgh" * (1 + i % 9)} for i in range(12)]


def test_batches_resume_and_validation_stays_plain():
    data = DataConfig(40, 2, MixtureConfig(code=1.0), InfillingConfig(rate=0.5, form="starcoder"))
    sources = {"code": SOURCE}
    batches = pipeline.DirectBatches(sources, data, TOKENIZER, 0, [0, 1])
    for _ in range(3):
        next(batches)
    state, expected = batches.get_state(), [next(batches) for _ in range(3)]
    resumed = pipeline.DirectBatches(sources, data, TOKENIZER, 0, [1])  # as another host
    resumed.set_state({"1": state["1"]})
    for batch in expected:
        again = next(resumed)
        for key, array in batch.items():
            np.testing.assert_array_equal(again[key], array[1:])
    assert any(PRE in batch["tokens"] for batch in expected)
    for batch in pipeline.validation_batches(sources, data, TOKENIZER, 8):
        assert not {PRE, SUF, MID} & set(batch["targets"].ravel().tolist())
