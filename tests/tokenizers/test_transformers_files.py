"""tokenizer.json is written only where it gives the ids of tokenizer.model."""

import json

import byte_bpe_cases
import published
import pytest
import sentencepiece
import tokenizers
from etils import epath
from sentencepiece import sentencepiece_model_pb2

from codellama_jax.errors import UserError
from codellama_jax.tokenizers import files
from codellama_jax.tokenizers.transformers_files import write_tokenizer


@pytest.mark.parametrize("lossy", [False, True])
def test_a_tokenizer_unlike_llamas_has_no_tokenizer_json(tmp_path, lossy):
    proto = sentencepiece_model_pb2.ModelProto.FromString(published.tokenizer().model)
    proto.normalizer_spec.remove_extra_whitespaces = lossy
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    tokenizer = files.load(tmp_path / "tokenizer.model")
    target = tmp_path / "out"
    target.mkdir()
    write_tokenizer(tokenizer, tokenizer.vocab_size, 64, epath.Path(target))
    names = {path.name for path in target.iterdir()}
    assert ("tokenizer.json" in names) != lossy and "tokenizer.model" in names
    config = json.loads((target / "tokenizer_config.json").read_text())
    assert (config["tokenizer_class"] == "LlamaTokenizer") == lossy


@pytest.mark.parametrize("added", [None, "missing"])
def test_sentinels_are_added_to_a_file_without_added_tokens(tmp_path, added):
    values = byte_bpe_cases.spec("gpt2")
    # Special tokens may be in the vocabulary alone.
    values["added_tokens"] = added
    if added:
        del values["added_tokens"]
    tokenizer = files.load(byte_bpe_cases.write_spec(tmp_path, values))
    target = tmp_path / "out"
    target.mkdir()
    write_tokenizer(tokenizer, tokenizer.vocab_size, 64, epath.Path(target))
    again = files.load(target)
    assert (again.pre_id, again.vocab_size) == (tokenizer.pre_id, tokenizer.vocab_size)
    assert again.lists_sentinels and again.encode("a b") == tokenizer.encode("a b")


def with_config(folder, **fields) -> files.Tokenizer:
    """Loads a tokenizer.model beside a tokenizer_config.json of these fields."""
    (folder / "tokenizer.model").write_bytes(published.tokenizer().model)
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return files.load(folder)


def test_add_bos_token_decides_about_bos_of_sentencepiece(tmp_path):
    """As the classes of transformers 4 do; Yi's tokenizer is a LlamaTokenizer without BOS."""
    begins = published.tokenizer()
    for name in ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer"):
        assert with_config(tmp_path, tokenizer_class=name) == begins
        assert with_config(tmp_path, tokenizer_class=name, add_bos_token=True) == begins
        assert not with_config(tmp_path, tokenizer_class=name, add_bos_token=False).adds_bos
    # This class has its tokenizer.json decide.
    other = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False}
    assert with_config(tmp_path, **other).adds_bos
    with pytest.raises(UserError, match="add_bos_token must be true or false"):
        with_config(tmp_path, tokenizer_class="LlamaTokenizer", add_bos_token="no")


def test_a_tokenizer_without_bos_stays_so(tmp_path):
    """In a run's folder, which holds tokenizer.model alone, and in exported files."""
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}
    tokenizer = with_config(tmp_path, **config)
    assert tokenizer.prompt("a b") == tokenizer.encode("a b")
    assert tokenizer.fingerprint != published.tokenizer().fingerprint
    run, exported = tmp_path / "run", tmp_path / "exported"
    run.mkdir()
    tokenizer.save(run / "tokenizer.model")
    assert files.load(run) == tokenizer
    exported.mkdir()
    write_tokenizer(tokenizer, tokenizer.vocab_size, 64, epath.Path(exported))
    again = files.load(exported)
    assert (again.adds_bos, again.fingerprint) == (False, tokenizer.fingerprint)
    fast = tokenizers.Tokenizer.from_file(str(exported / "tokenizer.json"))
    assert fast.encode("a b").ids == tokenizer.prompt("a b")
    # Other software reads the marked file, and so does a loader that finds the settings again.
    processor = sentencepiece.SentencePieceProcessor(model_file=str(exported / "tokenizer.model"))
    assert processor.encode("a b") == tokenizer.encode("a b")
    (exported / "tokenizer_config.json").write_text(json.dumps(config))
    assert files.load(exported).fingerprint == tokenizer.fingerprint
