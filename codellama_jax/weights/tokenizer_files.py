"""The tokenizer as other software reads it: tokenizer.model with the sentinels, and transformers' tokenizer.json of the same ids.

What transformers 5 makes of a tokenizer.model alone differs on spaces, so it is given the merges in the order of the pieces' scores.
"""

from __future__ import annotations

import json
from typing import Any

from etils import epath
from sentencepiece import sentencepiece_model_pb2

from codellama_jax.sentencepiece_file import SENTINELS, is_llama
from codellama_jax.sizes import SENTINEL_ROWS
from codellama_jax.tokenizer import Tokenizer

NORMAL, CONTROL = 1, 3  # kinds of a SentencePiece piece; text never becomes one of the second
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
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString(deterministic=True))
    if llama:
        fast = fast_tokenizer(tokenizer, proto, rows)
        (folder / "tokenizer.json").write_text(json.dumps(fast, ensure_ascii=False, indent=1))
    unk, bos, eos = (proto.pieces[i].piece for i in (proto.trainer_spec.unk_id, tokenizer.bos_id, tokenizer.eos_id))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast" if llama else "LlamaTokenizer",
        "unk_token": unk,
        "bos_token": bos,
        "eos_token": eos,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def fast_tokenizer(tokenizer: Tokenizer, proto: Any, rows: int) -> dict[str, Any]:
    """Returns tokenizer.json: byte-level fallback, a space before any text, BOS before each sequence."""
    vocab = {piece.piece: row for row, piece in enumerate(proto.pieces[:rows])}
    bos = proto.pieces[tokenizer.bos_id].piece
    special = [proto.trainer_spec.unk_id, tokenizer.bos_id, tokenizer.eos_id]
    if rows > tokenizer.pieces:
        special += [tokenizer.pre_id, tokenizer.suf_id, tokenizer.mid_id, tokenizer.eot_id]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    begin = lambda part: [{"SpecialToken": {"id": bos, "type_id": part}}, {"Sequence": {"id": "AB"[part], "type_id": part}}]
    space = {"String": SPACE}
    return {
        "version": "1.0",
        "added_tokens": [{"id": row, "content": proto.pieces[row].piece, **flags} for row in special],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": SPACE}, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}],
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
    """Returns every way to join two pieces into a third, the best scored first. A sentinel is no piece of text.

    Runs of spaces have one score, and SentencePiece joins them from the left, into 16 at most. Doublings first come to the same.
    """
    scores = {piece.piece: piece.score for piece in proto.pieces[:pieces] if piece.type == NORMAL}
    joins = [(word[:cut], word[cut:], score) for word, score in scores.items() for cut in range(1, len(word))]
    known = [join for join in joins if join[0] in scores and join[1] in scores]
    known.sort(key=lambda join: (-join[2], join[0] != join[1], len(join[0]) + len(join[1])))
    return [f"{left} {right}" for left, right, _ in known]
