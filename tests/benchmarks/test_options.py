"""Options out of range are refused where they are made: on the command line and in the library."""

import math

import pytest

from codellama_jax.benchmarks.settings import Checking, Options, Settings
from codellama_jax.errors import UserError

BAD = [
    (Settings, "temperature", math.nan, r"--temperature must be a number from 0 to 1000, not nan"),
    (Settings, "temperature", -1.0, "--temperature"),
    (Settings, "temperature", math.inf, "--temperature"),
    (Settings, "top_p", math.nan, "--top-p must be a number above 0 and at most 1, not nan"),
    (Settings, "top_p", 0.0, "--top-p"),
    (Settings, "top_p", 1.5, "--top-p"),
    (Settings, "samples", 0, "--samples must be an integer from 1 to 100000, not 0"),
    (Settings, "samples", 10**12, "--samples"),
    (Settings, "samples", 1.5, "--samples"),
    (Settings, "samples", True, "--samples"),
    (Settings, "seed", -1, "--seed must be an integer from 0 to 4294967295, not -1"),
    (Settings, "seed", 2**32, "--seed"),
    (Settings, "max_new_tokens", -1, "--max-new-tokens"),
    (Settings, "max_new_tokens", 10**12, "--max-new-tokens"),
    (Settings, "context_tokens", -1, "--context-tokens"),
    (Settings, "batch_tokens", 0, "--batch-tokens"),
    (Options, "shots", -5, "--shots must be an integer from -1 to 1000000, not -5"),
    (Options, "examples", -1, "--examples must be an integer from 1 to 1000000, not -1"),
    (Options, "examples", 0, "--examples"),
    (Options, "lengths", (), "--lengths needs at least one value"),
    (Options, "lengths", (8000, -1), "--lengths must be an integer from 1 to 16777216, not -1"),
    (Options, "positions", (), "--positions needs at least one value"),
    (Options, "positions", 0.5, "--positions must be a list of numbers, not 0.5"),
    (Options, "lengths", None, "--lengths must be a list of numbers, not None"),
    (Options, "lengths", "200", "--lengths must be a list of numbers, not '200'"),
    (Options, "positions", (0.2, math.nan), "--positions must be a number from 0 to 1, not nan"),
    (Options, "positions", (1.1,), "--positions"),
    (Options, "positions", (10**400,), "--positions must be a number from 0 to 1, not 1000"),
    (Checking, "workers", -1, "--workers must be an integer from 1 to 256, not -1"),
    (Checking, "workers", 100_000, "--workers"),
    (Checking, "mode", "fast", "--mode must be one of isolated, compatible, not 'fast'"),
]


@pytest.mark.parametrize(("kind", "field", "value", "message"), BAD)
def test_a_value_out_of_range_is_named(kind, field, value, message):
    with pytest.raises(UserError, match=message):
        kind(**{field: value})


def test_values_at_the_ends_of_their_ranges_are_taken():
    Settings(temperature=0, top_p=1.0, seed=2**32 - 1, context_tokens=0)
    Options(shots=-1, positions=(0.0, 1.0), lengths=(1,), examples=1)
    Checking(workers=1, mode="compatible")
