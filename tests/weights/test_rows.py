"""A tokenizer of another model truncates nothing, and one outside the folder is not taken."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import toy
from etils import epath

from codellama_jax.checkpoints import vocabulary
from codellama_jax.checkpoints.loading import load_run
from codellama_jax.checkpoints.vocabulary import check_vocabulary, most_rows
from codellama_jax.config import Experiment, MeshConfig, TokenizerConfig
from codellama_jax.errors import UserError
from codellama_jax.runs.corpus import check_same_tokenizer
from codellama_jax.sharding.mesh import make_mesh
from codellama_jax.tokenizers import sentencepiece as tokenizers
from codellama_jax.tokenizers.transformers_files import llama_cpp_options, with_sentinels
from codellama_jax.weights import commands, huggingface, load
from codellama_jax.weights.rows import added_tokens, trimmed

PIECES = published.PIECES


def with_rows(rows):
    return published.source_of({}, replace(published.MODEL, vocab_size=rows))


def listed():
    """A tokenizer.model that names the sentinels, as Code Llama's does."""
    proto = with_sentinels(published.tokenizer(), PIECES + 16)
    return tokenizers.read(proto.SerializeToString(), "listed")


def test_padding_is_trimmed_and_sentinels_stay(capsys):
    rows = {PIECES: 0, PIECES + 4: 0, PIECES + 12: 0, PIECES + 16: 16}
    for given, kept in rows.items():
        model = trimmed(with_rows(given), published.tokenizer(), {}).model
        assert model.vocab_size == PIECES + kept
    assert "12 rows of padding are dropped, 500 remain" in capsys.readouterr().err
    for given in (PIECES + 16, PIECES + 64, 768):
        assert trimmed(with_rows(given), listed(), {}).model.vocab_size == PIECES + 16


@pytest.mark.parametrize("rows", [499, 517, 564, 49_152])
def test_rows_beyond_padding_are_an_error_with_both_counts(rows):
    with pytest.raises(UserError, match=f"{rows:,} rows .* 500 pieces: .*--tokenizer"):
        trimmed(with_rows(rows), published.tokenizer(), {})


def test_a_starcoder_sized_model_keeps_its_rows_from_llama_2s_tokenizer():
    llama = published.tokenizer(32_000)
    with pytest.raises(UserError, match=r"49,152 rows .* 32,000 pieces: 17,152 rows .* lost"):
        trimmed(with_rows(49_152), llama, {})
    assert trimmed(with_rows(32_016), llama, {}).model.vocab_size == 32_016
    assert trimmed(with_rows(32_000), llama, {}).model.vocab_size == 32_000
    with pytest.raises(UserError, match="32,017 rows"):
        trimmed(with_rows(32_017), llama, {})
    assert most_rows(32_000) == 32_016 and most_rows(32_001) == 32_256


def test_added_tokens_of_the_folder_are_dropped_with_a_warning(tmp_path, capsys):
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 517, "<|im_end|>": 516}))
    decoder = {"1": {"content": "<s>"}, "518": {"content": "<|im_start|>"}}
    config = {"added_tokens_decoder": decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    added = added_tokens(epath.Path(tmp_path))
    assert added == {1: "<s>", 516: "<|im_end|>", 517: "<pad>", 518: "<|im_start|>"}
    assert trimmed(with_rows(519), published.tokenizer(), added).model.vocab_size == 500
    warning = " ".join(capsys.readouterr().err.split())
    assert "19 rows of padding and the added tokens <|im_end|>, <pad>, <|im_start|> are" in warning
    with pytest.raises(UserError, match="49,152 rows"):
        trimmed(with_rows(49_152), published.tokenizer(), {**added, 49_151: "<end>"})


@pytest.mark.parametrize("text", ['{"a": "b"}', '{"a": 1.5}', '{"a": null}', '{"a": true}', "[]"])
def test_added_tokens_that_are_none_are_one_line(tmp_path, text):
    (tmp_path / "added_tokens.json").write_text(text)
    with pytest.raises(UserError, match=r"added_tokens.json"):
        added_tokens(epath.Path(tmp_path))


def test_a_tokenizer_outside_the_folder_is_used_only_when_named(folders, tmp_path):
    shutil.copytree(folders / "hf", tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").unlink()
    shutil.move(tmp_path / "hf" / "tokenizer.model", tmp_path / "tokenizer.model")
    folder, outside = str(tmp_path / "hf"), str(tmp_path / "tokenizer.model")
    with pytest.raises(UserError, match=f"--tokenizer .{outside} is outside the folder"):
        commands.Import(folder, str(tmp_path / "run"))()
    assert load.tokenizer_of(f"hf:{folder}") is None
    commands.Import(folder, str(tmp_path / "run"), tokenizer=outside)()
    assert load_run(str(tmp_path / "run")).tokenizer.pieces == PIECES


def test_a_stage_does_not_truncate_the_model_that_it_starts_from(folders):
    small = replace(published.MODEL, vocab_size=200)
    for init in (f"hf:{folders / 'hf'}", f"meta:{folders / 'meta'}", f"run:{folders / 'run'}"):
        stage = toy.stage(model=small, init=init)
        with pytest.raises(UserError, match="516 there and 200 here: 316 trained rows"):
            load.initial_params(stage, make_mesh(MeshConfig()))
    check_vocabulary("run", 516, 500)
    check_vocabulary("run", 500, 516)


def test_llama_cpp_gets_the_id_that_its_converter_does_not_write():
    tokenizer = published.tokenizer()
    assert llama_cpp_options(tokenizer, PIECES) == ""
    expected = "--override-kv tokenizer.ggml.eot_token_id=int:510"
    assert llama_cpp_options(tokenizer, PIECES + 16) == expected
    assert llama_cpp_options(published.tokenizer(32_000), 32_016) == ""


def test_export_prints_the_option_of_llama_cpp(folders, tmp_path, capsys):
    commands.Export(str(folders / "run"), str(tmp_path / "out"), "hf")()
    assert "tokenizer.ggml.eot_token_id=int:510" in capsys.readouterr().out


def test_published_weights_without_a_tokenizer_are_not_trained_with_a_new_one(folders, tmp_path):
    shutil.copytree(folders / "hf", tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.model").unlink()
    stage = toy.stage(model=published.MODEL, init=f"hf:{tmp_path / 'hf'}")
    experiment = Experiment("run", "toy", {"arm": {"stage": stage}})
    with pytest.raises(UserError, match=r"has no tokenizer.model, .*: pass --tokenizer.path"):
        check_same_tokenizer(experiment, published.tokenizer(), [stage])
    named = replace(experiment, tokenizer=TokenizerConfig("tokenizer.model"))
    check_same_tokenizer(named, published.tokenizer(), [stage])


def test_a_vocabulary_grows_by_sentinels_and_padding_for_a_mesh():
    for size in (516, 576, 640, 768):
        check_vocabulary("run", 500, size)
    for size in (501, 520, 572, 832):
        with pytest.raises(UserError, match=f"to 516, or above .* of 64 up to 768, not to {size}"):
            check_vocabulary("run", 500, size)


@pytest.mark.parametrize("rows", [500, 512])
def test_sentinels_of_a_stage_take_no_row_of_padding(params, tmp_path, rows):
    """Rows above the tokenizer's are padding, which was never trained."""
    model = replace(published.MODEL, vocab_size=rows, tied_embeddings=True)
    embedding_VD = np.random.default_rng(0).normal(size=(rows, model.d_model)).astype(np.float32)
    embedding_VD[500:] = 100.0
    source = published.source_of({**params, "embedding": embedding_VD}, model)
    folder = epath.Path(tmp_path) / "hf"
    huggingface.write(source, published.tokenizer(), folder)
    published.tokenizer().save(folder / "tokenizer.model")  # as Llama 2's, without sentinels
    stage = toy.stage(model=replace(model, vocab_size=576), init=f"hf:{folder}")
    grown = load.initial_params(stage, make_mesh(MeshConfig(tensor=4)))()["embedding"]
    assert grown.shape == (576, model.d_model) and np.abs(grown).max() < 50
    np.testing.assert_array_equal(grown[:500], embedding_VD[:500])


def test_new_entries_of_a_tied_head_take_their_share_of_probability():
    """The rows of a trained embedding share directions, along which activations point too."""
    rng = np.random.default_rng(0)
    V, D, R = 2000, 32, 3
    shared_RD = rng.normal(size=(R, D))
    embedding_VD = rng.normal(size=(V, R)) @ shared_RD + 0.1 * rng.normal(size=(V, D)) + 0.5
    grown = vocabulary.resized({"embedding": jnp.asarray(embedding_VD)}, V + 512)["embedding"]
    covariance, of_new = np.cov(embedding_VD.T), np.cov(np.asarray(grown[V:]).T)
    assert np.abs(covariance - of_new).max() < 0.2 * np.abs(covariance).max()
    logits_BV = rng.normal(size=(64, R)) @ shared_RD @ np.asarray(grown).T
    p_BV = np.asarray(jax.nn.softmax(logits_BV / logits_BV.std(1, keepdims=True)))
    assert p_BV[:, V:].sum(1).mean() == pytest.approx(512 / (V + 512), rel=0.1)
