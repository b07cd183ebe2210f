"""Small byte-level tokenizers that the tests share, trained here."""

import argparse
import ast
import functools
import inspect
import json
import tempfile
from pathlib import Path

from codellama_jax.tokenizers import byte_bpe, byte_level

TEXTS = [inspect.getsource(module) for module in (argparse, ast)]
PIECES = 700


@functools.cache
def trained(kind: str) -> byte_bpe.ByteBpeTokenizer:
    """Returns a tokenizer of a kind."""
    with tempfile.TemporaryDirectory() as folder:
        return byte_bpe.train(TEXTS, PIECES, kind, folder)


def spec(kind: str = "gpt2") -> dict:
    """Returns the tokenizer.json of a kind as other software writes it."""
    values = json.loads(trained(kind).model)
    del values["codellama_jax"]
    return values


def write_spec(folder: Path, values: dict) -> Path:
    """Writes a tokenizer.json and returns its path."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(values))
    return path


def write_vocabulary(folder: Path) -> tuple[Path, Path]:
    """Writes vocab.json and merges.txt of the kind gpt2 and returns their paths."""
    values = spec()
    vocab = {**values["model"]["vocab"]}
    vocab |= {token["content"]: token["id"] for token in values["added_tokens"]}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in values["model"]["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return folder / "vocab.json", folder / "merges.txt"


def joined_by_rank(text: str, ranks: dict[str, int]) -> list[int]:
    """Returns ids by the rule of Codex's published rank file.

    The leftmost pair whose join has the lowest rank is joined, until there is none.
    """
    parts = [byte_level.CHARACTERS[byte] for byte in text.encode()]
    while True:
        joins = []
        for place in range(len(parts) - 1):
            rank = ranks.get(parts[place] + parts[place + 1])
            if rank is not None:
                joins.append((rank, place))
        if not joins:
            return [ranks[part] for part in parts]
        _, place = min(joins)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
