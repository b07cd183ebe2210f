"""The same random model in both published layouts, and imported."""

import published
import pytest
from etils import epath

from codellama_jax.weights import commands, huggingface, meta


@pytest.fixture(scope="session")
def params():
    return published.random_params(published.MODEL)


@pytest.fixture(scope="session")
def folders(params, tmp_path_factory):
    """A folder with `hf`, `meta` of two ranks, and `run`, which is the first one imported."""
    folder = epath.Path(tmp_path_factory.mktemp("weights"))
    source = published.source_of(params, published.MODEL)
    huggingface.write(source, published.tokenizer(), folder / "hf")
    meta.write(source, published.tokenizer(), folder / "meta", ranks=2)
    commands.Import(str(folder / "hf"), str(folder / "run"))()
    return folder
