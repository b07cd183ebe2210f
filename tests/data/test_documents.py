"""Documents in shards: found at random by any thread, with few shards open, damage named."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import prepared_corpora
import pytest

from codellama_jax.config import CorpusConfig, DataConfig, MixtureConfig
from codellama_jax.data import builders, documents, pipeline
from codellama_jax.errors import UserError

TEXTS = prepared_corpora.texts(300)
HELD_OUT = prepared_corpora.texts(40, "v")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus of 300 documents in about 20 shards."""
    folder = tmp_path_factory.mktemp("corpora") / "one"
    splits = {"train": TEXTS, "validation": HELD_OUT}
    return prepared_corpora.write(folder, splits, shard_bytes=2500)


def opened(path):
    return builders.prepare(CorpusConfig(code=path), "code", 0, "/no cache")


def text_by_id(split):
    return {split[i]["id"].decode(): split[i]["text"].decode() for i in range(len(split))}


def test_every_document_is_read_by_its_index(corpus):
    prepared = opened(corpus)
    assert len(prepared.train._shards) > 12
    assert text_by_id(prepared.train) == TEXTS and text_by_id(prepared.validation) == HELD_OUT
    first = prepared.train[0]
    assert set(first) == {"id", "text"} and prepared.train[:2] == [first, prepared.train[1]]
    with pytest.raises(IndexError):
        prepared.train[len(TEXTS)]


def test_validation_is_not_read_in_the_order_of_the_repositories(corpus):
    order = [document.decode() for document in (d["id"] for d in opened(corpus).validation)]
    assert sorted(order) == sorted(HELD_OUT) and order == list(
        text_by_id(opened(corpus).validation)
    )
    unshuffled = [f"v/{i}.py" for i in range(40)]
    assert order != unshuffled


@pytest.mark.parametrize("bound", ["OPEN_SHARDS", "OPEN_DOCUMENTS"])
def test_threads_read_while_shards_are_closed(corpus, monkeypatch, bound):
    monkeypatch.setattr(documents, bound, {"OPEN_SHARDS": 2, "OPEN_DOCUMENTS": 40}[bound])
    train = opened(corpus).train
    expected = [train[i] for i in range(len(train))]
    most = []

    def read(seed):
        order = random.Random(seed).sample(range(len(train)), len(train))
        for i in order:
            assert train[i] == expected[i]
            most.append(len(train._readers))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    assert 1 <= max(most) <= (2 if bound == "OPEN_SHARDS" else 6)
    open_documents = sum(train._shards[number].documents for number in train._readers)
    assert train._open_documents == open_documents


def damaged(corpus, tmp_path, change):
    """Returns a copy of the corpus whose third training shard was changed, and the shard."""
    folder = tmp_path / "copy"
    prepared_corpora.many(folder, corpus_folder(corpus), 1)
    shard = sorted((folder / prepared_corpora.DATA).glob("*train*"))[2]
    data = change(shard.read_bytes())
    shard.unlink()  # it is a link to the original
    if data is not None:
        shard.write_bytes(data)
    return f"prepared:{folder}", shard


def corpus_folder(corpus):
    return Path(corpus.removeprefix("prepared:"))


def flipped(data):
    # The records of a small shard are at its start, its index at its end.
    return data[:900] + bytes([data[900] ^ 1]) + data[901:]


def test_a_damaged_record_is_named(corpus, tmp_path, tokenizer):
    path, shard = damaged(corpus, tmp_path, flipped)
    train = opened(path).train
    errors = []
    for i in range(len(train)):
        try:
            assert train[i]["text"].decode() == TEXTS[train[i]["id"].decode()]
        except UserError as error:
            errors.append(str(error))
    assert errors
    for line in errors:
        assert line.startswith("record ") and str(shard) in line and "\n" not in line
        assert "prepare` command again" in line
    data = DataConfig(32, 4, MixtureConfig(code=1.0))
    with (
        pipeline.Batches({"code": train}, data, tokenizer, 0, range(4)) as batches,
        pytest.raises(UserError, match=r"record \d+ of .*train.array_record-00002.* is damaged"),
    ):
        for _ in range(300):
            next(batches)


def test_a_missing_or_truncated_shard_is_found_at_the_start(corpus, tmp_path):
    path, shard = damaged(corpus, tmp_path, lambda data: None)
    with pytest.raises(UserError, match=f"lacks {shard.name}: run the same `codellama-jax prepare"):
        opened(path)
    shard.write_bytes(b"x")
    with pytest.raises(UserError, match=f"{shard.name} has 1 bytes instead of "):
        opened(path)


def test_a_shard_that_is_truncated_later_is_named(corpus, tmp_path):
    path, shard = damaged(corpus, tmp_path, lambda data: data)
    train = opened(path).train
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"array_record-00002.* holds 0 documents instead of \d+"):
        [train[i] for i in range(len(train))]
    assert len(train) == len(TEXTS) and train[0]["text"]  # other shards are still read


def test_a_shard_that_cannot_be_opened_counts_as_no_open_one(corpus, monkeypatch):
    from array_record.python import array_record_module

    def refuse(*_, **__):
        raise RuntimeError("too many open files")

    train = opened(corpus).train
    monkeypatch.setattr(array_record_module, "ArrayRecordReader", refuse)
    with pytest.raises(UserError, match=r"is damaged \(.*too many open files"):
        train[0]
    assert train._open_documents == 0


def test_a_sample_reads_only_its_documents():
    read = set()

    class Counted(list):
        def __getitem__(self, index):
            read.add(index)
            return super().__getitem__(index)

    many = Counted({"text": f"{i:010d}".encode()} for i in range(100_000))
    texts = documents.sample(many, 50_000)
    assert len(texts) == len(set(texts)) == len(read) == 5000
    assert texts == documents.sample(many, 50_000)
    assert abs(sum(map(int, texts)) / 5000 - 50_000) < 1500  # from everywhere in the corpus
    few = [{"text": b"abc"}] * 3000
    assert documents.sample(few, 10**9) == ["abc"] * 3000 and documents.sample([], 9) == []


def test_no_thread_or_file_is_opened_before_a_document_is_read(corpus):
    before = threading.active_count()
    prepared = opened(corpus)
    assert not prepared.train._readers and threading.active_count() == before
