"""A cached corpus that is damaged is noticed and prepared again."""

import json

import pytest
from prepared_corpora import documents

from codellama_jax.data import builders


def _damages():
    empty, nul = b"", b"\0" * 64
    return {
        "empty": lambda data: empty,
        "nul": lambda data: nul,
        "half": lambda data: data[: len(data) // 2],
        "flipped": lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:],
        "list": lambda data: b"[]",
        "deleted": lambda data: None,
    }


@pytest.mark.parametrize("damage", _damages())
def test_a_damaged_cache_is_prepared_again(corpus, tmp_path, damage):
    cache = tmp_path / "cache"
    first = builders.prepare(corpus, "code", 0, cache)
    expected = documents(first.train), first.counts, first.fingerprint
    names = ("dataset_info.json", "features.json", "*train.array_record*", "*validation.array*")
    for name in ("prepared.json", "manifest.json", *names):
        (record,) = cache.glob("*/prepared.json")
        newest = record.parent / json.loads(record.read_text())["path"]
        (path,) = [record] if name == "prepared.json" else newest.rglob(name)
        data = _damages()[damage](path.read_bytes())
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        lines = []
        again = builders.prepare(corpus, "code", 0, cache, lines.append)
        assert (documents(again.train), again.counts, again.fingerprint) == expected, name
        warnings = [line for line in lines if "is damaged" in line]
        # A deleted record is a cache that was never complete.
        assert len(warnings) == (name != "prepared.json" or damage != "deleted"), name
        for warning in warnings:
            assert warning.startswith(f"the prepared corpus in {record.parent} is damaged (")
            assert warning.endswith("): preparing it again") and "\n" not in warning
            assert "codellama-jax prepare" not in warning


def test_a_cache_on_an_object_store_is_opened_without_reading_its_shards(
    corpus, tmp_path, monkeypatch
):
    first = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    monkeypatch.setattr(builders, "is_bucket", lambda path: True)
    (shard,) = (tmp_path / "cache").rglob("*train.array_record*")
    data = shard.read_bytes()
    lines = []
    for content, is_damaged in ((data[:-1] + b"x", False), (data[:-1], True)):
        shard.write_bytes(content)
        opened = builders.prepare(corpus, "code", 0, tmp_path / "cache", lines.append)
        assert opened.fingerprint == first.fingerprint
        assert any("is damaged" in line for line in lines) is is_damaged


@pytest.mark.parametrize("position", range(0, 100, 9))
def test_a_byte_of_the_record_that_changed_is_noticed(corpus, tmp_path, position):
    first = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    (record,) = (tmp_path / "cache").glob("*/prepared.json")
    data = bytearray(record.read_bytes())
    data[position * len(data) // 100] ^= 1
    record.write_bytes(data)
    again = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    assert (again.counts, again.fingerprint) == (first.counts, first.fingerprint)
