"""What may be read as a prompt or a file to fill in."""

import os
import subprocess
import sys

import pytest

from codellama_jax.errors import UserError
from codellama_jax.generation import source as sources
from codellama_jax.generation.source import Source, decoded, read_source


@pytest.mark.parametrize(
    ("data", "text", "has_mark", "is_crlf"),
    [
        (b"a\nb\n", "a\nb\n", False, False),
        (b"a\r\nb\r\n", "a\r\nb\r\n", False, True),
        (b"a\r\nb\nc\n", "a\r\nb\nc\n", False, False),
        (b"\xef\xbb\xbfa", "a", True, False),
        (b"", "", False, False),
    ],
)
def test_the_form_of_a_file_is_kept(data, text, has_mark, is_crlf):
    source = decoded(data, "x")
    assert (source.text, source.has_mark, source.is_crlf) == (text, has_mark, is_crlf)


def test_a_model_reads_and_writes_plain_line_ends():
    windows, unix = Source("x", "a\r\nb\r\n"), Source("x", "a\nb\n")
    assert windows.for_model(windows.text) == "a\nb\n"
    assert windows.from_model("c\nd\r\n") == "c\r\nd\r\n"
    assert unix.from_model("c\nd\r\n") == "c\nd\n"


@pytest.mark.parametrize(("text", "count"), [("no mark", 0), ("<FILL_ME> and <FILL_ME>", 2)])
def test_one_mark_and_no_more(text, count):
    with pytest.raises(UserError, match=f"f.py holds {count} marks <FILL_ME>: put exactly one"):
        Source("f.py", text).split()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("é".encode("latin-1"), "is not utf-8 text: byte 0 is 0xe9"),
        ("x".encode("utf-16"), "is UTF-16 text: convert it to UTF-8"),
        (b"x" * 101, "has over 100 bytes"),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path, monkeypatch, data, said):
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    path = tmp_path / "f.py"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"f.py {said}"):
        read_source(str(path))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="fifo is not a regular file"):
        read_source(str(tmp_path / "fifo"))


def test_standard_input_is_read_up_to_the_limit(monkeypatch):
    """An endless one too."""
    program = "from codellama_jax.generation.source import read_source; print(read_source('-'))"
    done = subprocess.run(
        [sys.executable, "-c", program], input=b"\xef\xbb\xbfx\r\n", capture_output=True
    )
    expected = "Source(name='standard input', text='x\\r\\n', has_mark=True)"
    assert done.stdout.decode().strip() == expected
    with open("/dev/zero", "rb") as endless:
        done = subprocess.run([sys.executable, "-c", program], stdin=endless, capture_output=True)
    assert b"standard input has over 8,388,608 bytes" in done.stderr
