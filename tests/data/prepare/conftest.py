"""Documents in part files, and pipelines without Beam for tests that run many."""

import hashlib
import random

import pytest

from codellama_jax.data.prepare import minhash, parts, tables


@pytest.fixture
def local_shuffle(monkeypatch):
    """Replaces the pipelines of tables by loops; values arrive in an order drawn from the seed."""
    generator = random.Random(0)

    def shuffle(runner, items, *steps):
        values = list(items)
        for number, step in enumerate(steps):
            if number:
                groups = {}
                for key, value in values:
                    groups.setdefault(key, []).append(value)
                values = list(groups.items())
            generator.shuffle(values)
            values = [result for value in values for result in step(value)]

    monkeypatch.setattr(tables, "shuffle", shuffle)
    return generator


@pytest.fixture
def write_documents(tmp_path):
    """A function that writes (text, language, stars) to part files and returns their paths."""

    def write(documents, params, per_part=4, name="documents"):
        paths = []
        for number, start in enumerate(range(0, len(documents), per_part)):
            rows = []
            for index, (text, language, stars) in enumerate(documents[start : start + per_part]):
                digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
                row = {"id": f"files/{start + index}", "text": text, "language": language}
                bands = minhash.band_hashes(text, params)
                rows.append(row | {"stars": stars, "digest": digest, "bands": bands})
            paths.append(tmp_path / name / parts.part_name(number))
            parts.write_rows(paths[-1], parts.DOCUMENTS, rows, sized="text")
        return paths

    return write
