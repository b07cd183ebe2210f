"""Which rows of a vocabulary belong to a tokenizer: a tokenizer of another model loses none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from etils import epath
from sentencepiece import sentencepiece_model_pb2

from codellama_jax.checkpoints.vocabulary import most_rows
from codellama_jax.errors import UserError
from codellama_jax.system.console import warn
from codellama_jax.system.settings import read_settings, shown_value
from codellama_jax.tokenizers.sentencepiece import Tokenizer
from codellama_jax.weights.inputs import file_names
from codellama_jax.weights.layout import Source

MAX_DIGITS = 10  # of an id


def added_tokens(folder: epath.Path) -> dict[int, str]:
    """Returns the tokens by id that transformers adds to a folder's SentencePiece model."""
    names: list[str] = file_names(folder)
    tokens: dict[Any, Any] = {}
    if "added_tokens.json" in names:
        for token, row in read_settings(folder / "added_tokens.json").values.items():
            tokens[row if isinstance(row, int) else shown_value(row)] = token
    if "tokenizer_config.json" in names:
        decoder = read_settings(folder / "tokenizer_config.json").inner("added_tokens_decoder")
        for row, token in decoder.values.items():
            content = token.get("content") if isinstance(token, dict) else token
            tokens[int(row) if row.isdecimal() and len(row) < MAX_DIGITS else row] = content
    for row, token in tokens.items():
        if isinstance(row, bool) or not isinstance(row, int) or not isinstance(token, str):
            where = "added_tokens.json or tokenizer_config.json"
            shown = f"the added token {token!r:.50} has the id {row!r:.50}"
            raise UserError(f"{folder}: {where}: {shown}: they must be a string and a number")
    return tokens


def check_rows(source: Source, tokenizer: Tokenizer, added: dict[int, str]) -> None:
    """Raises UserError naming both counts if the tokenizer is not the one of the model.

    The rows beyond the tokenizer's ids may be padding, up to a multiple of 256, or those of the
    sentinels or of `added` tokens.
    """
    rows, pieces = source.model.vocab_size, tokenizer.pieces
    counts = f"{source.name} has {rows:,} rows (vocab_size) and the tokenizer {pieces:,} pieces"
    fix = "pass the model's own tokenizer.model with --tokenizer"
    if rows < pieces:
        raise UserError(f"{counts}: {fix}")
    ids = tokenizer.vocab_size if _lists_sentinels(tokenizer) else pieces
    added_ids = [row for row in added if ids <= row < rows]
    if rows > most_rows(ids + len(added_ids)):
        raise UserError(f"{counts}: {rows - pieces:,} rows of the model would be lost; {fix}")


def trimmed(source: Source, tokenizer: Tokenizer, added: dict[int, str]) -> Source:
    """Drops the rows of padding and of added tokens, with a warning. Sentinel rows stay.

    Raises UserError like `check_rows`.
    """
    check_rows(source, tokenizer, added)
    rows, with_sentinels = source.model.vocab_size, tokenizer.vocab_size
    has_sentinels = rows > with_sentinels and _lists_sentinels(tokenizer)
    kept = with_sentinels if rows == with_sentinels or has_sentinels else tokenizer.pieces
    if kept < rows:
        dropped = [token for row, token in sorted(added.items()) if kept <= row < rows]
        kind = f"of padding and the added tokens {', '.join(dropped)}" if dropped else "of padding"
        warn(f"{source.name}: {rows - kept:,} rows {kind} are dropped, {kept:,} remain")
    return replace(source, model=replace(source.model, vocab_size=kept))


def _lists_sentinels(tokenizer: Tokenizer) -> bool:
    """Returns whether the file names the sentinels, as Code Llama's does and Llama 2's does not."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    return len(proto.pieces) > tokenizer.pieces
