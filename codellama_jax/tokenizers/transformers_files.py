"""The tokenizer for other software: tokenizer.model with the sentinels, and tokenizer.json.

Both give the same ids. transformers 5 reads a tokenizer.model alone with other spaces, so that
tokenizer.json lists the merges in the order of the pieces' scores.
"""

from __future__ import annotations

import json
import operator
from typing import Any

from etils import epath
from sentencepiece import sentencepiece_model_pb2

from codellama_jax.system.files import write_file, write_json
from codellama_jax.tokenizers.sentencepiece import Tokenizer
from codellama_jax.tokenizers.sentencepiece_file import SENTINELS, is_llama
from codellama_jax.tokenizers.sentinels import SENTINEL_ROWS

NORMAL, CONTROL = 1, 3  # types of SentencePiece pieces; text never becomes a control piece
SPACE = "▁"


def with_sentinels(tokenizer: Tokenizer, rows: int) -> Any:
    """Returns the SentencePiece model with a piece for each of the model's rows."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    if len(proto.pieces) < rows:
        named = {row: piece for piece, row in SENTINELS.items()}
        for row in range(SENTINEL_ROWS):
            proto.pieces.add(piece=named.get(row, f"<unused{row}>"), type=CONTROL)
    return proto


def write_tokenizer(tokenizer: Tokenizer, rows: int, context: int, folder: epath.Path) -> None:
    """Writes tokenizer.model, tokenizer.json and tokenizer_config.json.

    A tokenizer that is not like Llama's has no tokenizer.json: readers convert tokenizer.model.
    """
    proto = with_sentinels(tokenizer, rows)
    llama = is_llama(tokenizer.model)
    write_file(folder / "tokenizer.model", proto.SerializeToString(deterministic=True))
    if llama:
        fast = json.dumps(fast_tokenizer(tokenizer, proto, rows), ensure_ascii=False, indent=1)
        write_file(folder / "tokenizer.json", fast)
    special = (proto.trainer_spec.unk_id, tokenizer.bos_id, tokenizer.eos_id)
    unk, bos, eos = (proto.pieces[i].piece for i in special)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast" if llama else "LlamaTokenizer",
        "unk_token": unk,
        "bos_token": bos,
        "eos_token": eos,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", config)


def llama_cpp_options(tokenizer: Tokenizer, rows: int) -> str:
    """Returns the option with which llama.cpp ends an infilled middle, "" where it needs none.

    Its converter, convert_hf_to_gguf.py, writes the ids of the sentinels only for Code Llama's
    32,016 rows. Its loader finds <PRE>, <SUF> and <MID> by their names in any vocabulary, but
    not EOT, without which an infilled middle never ends.
    """
    if rows <= tokenizer.pieces or (rows, tokenizer.eot_id) == (32_016, 32_010):
        return ""
    return f"--override-kv tokenizer.ggml.eot_token_id=int:{tokenizer.eot_id}"


def fast_tokenizer(tokenizer: Tokenizer, proto: Any, rows: int) -> dict[str, Any]:
    """Returns tokenizer.json: byte fallback, a space before any text, BOS before a sequence."""
    vocab = {piece.piece: row for row, piece in enumerate(proto.pieces[:rows])}
    bos = proto.pieces[tokenizer.bos_id].piece
    special = [proto.trainer_spec.unk_id, tokenizer.bos_id, tokenizer.eos_id]
    if rows > tokenizer.pieces:
        special += [tokenizer.pre_id, tokenizer.suf_id, tokenizer.mid_id, tokenizer.eot_id]
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }

    def begin(part: int) -> list[dict]:
        special = {"SpecialToken": {"id": bos, "type_id": part}}
        return [special, {"Sequence": {"id": "AB"[part], "type_id": part}}]

    space = {"String": SPACE}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": row, "content": proto.pieces[row].piece, **flags} for row in special
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": begin(0),
            "pair": begin(0) + begin(1),
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": space, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": proto.pieces[proto.trainer_spec.unk_id].piece,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": _merges(proto, tokenizer.pieces),
        },
    }


def _merges(proto: Any, pieces: int) -> list[str]:
    """Returns every way to join two pieces into a third, the best scored first.

    A sentinel is no piece of text. Runs of spaces have one score, and SentencePiece joins them from
    the left, into 16 at most. Joining two equal runs first gives the same pieces.
    """
    scores = {}
    for piece in proto.pieces[:pieces]:
        if piece.type == NORMAL:
            scores[piece.piece] = piece.score
    joins = []
    for word, score in scores.items():
        for middle in range(1, len(word)):
            left, right = word[:middle], word[middle:]
            if left in scores and right in scores:
                joins.append((-score, left != right, len(word), left, right))
    joins.sort(key=operator.itemgetter(0, 1, 2))
    return [f"{left} {right}" for *_, left, right in joins]
