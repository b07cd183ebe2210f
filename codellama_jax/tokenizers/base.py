"""The interface of all tokenizers. A new kind subclasses `Tokenizer`; `files.load` returns it.

Sentinels are ids and never text: a document that contains "<PRE>" is encoded like any other text.
"""

from __future__ import annotations

import abc
import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from etils import epath

from codellama_jax.errors import UserError
from codellama_jax.system.files import write_file
from codellama_jax.tokenizers.sentinels import SENTINEL_ROWS

UTF8_BYTES = 4  # of the longest character


@dataclass(frozen=True)
class Tokenizer(abc.ABC):
    """Encodes text as token ids and decodes them. Subclasses are picklable."""

    file_name: ClassVar[str]  # of the file in the folder of a run
    # Whether `decode` returns one U+FFFD for each byte of an unfinished character, or one for all.
    marks_each_byte: ClassVar[bool] = False

    model: bytes = field(repr=False)  # the content of that file
    pieces: int  # vocabulary entries without the appended sentinels; ids of text are below it
    bos_id: int
    eos_id: int
    pre_id: int
    suf_id: int
    mid_id: int
    eot_id: int
    fingerprint: str  # SHA-256 of everything that decides ids
    limits: tuple[str, ...]  # options of the file that make text differ after decoding
    # Whether the file itself lists sentinels: Code Llama's does, Llama 2's does not. A published
    # embedding has rows for them only then.
    lists_sentinels: bool
    # Whether a prompt begins with BOS. A published tokenizer.json has a step that adds it, or not.
    adds_bos: bool

    @property
    def vocab_size(self) -> int:
        """Returns the vocabulary size with sentinels: 32,016 for Llama 2's 32,000 pieces.

        A vocabulary that has infilling sentinels, as StarCoder's, gets no further entries.
        """
        return self.pieces + (SENTINEL_ROWS if self.pre_id >= self.pieces else 0)

    @property
    @abc.abstractmethod
    def text_ids(self) -> list[int]:
        """Returns the ids that each decode to text, without markers and parts of characters."""

    @abc.abstractmethod
    def encode(self, text: str, *, leading_space: bool = True) -> list[int]:
        """Returns the ids of `text`, without BOS and EOS.

        `leading_space=False` leaves out the space that some kinds add before any text; it is the
        encoding of middle and suffix of an infilling example (Code Llama, section 2.3).

        Raises UserError for a lone surrogate, which UTF-8 cannot represent.
        """

    def prompt(self, text: str) -> list[int]:
        """Returns the ids of a text to continue: with BOS before it, if the model expects it.

        An empty text is BOS in any case, because a model cannot continue nothing.
        """
        ids = self.encode(text)
        return [self.bos_id, *ids] if self.adds_bos or not ids else ids

    @abc.abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray, *, leading_space: bool = True) -> str:
        """Returns the text of `ids`, [length]; undoes `encode` with the same `leading_space`.

        Ids that are not text are dropped: BOS, EOS, sentinels, -1. Bytes that are not valid UTF-8,
        as after a truncation within a character, become U+FFFD.
        """

    @abc.abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes of one id, which may be a part of a character; b"" if it is not text.

        Those of the ids of a text, joined, are the text in UTF-8.
        """

    def unfinished(self, ids: Sequence[int]) -> int:
        """Returns how many U+FFFD at the end of `decode(ids)` are a character with bytes to come.

        Others are text that the model wrote, or bytes that no further ones complete.
        """
        data = b""
        for token in reversed(ids):
            data = self.token_bytes(token) + data
            if len(data) >= UTF8_BYTES:
                break
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(data)
        # What the decoder keeps until more bytes come.
        pending, _ = decoder.getstate()
        return len(pending) if self.marks_each_byte else min(len(pending), 1)

    def save(self, path: epath.PathLike) -> None:
        """Writes the file that `files.load` reads; an interrupted write keeps the old file."""
        write_file(path, self.model)


def utf8(text: str) -> bytes:
    """Returns a text as UTF-8. Raises UserError for a lone surrogate, naming it."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        surrogate = f"{error.object[error.start]!a}"
        message = f"text holds a lone surrogate, {surrogate}, which is no character: remove it"
        raise UserError(message) from error
