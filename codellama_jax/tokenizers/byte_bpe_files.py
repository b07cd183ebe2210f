"""Reads tokenizer.json, or vocab.json and merges.txt, as the content of one tokenizer.json.

Which tokens are BOS and EOS is not in a tokenizer.json but in files beside it. A run keeps one
file, so its tokenizer.json has one more field, MARKERS, which other software must not be given.
"""

from __future__ import annotations

import json
import re
from typing import Any

from etils import epath

from codellama_jax.errors import UserError
from codellama_jax.system.files import decode_text, parse_json, read_file
from codellama_jax.system.settings import read_settings
from codellama_jax.tokenizers import byte_level
from codellama_jax.tokenizers.bos_setting import bos_setting

CHAT_TEMPLATE = "chat_template.jinja"  # newer transformers write it to a separate file
MARKERS = "codellama_jax"  # the field of tokenizer.json with kind, BOS and EOS
# Vocabulary and merges, as transformers and as OpenAI's GPT-2 name them.
PAIRS = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
MARKUP = re.compile(r"[<\[].*[>\]]", re.DOTALL)  # how special tokens are written
MOST_SHOWN = 40  # characters of a token in a message


def pair_of(file: epath.Path) -> tuple[epath.Path, epath.Path] | None:
    """Returns the paths of vocabulary and merges that a file is one of, None for other files."""
    for vocab, merges in PAIRS.items():
        if file.name in (vocab, merges):
            return file.with_name(vocab), file.with_name(merges)
    return None


def of_vocabulary(vocab_file: epath.Path, merges_file: epath.Path, kind: str) -> bytes:
    """Returns the tokenizer.json of a vocabulary, its merges and the rules of a kind.

    Raises UserError for damaged files and for merges of another vocabulary.
    """
    vocab = check_vocab(parse_json(read_file(vocab_file), str(vocab_file)), str(vocab_file))
    merges = _read_merges(merges_file)
    produced = set()
    for number, (left, right) in enumerate(merges, 1):
        # Each merge needs both parts and their sum in the vocabulary.
        for token in (left, right, left + right):
            if token not in vocab:
                raise UserError(
                    f"{merges_file}: merge {number:,}, {_shown(left)} {_shown(right)}, needs"
                    f" {_shown(token)}, which {vocab_file.name} lacks: take both files from the"
                    " same model"
                )
        produced.add(left + right)
    added, lost = [], []
    for token, row in vocab.items():
        # Bytes are one character each, and BPE makes all longer tokens by merges. A longer token
        # without one is special, or the file of merges is truncated.
        if len(token) > 1 and token not in produced:
            is_special = bool(MARKUP.fullmatch(token))
            added.append(byte_level.added_token(token, row))
            if not is_special:
                lost.append(token)
    if lost:
        raise UserError(
            f"{merges_file} has no merge for {len(lost):,} entries of {vocab_file.name}, such as"
            f" {_shown(lost[0])}: it is truncated or of another model; download it again"
        )
    # `build` adds them again, as special tokens that no text is encoded to.
    for entry in added:
        del vocab[entry["content"]]
    rules = kind if kind in byte_level.KINDS else "gpt2"
    return build(vocab, merges, added, rules)


def build(
    vocab: dict[str, int],
    merges: list[list[str]],
    added: list[dict[str, Any]],
    kind: str,
) -> bytes:
    """Returns the content of a tokenizer.json whose only marker is <|endoftext|>.

    Args:
      vocab: ids of bytes and merged tokens.
      merges: pairs of tokens, in the order of merging.
      added: special tokens, entries of `added_tokens`.
      kind: one of `byte_level.KINDS`, which adds its runs of spaces.
    """
    byte_level.add_runs(kind, vocab, merges, added)
    added.sort(key=lambda token: token["id"])
    names = {token["content"]: token["id"] for token in added}
    # Other software gives an added token that the vocabulary lacks another id.
    vocab |= names
    spec = {
        "version": "1.0",
        # None everywhere: this project truncates and pads by itself.
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level.pre_tokenizer(kind),
        # Its only marker is EOS, which begins no document: see `byte_bpe_spec.adds_bos`.
        "post_processor": None,
        "decoder": byte_level.pre_tokenizer("gpt2"),
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        MARKERS: {"kind": kind, "bos": byte_level.END_OF_TEXT, "eos": byte_level.END_OF_TEXT},
    }
    return dumped(spec)


def bos_template(bos: str, row: int) -> dict[str, Any]:
    """Returns the post_processor of tokenizer.json that begins texts with a token and its id."""
    part = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [part, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [part, {"Sequence": {"id": "A", "type_id": 0}}]
        + [part, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {bos: {"id": bos, "ids": [row], "tokens": [bos]}},
    }


def dumped(spec: dict[str, Any]) -> bytes:
    """Returns a tokenizer.json as UTF-8."""
    return json.dumps(spec, ensure_ascii=False).encode("utf-8", "surrogatepass")


def with_markers(data: bytes, file: epath.Path) -> bytes:
    """Returns a tokenizer.json with what files beside it hold.

    That is BOS, EOS, whether a text begins with BOS, and the chat template.
    """
    spec = parse_json(data, str(file))
    # The file of a run, which must not change with the files beside it.
    if MARKERS in spec:
        return data
    names: dict[str, str] = {}
    # Where both files name a token, the later one wins.
    for other in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (file.parent / other).exists():
            continue
        settings = read_settings(file.parent / other)
        for marker in ("bos", "eos"):
            token = settings.values.get(f"{marker}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token is not None and not isinstance(token, str):
                raise settings.error(f"{marker}_token", "a string, an object with content, or null")
            if token:
                names[marker] = token
        template = _template(settings.values.get("chat_template"))
        if template:
            names["chat_template"] = template
        adds_bos = bos_setting(settings)
        if adds_bos is not None:
            spec = _with_bos(spec, names.get("bos", ""), adds_bos)
    # The separate file wins over the field, because it is the newer way.
    if (file.parent / CHAT_TEMPLATE).exists():
        names["chat_template"] = decode_text(read_file(file.parent / CHAT_TEMPLATE), CHAT_TEMPLATE)
    return dumped({**spec, MARKERS: {"kind": "", **names}})


def _template(value: Any) -> str:
    """Returns the chat template, "" if there is none. Of a list of named ones it is `default`."""
    for entry in value if isinstance(value, list) else ():
        if isinstance(entry, dict) and entry.get("name") == "default":
            value = entry.get("template")
            break
    return value if isinstance(value, str) else ""


def _with_bos(spec: dict[str, Any], bos: str, adds_bos: bool) -> dict[str, Any]:
    """Returns a tokenizer.json whose post_processor begins texts with `bos`, or does nothing.

    Published files of DeepSeek have no such step: their class of transformers 4 makes it.
    """
    if not adds_bos:
        return {**spec, "post_processor": None}
    added = spec.get("added_tokens")
    for entry in added if isinstance(added, list) else []:
        # An id that is damaged is reported where the file is checked.
        if isinstance(entry, dict) and entry.get("content") == bos:
            return {**spec, "post_processor": bos_template(bos, entry.get("id", 0))}
    return spec


def _read_merges(file: epath.Path) -> list[list[str]]:
    """Returns the merges of a merges.txt. Raises UserError that names the first wrong line."""
    merges = []
    lines = decode_text(read_file(file), str(file)).split("\n")
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(parts):
            raise UserError(
                f"{file}: line {number:,} must be two tokens with a space between them, got"
                f" {_shown(line)}: download the file again"
            )
        merges.append(parts)
    if not merges:
        raise UserError(f"{file} holds no merges: download it again")
    return merges


def check_vocab(vocab: Any, name: str, most: int = 1_000_000) -> dict[str, int]:
    """Returns a vocabulary whose ids are different whole numbers below `most`.

    Raises UserError that names the file, `name`, and the first wrong entry.
    """
    if not isinstance(vocab, dict) or not vocab:
        raise UserError(f"{name} holds no vocabulary: it must be an object of tokens and ids")
    tokens: dict[int, str] = {}
    for token, row in vocab.items():
        # bool is a subclass of int: true must not pass for 1.
        if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < most:
            limit = f"a whole number from 0 to {most - 1:,}"
            raise UserError(f"{name}: the id of {_shown(token)} must be {limit}, got {row!r:.40}")
        if row in tokens:
            both = f"{_shown(tokens[row])} and {_shown(token)}"
            raise UserError(f"{name}: {both} have the same id, {row}: download it again")
        tokens[row] = token
    return dict(vocab)


def _shown(token: str) -> str:
    return repr(token[:MOST_SHOWN])
