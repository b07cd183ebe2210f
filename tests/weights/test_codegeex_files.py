"""CodeGeeX's file, as torch.save writes it from nested dicts."""

import dataclasses

import jax
import numpy as np
import published
import pytest
from etils import epath

from codellama_jax.checkpoints.loading import load_run
from codellama_jax.errors import UserError
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.gpt.sizes import CODEGEEX
from codellama_jax.weights import codegeex, commands, load
from codellama_jax.weights.layout import names
from codellama_jax.weights.rows import trimmed

torch = pytest.importorskip("torch")

MODEL = GPTConfig(
    published.PIECES + 16,
    d_model=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    head_dim=16,
    d_ff=256,
    tied_embeddings=True,
    n_positions=64,
    top_query=True,
    activation="quick_gelu",
)


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch):
    monkeypatch.setitem(CODEGEEX, "tiny", MODEL)


def tensors():
    source = published.source_of(published.random_params(MODEL), MODEL, dtype="float16")
    flat = {}
    for name, layer in names(MODEL):
        tensor = torch.tensor(source.tensor(name, layer)).contiguous()
        flat[codegeex.file_name(name, layer)] = tensor
    return flat


def save(folder, flat):
    """Saves tensors as released: the parts of the model are dicts in dicts."""
    parts = {}
    for name, tensor in flat.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    torch.save({"module": {"language_model": parts}}, folder / "codegeex.pt")
    published.tokenizer().save(epath.Path(folder) / "tokenizer.model")


def test_a_file_is_imported_bit_for_bit(tmp_path):
    folder = tmp_path / "codegeex"
    folder.mkdir()
    save(folder, tensors())
    commands.Import(str(folder), str(tmp_path / "run"))()
    model = load_run(str(tmp_path / "run"))
    assert model.config == MODEL
    expected = jax.tree.map(np.float16, published.random_params(MODEL))
    published.assert_same(jax.tree.map(np.float16, model.params), expected)


def test_an_export_is_the_released_file(tmp_path):
    original = tensors()
    save(tmp_path, original)
    source = load.open_published(epath.Path(tmp_path))[1]
    # With fewer vocabulary entries than the file has rows, as after an import without padding.
    kept = published.PIECES
    smaller = dataclasses.replace(source, model=dataclasses.replace(MODEL, vocab_size=kept))
    out = epath.Path(tmp_path) / "out"
    codegeex.write(smaller, published.tokenizer(), out)
    exported = torch.load(out / "codegeex.pt")["module"]["language_model"]
    # The tables are in dicts of their modules, and the tensors of layers by their dotted names.
    tables = {**exported.pop("embedding"), **exported.pop("topQueryEmbedding")}
    names_of_tables = {"word_embeddings", "position_embeddings", "top_query_embeddings"}
    assert tables.keys() == names_of_tables and exported.keys() == {"transformer"}
    for name, tensor in original.items():
        part, _, rest = name.partition(".")
        if part == "transformer":
            assert torch.equal(exported["transformer"].pop(rest), tensor), name
        elif "word" not in name:
            assert torch.equal(tables[rest.removesuffix(".weight")]["weight"], tensor), name
    assert not exported["transformer"]
    rows, expected = (
        tables["word_embeddings"]["weight"].float(),
        original["embedding.word_embeddings.weight"].float(),
    )
    assert torch.equal(rows[:kept], expected[:kept]) and rows.shape == expected.shape
    assert torch.allclose(rows[kept:], rows[:kept].mean(0)[None], atol=1e-3)
    # And it is read again.
    again = load.open_published(out)[1]
    for key in names(MODEL):
        if key[0] != "embedding":
            np.testing.assert_array_equal(again.tensor(*key), source.tensor(*key))


def test_a_model_that_is_no_codegeex_is_one_line(tmp_path):
    source = published.source_of({}, MODEL)
    target = epath.Path(tmp_path) / "out"
    others = {
        "is of the family llama, without a top query layer": published.MODEL,
        "has 3 layers of width 64 .*, which no published CodeGeeX has": dataclasses.replace(
            MODEL, n_layers=3
        ),
        "has d_ff 128: a CodeGeeX of this width has 256": dataclasses.replace(MODEL, d_ff=128),
        "has 600 vocabulary entries: CodeGeeX's file has 516 rows": dataclasses.replace(
            MODEL, vocab_size=600
        ),
    }
    for problem, model in others.items():
        with pytest.raises(UserError, match=problem) as error:
            codegeex.write(dataclasses.replace(source, model=model), published.tokenizer(), target)
        assert "\n" not in str(error.value) and not target.exists()


def test_the_published_vocabulary_may_have_more_rows_than_others():
    """CodeGeeX pads its 50,400 entries to 52,224 rows."""
    source = dataclasses.replace(
        published.source_of({}, dataclasses.replace(MODEL, vocab_size=52_224)), entries=50_400
    )
    assert trimmed(source, published.tokenizer(50_400), {}).model.vocab_size == 50_400
    with pytest.raises(UserError, match=r"52,224 rows .* and the tokenizer 50,000 pieces"):
        trimmed(source, published.tokenizer(50_000), {})


MISTAKES = {
    "missing": (
        lambda flat: flat.pop("transformer.topQueryLayer.mlp.dense_4h_to_h.bias"),
        r"lacks transformer\.topQueryLayer\.mlp\.dense_4h_to_h\.bias: is the download complete\?",
    ),
    "extra": (
        lambda flat: flat.update({"transformer.adapter.weight": torch.ones(2)}),
        r"holds tensors that CodeGeeX has no place for: transformer\.adapter\.weight",
    ),
    "size": (
        lambda flat: flat.pop("transformer.layers.1.attention.query.bias"),
        "has 1 layers of width 64 below the top query layer, which no published CodeGeeX has",
    ),
    "no_table": (
        lambda flat: flat.pop("embedding.word_embeddings.weight"),
        r"has no embedding\.word_embeddings\.weight: is it CodeGeeX's file",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_file_is_one_line(tmp_path, name):
    change, problem = MISTAKES[name]
    flat = tensors()
    change(flat)
    save(tmp_path, flat)
    with pytest.raises(UserError, match=problem) as error:
        load.open_published(epath.Path(tmp_path))
    assert "\n" not in str(error.value)


def test_two_files_are_one_line(tmp_path):
    save(tmp_path, tensors())
    (tmp_path / "other.pt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"must hold one file \*\.pt of CodeGeeX, and has"):
        load.open_published(epath.Path(tmp_path))


def test_a_dict_that_holds_itself_is_one_line(tmp_path):
    loop = {}
    loop["loop"] = loop
    torch.save(loop, tmp_path / "codegeex.pt")
    with pytest.raises(UserError, match="holds something other than tensors by name"):
        load.open_published(epath.Path(tmp_path))
