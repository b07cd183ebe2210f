"""Parameters of the published sizes, which follow from their shapes."""

import pytest

from codellama_jax.models.accounting import parameter_count
from codellama_jax.models.family import family_of
from codellama_jax.models.gpt.sizes import (
    CODEGEEX,
    CODEX,
    CODEX_SHAPES,
    PANGU_CODER,
    SANTACODER,
    STARCODER,
    TOY,
)

COUNTS = [
    (STARCODER["15.5b"], 15_517_456_384),
    (STARCODER["1b"], 1_137_207_296),
    (SANTACODER["1.1b"], 1_124_886_528),
    (CODEGEEX["13b"], 12_873_943_040),
]


@pytest.mark.parametrize(("model", "count"), COUNTS)
def test_published_counts(model, count):
    assert parameter_count(model) == count


@pytest.mark.parametrize("name", CODEX)
def test_codex_is_named_after_the_parameters_of_its_layers(name):
    layers, width, _ = CODEX_SHAPES[name]
    model = CODEX[name]
    head = model.vocab_size * model.d_model
    assert family_of(model).multiplied_parameters(model) - head == 12 * layers * width**2
    named = float(name[:-1]) * {"m": 1e6, "b": 1e9}[name[-1]]
    assert 12 * layers * width**2 == pytest.approx(named, rel=0.05)


@pytest.mark.parametrize("model", [*CODEGEEX.values(), *PANGU_CODER.values()])
def test_published_layers_include_the_top_query_layer(model):
    assert family_of(model).attention_layers(model) in (12, 24, 32, 40)


def test_toy_models_are_small():
    assert all(parameter_count(model) < 2e6 for model in TOY.values())
