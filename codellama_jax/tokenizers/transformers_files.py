"""Writes the tokenizer for other software, with the sentinels.

Byte-level BPE becomes a tokenizer.json, SentencePiece a tokenizer.model and a tokenizer.json, which
give the same ids. The second is needed because transformers 5, given a tokenizer.model
only, encodes spaces differently. It lists the merges of BPE in the order of the pieces' scores.
"""

from __future__ import annotations

import json
import operator
from typing import Any

from etils import epath

from codellama_jax.system.files import write_file, write_json
from codellama_jax.tokenizers import byte_bpe_spec, byte_level
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.tokenizers.byte_bpe import ByteBpeTokenizer
from codellama_jax.tokenizers.byte_bpe_files import MARKERS, dumped
from codellama_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from codellama_jax.tokenizers.sentencepiece_file import SENTINELS, ModelProto, is_llama
from codellama_jax.tokenizers.sentinels import SENTINEL_ROWS

NORMAL, CONTROL = 1, 3  # types of pieces; text is never encoded as a control piece
SPACE = "▁"  # in pieces


def with_sentinels(tokenizer: SentencePieceTokenizer, vocab_size: int) -> Any:
    """Returns the SentencePiece ModelProto with a piece for each of `vocab_size` entries."""
    proto = ModelProto.FromString(tokenizer.model)
    if len(proto.pieces) < vocab_size:
        # The sentinels have fixed offsets; the entries between them are written as unused.
        names = {offset: piece for piece, offset in SENTINELS.items()}
        for offset in range(SENTINEL_ROWS):
            proto.pieces.add(piece=names.get(offset, f"<unused{offset}>"), type=CONTROL)
    return proto


def write_tokenizer(
    tokenizer: Tokenizer, vocab_size: int, context: int, folder: epath.Path
) -> None:
    """Writes the tokenizer's files and tokenizer_config.json to `folder`.

    `vocab_size` counts the model's vocabulary entries, `context` its longest sequence in tokens.
    """
    if isinstance(tokenizer, ByteBpeTokenizer):
        config = _write_byte_bpe(tokenizer, vocab_size, folder)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        config = _write_sentencepiece(tokenizer, vocab_size, folder)
    else:
        raise TypeError(f"no files for {type(tokenizer)}")
    config |= {"model_max_length": context, "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", config)


def _write_byte_bpe(
    tokenizer: ByteBpeTokenizer, vocab_size: int, folder: epath.Path
) -> dict[str, Any]:
    """Writes tokenizer.json. Returns the fields of tokenizer_config.json that name its tokens."""
    spec = json.loads(tokenizer.model)
    # Other software refuses a file with a field that it does not know.
    markers = spec.pop(MARKERS, {})
    names = {row: token for token, row in byte_bpe_spec.entries(spec).items()}
    # Added to `vocab` too, because the library renumbers added tokens that it lacks.
    if vocab_size > tokenizer.pieces and not tokenizer.lists_sentinels:
        # A file whose markers are among the merged tokens may have no such list.
        spec["added_tokens"] = spec.get("added_tokens") or []
        for token, row in byte_bpe_spec.sentinel_rows(tokenizer.pieces).items():
            spec["added_tokens"].append(byte_level.added_token(token, row))
            spec["model"]["vocab"][token] = row
    write_file(folder / "tokenizer.json", dumped(spec))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[tokenizer.bos_id],
        "eos_token": names[tokenizer.eos_id],
    }
    if "chat_template" in markers:
        config["chat_template"] = markers["chat_template"]
    return config


def _write_sentencepiece(
    tokenizer: SentencePieceTokenizer, vocab_size: int, folder: epath.Path
) -> dict[str, Any]:
    """Writes tokenizer.model and, for a tokenizer like Llama's, tokenizer.json.

    Readers convert the tokenizer.model of another one. Returns the fields of tokenizer_config.json
    that name its tokens.
    """
    proto = with_sentinels(tokenizer, vocab_size)
    llama = is_llama(tokenizer.model)
    write_file(folder / "tokenizer.model", proto.SerializeToString(deterministic=True))
    if llama:
        fast = json.dumps(
            fast_tokenizer(tokenizer, proto, vocab_size), ensure_ascii=False, indent=1
        )
        write_file(folder / "tokenizer.json", fast)
    special = (proto.trainer_spec.unk_id, tokenizer.bos_id, tokenizer.eos_id)
    unk, bos, eos = (proto.pieces[i].piece for i in special)
    return {
        # The slow class converts tokenizer.model itself, where there is no tokenizer.json.
        "tokenizer_class": "PreTrainedTokenizerFast" if llama else "LlamaTokenizer",
        "add_bos_token": tokenizer.adds_bos,
        "unk_token": unk,
        "bos_token": bos,
        "eos_token": eos,
    }


def llama_cpp_options(tokenizer: Tokenizer, vocab_size: int) -> str:
    """Returns the option that llama.cpp needs to stop infilling at EOT, "" if it needs none.

    The converter of llama.cpp, convert_hf_to_gguf.py, writes the ids of the sentinels only for Code
    Llama's 32,016 vocabulary entries. Its loader finds <PRE>, <SUF> and <MID> by their names in any
    vocabulary, but not EOT, without which an infilled middle never ends.
    """
    has_sentinels = vocab_size > tokenizer.pieces
    if not has_sentinels or (vocab_size, tokenizer.eot_id) == (32_016, 32_010):
        return ""
    return f"--override-kv tokenizer.ggml.eot_token_id=int:{tokenizer.eot_id}"


def fast_tokenizer(
    tokenizer: SentencePieceTokenizer, proto: Any, vocab_size: int
) -> dict[str, Any]:
    """Returns the content of tokenizer.json, in the format of Hugging Face's tokenizers library.

    It reproduces SentencePiece's steps: a space before any text, BPE with byte fallback; and BOS
    before a sequence, unless the tokenizer adds none. `proto` is the result of `with_sentinels`.
    """
    vocab = {piece.piece: i for i, piece in enumerate(proto.pieces[:vocab_size])}
    bos = proto.pieces[tokenizer.bos_id].piece
    special = [proto.trainer_spec.unk_id, tokenizer.bos_id, tokenizer.eos_id]
    if vocab_size > tokenizer.pieces:
        special += [tokenizer.pre_id, tokenizer.suf_id, tokenizer.mid_id, tokenizer.eot_id]
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }

    def with_bos(part: int) -> list[dict]:
        """Returns the template of the first (0) or second (1) text of a pair."""
        marker = {"SpecialToken": {"id": bos, "type_id": part}}
        return [marker, {"Sequence": {"id": "AB"[part], "type_id": part}}]

    template = {
        "type": "TemplateProcessing",
        "single": with_bos(0),
        "pair": with_bos(0) + with_bos(1),
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
    }
    space = {"String": SPACE}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": proto.pieces[i].piece, **flags} for i in special],
        "normalizer": {
            # As SentencePiece with add_dummy_prefix: one space before the text, and a mark for each
            # space.
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": template if tokenizer.adds_bos else None,
        "decoder": {
            # The reverse: marks become spaces, byte pieces become characters, and the first space
            # goes.
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
    """Returns the merges of BPE, "left right", in the order in which they are applied.

    A merge is any way to join two pieces into a third; the best scored third piece comes first.
    `pieces` leaves out the sentinels, which are not pieces of text.

    Pieces of spaces all have the same score, and SentencePiece joins them from the left, up to 16.
    Joining two equal ones first gives the same pieces.
    """
    scores = {}
    for piece in proto.pieces[:pieces]:
        if piece.type == NORMAL:
            scores[piece.piece] = piece.score
    joins = []
    for joined, score in scores.items():
        # Every split of a piece into two others: SentencePiece may reach a piece by any of them.
        for middle in range(1, len(joined)):
            left, right = joined[:middle], joined[middle:]
            if left in scores and right in scores:
                joins.append((-score, left != right, len(joined), left, right))
    # A stable sort: merges that are equal in these three keep the order of the vocabulary.
    joins.sort(key=operator.itemgetter(0, 1, 2))
    return [f"{left} {right}" for *_, left, right in joins]
