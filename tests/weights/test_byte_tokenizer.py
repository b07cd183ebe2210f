"""Weights with a byte-level tokenizer: exported, imported, checked against the embedding."""

import json
from dataclasses import replace

import byte_bpe_cases
import published
import pytest
import toy
from etils import epath

from codellama_jax.checkpoints.folder import RunFolder, StageFolder
from codellama_jax.checkpoints.loading import load_run
from codellama_jax.config import Experiment, TokenizerConfig
from codellama_jax.data.infilling import prompt_ids
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


CANNOT = {
    "ties its embeddings": {"tied_embeddings": True},
    r"scales its positions by 8 \(llama3\)": {
        "rope_scaling": 8.0,
        "rope_type": "llama3",
        "rope_original_length": 32,
    },
    "scales its positions by 2": {"rope_scaling": 2.0},
    "has biases": {"attention_bias": "qkv"},
    "has 8 heads of width 8": {"head_dim": 8},
}


@pytest.mark.parametrize("problem", CANNOT)
def test_what_metas_layout_cannot_hold_is_one_line(problem, tmp_path):
    model = replace(published.MODEL, **CANNOT[problem])
    source, target = published.source_of({}, model), epath.Path(tmp_path) / "meta"
    with pytest.raises(UserError, match=rf"{problem}.*: export it --to hf") as error:
        meta.write(source, published.tokenizer(), target, 1)
    assert "\n" not in str(error.value) and not target.exists()


def test_starcoder_from_its_files_and_back(tmp_path, capsys):
    """A gpt_bigcode with its tokenizer.json, as transformers has them."""
    transformers = pytest.importorskip("transformers")
    tokenizer, folder = byte_bpe_cases.trained("starcoder"), epath.Path(tmp_path)
    config = transformers.GPTBigCodeConfig(
        vocab_size=byte_bpe_cases.PIECES, n_embd=32, n_layer=1, n_head=4, n_positions=128
    )
    transformers.GPTBigCodeForCausalLM(config).save_pretrained(folder / "hf")
    values = byte_bpe_cases.spec("starcoder") | {"post_processor": byte_bpe_cases.BYTE_OFFSETS}
    byte_bpe_cases.write_spec(folder / "hf", values)
    names = dict.fromkeys(("bos_token", "eos_token"), "<|endoftext|>")
    (folder / "hf" / "tokenizer_config.json").write_text(json.dumps(names))
    commands.Import(str(folder / "hf"), str(folder / "run"))()
    model = load_run(str(folder / "run"))
    # Published prompts begin without <|endoftext|>, which the file does not add.
    assert model.tokenizer.prompt("x = 1") == tokenizer.encode("x = 1")
    ids = prompt_ids(model.tokenizer, "def f(", "\n", spm=False)
    prefix, suffix = tokenizer.encode("def f("), tokenizer.encode("\n")
    assert ids == [1, *prefix, 3, *suffix, 2]
    commands.Export(str(folder / "run"), str(folder / "out"), "hf")()
    capsys.readouterr()
    commands.Check(str(folder / "run"), str(folder / "out"), tokens=64)()
    printed = capsys.readouterr().out
    assert "64, the same ids in both" in printed and "64 of 64" in printed
