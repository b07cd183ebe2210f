"""Weights with a byte-level tokenizer: exported, imported, checked against the embedding."""

from dataclasses import replace

import byte_bpe_cases
import published
import pytest
import toy
from etils import epath

from codellama_jax.checkpoints.folder import RunFolder, StageFolder
from codellama_jax.config import Experiment, TokenizerConfig
from codellama_jax.errors import UserError
from codellama_jax.runs.corpus import check_same_tokenizer
from codellama_jax.weights import commands, huggingface, meta, store
from codellama_jax.weights.rows import trimmed

KINDS = ("gpt2", "codegeex", "starcoder")


def source_of(kind: str, more: int = 0):
    """Returns random weights for the tokenizer of a kind, with more rows of padding."""
    rows = byte_bpe_cases.trained(kind).vocab_size + more
    model = replace(published.MODEL, vocab_size=rows)
    return published.source_of(published.random_params(model), model)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_imported_with_its_tokenizer(kind, tmp_path):
    tokenizer, folder = byte_bpe_cases.trained(kind), epath.Path(tmp_path)
    huggingface.write(source_of(kind), tokenizer, folder / "hf")
    commands.Import(str(folder / "hf"), str(folder / "run"))()
    assert (folder / "run" / "tokenizer.json").exists()
    assert not (folder / "run" / "tokenizer.model").exists()
    loaded = StageFolder(folder / "run").load_tokenizer()
    assert loaded.fingerprint == tokenizer.fingerprint
    config = store.open_run(folder / "run", "", "").model
    assert config.vocab_size == loaded.vocab_size == tokenizer.vocab_size
    _, stage = RunFolder(folder / "run").find_stage()
    stage = replace(stage, init=f"hf:{folder / 'hf'}")
    experiment = Experiment("run", "toy", {"arm": {"stage": stage}})
    check_same_tokenizer(experiment, tokenizer, [stage])
    with pytest.raises(UserError, match=r"another tokenizer: pass .* with its tokenizer.json"):
        check_same_tokenizer(experiment, byte_bpe_cases.trained("codex"), [stage])


def test_padding_is_trimmed(capsys):
    source = trimmed(source_of("starcoder", more=68), byte_bpe_cases.trained("starcoder"), {})
    assert source.model.vocab_size == byte_bpe_cases.PIECES
    assert "68 rows of padding are dropped, 700 remain" in capsys.readouterr().err


def test_a_tokenizer_named_by_the_user_stands_for_an_unreadable_one(tmp_path):
    """transformers' tokenizer.json of a SentencePiece model is not read, and not needed."""
    folder = epath.Path(tmp_path)
    huggingface.write(
        published.source_of(published.random_params(published.MODEL), published.MODEL),
        published.tokenizer(),
        folder / "hf",
    )
    (folder / "hf" / "tokenizer.model").unlink()
    stage = toy.stage(model=published.MODEL, init=f"hf:{folder / 'hf'}")
    named = TokenizerConfig("tokenizer.model")
    experiment = Experiment("run", "toy", {"arm": {"stage": stage}}, named)
    check_same_tokenizer(experiment, published.tokenizer(), [stage])


def test_metas_layout_is_refused_in_one_line(tmp_path):
    tokenizer, target = byte_bpe_cases.trained("gpt2"), epath.Path(tmp_path) / "meta"
    with pytest.raises(UserError, match=r"has a byte-level tokenizer, .*: export it --to hf"):
        meta.write(source_of("gpt2"), tokenizer, target, 1)
    assert not target.exists()
