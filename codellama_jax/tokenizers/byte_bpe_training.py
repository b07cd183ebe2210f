"""Trains the vocabulary of a byte-level BPE tokenizer of any kind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import trainers

from codellama_jax.errors import UserError
from codellama_jax.system.progress import Say, silent
from codellama_jax.tokenizers import byte_bpe_files, byte_level

BYTES = 256
RUN = re.compile(" {2,}")
# Merges stop where no pair is left that occurs so often.
OPTIONS: dict[str, Any] = {"min_frequency": 2}


def train_model(texts: list[str], pieces: int, kind: str, print_line: Say = silent) -> bytes:
    """Returns the content of a tokenizer.json with exactly `pieces` entries, trained on `texts`.

    If the corpus is too small, the last pieces stay unused, which `print_line` reports.

    Raises UserError for a corpus without text and for too few pieces.
    """
    # One merge at least: a vocabulary of bytes only has no merges, which the reader of GGUF
    # refuses.
    least = BYTES + byte_level.added_entries(kind) + 1
    if pieces < least:
        raise UserError(
            f"tokenizer.pieces is {pieces}: tokenizer.kind {kind} takes {least} or more (256 bytes,"
            f" {byte_level.added_entries(kind)} special tokens and runs of spaces, a merge): pass"
            f" --tokenizer.pieces {least}"
        )
    if not any(texts):
        raise UserError("cannot train a tokenizer: the corpus holds no text")
    size = pieces - byte_level.added_entries(kind)
    vocab, merges = _merged(texts, size, kind)
    unused = size - len(vocab)
    if unused:
        trained = f"the corpus has text for {pieces - unused:,} pieces"
        print_line(f"{trained}: the other {unused:,} of --tokenizer.pieces {pieces} stay unused")
    # StarCoder's special tokens have the ids 0 to 18 and the bytes follow; in all other kinds the
    # bytes come first and the special tokens follow the merges.
    first = 0
    special = [byte_level.END_OF_TEXT]
    if kind == "starcoder":
        special = list(byte_level.STARCODER_TOKENS)
        first = len(special)
    ids = {token: first + row for token, row in vocab.items()}
    added = []
    # The model's shapes follow from the number of pieces, so that it must not depend on the corpus.
    for number in range(unused):
        added.append(byte_level.added_token(f"<|unused_{number}|>", first + len(vocab) + number))
    for row, token in enumerate(special, 0 if first else size):
        added.append(byte_level.added_token(token, row))
    return byte_bpe_files.build(ids, merges, added, kind)


def _without_runs(texts: list[str], kind: str) -> Iterator[str]:
    """Yields the texts without the runs of spaces that are tokens of their kind anyway.

    Otherwise merges would make some of them a second time, and Codex's would not come last.
    """
    for text in texts:
        if kind == "codex":
            yield RUN.sub(" ", text)  # the last space of a run belongs to the next word
        elif kind == "codegeex":
            yield from RUN.split(text)
        else:
            yield text


def _merged(texts: list[str], size: int, kind: str) -> tuple[dict[str, int], list[list[str]]]:
    """Returns at most `size` tokens by id, and the merges that make them."""
    shell: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level.pre_tokenizer(kind),
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    # Built from JSON, so that training splits texts by the very rules that the written file has.
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(shell))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=list(byte_level.BYTES),
        show_progress=False,
        **OPTIONS,
    )
    tokenizer.train_from_iterator(_without_runs(texts, kind), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    # Ids in the order of merging, whatever order the library wrote them in.
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    return vocab, [list(merge) for merge in model["merges"]]
