"""A line is printed for work that takes long, and for no other."""

import threading

import pytest

from codellama_jax.system.progress import announced, counted


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


def test_bytes_and_items_are_counted_in_lines_where_stderr_is_no_terminal(capsys):
    with counted("exporting", 3_000_000, unit="bytes") as advance:
        advance(1_000_000)
        advance(2_000_000)
    with counted("sampled", 4, done=1) as advance:
        advance(3)
    with counted("scored", 4, quiet=True) as advance:
        advance(4)
    assert capsys.readouterr().err.split("\n") == [
        "exporting: 0 bytes of 3.0 MB",
        "exporting: 3.0 MB of 3.0 MB",
        "sampled: 1 of 4",
        "sampled: 4 of 4",
        "",
    ]
