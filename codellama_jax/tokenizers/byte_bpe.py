"""Byte-level BPE, as GPT-2, Codex, CodeGeeX, StarCoder and today's Llama-shaped models use it.

Text is encoded by Hugging Face's `tokenizers`, without its special tokens: text that spells one
stays text. Decoding joins the tokens' bytes and so returns any text exactly, unless the file
changes text before it encodes it, which `limits` then lists.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import tokenizers
from etils import epath

from codellama_jax.errors import UserError
from codellama_jax.system.files import reason
from codellama_jax.system.progress import Say, silent
from codellama_jax.tokenizers import byte_bpe_spec, byte_bpe_training, cache
from codellama_jax.tokenizers.base import Tokenizer, utf8

FILE = "tokenizer.json"
# Threads of the library would be lost in forked workers, about which it prints a warning. Workers
# encode one text at a time anyway.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@dataclass(frozen=True)
class ByteBpeTokenizer(Tokenizer):
    """Made by `read` or `train`; its `model` is a tokenizer.json with the names of BOS and EOS."""

    file_name: ClassVar[str] = FILE

    kind: str  # one of byte_level.KINDS, "" for a tokenizer.json of other software
    _processor: tokenizers.Tokenizer = field(repr=False, compare=False)
    # The bytes of each id below `pieces`; b"" for ids that are not text.
    _bytes: list[bytes] = field(repr=False, compare=False)

    @property
    def text_ids(self) -> list[int]:
        """Returns the ids whose bytes are complete characters."""
        ids = []
        for i, data in enumerate(self._bytes):
            # Half a character is no text by itself: a token of incomplete UTF-8 is left out.
            try:
                if data.decode():
                    ids.append(i)
            except UnicodeDecodeError:
                pass
        return ids

    def encode(self, text: str, *, leading_space: bool = True) -> list[int]:
        """Returns the ids of `text`, without BOS and EOS. No space is added in either case.

        Raises UserError for a lone surrogate, which UTF-8 cannot represent.
        """
        utf8(text)
        # The method for batches is the only one that does not also track positions in the text.
        (encoding,) = self._processor.encode_batch_fast([text], add_special_tokens=False)
        return encoding.ids

    def decode(self, ids: Sequence[int] | np.ndarray, *, leading_space: bool = True) -> str:
        """Returns the text of `ids`, [length].

        Ids that are not text are dropped: BOS, EOS, sentinels, -1. Bytes that are not valid UTF-8,
        as after a truncation within a character, become U+FFFD.
        """
        ids = np.asarray(ids, np.int64)
        text_ids = ids[(ids >= 0) & (ids < self.pieces)].tolist()
        return b"".join(map(self._bytes.__getitem__, text_ids)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes of one id, which may be a part of a character; b"" if it is not text.

        Those of the ids of a text, joined, are the text in UTF-8.
        """
        return self._bytes[token] if 0 <= token < self.pieces else b""

    def __reduce__(self) -> tuple:
        # The processor is a Rust object: an unpickled tokenizer builds it from the file.
        return read, (self.model, "the pickled tokenizer")


def train(
    texts: Iterable[str],
    pieces: int,
    kind: str,
    cache_dir: epath.PathLike,
    print_line: Say = silent,
) -> ByteBpeTokenizer:
    """Returns a tokenizer of a kind with that many pieces, cached in `cache_dir`.

    Args:
      texts: documents, in any order. Above MAX_TRAINING_CHARS characters a sample is used.
      pieces: vocabulary entries, those of the kind's special tokens and runs of spaces included.
      kind: one of `byte_level.KINDS`.
      cache_dir: the folder of the cached file, which is named by all that decides its content.
      print_line: prints a line of progress.

    Raises UserError for texts without characters and for too few pieces.
    """
    options = {
        "byte_bpe": kind,
        "pieces": pieces,
        "tokenizers": tokenizers.__version__,
        **byte_bpe_training.OPTIONS,
    }

    def build(kept: list[str]) -> bytes:
        return byte_bpe_training.train_model(kept, pieces, kind, print_line)

    return cache.trained(texts, pieces, options, "json", build, read, cache_dir, print_line)


def read(data: bytes, name: str) -> ByteBpeTokenizer:
    """Returns the tokenizer of the content of a tokenizer.json, which messages call `name`.

    Raises UserError for damaged files and for tokenizers of other kinds.
    """
    spec = byte_bpe_spec.parse(data, name)
    vocabulary = byte_bpe_spec.vocabulary(spec, name)
    encoding = byte_bpe_spec.text_only(spec, vocabulary)
    table = vocabulary.text_bytes()
    # Only the parts that decide ids: files that differ in templates or names are one tokenizer.
    decisive = json.dumps([encoding, vocabulary.ids], sort_keys=True)
    return ByteBpeTokenizer(
        model=data,
        pieces=vocabulary.pieces,
        **vocabulary.ids,
        fingerprint=hashlib.sha256(decisive.encode()).hexdigest(),
        limits=byte_bpe_spec.limits(spec, vocabulary, table),
        kind=byte_bpe_spec.kind_of(spec, name),
        lists_sentinels=vocabulary.lists_sentinels,
        adds_bos=byte_bpe_spec.adds_bos(spec, vocabulary),
        _processor=_processor(encoding, name),
        _bytes=table,
    )


def _processor(encoding: dict[str, Any], name: str) -> tokenizers.Tokenizer:
    """Returns the library's tokenizer. Raises UserError if it refuses the file, `name`."""
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(encoding))
    # The library raises plain Exceptions, and BaseExceptions for its own failed assertions.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        detail = reason(error).partition(" at line ")[0][:200]
        problem = f"{name} is damaged or of another version (tokenizers refuses it, {detail})"
        raise UserError(f"{problem}: download it again") from None
