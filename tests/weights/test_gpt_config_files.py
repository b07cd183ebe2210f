"""config.json of gpt2 and gpt_bigcode: what is read, written and refused."""

import dataclasses

import pytest

from codellama_jax.errors import UserError
from codellama_jax.models.gpt import config_json
from codellama_jax.models.gpt.sizes import CODEGEEX, CODEX, SANTACODER, STARCODER
from codellama_jax.system.settings import Settings
from codellama_jax.weights.huggingface import model_config

MODELS = [*CODEX.values(), *STARCODER.values(), *SANTACODER.values()]


def read(**values):
    return model_config(Settings("config.json", {**config_json.config_of(CODEX["12m"]), **values}))


@pytest.mark.parametrize("model", MODELS)
def test_a_written_config_is_read_back(model):
    assert model_config(Settings("config.json", config_json.config_of(model))) == model


def test_starcoder_is_gpt_bigcode_and_codex_gpt2():
    assert config_json.config_of(STARCODER["15.5b"])["model_type"] == "gpt_bigcode"
    assert config_json.config_of(CODEX["12b"])["model_type"] == "gpt2"


def test_missing_fields_have_transformers_defaults():
    values = {"model_type": "gpt_bigcode", "vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2}
    model = model_config(Settings("config.json", values))
    assert (model.n_kv_heads, model.d_ff, model.n_positions) == (1, 32, 1024)
    assert model.tied_embeddings and model.activation == "gelu_tanh"
    assert (model.dropout, model.embedding_dropout, model.attention_dropout) == (0.1, 0.1, 0.0)


def test_dropout_is_read_and_written_except_that_of_attention_weights():
    model = read(resid_pdrop=0.2, embd_pdrop=0.3, attn_pdrop=0.4)
    assert (model.dropout, model.embedding_dropout, model.attention_dropout) == (0.2, 0.3, 0.0)
    written = config_json.config_of(model)
    names = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    assert [written[name] for name in names] == [0.2, 0.3, 0.0]


REFUSED = {
    "activation_function": ("gelu", "activation_function must be 'gelu_new' or"),
    "scale_attn_weights": (False, "scale_attn_weights must be true, got false"),
    "scale_attn_by_inverse_layer_idx": (True, "scale_attn_by_inverse_layer_idx must be false"),
    "add_cross_attention": (True, "add_cross_attention must be false, got true"),
    "attention_head_type": ("multiquery", "or the model_type gpt_bigcode, got the string"),
    "attn_pdrop": (1.0, "attn_pdrop must be a number from 0 to below 1, got 1"),
    "resid_pdrop": (True, "resid_pdrop must be a number from 0 to below 1, got true"),
    "n_head": (7, "n_head must be a divisor of n_embd, which is 512, got 7"),
    "n_positions": (0, "n_positions must be a whole number between 1 and"),
    "quantization_config": ({"bits": 4}, "quantized weights are not read"),
    "tie_word_embeddings": ("yes", "tie_word_embeddings must be true or false"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_is_not_implemented_is_one_line(name):
    value, problem = REFUSED[name]
    with pytest.raises(UserError) as error:
        read(**{name: value})
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_models_that_transformers_does_not_have():
    with pytest.raises(UserError, match="the model has a top query layer, which transformers'"):
        config_json.config_of(CODEGEEX["13b"])
    with pytest.raises(UserError, match="has 2 key heads for 8 query heads"):
        config_json.config_of(dataclasses.replace(CODEX["12m"], n_kv_heads=2))
    with pytest.raises(UserError, match="has 8 heads of width 32 at a width of 512"):
        config_json.config_of(dataclasses.replace(CODEX["12m"], head_dim=32))
