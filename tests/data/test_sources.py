"""Which files become documents, which do not, and how files are split into blocks."""

import importlib.metadata
import os
import re
import types

import hypothesis
import hypothesis.strategies as st
import pytest

from codellama_jax.data import sources
from codellama_jax.errors import UserError

any_file = st.lists(
    st.sampled_from(["", "a", "    b", "\tc", "  ", "d\r", "\r", "\x0c"]), max_size=60
).map("\n".join)


@hypothesis.given(text=st.one_of(any_file, st.text()), limit=st.integers(1, 40))
def test_blocks_rebuild_the_file(text, limit):
    parts = sources.blocks(text, limit)
    assert "".join(parts) == text
    for before in parts[:-1]:
        assert re.search(r"\n[ \t\r]*\n\Z", before)
    for part in parts:
        assert len(part) <= limit or not re.search(r"\n([ \t\r]*\n)++(?!\Z)", part)


def test_blocks_end_where_a_definition_does():
    text = "import os\n\nX = 1\n\n\ndef f():\n    a = 1\n\n    return a\n\n\nclass C:\n    pass\n"
    assert sources.blocks(text, 40) == [
        "import os\n\nX = 1\n\n\n",
        "def f():\n    a = 1\n\n    return a\n\n\n",
        "class C:\n    pass\n",
    ]
    assert sources.blocks(text, 30)[1:3] == ["def f():\n    a = 1\n\n", "    return a\n\n\n"]
    assert sources.blocks(text, len(text)) == [text]


def test_a_file_gone_while_listing(tmp_path, monkeypatch):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("x = 1\n")
    lstat = os.lstat

    def gone(path, *args, **kwargs):
        if str(path).endswith("a.py"):
            raise FileNotFoundError
        return lstat(path, *args, **kwargs)

    monkeypatch.setattr(os, "lstat", gone)
    (folder,) = sources.walk(tmp_path)
    assert [file.name for file in folder.files] == ["b.py"]


def test_one_line_where_there_is_nothing_to_read(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distributions", list)
    with pytest.raises(UserError, match=r"'descriptions' holds no files .* name a folder"):
        sources.find("descriptions")


def test_a_package_without_a_description(monkeypatch):
    """The package importlib_metadata, which Apache Beam imports, raises for a missing header."""

    class Metadata(dict):
        def get_payload(self):
            return self.pop("body", "")

    def distribution(**headers):
        return types.SimpleNamespace(metadata=Metadata(headers))

    installed = [distribution(Name="silent"), distribution(Name="told", body="words")]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: installed)
    assert [item.id for item in sources.find("descriptions")] == ["descriptions/told"]


def test_every_machine_has_sources():
    stdlib = {item.id for item in sources.find("stdlib")}
    assert {"stdlib/argparse.py", "stdlib/json/decoder.py"} <= stdlib
    assert all(name.endswith(".py") and "site-packages" not in name for name in stdlib)
    for name, part in [("topics", "topics/assert"), ("descriptions", "descriptions/numpy")]:
        texts = {item.id: item.read() for item in sources.find(name)}
        assert part in texts and sum(map(len, texts.values())) > 100_000
