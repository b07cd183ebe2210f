import dataclasses

import jax
import pytest
from toy import MODEL, stage

from codellama_jax.checked import FieldError
from codellama_jax.config import (
    CorpusConfig,
    DataConfig,
    Experiment,
    MixtureConfig,
    differences,
    from_dict,
    to_dict,
)
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


def named(others, paths, steps=10):
    """Returns an experiment with further sources."""
    data = DataConfig(16, 8, MixtureConfig(code=0.5, others=others))
    stages = {"code": stage(data=data, steps=steps)}
    return Experiment("e", "toy", {"main": stages}, corpus=CorpusConfig(others=paths))


def test_further_sources_survive_their_file():
    experiment = named({"java": 0.25, "rust": 0.25}, {"java": "prepared:a", "rust": "b"})
    assert from_dict(Experiment, to_dict(experiment)) == experiment
    mixture = experiment.arms["main"]["code"].data.mixture
    assert list(mixture.shares().items())[3:] == [("language", 0), ("java", 0.25), ("rust", 0.25)]
    assert experiment.corpus.paths()["java"] == "prepared:a"


def test_an_experiment_without_further_sources_is_written_as_before():
    fields = ["code", "python", "discussions", "language"]
    assert list(to_dict(MixtureConfig())) == fields
    assert list(to_dict(CorpusConfig())) == [*fields, "validation_fraction", "max_files"]


@pytest.mark.parametrize("name", ["Java", "c++", "", "1c", "_c", "a-b", "x" * 51])
def test_names_of_sources_are_checked(name):
    for config in (MixtureConfig, CorpusConfig):
        value = 0.5 if config is MixtureConfig else "x"
        with pytest.raises(FieldError, match=r"others has .*: a source's name has 1 to 50 lower"):
            config(others={name: value})
        with pytest.raises(FieldError, match="others has 'code', which has a separate field"):
            config(others={"code": value})


def test_values_of_sources_are_checked():
    with pytest.raises(FieldError, match=r"others\.java is -1: it must be at least 0"):
        MixtureConfig(code=1.0, others={"java": -1})
    with pytest.raises(FieldError, match=r"others\.java is 1e-06: it must be 0 or at least"):
        MixtureConfig(code=1.0, others={"java": 1e-6})
    with pytest.raises(FieldError, match=r"others\.java is '': it must be the name of a file"):
        CorpusConfig(others={"java": ""})


def test_a_source_without_a_corpus_is_refused():
    line = r"corpus.others has no 'java', which the mixture of main.code reads: pass"
    with pytest.raises(FieldError, match=line):
        named({"java": 0.5}, {"rust": "x"})
    named({"java": 0.0}, {"rust": "x"})


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
