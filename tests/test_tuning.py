"""The options of adapters: their allowed values, and the stages that can have them."""

import dataclasses

import pytest
import toy

from codellama_jax.checkpoints.identity import identity
from codellama_jax.config import LoraConfig, from_dict, to_dict
from codellama_jax.errors import UserError

LORA = LoraConfig(8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank is 0: it must be at least 1"),
        ({"rank": 4, "targets": ()}, "targets is empty: name each weight once, such as q v"),
        ({"rank": 4, "targets": ("q", "q")}, "targets names a weight twice: name each weight once"),
        ({"alpha": 8.0}, "rank is None, and alpha is given: give a rank, such as 16, as well"),
        ({"rank": 4, "alpha": 0.0}, "alpha is 0.0: it must be above 0"),
        ({"rank": 4, "quantize_base": "w8a8"}, "must be one of none, int8, int4"),
    ],
)
def test_mistakes_are_one_line(values, message):
    with pytest.raises(UserError, match=message):
        LoraConfig(**values)


def test_adapters_of_random_weights_are_refused():
    with pytest.raises(UserError, match="init is scratch: lora adapts trained weights"):
        toy.stage(lora=LORA)


def test_a_stage_without_adapters_is_written_as_before():
    stage = toy.stage(init="run:x")
    assert "lora" not in to_dict(stage)
    adapted = dataclasses.replace(stage, lora=LORA)
    assert from_dict(type(stage), to_dict(adapted)) == adapted
    assert identity(adapted, "", 0) != identity(stage, "", 0)
