import dataclasses

import jax
import pytest
from toy import MODEL, stage

from codellama_jax.config import Experiment, differences, from_dict, to_dict
from codellama_jax.errors import UserError
from codellama_jax.models import accounting
from codellama_jax.models.llama.model import Llama
from codellama_jax.models.llama.sizes import CODE_LLAMA, choose

PUBLISHED = {
    "7b": 6_738_546_688,
    "13b": 13_016_028_160,
    "34b": 33_743_970_304,
    "70b": 68_976_910_336,
}


def test_experiment_survives_its_file():
    experiment = Experiment(
        "e", "toy", {"a": {"code": stage(), "long": stage(init="previous")}}, seed=3
    )
    assert from_dict(Experiment, to_dict(experiment)) == experiment


def test_from_dict_names_the_unknown_field():
    with pytest.raises(UserError, match="LlamaConfig has no field colour"):
        from_dict(type(MODEL), to_dict(MODEL) | {"colour": 1})


def test_differences_name_the_leaves():
    old, new = (
        to_dict(stage()),
        to_dict(
            dataclasses.replace(stage(), steps=11, model=dataclasses.replace(MODEL, rope_theta=1e6))
        ),
    )
    assert differences(old, new) == ["model.rope_theta: 10000.0 -> 1000000.0", "steps: 10 -> 11"]


@pytest.mark.parametrize("scale", PUBLISHED)
def test_published_parameter_counts(scale):
    model = CODE_LLAMA[scale]
    assert accounting.parameter_count(model) == PUBLISHED[scale]
    tokens = jax.ShapeDtypeStruct((1, 2), "int32")
    params = jax.eval_shape(Llama(model).init, jax.random.key(0), tokens, tokens)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PUBLISHED[scale]


def test_unknown_scale_lists_the_known():
    with pytest.raises(UserError, match="no scale 8b: there are 7b, 13b, 34b, 70b"):
        choose(CODE_LLAMA, "8b")


def test_flops_agree_with_those_that_xla_counts():
    """Of an unrolled one-layer forward pass; the backward pass takes twice as many."""
    model = dataclasses.replace(MODEL, n_layers=1)
    tokens = jax.ShapeDtypeStruct((1, 256), "int32")
    params = jax.eval_shape(Llama(model).init, jax.random.key(0), tokens, tokens)
    counted = (
        jax.jit(Llama(model).apply).lower(params, tokens, tokens).compile().cost_analysis()["flops"]
    )
    expected = 256 * accounting.flops_per_token(model, 256, causal=False) / 3
    assert counted == pytest.approx(
        expected, rel=0.15
    )  # XLA also counts norms, softmax and the like
