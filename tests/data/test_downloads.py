"""Downloads of published files that fail."""

import pytest

from codellama_jax.data import downloads
from codellama_jax.errors import UserError


def test_an_error_without_a_message_is_one_line(tmp_path, monkeypatch):
    class Builder:
        def __init__(self, **_):
            pass

        def download_and_prepare(self, **_):
            raise TimeoutError

    monkeypatch.setattr(downloads, "_builder_class", lambda: Builder)
    with pytest.raises(UserError, match=r"^cannot download https://\S+: TimeoutError; give a "):
        downloads.records("humaneval", tmp_path)
