"""tokenizer.json is written only where it gives the ids of tokenizer.model."""

import json

import published
import pytest
from etils import epath
from sentencepiece import sentencepiece_model_pb2

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
