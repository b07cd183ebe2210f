"""SentencePiece files of other tokenizers: ids are those of SentencePiece for any options."""

import io
import itertools

import hypothesis
import hypothesis.strategies as st
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from codellama_jax.errors import UserError
from codellama_jax.tokenizers import files

LINES = [
    "def mean(xs):",
    "    return sum(xs) / len(xs)",
    "for i in range(10): print(i, i * i)",
    "some words of prose, and some more words",
    "ﬁ ① ｆｕｌｌ é naïve",
] * 20
PROPERTIES = {
    "llama": {},
    "no dummy prefix": {"add_dummy_prefix": False},
    "spaces removed": {"remove_extra_whitespaces": True},
    "spaces removed, no prefix": {"remove_extra_whitespaces": True, "add_dummy_prefix": False},
    "no byte fallback": {"byte_fallback": False},
    "normalised": {"normalization_rule_name": "nmt_nfkc"},
    "case folded": {"normalization_rule_name": "nfkc_cf", "remove_extra_whitespaces": True},
    "space behind": {"treat_whitespace_as_suffix": True},
    "symbols of the user": {"user_defined_symbols": ["<sep>", "def"], "control_symbols": ["<c>"]},
    "other rows": {"unk_id": 2, "bos_id": 0, "eos_id": 1, "pad_id": 3},
    "t5": {"remove_extra_whitespaces": True, "byte_fallback": False, "pad_id": 3},
}
EXACT = ("llama", "no dummy prefix", "symbols of the user", "other rows")
KINDS = ("bpe", "unigram", "char", "word")
ODD = ["\0", "\t", "\n", "\r\n", " ", "  ", "▁", "\u3000", "ﬁ", "①", "É", "é", "😀", "<sep>", "<c>"]
ODD += ["<unk>", "<s>", "</s>", "def", "mean", "(xs)", "    return"]
any_text = st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=3)), max_size=8).map("".join)
examples = hypothesis.settings(deadline=None, max_examples=30)


def make(kind, properties):
    """Returns a tokenizer.model that SentencePiece trained."""
    writer = io.BytesIO()
    options = {
        "model_type": kind,
        "vocab_size": 400,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "hard_vocab_limit": False,
        "minloglevel": 3,
    }
    if kind == "word" and properties.get("treat_whitespace_as_suffix"):
        options["vocab_size"] = 300
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=writer, **options | properties
    )
    return writer.getvalue()


@pytest.fixture(scope="module", params=itertools.product(KINDS, PROPERTIES), ids=" ".join)
def case(request, tmp_path_factory):
    """Returns whether text comes back, the tokenizer, and SentencePiece's own processor."""
    kind, name = request.param
    exact = name in EXACT and kind != "word"  # without a piece for a space
    model = make(kind, PROPERTIES[name])
    path = tmp_path_factory.mktemp("models") / "tokenizer.model"
    path.write_bytes(model)
    return exact, files.load(path), sentencepiece.SentencePieceProcessor(model_proto=model)


@examples
@hypothesis.given(text=any_text)
def test_ids_and_text_are_sentencepieces_own(case, text):
    exact, tokenizer, bare = case
    if exact:
        text = text.replace("▁", "")  # comes back exactly here
    ids = tokenizer.encode(text)
    markers = {tokenizer.bos_id, tokenizer.eos_id}
    # SentencePiece's models of type WORD take the words "<s>" and "</s>" for BOS and EOS.
    expected = [bare.unk_id() if i in markers else i for i in bare.encode(text)]
    assert ids == expected
    assert tokenizer.decode(ids) == bare.decode(ids)
    assert not markers & set(ids)


def test_a_word_that_spells_a_marker_is_no_marker(tmp_path):
    # Where spaces belong to the word before them, the last word is the bare text of the piece.
    (tmp_path / "tokenizer.model").write_bytes(make("word", PROPERTIES["space behind"]))
    tokenizer = files.load(tmp_path / "tokenizer.model")
    bare = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    for word, marker in (("<s>", tokenizer.bos_id), ("</s>", tokenizer.eos_id)):
        assert marker in bare.encode(word)
        assert marker not in tokenizer.encode(word)


@examples
@hypothesis.given(text=any_text, leading_space=st.booleans())
def test_text_comes_back_unless_a_limit_is_named(case, text, leading_space):
    exact, tokenizer, _ = case
    assert exact == (not tokenizer.limits)
    if exact:
        ids = tokenizer.encode(text, leading_space=leading_space)
        assert tokenizer.decode(ids, leading_space=leading_space) == text


def test_a_continuation_keeps_its_space(case):
    _, tokenizer, _ = case
    if any("as_suffix" in limit or "is WORD" in limit for limit in tokenizer.limits):
        return
    ids = tokenizer.encode("def mean")
    new = ids[len(tokenizer.encode("def")) :]
    assert tokenizer.decode(new, leading_space=False).startswith(" ")


def test_fingerprints_differ(tmp_path):
    prints = set()
    for name, properties in PROPERTIES.items():
        (tmp_path / name).write_bytes(make("bpe", properties))
        prints.add(files.load(tmp_path / name).fingerprint)
    assert len(prints) == len(PROPERTIES)


def test_limits_name_property_and_value(tmp_path):
    def limits(**properties):
        (tmp_path / "tokenizer.model").write_bytes(make("bpe", properties))
        return " / ".join(files.load(tmp_path / "tokenizer.model").limits)

    assert limits() == ""
    line = limits(remove_extra_whitespaces=True)
    assert line.startswith("normalizer_spec.remove_extra_whitespaces is true: indentation")
    assert "trainer_spec.byte_fallback is false" in limits(byte_fallback=False)
    assert "normalizer_spec.name is 'nmt_nfkc'" in limits(normalization_rule_name="nmt_nfkc")


def _sentencepiece(**changes):
    proto = sentencepiece_model_pb2.ModelProto.FromString(make("bpe", {}))
    for name, value in changes.items():
        setattr(proto.trainer_spec, name, value)
    return proto.SerializeToString()


REFUSED = {
    "tokenizer.json": (b'{"version": "1.0", "model": {}}', "is a tokenizer.json of Hugging Face"),
    "config.json": (b'{"vocab_size": 3}', "is JSON, but no tokenizer: it has no object"),
    "deep.json": (b'{"a":' * 100_000, "is nested too deeply to be read"),
    "page": (b"<!DOCTYPE html>", "is an HTML or XML page"),
    "llama3": (b"IQ== 0\nIg== 1\n", "is a tiktoken vocabulary, as Llama 3 has"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "empty": (b"", "not a complete SentencePiece model"),
    "nul": (bytes(4096), "not a complete SentencePiece model"),
    "no bos": (lambda: _sentencepiece(bos_id=-1), r"no BOS piece \(trainer_spec.bos_id is -1"),
    "no eos": (lambda: _sentencepiece(eos_id=9999), r"no EOS piece \(trainer_spec.eos_id is 9999"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_named(tmp_path, name):
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content() if callable(content) else content)
    with pytest.raises(UserError, match=message) as error:
        files.load(tmp_path / name)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_folders_without_the_file(tmp_path):
    def message():
        with pytest.raises(UserError, match="cannot read the tokenizer") as error:
            files.load(tmp_path)
        return str(error.value)

    assert "has no tokenizer.model, tokenizer.json, or vocab.json with merges.txt" in message()
    (tmp_path / "tokenizer.json").mkdir()
    assert "is a folder: name a file" in message()


def test_a_folder_stands_for_its_tokenizer_model(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    model = make("bpe", {})
    (tmp_path / "tokenizer.model").write_bytes(model)
    assert files.load(tmp_path).model == model


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_piece_of_bad_utf8_is_one_line(tmp_path, pieces):
    """SentencePiece takes one such piece and then fails to decode; two alike it quotes as bytes."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(make("bpe", {}))
    first = len(proto.pieces) - pieces
    for piece in proto.pieces[first:]:
        piece.piece = "zz"
    path = tmp_path / "tokenizer.model"
    path.write_bytes(proto.SerializeToString().replace(b"\n\x02zz", b"\n\x02z\xb0"))
    message = (
        rf"is damaged \(piece {first} is not UTF-8: b'z\\xb0'\): download tokenizer.model again"
    )
    with pytest.raises(UserError, match=message):
        files.load(path)


def test_a_text_of_unk_that_is_not_utf8_is_one_line(tmp_path):
    proto = sentencepiece_model_pb2.ModelProto.FromString(make("bpe", {}))
    proto.trainer_spec.unk_surface = "zz"
    path = tmp_path / "tokenizer.model"
    path.write_bytes(proto.SerializeToString().replace(b"\x02zz", b"\x02z\xb0"))
    with pytest.raises(UserError, match=r"\(trainer_spec.unk_surface is not UTF-8: b'z"):
        files.load(path)
