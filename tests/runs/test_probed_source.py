"""The documents that probes read."""

import dataclasses

from codellama_jax.config import MixtureConfig
from codellama_jax.runs.probing import probed_source
from experiments import rope_theta


def test_probes_read_the_largest_source_but_no_documents_with_keys():
    """Documents with keys would be filler that hides further keys."""
    experiment = rope_theta.experiment("toy")
    paths = experiment.corpus.paths()
    stage = experiment.arms["code"]["code"]
    shares = stage.data.mixture.shares()
    assert paths[max(shares, key=shares.__getitem__)].endswith("keys")
    for chain in experiment.arms.values():
        assert probed_source(paths, list(chain.values())[-1]) == "code"
    mixture = MixtureConfig(
        code=0, discussions=0, language=0, others={"keys": 0.2, "long_keys": 0.8}
    )
    data = dataclasses.replace(stage.data, mixture=mixture)
    assert probed_source(paths, dataclasses.replace(stage, data=data)) == "long_keys"


def test_generated_functions_are_read_where_they_are_the_largest_source():
    stage = rope_theta.experiment("toy").arms["code"]["code"]
    mixture = MixtureConfig(code=0.3, discussions=0, language=0, others={"sums": 0.7})
    data = dataclasses.replace(stage.data, mixture=mixture)
    paths = {"code": "stdlib", "sums": "functions:train"}
    assert probed_source(paths, dataclasses.replace(stage, data=data)) == "sums"
