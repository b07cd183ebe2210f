"""Text that a user wants completed or filled in: read with checks, written back byte for byte.

Imports no JAX, so that a mistake is reported at once.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from codellama_jax.errors import UserError
from codellama_jax.generation.settings import CAPACITY
from codellama_jax.system.files import decode_text, is_bucket, read_file, user_path

FILL_ME = "<FILL_ME>"
UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# A piece of a tokenizer holds at most 16 characters, each of at most 4 bytes.
MAX_BYTES = CAPACITY * 16 * 4


@dataclass(frozen=True)
class Source:
    """A text with the form of its file."""

    name: str
    text: str  # without a byte order mark; line ends as in the file
    has_mark: bool = False  # begins with a byte order mark, which the model does not read

    @property
    def is_crlf(self) -> bool:
        """Whether most lines end as on Windows."""
        # Such a file is read with "\n", which models know, and written back as it was.
        return 2 * self.text.count("\r\n") > self.text.count("\n")

    def for_model(self, text: str) -> str:
        """Returns a part of the text with the line ends that a model knows."""
        return text.replace("\r\n", "\n") if self.is_crlf else text

    def from_model(self, text: str) -> str:
        """Returns the model's text with the line ends of the file."""
        # A carriage return that the model drew itself would double in a CRLF file.
        text = text.replace("\r", "")
        return text.replace("\n", "\r\n") if self.is_crlf else text

    def split(self) -> tuple[str, str]:
        """Returns the text before and after the mark. Raises UserError unless there is one mark."""
        count = self.text.count(FILL_ME)
        if count != 1:
            problem = f"{self.name} holds {count} marks {FILL_ME}"
            raise UserError(f"{problem}: put exactly one where the middle is wanted")
        prefix, _, suffix = self.text.partition(FILL_ME)
        return prefix, suffix


def read_source(path: str) -> Source:
    """Reads a file, local or gs://, or standard input for `-`.

    Raises UserError for what is not a regular file of UTF-8 text, or is too long for any prompt.
    """
    if path == "-":
        return decoded(_standard_input(), "standard input")
    name = user_path(path)
    # A local file's size is known before it is read: a mistaken multi-gigabyte path fails at once.
    if not is_bucket(path) and os.path.isfile(name):
        _check_size(path, os.path.getsize(name))
    return decoded(read_file(name), path)


def decoded(data: bytes, name: str) -> Source:
    """Returns UTF-8 text as a Source. Raises UserError for another encoding or too much text."""
    _check_size(name, len(data))
    if data.startswith(UTF16_MARKS):
        fix = "convert it to UTF-8, as `iconv -f UTF-16 -t UTF-8` does"
        raise UserError(f"{name} is UTF-16 text: {fix}")
    return Source(name, decode_text(data, name), data.startswith(UTF8_MARK))


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise UserError("standard input is closed: name a file")
    if sys.stdin.isatty():
        print("reading standard input; end it with Ctrl-D", file=sys.stderr, flush=True)
    # One byte more than allowed is enough to see that the input is too long, without reading it
    # all.
    return sys.stdin.buffer.read(MAX_BYTES + 1)


def _check_size(name: str, size: int) -> None:
    if size > MAX_BYTES:
        limit = f"no prompt of {CAPACITY:,} tokens, the most that fit, is that long"
        raise UserError(f"{name} has over {MAX_BYTES:,} bytes: {limit}; shorten it")
