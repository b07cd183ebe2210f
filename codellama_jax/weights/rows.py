"""Compares the vocabulary of published weights with the tokenizer, and removes its padding.

A tokenizer of another model must be refused: otherwise rows of the embedding would be dropped as
padding although they belong to tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from etils import epath

from codellama_jax.checkpoints.vocabulary import most_rows
from codellama_jax.errors import UserError
from codellama_jax.system.console import warn
from codellama_jax.system.settings import read_settings, shown_value
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.weights.inputs import file_names
from codellama_jax.weights.layout import Source

MAX_DIGITS = 10  # of an id in a JSON file; more are damage


def added_tokens(folder: epath.Path) -> dict[int, str]:
    """Returns the tokens, by id, that a folder's JSON files add to its vocabulary.

    transformers writes them to added_tokens.json, in newer versions to tokenizer_config.json.
    Raises UserError for a token that is not a string or an id that is not a number.
    """
    names: list[str] = file_names(folder)
    tokens: dict[Any, Any] = {}
    if "added_tokens.json" in names:
        for token, row in read_settings(folder / "added_tokens.json").values.items():
            # A list or object could not be a key of `tokens`; its text is refused below.
            tokens[row if isinstance(row, int) else shown_value(row)] = token
    if "tokenizer_config.json" in names:
        decoder = read_settings(folder / "tokenizer_config.json").inner("added_tokens_decoder")
        for row, token in decoder.values.items():
            content = token.get("content") if isinstance(token, dict) else token
            tokens[int(row) if row.isdecimal() and len(row) < MAX_DIGITS else row] = content
    # Keys and values of both files are any JSON until here.
    for row, token in tokens.items():
        if isinstance(row, bool) or not isinstance(row, int) or not isinstance(token, str):
            where = "added_tokens.json or tokenizer_config.json"
            shown = f"the added token {token!r:.50} has the id {row!r:.50}"
            raise UserError(f"{folder}: {where}: {shown}: they must be a string and a number")
    return tokens


def check_rows(source: Source, tokenizer: Tokenizer, added: dict[int, str]) -> None:
    """Raises UserError naming both counts if the tokenizer cannot be the model's.

    Rows of the embedding beyond the tokenizer's ids may be padding (`most_rows`),
    sentinels, or `added` tokens, by id.
    """
    rows, pieces = source.model.vocab_size, tokenizer.pieces
    counts = f"{source.name} has {rows:,} rows (vocab_size) and the tokenizer {pieces:,} pieces"
    fix = "pass the model's own tokenizer with --tokenizer"
    if rows < pieces:
        raise UserError(f"{counts}: {fix}")
    # Llama 2's tokenizer.model lists no sentinels, so its model needs no rows for them.
    ids = tokenizer.vocab_size if tokenizer.lists_sentinels else pieces
    added_ids = [row for row in added if ids <= row < rows]
    # Padding is bounded: a tokenizer with far fewer entries belongs to another model.
    if rows > most_rows(ids + len(added_ids)) and pieces != source.entries:
        raise UserError(f"{counts}: {rows - pieces:,} rows of the model would be lost; {fix}")


def trained_rows(source: Source, tokenizer: Tokenizer) -> int:
    """Returns the number of rows that belong to tokens and sentinels of the tokenizer."""
    rows, with_sentinels = source.model.vocab_size, tokenizer.vocab_size
    # More rows than pieces and sentinels: the rows above the pieces are sentinels only if the
    # tokenizer's file lists them, otherwise they are padding.
    has_padded_sentinels = rows > with_sentinels and tokenizer.lists_sentinels
    has_sentinels = rows == with_sentinels or has_padded_sentinels
    return min(rows, with_sentinels if has_sentinels else tokenizer.pieces)


def trimmed(source: Source, tokenizer: Tokenizer, added: dict[int, str]) -> Source:
    """Returns the source without the rows of padding and of added tokens, which it prints.

    Sentinels remain. Raises UserError like `check_rows`.
    """
    check_rows(source, tokenizer, added)
    rows, kept = source.model.vocab_size, trained_rows(source, tokenizer)
    if kept < rows:
        dropped = [token for row, token in sorted(added.items()) if kept <= row < rows]
        kind = f"of padding and the added tokens {', '.join(dropped)}" if dropped else "of padding"
        warn(f"{source.name}: {rows - kept:,} rows {kind} are dropped, {kept:,} remain")
    return replace(source, model=replace(source.model, vocab_size=kept))
