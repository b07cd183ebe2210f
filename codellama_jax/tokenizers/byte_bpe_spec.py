"""Checks the content of a tokenizer.json, and separates text from special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from codellama_jax.errors import UserError
from codellama_jax.system.files import parse_json
from codellama_jax.tokenizers import byte_level
from codellama_jax.tokenizers.byte_bpe_files import MARKERS, MARKUP, check_vocab
from codellama_jax.tokenizers.sentinels import SENTINEL_ROWS

# Names of prefix, suffix and middle in published vocabularies: StarCoder, SantaCoder, Qwen and
# CodeGemma, DeepSeek. None has an EOT; the middle ends with EOS.
INFILLING_NAMES = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)
# Appended sentinels as an exported file lists them, by their distance from the number of pieces.
SENTINELS = {"<PRE>": 7, "<SUF>": 8, "<MID>": 9, "<EOT>": 10}
IDS = ("pre_id", "suf_id", "mid_id", "eot_id")  # fields of a Tokenizer, in the order of SENTINELS
# BOS and EOS where no file beside tokenizer.json names them.
USUAL_MARKERS = (
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    ("<s>", "</s>"),
    (byte_level.END_OF_TEXT, byte_level.END_OF_TEXT),
)
KEEPING = ("ByteLevel", "Digits", "Punctuation", "Split", "UnicodeScripts")  # keep all characters
WIDTH = 200  # characters of a text from a file in a message


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a tokenizer.json.

    Attributes:
      tokens: ids of bytes and merged tokens.
      added: ids of tokens that text holds as they are, such as runs of spaces.
      pieces: vocabulary entries without appended sentinels.
      ids: the ids of BOS, EOS and the sentinels, by the names of the fields of a Tokenizer.
      lists_sentinels: whether the file itself has the appended sentinels.
    """

    tokens: dict[str, int]
    added: dict[str, int]
    pieces: int
    ids: dict[str, int]
    lists_sentinels: bool

    def text_bytes(self) -> list[bytes]:
        """Returns the bytes of each id below `pieces`, b"" for one that is not text."""
        table = [b""] * self.pieces
        for token, row in self.tokens.items():
            table[row] = byte_level.bytes_of(token)
        for token, row in self.added.items():
            table[row] = token.encode("utf-8", "replace")
        return table


def parse(data: bytes, name: str) -> dict[str, Any]:
    """Returns the values of a tokenizer.json. Raises UserError if it is not byte-level BPE."""
    spec = parse_json(data, name)
    model = spec.get("model") if isinstance(spec, dict) else None
    if not isinstance(model, dict):
        raise UserError(f"{name} is JSON, but no tokenizer: it has no object `model`")
    # Files of old versions have no type.
    kind = model.get("type", "BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        fix = "only byte-level BPE and SentencePiece's tokenizer.model are read"
        what = f"a tokenizer.json of Hugging Face with a model of the type {kind!s:.40}"
        raise UserError(f"{name} is {what}: {fix}")
    steps = list(_steps(spec.get("pre_tokenizer")))
    byte_steps = [step for step in steps if step.get("type") == "ByteLevel"]
    if not byte_steps:
        fix = "name the model's tokenizer.model, if it has one"
        raise UserError(f"{name} is BPE of characters, not of bytes (no ByteLevel step): {fix}")
    if any(step.get("add_prefix_space") for step in byte_steps):
        raise UserError(
            f"{name}: pre_tokenizer.add_prefix_space is true, with which no text can be encoded"
            " exactly: set it to false, or use another tokenizer"
        )
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise UserError(
                f"{name}: model.{option} is set: only byte-level BPE without it is read"
            )
    return spec


def is_byte_level(data: bytes) -> bool:
    """Returns whether the content of a tokenizer.json is byte-level BPE, or damaged JSON."""
    try:
        spec = json.loads(data)
    except (ValueError, RecursionError):
        return True  # reading it then raises an error that names the damage
    steps = _steps(spec.get("pre_tokenizer") if isinstance(spec, dict) else None)
    return any(step.get("type") == "ByteLevel" for step in steps)


def _steps(step: Any) -> Iterator[dict[str, Any]]:
    """Yields the steps of a pre-tokenizer, those of a sequence one by one."""
    if isinstance(step, dict) and isinstance(step.get("pretokenizers"), list):
        for inner in step["pretokenizers"]:
            if isinstance(inner, dict):
                yield inner
    elif isinstance(step, dict):
        yield step


def kind_of(spec: dict[str, Any], name: str) -> str:
    """Returns the kind that this project wrote into a file, "" for files of other software."""
    kind = _markers(spec, name).get("kind", "")
    if kind not in ("", *byte_level.KINDS):
        allowed = ", ".join(byte_level.KINDS)
        raise UserError(f"{name}: {MARKERS}.kind must be one of {allowed}, got {kind!r:.40}")
    return kind


def _markers(spec: dict[str, Any], name: str) -> dict[str, Any]:
    markers = spec.get(MARKERS, {})
    if not isinstance(markers, dict):
        raise UserError(f"{name}: {MARKERS} must be an object: take the file from a backup")
    return markers


def vocabulary(spec: dict[str, Any], name: str) -> Vocabulary:
    """Returns the vocabulary of a tokenizer.json, which messages call `name`.

    Raises UserError for damaged ids, and for missing BOS and EOS.
    """
    tokens = check_vocab(spec["model"].get("vocab"), f"{name}: model.vocab")
    added, special = _added_tokens(spec, name)
    # Checked together: the ids of added tokens must also differ from those of the vocabulary.
    everything = check_vocab({**tokens, **added, **special}, name)
    markers = _marker_ids(spec, everything, name)
    sentinels, listed = _appended(everything), True
    # Appended sentinels have a fixed distance from the number of pieces, which follows from them.
    pieces = sentinels["pre_id"] - SENTINELS["<PRE>"] if sentinels else 1 + max(everything.values())
    if not sentinels:
        marked = _markers(spec, name).get("infilling", ())
        sentinels, listed = _named(everything, markers["eos_id"], pieces, marked)
    ids = markers | sentinels
    # A vocab.json may list special tokens among the others.
    used = set(ids.values()) | set(special.values())
    texts = {token: row for token, row in tokens.items() if row not in used}
    added = {token: row for token, row in added.items() if row not in used and row < pieces}
    return Vocabulary(texts, added, pieces, ids, listed)


def entries(spec: dict[str, Any]) -> dict[str, int]:
    """Returns the ids of all entries of a tokenizer.json that `vocabulary` has checked."""
    added = {token["content"]: token["id"] for token in spec.get("added_tokens") or []}
    return {**spec["model"]["vocab"], **added}


def sentinel_rows(pieces: int) -> dict[str, int]:
    """Returns the names and ids of the entries that infilling adds to a vocabulary of `pieces`."""
    names = {offset: token for token, offset in SENTINELS.items()}
    return {names.get(n, f"<unused{n}>"): pieces + n for n in range(SENTINEL_ROWS)}


def _added_tokens(spec: dict[str, Any], name: str) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the ids of the added tokens that are text, and of those that are special."""
    entries = spec.get("added_tokens") or []
    added: dict[str, int] = {}
    special: dict[str, int] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or not content:
            shown = repr(entry)[:WIDTH]
            raise UserError(f"{name}: an entry of added_tokens has no text `content`: {shown}")
        # Some files do not mark all of their special tokens; none is ever text.
        is_special = entry.get("special", False) or MARKUP.fullmatch(content)
        (special if is_special else added)[content] = entry.get("id")
    return added, special


def _marker_ids(spec: dict[str, Any], everything: dict[str, int], name: str) -> dict[str, int]:
    """Returns the ids of BOS and EOS. A vocabulary without BOS begins documents with EOS."""
    named = _markers(spec, name)
    bos, eos = named.get("bos"), named.get("eos")
    for usual_bos, usual_eos in USUAL_MARKERS:
        if not eos and usual_bos in everything and usual_eos in everything:
            bos, eos = bos or usual_bos, usual_eos
    bos = bos or eos
    for marker, token in (("EOS", eos), ("BOS", bos)):
        if not isinstance(token, str) or token not in everything:
            what = f"no token {token!r:.40} for {marker}" if token else f"no known {marker} token"
            fix = f"put the model's tokenizer_config.json with {marker.lower()}_token beside it"
            raise UserError(f"{name} has {what}: {fix}")
    return {"bos_id": everything[str(bos)], "eos_id": everything[str(eos)]}


def _appended(everything: dict[str, int]) -> dict[str, int]:
    """Returns the ids of sentinels that this project appended, {} if the file lists none."""
    if not SENTINELS.keys() <= everything.keys():
        return {}
    ids = [everything[token] for token in SENTINELS]
    pieces = ids[0] - SENTINELS["<PRE>"]
    # The names alone prove nothing: a vocabulary may hold them as text. They are this project's
    # only at the exact distances, with nothing but the other appended entries above the pieces.
    others = [row for token, row in everything.items() if row >= pieces and token not in SENTINELS]
    is_placed = ids == [pieces + offset for offset in SENTINELS.values()]
    if not is_placed or any(row >= pieces + SENTINEL_ROWS for row in others) or pieces <= 0:
        return {}
    return dict(zip(IDS, ids))


def _named(
    everything: dict[str, int], eos: int, pieces: int, marked: Sequence[str]
) -> tuple[dict[str, int], bool]:
    """Returns the ids of the sentinels, and whether the vocabulary has them.

    Those of a published model are found by their names, `marked` ones first; otherwise new ids
    follow the pieces.
    """
    for names in (marked, *INFILLING_NAMES):
        if names and everything.keys() >= set(names):
            ids = [*(everything[name] for name in names), eos]
            return dict(zip(IDS, ids)), True
    rows = [pieces + offset for offset in SENTINELS.values()]
    return dict(zip(IDS, rows)), False


def adds_bos(spec: dict[str, Any], vocabulary: Vocabulary) -> bool:
    """Returns whether the file puts BOS before a text, as Llama 3's does and Qwen's does not.

    A marker that is also EOS, as GPT-2's, ends a document and begins none: see
    `data.infilling.start_ids`.
    """
    if vocabulary.ids["bos_id"] == vocabulary.ids["eos_id"]:
        return False
    step = spec.get("post_processor")
    steps = step.get("processors", [step]) if isinstance(step, dict) else []
    names = entries(spec)
    for template in steps if isinstance(steps, list) else []:
        parts = template.get("single") if isinstance(template, dict) else None
        # The template lists the parts of an encoded text in order: BOS comes first or not at all.
        first = parts[0] if isinstance(parts, list) and parts else None
        marker = first.get("SpecialToken") if isinstance(first, dict) else None
        name = marker.get("id") if isinstance(marker, dict) else None
        if isinstance(name, str) and names.get(name) == vocabulary.ids["bos_id"]:
            return True
    return False


def text_only(spec: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns the tokenizer.json that encodes text, without any special token.

    The library gives an added token the id that it has in the vocabulary, or else the next
    one, so the vocabulary here holds them all.
    """
    added = []
    for entry in spec.get("added_tokens") or []:
        if entry["content"] in vocabulary.added:
            added.append({**byte_level.added_token(entry["content"], 0, special=False), **entry})
    # Dropout would draw other ids for the same text each time.
    model = {**spec["model"], "type": "BPE", "dropout": None}
    model["vocab"] = {**vocabulary.tokens, **vocabulary.added}
    unknown = model.get("unk_token")
    if not isinstance(unknown, str) or unknown not in model["vocab"]:
        model["unk_token"] = None
    return {
        # Without added special tokens, post-processor and decoder: BOS is added by this project,
        # and decoding joins bytes.
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": spec.get("normalizer"),
        "pre_tokenizer": spec["pre_tokenizer"],
        "post_processor": None,
        "decoder": None,
        "model": model,
    }


def limits(spec: dict[str, Any], vocabulary: Vocabulary, table: Sequence[bytes]) -> tuple[str, ...]:
    """Returns why decoding may not return the text exactly, one line for the user each.

    `table` is that of `Vocabulary.text_bytes`.
    """
    losses = []
    normalizer = spec.get("normalizer")
    if normalizer:
        name = normalizer.get("type") if isinstance(normalizer, dict) else normalizer
        losses.append(f"normalizer is {name}: characters are replaced before encoding")
    removing = []
    for step in _steps(spec["pre_tokenizer"]):
        if step.get("type") not in KEEPING or step.get("behavior") == "Removed":
            removing.append(str(step.get("type")))
    if removing:
        losses.append(f"pre_tokenizer has {', '.join(removing)}: characters may be removed")
    for entry in spec.get("added_tokens") or []:
        if entry["content"] in vocabulary.added and (entry.get("lstrip") or entry.get("rstrip")):
            losses.append("added_tokens strip spaces beside a token, which are lost")
            break
    # One missing byte makes every text with it lossy. Bytes that UTF-8 never holds may be missing.
    present = set(table)
    missing = [byte for byte in byte_level.UTF8_BYTES if bytes([byte]) not in present]
    if missing:
        losses.append(f"the vocabulary lacks {len(missing)} bytes: characters with them are lost")
    return tuple(losses)
