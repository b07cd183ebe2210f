"""Finds and reads the file of a tokenizer of any kind.

The kind of a file is recognised by its content: JSON is byte-level BPE, all else SentencePiece.
"""

from __future__ import annotations

from etils import epath

from codellama_jax.config import TokenizerConfig
from codellama_jax.errors import UserError
from codellama_jax.system.files import read_file, user_path
from codellama_jax.tokenizers import byte_bpe, byte_bpe_files, sentencepiece, sentencepiece_file
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.tokenizers.bos_setting import begins_without_bos

RUN_FILES = (sentencepiece.FILE, byte_bpe.FILE)  # one of them is in the folder of a run
FILES = (*RUN_FILES, *byte_bpe_files.PAIRS)  # a folder of several is read in this order
NAMES = "tokenizer.model, tokenizer.json, or vocab.json with merges.txt"


def load(path: epath.PathLike, kind: str = TokenizerConfig.kind) -> Tokenizer:
    """Reads a tokenizer.model, a tokenizer.json, or a vocab.json with its merges.txt.

    Args:
      path: one of these files, or a folder that holds one; of several in a folder the first.
      kind: how vocab.json and merges.txt split text; the default means as GPT-2 does. Other files
        hold that themselves.

    Raises UserError that names the file for any other.
    """
    file = user_path(path)
    try:
        if file.is_dir():
            file = find(file)
        pair = byte_bpe_files.pair_of(file)
        data = b"" if pair else read_file(file)
    except UserError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error}") from None
    if pair:
        # A vocab.json alone does not decide how text is split: only for these files `kind` counts.
        return byte_bpe.read(byte_bpe_files.of_vocabulary(*pair, kind), str(file))
    if not is_json(data):
        _check_kind(file, kind, TokenizerConfig.kind)
        if begins_without_bos(file):
            data = sentencepiece_file.without_bos(data, str(file))
        return sentencepiece.read(data, str(file))
    tokenizer = byte_bpe.read(byte_bpe_files.with_markers(data, file), str(file))
    _check_kind(file, kind, tokenizer.kind)
    return tokenizer


def is_json(data: bytes) -> bool:
    """Returns whether the content of a file is a JSON object, complete or not."""
    # The first byte is enough: truncated JSON is recognised too, and reading it names the damage.
    return data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


def find(folder: epath.Path) -> epath.Path:
    """Returns the file of the tokenizer in a folder. Raises UserError if there is none."""
    for name in FILES:
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{folder} has no {NAMES}: put it there")


def _check_kind(file: epath.Path, kind: str, actual: str) -> None:
    """Raises UserError where `--tokenizer.kind` contradicts a file that holds its kind."""
    if kind not in (TokenizerConfig.kind, actual):
        what = f"holds its own rules{f', {actual}' if actual else ''}"
        fix = "leave out --tokenizer.kind, or name a vocab.json with merges.txt"
        raise UserError(f"{file} {what}, but --tokenizer.kind is {kind}: {fix}")
