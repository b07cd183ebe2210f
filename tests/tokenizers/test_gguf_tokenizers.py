"""Tokenizers in GGUF metadata: both kinds written and read back with the same ids."""

import json

import byte_bpe_cases
import published
import pytest

from codellama_jax.errors import UserError
from codellama_jax.system.settings import Settings
from codellama_jax.tokenizers import byte_bpe, gguf_splits, gguf_vocabulary, gguf_writing
from codellama_jax.tokenizers import sentencepiece as spm

TEXTS = (
    *("", " ", "  x", "def f(x):\n    return 1234 + x  # é 给 🙂\n", "\t\r\n\n   ", "I'll 'S x²½"),
    *("<PRE> <|endoftext|> <s> </s>", " " * 30 + "y", published.TEXT[:3000]),
)
IDS = ("bos_id", "eos_id", "pre_id", "suf_id", "mid_id", "eot_id", "pieces", "vocab_size")


def assert_same(tokenizer, other):
    assert [getattr(other, name) for name in IDS] == [getattr(tokenizer, name) for name in IDS]
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert other.encode(text) == ids
        assert other.decode(ids) == text


def rewritten(tokenizer, change):
    """Returns the tokenizer that is read from the metadata of another after a change."""
    metadata = gguf_writing.metadata_of(tokenizer, tokenizer.vocab_size)
    change(metadata)
    return gguf_vocabulary.read(metadata, "x.gguf")


@pytest.mark.parametrize("kind", ["gpt2", "codex", "codegeex", "starcoder"])
def test_byte_level_bpe_is_read_back(kind):
    tokenizer = byte_bpe_cases.trained(kind)
    metadata = gguf_writing.metadata_of(tokenizer, tokenizer.vocab_size)
    pre = "starcoder" if kind == "starcoder" else "gpt-2"
    assert (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]) == ("gpt2", pre)
    assert metadata["tokenizer.ggml.add_bos_token"] is False  # its one marker is EOS
    for key, name in (("fim_pre", "pre_id"), ("fim_suf", "suf_id"), ("fim_mid", "mid_id")):
        assert metadata[f"tokenizer.ggml.{key}_token_id"] == getattr(tokenizer, name)
    assert metadata["tokenizer.ggml.middle_token_id"] == tokenizer.mid_id
    assert metadata["tokenizer.ggml.eot_token_id"] == tokenizer.eot_id
    assert_same(tokenizer, gguf_vocabulary.read(metadata, "x.gguf"))


def test_sentencepiece_is_read_back():
    tokenizer = published.tokenizer()
    metadata = gguf_writing.metadata_of(tokenizer, tokenizer.vocab_size)
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.fim_pre_token_id"] == published.PIECES + 7
    other = gguf_vocabulary.read(metadata, "x.gguf")
    assert other.lists_sentinels and not other.limits
    assert_same(tokenizer, other)


def test_a_vocabulary_without_sentinels_names_no_infilling_ids():
    tokenizer = published.tokenizer()
    metadata = gguf_writing.metadata_of(tokenizer, tokenizer.pieces)
    assert not [key for key in metadata if "fim" in key or "eot" in key]
    assert_same(tokenizer, gguf_vocabulary.read(metadata, "x.gguf"))


def test_a_file_without_the_space_before_a_text():
    def change(metadata):
        metadata["tokenizer.ggml.add_space_prefix"] = False

    tokenizer = published.tokenizer()
    other = rewritten(tokenizer, change)
    assert other.encode("x = 1") == tokenizer.encode("x = 1", leading_space=False)
    again = gguf_writing.metadata_of(other, other.vocab_size)
    assert again["tokenizer.ggml.add_space_prefix"] is False


def test_the_chat_template_and_the_name_of_the_split_are_kept():
    def change(metadata):
        metadata["tokenizer.chat_template"] = "{{ messages }}"
        metadata["tokenizer.ggml.pre"] = "smollm"
        metadata["tokenizer.ggml.add_bos_token"] = False

    other = rewritten(byte_bpe_cases.trained("starcoder"), change)
    again = gguf_writing.metadata_of(other, other.vocab_size)
    assert again["tokenizer.chat_template"] == "{{ messages }}"
    assert again["tokenizer.ggml.pre"] == "smollm"
    assert again["tokenizer.ggml.add_bos_token"] is False
    assert_same(byte_bpe_cases.trained("starcoder"), other)


@pytest.mark.parametrize(("pre", "expected"), [("llama-bpe", True), ("qwen2", False)])
def test_without_its_key_the_split_decides_about_bos(pre, expected):
    """Files of Llama 3 have no add_bos_token; llama.cpp begins their texts with BOS."""

    def change(metadata):
        metadata["tokenizer.ggml.pre"] = pre
        metadata["tokenizer.ggml.bos_token_id"] = 0
        del metadata["tokenizer.ggml.add_bos_token"]

    assert rewritten(byte_bpe_cases.trained("gpt2"), change).adds_bos is expected


@pytest.mark.parametrize(("values", "expected"), [([], True), ([True], True), ([False], False)])
def test_the_key_decides_about_bos_of_sentencepiece(values, expected):
    """Without it texts begin with BOS, as in llama.cpp; the file is written with it again."""

    def change(metadata):
        del metadata["tokenizer.ggml.add_bos_token"]
        for value in values:
            metadata["tokenizer.ggml.add_bos_token"] = value

    tokenizer = rewritten(published.tokenizer(), change)
    assert tokenizer.adds_bos is expected
    assert rewritten(tokenizer, lambda metadata: None).adds_bos is expected


def test_infilling_ids_are_those_that_the_file_names():
    """Names of tokens that no published model has, by the keys of today and of older files."""
    tokenizer = byte_bpe_cases.trained("gpt2")

    def change(metadata):
        tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
        del tokens[tokenizer.pieces :], types[tokenizer.pieces :]
        for part in ("pre", "suf", "mid"):
            tokens.append(f"<|code_{part}|>")
            types.append(3)
            del metadata[f"tokenizer.ggml.fim_{part}_token_id"]
        for offset, key in enumerate(("prefix", "suffix", "middle")):
            metadata[f"tokenizer.ggml.{key}_token_id"] = tokenizer.pieces + offset

    other = rewritten(tokenizer, change)
    first = tokenizer.pieces
    ids = (other.pre_id, other.suf_id, other.mid_id, other.eot_id)
    assert ids == (first, first + 1, first + 2, other.eos_id)
    assert other.vocab_size == other.pieces == first + 3


def test_other_infilling_ids_than_code_llamas_are_reported(capsys):
    def change(metadata):
        metadata["tokenizer.ggml.fim_pre_token_id"] = 5

    rewritten(published.tokenizer(), change)
    assert "names the ids [5, 508, 509] for prefix, suffix and middle" in capsys.readouterr().err


@pytest.mark.parametrize("name", gguf_splits.SPLITS)
def test_a_split_is_that_of_its_name(name):
    """Digits and spaces decide which text may become one token."""
    settings = Settings("x.gguf", {"pre": name}, "tokenizer.ggml.")
    spec = byte_bpe_cases.spec("gpt2")
    spec["pre_tokenizer"] = gguf_splits.pre_tokenizer(settings)
    spec["model"]["ignore_merges"] = name in gguf_splits.UNMERGED
    processor = byte_bpe.read(json.dumps(spec).encode(), "x")._processor
    parts = [part for part, _ in processor.pre_tokenizer.pre_tokenize_str("ab1234\n\n  I'LL x")]
    numbers = {"gpt-2": ["1234"], "llama": ["123", "4"]}
    kind = "llama" if gguf_splits.SPLITS[name] == gguf_splits.SPLITS["llama-bpe"] else name
    expected = numbers.get(kind, ["1", "2", "3", "4"])
    assert parts[: 1 + len(expected)] == ["ab", *expected]
    assert gguf_splits.SPLITS[gguf_splits.name_of(spec, "x")] == spec["pre_tokenizer"]


def test_a_split_without_a_name_is_refused():
    spec = byte_bpe_cases.spec("gpt2")
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [spec["pre_tokenizer"]] * 2}
    tokenizer = byte_bpe.read(json.dumps(spec).encode(), "x")
    with pytest.raises(UserError, match="GGUF has no known name for: export --to hf"):
        gguf_writing.metadata_of(tokenizer, tokenizer.vocab_size)


def test_sentencepiece_with_losses_is_refused():
    proto = published.sentencepiece_model_pb2.ModelProto.FromString(published.tokenizer().model)
    proto.normalizer_spec.remove_extra_whitespaces = True
    tokenizer = spm.read(proto.SerializeToString(), "x")
    with pytest.raises(UserError, match=r"cannot be written as GGUF \(normalizer_spec"):
        gguf_writing.metadata_of(tokenizer, tokenizer.vocab_size)


MISTAKES = {
    "model": (
        "bert",
        r"tokenizer.ggml.model must be 'gpt2' .* or 'llama' .*, got .* 'bert'",
    ),
    "pre": ("viking", r"tokenizer.ggml.pre must be one of gpt-2, .*--tokenizer, got .*'viking'"),
    "tokens": ("x", r"tokenizer.ggml.tokens must be a list of texts"),
    "token_type": ([1, 2], r"tokenizer.ggml.token_type must be a list of 716 whole numbers"),
    "merges": (["ab"], r"tokenizer.ggml.merges must be pairs of tokens .*, not 'ab'"),
    "eos_token_id": (716, r"tokenizer.ggml.eos_token_id must be a whole number from 0 to 715"),
}


@pytest.mark.parametrize("key", MISTAKES)
def test_a_damaged_key_is_named(key):
    value, problem = MISTAKES[key]
    with pytest.raises(UserError, match=f"x.gguf: {problem}"):
        rewritten(
            byte_bpe_cases.trained("gpt2"),
            lambda metadata: metadata.update({f"tokenizer.ggml.{key}": value}),
        )


def test_a_file_that_names_no_split_is_refused():
    """As files of older converters; llama.cpp guesses the split, with a warning."""
    with pytest.raises(UserError, match=r"x.gguf: tokenizer.ggml.pre is missing: it must be one"):
        rewritten(
            byte_bpe_cases.trained("gpt2"), lambda metadata: metadata.pop("tokenizer.ggml.pre")
        )


def test_tokens_that_are_equal_are_refused():
    def change(metadata):
        metadata["tokenizer.ggml.tokens"][9] = metadata["tokenizer.ggml.tokens"][8]

    with pytest.raises(UserError, match="tokens must differ: the rows 8 and 9 are both"):
        rewritten(byte_bpe_cases.trained("gpt2"), change)


@pytest.mark.parametrize("kind", [0, 7])
def test_a_type_that_sentencepiece_lacks_is_refused(kind):
    def change(metadata):
        metadata["tokenizer.ggml.token_type"][-1] = kind

    with pytest.raises(UserError, match="token_type must be a list of whole numbers from 1 to 6"):
        rewritten(published.tokenizer(), change)


def test_an_unknown_token_is_needed():
    def change(metadata):
        metadata["tokenizer.ggml.token_type"][0] = 1

    with pytest.raises(UserError, match="token_type must have the type 2 for the unknown token"):
        rewritten(published.tokenizer(), change)
