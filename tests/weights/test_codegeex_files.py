"""CodeGeeX's file, as torch.save writes it from nested dicts."""

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
