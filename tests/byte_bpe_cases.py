"""Small byte-level tokenizers that the tests share, trained here."""

import argparse
import ast
import functools
import inspect
import json
import tempfile
from pathlib import Path

import hypothesis.strategies as st

from codellama_jax.tokenizers import byte_bpe, byte_level

TEXTS = [inspect.getsource(module) for module in (argparse, ast)]
PIECES = 700
ODD = ["\0", "\x01", "\x7f", "\x85", "\t", "\r\n", "\r", "  ", " " * 11, " " * 26, "▁", "\u00a0"]
ODD += [
    "\u2028",
    "\u3000",
    "\ufeff",
    "\ufffd",
    "\uffff",
    "👩‍👩‍👧",
    "e\u0301",
    "\U0010ffff",
    "12345",
]
ODD += ["def f(self):\n    return", "<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<PRE>", "Ġ"]
ODD += ["<|extratoken_10|>", "<|unused_0|>", "Ċ", "<unused0>"]
any_text = st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=8)), max_size=12).map("".join)


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


# tokenizer.json of published models.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
# As older versions of transformers write a token in tokenizer_config.json.
ADDED = {"__type": "AddedToken", "lstrip": False, "rstrip": False, "normalized": False}
# A step that changes only the places of tokens in the text, not ids.
BYTE_OFFSETS = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": False,
    "use_regex": True,
}


def split(pattern: str) -> dict:
    """Returns the pre-tokenizer of Llama 3 and Qwen: a regular expression, then bytes."""
    regex = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    byte_step = {**byte_level.pre_tokenizer("gpt2"), "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [{**regex, "invert": False}, byte_step]}


def with_tokens(values: dict, *tokens: str, special: bool = True) -> dict:
    """Returns a tokenizer.json with other added tokens from the id 699."""
    for token in values["added_tokens"]:
        values["model"]["vocab"].pop(token["content"], None)
    values["added_tokens"] = []
    values["post_processor"] = None
    for row, token in enumerate(tokens, PIECES - 1):
        values["added_tokens"].append(byte_level.added_token(token, row, special))
    return values


def smollm2() -> tuple[dict, dict]:
    values = with_tokens(spec("gpt2"), "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    values["pre_tokenizer"] = byte_level.pre_tokenizer("starcoder")
    values["post_processor"] = BYTE_OFFSETS
    return values, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


def llama_3() -> tuple[dict, dict]:
    values = with_tokens(spec("gpt2"), "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
    values["pre_tokenizer"] = split(LLAMA_3)
    values["model"]["ignore_merges"] = True
    values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]
    name = "<|begin_of_text|>"
    bos = {"id": name, "type_id": 0}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": bos}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            bos["id"]: {"id": bos["id"], "ids": [PIECES - 1], "tokens": [bos["id"]]}
        },
    }
    values["post_processor"] = {"type": "Sequence", "processors": [BYTE_OFFSETS, template]}
    return values, {"bos_token": name, "eos_token": "<|end_of_text|>"}


def qwen() -> tuple[dict, dict]:
    names = ("<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<tool_call>")
    values = with_tokens(spec("gpt2"), *names, special=False)
    values["pre_tokenizer"] = split(QWEN)
    values["normalizer"] = {"type": "NFC"}
    return values, {"bos_token": None, "eos_token": {"content": "<|endoftext|>", **ADDED}}


FAMILIES = {"smollm2": smollm2, "llama_3": llama_3, "qwen": qwen}


def write_family(folder: Path, family: str) -> dict:
    """Writes the files of a published family, and returns its tokenizer.json."""
    values, config = FAMILIES[family]()
    write_spec(folder, values)
    if config:
        # Without a class, transformers takes one by the type of the model, with rules of its own.
        config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return values


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
