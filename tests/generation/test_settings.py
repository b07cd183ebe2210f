"""Values of sampling that are refused, in the words of the command line."""

import math

import pytest

from codellama_jax.errors import UserError
from codellama_jax.generation.settings import CAPACITY, MAX_SEED, Sampling, check_drawing


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", math.nan, "0, or a number from 0.0001 to 10000"),
        ("temperature", math.inf, "0, or a number from"),
        ("temperature", -1, "0, or a number from"),
        ("temperature", 10**400, "0, or a number from"),
        ("temperature", 1e-30, "0, or a number from"),
        ("temperature", "1", "0, or a number from"),
        ("top_p", math.nan, "a number above 0 and at most 1"),
        ("top_p", 0, "a number above 0 and at most 1"),
        ("top_p", -1, "a number above 0 and at most 1"),
        ("top_p", 1.5, "a number above 0 and at most 1"),
        ("top_k", -1, "a whole number from 0 to"),
        ("top_k", 1.5, "a whole number from 0 to"),
        ("top_k", True, "a whole number from 0 to"),
        ("max_new_tokens", 0, "a whole number from 1 to"),
        ("max_new_tokens", -1, "a whole number from 1 to"),
        ("max_new_tokens", 10**400, "a whole number from 1 to"),
        ("seed", -1, "a whole number from 0 to"),
        ("seed", 2**32, "a whole number from 0 to"),
        ("beams", 0, "a whole number from 1 to 256"),
        ("beams", 2.0, "a whole number from 1 to 256"),
        ("length_penalty", math.nan, "a number from -10 to 10"),
        ("length_penalty", 11, "a number from -10 to 10"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_option(name, value, allowed):
    with pytest.raises(UserError) as raised:
        Sampling(**{name: value})
    option = "--" + name.replace("_", "-")
    line = str(raised.value)
    assert line.startswith(f"{option} is {repr(value)[:60]}: it must be {allowed}")
    assert len(line) < 200


def test_the_bounds_are_allowed():
    Sampling(0, 0, 1, 1, 0)
    Sampling(1e-4, 2**31 - 1, 1e-9, CAPACITY - 1, MAX_SEED)
    Sampling(1e4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length_penalty": 0.5}, "--length-penalty 0.5 has no effect on one beam: pass --beams"),
        (
            {"beams": 4, "temperature": 0.8},
            "--beams 4 and --temperature 0.8 exclude each other: beam search draws nothing",
        ),
    ],
)
def test_options_of_beam_search_that_contradict_others_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        Sampling(**values)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(top_k=4), "--top-k 4 has no effect at --temperature 0, which draws nothing: "),
        (Sampling(top_p=0.5), "--top-p 0.5 .* leave it out, or pass --temperature too"),
        (Sampling(seed=7), "--seed 7 has no effect"),
        (Sampling(beams=3, top_p=0.5), "--top-p 0.5 has no effect with --beams 3, .* out$"),
    ],
)
def test_commands_refuse_options_that_only_choose_among_tokens(sampling, message):
    check_drawing(Sampling(temperature=0.5, top_k=4, top_p=0.5, seed=7))
    check_drawing(Sampling(beams=3, length_penalty=0.0))
    with pytest.raises(UserError, match=message):
        check_drawing(sampling)
