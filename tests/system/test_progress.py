"""A line is printed for work that takes long, and for no other."""

import threading

import pytest

from codellama_jax.system.progress import announced


def test_long_work_is_announced_once():
    lines, printed = [], threading.Event()

    def say(text):
        lines.append(text)
        printed.set()

    with announced(say, "reading", after=0.0):
        assert printed.wait(30)
    assert lines == ["reading"]


def test_short_work_is_silent():
    lines = []
    with announced(lines.append, "reading", after=1000.0):
        pass
    with (
        pytest.raises(ValueError, match="failed"),
        announced(lines.append, "reading", after=1000.0),
    ):
        raise ValueError("failed")
    assert lines == []
