"""Small byte-level tokenizers that the tests share, trained here."""

import argparse
import ast
import functools
import inspect
import json
import tempfile
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

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


# How published models split text: letters, digits in groups or one by one, line ends, spaces.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Names of BOS and EOS in tokenizer_config.json, of published models that a style follows.
STYLES = {
    "smollm2": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    "qwen": {"bos_token": None, "eos_token": "<|endoftext|>"},
}
SPECIAL = {
    "smollm2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"],
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}


@functools.cache
def published_style(style: str) -> tokenizers.Tokenizer:
    """Returns a small tokenizer of other software, built like that of a published model."""
    is_llama = style == "llama3"
    byte_step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=style == "smollm2")
    digits = r"\p{N}{1,3}" if is_llama else r"\p{N}"
    words = tokenizers.Regex(WORDS.replace("DIGITS", digits))
    first = pre_tokenizers.Split(words, "isolated")
    if style == "smollm2":
        first = pre_tokenizers.Digits(individual_digits=True)
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=is_llama))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte_step])
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        # SmolLM2's special tokens have the first ids, the others' the last.
        special_tokens=SPECIAL[style] if style == "smollm2" else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(SPECIAL[style])
    if style == "qwen":
        tokenizer.normalizer = normalizers.NFC()
        names = ("prefix", "middle", "suffix", "pad")
        plain = ["<tool_call>", "</tool_call>", *(f"<|fim_{name}|>" for name in names)]
        # Qwen does not mark these as special.
        tokenizer.add_tokens([tokenizers.AddedToken(t, special=False) for t in plain])
    if is_llama:
        bos = "<|begin_of_text|>"
        marker = (bos, tokenizer.token_to_id(bos))
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", None, [marker])
    return tokenizer


def write_style(style: str, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json of a style."""
    (folder / "tokenizer.json").write_text(published_style(style).to_str())
    config = STYLES[style] | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


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
