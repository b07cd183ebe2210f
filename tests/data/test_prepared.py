"""Prepared corpora: their manifests, and the stream of batches from them."""

import contextlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import prepared_corpora
import pytest
import toy

from codellama_jax.config import CorpusConfig, DataConfig, InfillingConfig, MixtureConfig
from codellama_jax.data import builders, documents, pipeline, prepared
from codellama_jax.errors import UserError

DOCUMENTS = {"train": prepared_corpora.texts(200), "validation": prepared_corpora.texts(20, "v")}
DATA = DataConfig(64, 4, MixtureConfig(code=0.5, others={"java": 0.5}), InfillingConfig(0.9))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora") / "one"
    return prepared_corpora.write(folder, DOCUMENTS, shard_bytes=2500)


def edited(corpus, tmp_path, **facts):
    """Returns the name of a folder with the manifest of a corpus, changed."""
    values = json.loads((Path(corpus.removeprefix("prepared:")) / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(values | facts))
    return f"prepared:{tmp_path}"


def opened(corpus):
    return builders.prepare(CorpusConfig(code=corpus), "code", 0, "/no cache")


def take(tokenizer, train, steps, lanes, state=None):
    sources = {"code": train, "java": train}
    with pipeline.Batches(sources, DATA, tokenizer, 3, lanes) as batches:
        if state:
            batches.restore(state)
        return [next(batches) for _ in range(steps)], batches.state()


def test_the_stream_is_the_same_after_a_restart_and_on_two_hosts(corpus, tokenizer):
    stream, _ = take(tokenizer, opened(corpus).train, 30, range(4))
    halves = [take(tokenizer, opened(corpus).train, 12, lanes) for lanes in ([0, 1], [2, 3])]
    for step in range(12):
        for key in stream[step]:
            both = np.concatenate([batches[step][key] for batches, _ in halves])
            np.testing.assert_array_equal(both, stream[step][key])
    saved = halves[0][1] | halves[1][1]
    resumed, _ = take(tokenizer, opened(corpus).train, 18, range(4), saved)
    for batch, expected in zip(resumed, stream[12:], strict=True):
        for key in batch:
            np.testing.assert_array_equal(batch[key], expected[key])


def test_every_document_is_read_once_an_epoch_in_another_order(corpus):
    train = opened(corpus).train
    stream = pipeline.lane_documents(train, lambda index, document: document["id"], 0, 0, 1)
    epochs = [[stream[200 * epoch + i] for i in range(200)] for epoch in range(2)]
    ids = sorted(name.encode() for name in DOCUMENTS["train"])
    assert sorted(epochs[0]) == sorted(epochs[1]) == ids and epochs[0] != epochs[1]


def open_shards(folder):
    """Returns how many files of a folder this process has open."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed by another thread meanwhile
            count += str(descriptor.readlink()).startswith(f"{folder}/")
    return count


def test_memory_does_not_grow_with_the_corpus(corpus, tokenizer, tmp_path):
    """Python's allocations and the open shards: resident memory also depends on the allocators."""
    folder = Path(corpus.removeprefix("prepared:"))
    take(tokenizer, opened(corpus).train, 1, range(4))  # imports
    peaks = []
    for copies in (10, 100):
        copied = tmp_path / str(copies)
        path = prepared_corpora.many(copied, folder, copies)
        tracemalloc.start()
        train = opened(path).train
        take(tokenizer, train, 100, range(4))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(train) == 200 * copies
        assert 0 < open_shards(copied) <= documents.OPEN_SHARDS
    # The names of 1,600 shards take about 1 kB each.
    assert peaks[1] < peaks[0] + 3_000_000


def test_the_fingerprint_is_that_of_the_manifest(corpus, tmp_path):
    folder = Path(corpus.removeprefix("prepared:"))
    moved = prepared_corpora.many(tmp_path / "moved", folder, 1)
    first, second = prepared.read_manifest(corpus), prepared.read_manifest(moved)
    assert opened(corpus).fingerprint == first.fingerprint
    assert second.fingerprint == f"{first.fingerprint}x1"
    assert opened(corpus).counts["train"] == 200 and opened(corpus).is_large


def test_tokens_are_counted_or_estimated(corpus, tmp_path):
    characters = sum(map(len, DOCUMENTS["train"].values()))
    assert prepared.read_manifest(corpus).training_tokens("") == (characters // 4, False)
    counted = edited(corpus, tmp_path, tokens={"abc": {"train": 123, "validation": 4}})
    assert prepared.read_manifest(counted).training_tokens("abc") == (123, True)
    assert prepared.read_manifest(counted).training_tokens("abd") == (characters // 4, False)


def test_one_line_for_a_folder_that_is_not_prepared(corpus, tmp_path):
    with pytest.raises(UserError, match=r"absent does not exist: run `codellama-jax prepare"):
        prepared.read_manifest(f"prepared:{tmp_path}/absent")
    with pytest.raises(UserError, match=r"has no manifest.json: run"):
        prepared.read_manifest(f"prepared:{tmp_path}")
    with pytest.raises(UserError, match="is not valid"):
        prepared.read_manifest("prepared:")
    with pytest.raises(UserError, match="has format 2 and this version reads 1"):
        prepared.read_manifest(edited(corpus, tmp_path, format=2))
    for facts in ({"splits": {}}, {"files": 3}, {"block_characters": None}, {"tokens": 3}):
        with pytest.raises(UserError, match=r"manifest.json is damaged \(") as raised:
            prepared.read_manifest(edited(corpus, tmp_path, **facts))
        assert "\n" not in str(raised.value)
    for content in ("", "[]", '"x"', "{"):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=r"manifest\.json"):
            prepared.read_manifest(f"prepared:{tmp_path}")


def test_one_line_for_an_empty_split(tmp_path):
    path = prepared_corpora.write(tmp_path / "one", {"train": DOCUMENTS["train"]})
    with pytest.raises(UserError, match=r"the split validation of .* has no documents: prepare"):
        opened(path)


def test_one_line_for_documents_that_were_split_otherwise(corpus):
    stage = toy.stage()
    config = CorpusConfig(code=corpus)
    assert set(prepared.manifests_of(config, "code", stage)) == {"code"}
    assert prepared.manifests_of(CorpusConfig(python=corpus), "code", stage) == {}
    data = DataConfig(16, 8, MixtureConfig(code=1.0), block_chars=300)
    line = r"--long-context.data.block-chars is 300, and .* with --block-chars 0: pass"
    with pytest.raises(UserError, match=line):
        prepared.manifests_of(config, "long_context", toy.stage(data=data))
