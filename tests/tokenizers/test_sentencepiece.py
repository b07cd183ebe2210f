"""The tokenizer compared with SentencePiece: trained here, and Llama 2's if its file is present."""

import argparse
import ast
import dataclasses
import errno
import functools
import gzip
import inspect
import json
import os
import pickle
import random
import string

import hypothesis
import hypothesis.strategies as st
import pytest
import sentencepiece
from paths import DATA, TOKENIZER
from sentencepiece import sentencepiece_model_pb2

from codellama_jax.errors import UserError
from codellama_jax.tokenizers import files
from codellama_jax.tokenizers import sentencepiece as tokenizer_lib

APPENDED = [
    "▁<SU",
    "▁<SUF",
    "▁<PRE",
    "▁<M",
    "▁<MID",
    "▁<E",
    "▁<EOT",
    "▁<PRE>",
    "▁<SUF>",
    "▁<MID>",
    "▁<EOT>",
]
APPENDED += ["▁" + "<EOT>" * n for n in range(2, 7)]
TEXTS = [
    inspect.getsource(module) for module in (argparse, ast, inspect, random, string, dataclasses)
]
PIECES = 800
# The published code encodes it before a middle or suffix, then drops its id and that of the space.
DUMMY = "☺"

ODD = [
    "\0",
    "\x01",
    "\x7f",
    "\t",
    "\n",
    "\r\n",
    "\r",
    " ",
    "  ",
    "    ",
    "▁",
    "▁▁",
    "\u00a0",
    "\u2028",
    "\u3000",
    "\ufeff",
    "\ufffd",
]
ODD += [
    "\uffff",
    "\u2047",
    "\u2585",
    DUMMY,
    "👩‍👩‍👧",
    "e\u0301",
    "给",
    "\U0010ffff",
    "1234567",
    "def f(self):\n    return",
    "_",
    "__init__",
]
ODD += [
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<0x0A>",
    "<0xE2>",
    "<PRE>",
    " <SUF>",
    "▁<MID>",
    "<EOT><EOT>",
]
any_text = st.one_of(
    st.text(),
    st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=3)), max_size=12).map("".join),
)
examples = hypothesis.settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    return tokenizer_lib.train(TEXTS, PIECES, tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="session", params=["toy", "llama"])
def tokenizer(request, toy):
    return toy if request.param == "toy" else _llama()


@pytest.fixture(scope="session")
def llama():
    return _llama()


def _llama():
    if not TOKENIZER.exists():
        pytest.skip("needs the published files")
    return files.load(TOKENIZER)


@functools.lru_cache
def _bare(model):
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def _edited(model, edit):
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    edit(proto)
    return proto.SerializeToString()


def _append_sentinels(proto):
    """Appends sentinels as in Code Llama's file.

    The pieces of a toy do not merge into them, so there they are symbols that text always matches.
    """
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    kind = kinds.NORMAL if len(proto.pieces) == 32_000 else kinds.USER_DEFINED
    for row, piece in enumerate(APPENDED):
        proto.pieces.add(piece=piece, score=-1e6 - row, type=kind)


def _sentinels(tokenizer):
    return [tokenizer.pre_id, tokenizer.suf_id, tokenizer.mid_id, tokenizer.eot_id]


def _humaneval():
    path = next((DATA / "humaneval").rglob("*.jsonl.gz"), None) if DATA.exists() else None
    if path is None:
        pytest.skip("needs the published files")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]
    return [
        text for problem in problems for text in (problem["prompt"], problem["canonical_solution"])
    ]


@examples
@hypothesis.given(text=any_text, leading_space=st.booleans())
def test_any_text_comes_back_exactly(tokenizer, text, leading_space):
    ids = tokenizer.encode(text, leading_space=leading_space)
    assert tokenizer.decode(ids, leading_space=leading_space) == text
    assert all(
        0 <= i < tokenizer.pieces and i not in (tokenizer.bos_id, tokenizer.eos_id) for i in ids
    )


@examples
@hypothesis.given(text=any_text.map(lambda text: text.replace("▁", "")))
def test_ids_are_sentencepieces_own(tokenizer, text):
    bare = _bare(tokenizer.model)
    assert tokenizer.encode(text) == bare.encode(text)
    assert (
        tokenizer.encode(text, leading_space=False)
        == bare.encode(DUMMY + text)[len(bare.encode(DUMMY)) :]
    )


@examples
@hypothesis.given(text=any_text)
def test_space_mark_in_text_is_its_bytes(tokenizer, text):
    mark = [tokenizer.encode("\0", leading_space=False)[0] + byte for byte in "▁".encode()]
    assert (
        tokenizer.encode(text + "▁", leading_space=False)
        == tokenizer.encode(text, leading_space=False) + mark
    )


def test_humaneval_ids_are_the_published_ones(llama):
    bare, rng = _bare(TOKENIZER.read_bytes()), random.Random(0)
    texts = _humaneval()
    assert len(texts) == 328
    for text in texts:
        assert llama.encode(text) == bare.encode(text)
        for cut in [
            0,
            *(rng.randrange(len(text)) for _ in range(20)),
        ]:  # a middle or suffix may begin anywhere
            assert (
                llama.encode(text[cut:], leading_space=False) == bare.encode(DUMMY + text[cut:])[2:]
            )


def test_golden_infilling_prompt(llama):
    prefix, suffix = 'def remove_non_ascii(s: str) -> str:\n    """ ', "\n    return result\n"
    ids = [
        llama.bos_id,
        llama.pre_id,
        *llama.encode(prefix),
        llama.suf_id,
        *llama.encode(suffix, leading_space=False),
        llama.mid_id,
    ]
    golden = "1 32007 822 3349 29918 5464 29918 294 18869 29898 29879 29901 851 29897 1599 851"
    golden += " 29901 13 1678 9995 29871 32008 13 1678 736 1121 13 32009"
    assert ids == [int(i) for i in golden.split()]
    assert (llama.eot_id, llama.pieces, llama.vocab_size, llama.eos_id) == (
        32010,
        32_000,
        32_016,
        2,
    )


def test_sentinels_follow_the_pieces(toy):
    assert _sentinels(toy) == [PIECES + 7, PIECES + 8, PIECES + 9, PIECES + 10]
    assert (toy.pieces, toy.vocab_size, toy.bos_id, toy.eos_id) == (PIECES, PIECES + 16, 1, 2)


def test_a_file_with_sentinel_pieces_is_the_same_tokenizer(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(_edited(tokenizer.model, _append_sentinels))
    appended = files.load(path)
    for text in [
        "<PRE>",
        " <PRE>",
        "▁<PRE>",
        "▁<SUF>",
        "x <MID>",
        "<EOT>",
        "<EOT><EOT>",
        "<s>",
        "</s>",
        "<unk>",
        "<0x0A>",
        "▁<0x0A>",
    ]:
        for leading_space in (True, False):
            ids = appended.encode(text, leading_space=leading_space)
            assert ids == tokenizer.encode(text, leading_space=leading_space)
            assert (
                len(ids) > 1
                and max(ids) < appended.pieces
                and not {appended.bos_id, appended.eos_id} & set(ids)
            )
    assert _bare(path.read_bytes()).encode("<PRE>") == [
        appended.pre_id
    ]  # this is what SentencePiece alone makes of it
    assert (_sentinels(appended), appended.vocab_size) == (
        _sentinels(tokenizer),
        tokenizer.vocab_size,
    )
    assert appended.fingerprint == tokenizer.fingerprint


def test_sentinels_elsewhere_are_refused(toy, tmp_path):
    def append(proto):
        _append_sentinels(proto)
        proto.pieces.add(piece="▁last", score=-2e6)
        proto.pieces[PIECES].piece = "▁<PRE>"
        proto.pieces[PIECES + 7].piece = "▁first"

    for edit in (append, lambda proto: proto.pieces.add(piece="▁<PRE>", score=-1e6)):
        path = tmp_path / "tokenizer.model"
        path.write_bytes(_edited(toy.model, edit))
        with pytest.raises(UserError, match="holds infilling sentinels outside its last 16 pieces"):
            files.load(path)


def test_decode_drops_ids_that_are_not_text(tokenizer):
    ids = tokenizer.encode("def f(x):")
    noise = [
        tokenizer.bos_id,
        tokenizer.eos_id,
        -1,
        tokenizer.pieces,
        tokenizer.vocab_size - 1,
        10**6,
        *_sentinels(tokenizer),
    ]
    assert tokenizer.decode([*noise, *ids[:2], *noise, *ids[2:], *noise]) == "def f(x):"
    assert tokenizer.decode([]) == tokenizer.decode(noise) == ""


@examples
@hypothesis.given(text=any_text)
def test_the_bytes_of_the_ids_are_the_text(tokenizer, text):
    ids = tokenizer.encode(text, leading_space=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_an_id_of_one_byte_has_that_byte_and_a_marker_none(tokenizer):
    ids = tokenizer.encode("▁", leading_space=False)
    assert [tokenizer.token_bytes(i) for i in ids] == [b"\xe2", b"\x96", b"\x81"]
    noise = [tokenizer.bos_id, tokenizer.eos_id, -1, 10**6, *_sentinels(tokenizer)]
    assert not any(map(tokenizer.token_bytes, noise))


@pytest.mark.parametrize("unit", ["a", " ", "\n", "▁", "def f(x):\n    return x\n", "给"])
def test_a_million_characters(tokenizer, unit):
    text = unit * (1_000_000 // len(unit))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_pickle_and_save(tokenizer, tmp_path):
    copy = pickle.loads(pickle.dumps(tokenizer))
    tokenizer.save(tmp_path / "new" / "tokenizer.model")
    loaded = files.load(str(tmp_path / "new" / "tokenizer.model"))
    assert copy == loaded == tokenizer and hash(copy) == hash(tokenizer)
    assert copy.encode(TEXTS[0]) == loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_fingerprint_depends_on_everything_that_decides_ids(toy, tmp_path):
    def rename(proto):
        proto.pieces[500].piece += "x"

    def rescore(proto):
        proto.pieces[500].score -= 1000

    prints = {toy.fingerprint}
    for edit in (rename, rescore, lambda proto: proto.pieces.pop()):
        (tmp_path / "tokenizer.model").write_bytes(_edited(toy.model, edit))
        prints.add(files.load(tmp_path / "tokenizer.model").fingerprint)
    assert len(prints) == 4


def test_lone_surrogate_is_refused(toy):
    with pytest.raises(UserError, match="lone surrogate"):
        toy.encode("a\ud800")


def test_truncated_file_is_refused(toy, tmp_path):
    path, end = tmp_path / "tokenizer.model", len(toy.model)
    # Every size near the end, where the specs are: without them some pieces can still be parsed.
    for size in [*range(0, end - 200, 97), *range(end - 200, end)]:
        path.write_bytes(toy.model[:size])
        with pytest.raises(UserError, match="not a complete SentencePiece model"):
            files.load(path)


def test_unreadable_files_are_refused(toy, tmp_path):
    pointer, vague = tmp_path / "pointer", tmp_path / "other.model"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 500058\n")
    vague.write_bytes(
        _edited(toy.model, lambda proto: setattr(proto.trainer_spec, "byte_fallback", False))
    )
    for path, message in [
        (tmp_path / "absent", "cannot read the tokenizer .*absent"),
        (tmp_path, "cannot read the tokenizer"),
        (pointer, "git-lfs pointer"),
        (vague, "SentencePiece refuses it, byte piece <0x00> is found although `byte_fallback`"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            files.load(path)
        assert "\n" not in str(error.value)


def test_training_has_llama_2s_properties(toy, llama):
    mine, theirs = (sentencepiece_model_pb2.ModelProto.FromString(t.model) for t in (toy, llama))
    theirs_alone = {
        "input",
        "input_format",
        "model_prefix",
        "vocab_size",
        "input_sentence_size",
        "num_threads",
    }
    theirs_alone |= {"shuffle_input_sentence", "hard_vocab_limit"}
    for spec in ("trainer_spec", "normalizer_spec"):
        a, b = getattr(mine, spec), getattr(theirs, spec)
        for name in set(b.DESCRIPTOR.fields_by_name) - theirs_alone:
            assert getattr(a, name) == getattr(b, name), name

    def spaces(proto):
        return {(p.piece, p.score, p.type) for p in proto.pieces if not p.piece.strip("▁")}

    assert spaces(mine) == spaces(theirs)
    assert [(p.piece, p.score, p.type) for p in mine.pieces[:259]] == [
        (p.piece, p.score, p.type) for p in theirs.pieces[:259]
    ]


def test_training_splits_digits_and_keeps_indentation_apart(toy):
    assert len(toy.encode("1234567", leading_space=False)) == 7
    assert (
        toy.encode("    return")[-1] == toy.encode("return")[-1]
    )  # the last space belongs to the word


def test_training_is_deterministic_and_cached(toy, tmp_path, monkeypatch):
    first = tokenizer_lib.train(reversed(TEXTS), PIECES, tmp_path)
    assert first == toy  # trained again in another folder, from texts in another order
    (file,) = tmp_path.iterdir()
    assert files.load(file) == first
    file.write_bytes(first.model[:1000])  # as a full disk may leave it
    assert tokenizer_lib.train(TEXTS, PIECES, tmp_path) == first
    monkeypatch.setattr(
        tokenizer_lib, "train_model", lambda *_: pytest.fail("trained although cached")
    )
    assert tokenizer_lib.train(iter(TEXTS), PIECES, str(tmp_path)) == first


def test_cache_follows_all_that_went_in(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_lib, "train_model", lambda *_: toy.model)
    texts = ["some text", "other text"]

    def files_after(texts, pieces=PIECES):
        tokenizer_lib.train(texts, pieces, tmp_path)
        return len(list(tmp_path.iterdir()))

    assert files_after(texts) == files_after(texts) == 1
    assert files_after(texts, PIECES + 1) == 2
    assert files_after(["some text", "other text!"]) == 3
    assert files_after(texts[:1]) == 4
    assert files_after(["some textother text"]) == 5
    for count, name in enumerate(tokenizer_lib.TRAINING_OPTIONS, start=6):
        with monkeypatch.context() as patch:
            patch.setitem(tokenizer_lib.TRAINING_OPTIONS, name, "another value")
            assert files_after(texts) == count, name
    before = files_after(texts)
    monkeypatch.setattr(sentencepiece, "__version__", "another version")
    assert files_after(texts) == before + 1


def test_training_is_silent(tmp_path, capfd):
    tokenizer_lib.train(TEXTS[:1], 500, tmp_path)
    with pytest.raises(UserError):
        tokenizer_lib.train([], 500, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_failed_write_keeps_the_old_file(toy, tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"older")
    with pytest.raises(UserError, match="cannot write"):
        toy.save(path / "below a file")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left on device"):
        toy.save(path)
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]
