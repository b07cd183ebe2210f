"""Files of byte-level BPE: tokenizer.json of other software, vocab.json with merges.txt, damage."""

import copy
import functools
import json
import tempfile
import unicodedata
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import tokenizers
from byte_bpe_cases import (
    FAMILIES,
    PIECES,
    TEXTS,
    any_text,
    spec,
    trained,
    with_tokens,
    write_family,
    write_spec,
    write_vocabulary,
)

from codellama_jax.errors import UserError
from codellama_jax.tokenizers import byte_bpe, byte_level, files
from codellama_jax.tokenizers.transformers_files import write_tokenizer

TEXT = "class A:\r\n    x = 12345\n\n\t# naïve café ▁\n" + TEXTS[1][:5000]


def written(folder, family: str) -> tuple[files.Tokenizer, dict]:
    """Writes the files of a family to a folder and loads them."""
    values = write_family(folder, family)
    return files.load(folder / "tokenizer.json"), values


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_the_librarys(family, tmp_path):
    tokenizer, values = written(tmp_path, family)
    bare = tokenizers.Tokenizer.from_str(json.dumps(values))
    assert tokenizer.encode(TEXT) == bare.encode(TEXT, add_special_tokens=False).ids
    # With BOS where the file adds it, as Llama 3's does.
    assert tokenizer.prompt(TEXT) == bare.encode(TEXT).ids
    assert tokenizer.adds_bos == (family == "llama_3")
    assert tokenizer.prompt("") == [tokenizer.bos_id]
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    for token in values["added_tokens"]:
        # The library alone takes these texts for the special tokens.
        assert bare.encode(token["content"], add_special_tokens=False).ids == [token["id"]]
        ids = tokenizer.encode(token["content"])
        assert len(ids) > 1 and tokenizer.decode(ids) == token["content"]
        assert tokenizer.decode([token["id"]]) == ""


def test_markers_and_sentinels_of_the_families(tmp_path):
    end = PIECES - 1
    smol, _ = written(tmp_path, "smollm2")
    assert (smol.bos_id, smol.eos_id, smol.pieces) == (end + 1, end + 2, PIECES + 2)
    assert (smol.pre_id, smol.vocab_size) == (PIECES + 9, PIECES + 18)
    coder, _ = written(tmp_path, "qwen")
    assert (coder.pre_id, coder.mid_id, coder.suf_id) == (end + 1, end + 2, end + 3)
    assert (coder.bos_id, coder.eos_id, coder.eot_id) == (end, end, end)
    assert coder.pieces == coder.vocab_size == PIECES + 4
    assert coder.limits == ("normalizer is NFC: characters are replaced before encoding",)
    (tmp_path / "tokenizer_config.json").unlink()
    llama, _ = written(tmp_path, "llama_3")
    assert (llama.bos_id, llama.eos_id, llama.limits) == (end, end + 1, ())


@functools.cache
def read_family(family: str) -> files.Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return written(Path(folder), family)[0]


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(text=any_text, family=st.sampled_from(sorted(FAMILIES)))
def test_any_text_comes_back_exactly(text, family):
    tokenizer = read_family(family)
    expected = unicodedata.normalize("NFC", text) if family == "qwen" else text
    assert tokenizer.decode(tokenizer.encode(text)) == expected


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 1000),
    st.sampled_from(["", "BPE", "ByteLevel", "Split", "<|endoftext|>", [], {}, [[]], 0.5, 2**70]),
)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.data())
def test_a_damaged_tokenizer_json_is_read_or_one_line(data):
    """One value, at any depth, is another one or absent."""
    family = data.draw(st.sampled_from(sorted(FAMILIES)))
    values = node = copy.deepcopy(FAMILIES[family]()[0])
    while True:
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(keys))
        inner = node[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        node = inner
    if data.draw(st.booleans()):
        node[key] = data.draw(VALUES)
    else:
        del node[key]
    try:
        tokenizer = byte_bpe.read(json.dumps(values).encode(), "tokenizer.json")
        tokenizer.decode(tokenizer.encode("def f(x):\n    return 12"))
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500


@pytest.mark.parametrize("unknown", [[], {}, 7, "not in the vocabulary"])
def test_an_unknown_token_that_is_no_entry_is_none(unknown):
    """Every byte has a token, so that none is ever needed."""
    values = spec()
    values["model"]["unk_token"] = unknown
    tokenizer = byte_bpe.read(json.dumps(values).encode(), "tokenizer.json")
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_a_run_keeps_the_markers_of_files_beside_it(tmp_path):
    tokenizer, _ = written(tmp_path, "smollm2")
    (tmp_path / "run").mkdir()
    tokenizer.save(tmp_path / "run" / "tokenizer.json")
    assert files.load(tmp_path / "run") == tokenizer


def test_the_class_of_llama_decides_about_bos(tmp_path):
    """DeepSeek's tokenizer.json has no step for BOS, and its class of transformers 4 adds one."""
    values = with_tokens(spec("gpt2"), "<|begin|>", "<|end|>")
    config = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "add_bos_token": True}

    def read(tokenizer_class: str, **changes) -> files.Tokenizer:
        fields = {**config, "tokenizer_class": tokenizer_class, **changes}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
        return files.load(write_spec(tmp_path, values))

    # Other classes ignore the field.
    assert not read("PreTrainedTokenizerFast").adds_bos
    tokenizer = read("LlamaTokenizerFast")
    assert tokenizer.prompt(TEXT) == [tokenizer.bos_id, *tokenizer.encode(TEXT)]
    write_tokenizer(tokenizer, tokenizer.pieces, 64, tmp_path)
    exported = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert exported.encode(TEXT).ids == tokenizer.prompt(TEXT)
    values["post_processor"] = json.loads(tokenizer.model)["post_processor"]
    assert not read("LlamaTokenizer", add_bos_token=False).adds_bos
    with pytest.raises(UserError, match="add_bos_token must be true or false"):
        read("LlamaTokenizer", add_bos_token="yes")


def test_added_text_is_text(tmp_path):
    """Runs of spaces and letters that a file adds to its vocabulary, as CodeGen and DeepSeek do."""
    values = with_tokens(spec("gpt2"), "<|endoftext|>", "   ", "õ", special=False)
    tokenizer = files.load(write_spec(tmp_path, values))
    text = "a   õ <|endoftext|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert {PIECES, PIECES + 1} < set(tokenizer.encode(text))
    assert {PIECES, PIECES + 1} < set(tokenizer.text_ids)


@pytest.mark.parametrize("kind", byte_level.KINDS)
def test_vocabulary_and_merges_are_the_same_tokenizer(kind, tmp_path):
    vocab, merges = write_vocabulary(tmp_path)
    for path in (tmp_path, vocab, merges):
        tokenizer = files.load(path, kind)
        assert tokenizer.kind == kind
        assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    if kind == "gpt2":
        assert tokenizer.fingerprint == trained("gpt2").fingerprint


@pytest.mark.parametrize("kind", byte_level.KINDS)
def test_an_export_is_the_same_tokenizer(kind, tmp_path):
    """In this project, and in the library, which finds the sentinels by their names."""
    tokenizer = trained(kind)
    for vocab_size in (tokenizer.pieces, tokenizer.vocab_size):
        folder = tmp_path / str(vocab_size)
        folder.mkdir(exist_ok=True)
        write_tokenizer(tokenizer, vocab_size, 2048, folder)
        loaded = files.load(folder)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
        bare = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert bare.encode(TEXT).ids == tokenizer.encode(TEXT)
        assert bare.decode(tokenizer.encode(TEXT), skip_special_tokens=False) == TEXT
        assert loaded.lists_sentinels == (vocab_size > tokenizer.pieces or kind == "starcoder")
    names = ("<fim_prefix>", "<fim_middle>") if kind == "starcoder" else ("<PRE>", "<MID>")
    assert [bare.token_to_id(name) for name in names] == [tokenizer.pre_id, tokenizer.mid_id]
    assert bare.get_vocab_size() == tokenizer.vocab_size


def model(**changes) -> dict:
    values = spec()
    values["model"] |= changes
    return values


def step(**changes) -> dict:
    values = spec()
    values["pre_tokenizer"] |= changes
    return values


def row(token: str, value) -> dict:
    values = spec()
    values["model"]["vocab"][token] = value
    return values


WORDS = {"[UNK]": 0, "def": 1}
DAMAGE = {
    "empty": (b"", "not a complete SentencePiece model"),
    "half": (lambda: trained("gpt2").model[:5000], "is not valid JSON"),
    "deep": (b'{"a":' * 100_000, "nested too deeply"),
    "list": (b'{"model": []}', "is JSON, but no tokenizer: it has no object `model`"),
    "no model": (b'{"vocab_size": 3}', "is JSON, but no tokenizer"),
    "wordpiece": (model(type="WordPiece", vocab=WORDS), "with a model of the type WordPiece: only"),
    "unigram": (model(type="Unigram", vocab=[["a", 0.0]]), "with a model of the type Unigram"),
    "wordlevel": (model(type="WordLevel", vocab=WORDS), "with a model of the type WordLevel"),
    "characters": ({**spec(), "pre_tokenizer": None}, r"not of bytes \(no ByteLevel step\): name"),
    "clip": (model(end_of_word_suffix="</w>"), "model.end_of_word_suffix is set"),
    "prefix": (step(add_prefix_space=True), "pre_tokenizer.add_prefix_space is true"),
    "no vocabulary": (model(vocab=None), "model.vocab holds no vocabulary"),
    "text id": (row("x", "1"), r"the id of 'x' must be a whole number from 0 to 999,999, got '1'"),
    "large id": (row("x", 10**12), r"the id of 'x' must be .*, got 1000000000000"),
    "true": (row("x", True), "the id of 'x' must be"),
    "same id": (row("xyz", 5), r"and 'xyz' have the same id, 5"),
    "merges": (model(merges=[["a", "zzz"]]), r"tokenizers refuses it, Token `zzz` out of vocab"),
    "no merges": (model(merges=7), "tokenizers refuses it"),
    "added": ({**spec(), "added_tokens": [7]}, "an entry of added_tokens has no text `content`: 7"),
    "no added": ({**spec(), "added_tokens": 7}, "an entry of added_tokens has no text"),
    "no end": (with_tokens(spec(), "<x>"), "has no known EOS token: put the model's tokenizer"),
    "markers": ({**spec(), "codellama_jax": 7}, "codellama_jax must be an object"),
    "kind": ({**spec(), "codellama_jax": {"kind": "x"}}, "kind must be one of gpt2, codex"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_wrong_tokenizer_json_is_one_line(name, tmp_path):
    content, message = DAMAGE[name]
    content = content() if callable(content) else content
    data = json.dumps(content).encode() if isinstance(content, dict) else content
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        files.load(tmp_path)
    assert "\n" not in str(error.value) and "tokenizer.json" in str(error.value)


def test_losses_are_listed(tmp_path):
    values = spec()
    del values["model"]["vocab"]["!"]
    values["model"]["merges"] = []
    (limit,) = files.load(write_spec(tmp_path, values)).limits
    assert limit == "the vocabulary lacks 1 bytes: characters with them are lost"
    words = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}]}
    words["pretokenizers"].append(byte_level.pre_tokenizer("gpt2"))
    (limit,) = files.load(write_spec(tmp_path, {**spec(), "pre_tokenizer": words})).limits
    assert limit == "pre_tokenizer has WhitespaceSplit: characters may be removed"


def wrong_pair(folder, edit) -> str:
    """Returns the message for a vocabulary and merges that `edit` changed."""
    edit(*write_vocabulary(folder))
    with pytest.raises(UserError) as error:
        files.load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_merges_that_do_not_match_are_one_line(tmp_path):
    def foreign(_, merges):
        merges.write_text("#version: 0.2\nx y\nxy q\n")

    def truncated(_, merges):
        text = merges.read_text()
        merges.write_text(text[: text.rindex("\n", 0, len(text) // 2)])

    def half_a_line(_, merges):
        merges.write_text("#version: 0.2\nĠ\n")

    def no_merges(_, merges):
        merges.write_text("#version: 0.2\n")

    message = wrong_pair(tmp_path, foreign)
    assert "merge 1, 'x' 'y', needs 'xy', which vocab.json lacks" in message
    message = wrong_pair(tmp_path, truncated)
    assert "merges.txt has no merge for " in message and "it is truncated or of another" in message
    assert "merges.txt: line 2 must be two tokens with a space" in wrong_pair(tmp_path, half_a_line)
    assert "merges.txt holds no merges" in wrong_pair(tmp_path, no_merges)


def test_a_wrong_vocabulary_is_one_line(tmp_path):
    assert "vocab.json is not valid JSON" in wrong_pair(
        tmp_path, lambda vocab, _: vocab.write_text(vocab.read_text()[:3000])
    )
    assert "vocab.json holds no vocabulary" in wrong_pair(
        tmp_path, lambda vocab, _: vocab.write_text("[]")
    )
    assert "there is no file" in wrong_pair(tmp_path, lambda _, merges: merges.unlink())


def test_a_kind_that_contradicts_the_file_is_one_line(tmp_path):
    path = write_spec(tmp_path, spec())
    with pytest.raises(UserError, match=r"holds its own rules, but --tokenizer.kind is codex"):
        files.load(path, "codex")
    trained("codegeex").save(path)
    with pytest.raises(UserError, match=r"own rules, codegeex, but --tokenizer.kind is codex"):
        files.load(path, "codex")
    assert files.load(path, "codegeex") == trained("codegeex")
