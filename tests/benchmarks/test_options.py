"""Options out of range are refused on the command line and in the library."""

import dataclasses
import math

import pytest

from codellama_jax.benchmarks.options import all_options, options_of
from codellama_jax.benchmarks.settings import Checking, Options, Settings, ShotOptions
from codellama_jax.benchmarks.suites import SUITES
from codellama_jax.benchmarks.suites.key_retrieval import KeyOptions
from codellama_jax.benchmarks.suites.mbpp import MbppOptions
from codellama_jax.benchmarks.suites.perplexity import PerplexityOptions
from codellama_jax.errors import UserError

BAD = [
    (Settings, "temperature", math.nan, "--temperature is nan: it must be 0, or a number from"),
    (Settings, "temperature", 1e-5, "--temperature is 1e-05: it must be 0, or a number from 0"),
    (Settings, "temperature", -1.0, "--temperature"),
    (Settings, "temperature", math.inf, "--temperature"),
    (Settings, "top_p", math.nan, "--top-p is nan: it must be a number above 0 and at most 1"),
    (Settings, "top_p", 0.0, "--top-p"),
    (Settings, "top_p", 1.5, "--top-p"),
    (Settings, "samples", 0, "--samples must be an integer from 1 to 100000, not 0"),
    (Settings, "samples", 10**12, "--samples"),
    (Settings, "samples", 1.5, "--samples"),
    (Settings, "samples", True, "--samples"),
    (Settings, "seed", -1, "--seed is -1: it must be a whole number from 0 to 4294967295"),
    (Settings, "seed", 2**32, "--seed"),
    (Settings, "max_new_tokens", -1, "--max-new-tokens"),
    (Settings, "max_new_tokens", 131_072, "--max-new-tokens is 131072: it must be a whole number"),
    (Settings, "max_new_tokens", False, "--max-new-tokens is False"),
    (Settings, "context_tokens", -1, "--context-tokens"),
    (Settings, "batch_tokens", 0, "--batch-tokens"),
    (Settings, "beams", 0, "--beams is 0: it must be a whole number from 1 to 256"),
    (Settings, "length_penalty", 0.5, "--length-penalty 0.5 has no effect on one beam"),
    (ShotOptions, "shots", -5, "--shots must be an integer from -1 to 1000000, not -5"),
    (KeyOptions, "examples", -1, "--examples must be an integer from 1 to 1000000, not -1"),
    (KeyOptions, "examples", 0, "--examples"),
    (PerplexityOptions, "lengths", (), "--lengths needs at least one value"),
    (
        PerplexityOptions,
        "lengths",
        (8000, -1),
        "--lengths must be an integer from 1 to 16777216, not -1",
    ),
    (KeyOptions, "positions", (), "--positions needs at least one value"),
    (KeyOptions, "positions", 0.5, "--positions must be a list of numbers, not 0.5"),
    (PerplexityOptions, "lengths", None, "--lengths must be a list of numbers, not None"),
    (PerplexityOptions, "lengths", "200", "--lengths must be a list of numbers, not '200'"),
    (KeyOptions, "positions", (0.2, math.nan), "--positions must be a number from 0 to 1, not nan"),
    (KeyOptions, "positions", (1.1,), "--positions"),
    (KeyOptions, "positions", (10**400,), "--positions must be a number from 0 to 1, not 1000"),
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
    ShotOptions(shots=-1)
    KeyOptions(positions=(0.0, 1.0), lengths=(1,), examples=1)
    Checking(workers=1, mode="compatible")


def test_options_of_suites_with_one_name_have_one_default():
    """The command line parses the options of all suites at once."""
    fields = {}
    for suite in SUITES.values():
        for field in dataclasses.fields(suite.options):
            assert fields.setdefault(field.name, field).default == field.default
    assert set(fields) == {field.name for field in dataclasses.fields(all_options())}


def test_a_suite_gets_its_own_options_and_others_are_refused():
    every = all_options()
    assert options_of("mbpp", every(data="x", shots=1)) == MbppOptions("x", 1)
    message = "--all-tasks is no option of truthfulqa, which has --data --shots"
    with pytest.raises(UserError, match=message):
        options_of("truthfulqa", every(all_tasks=True))
    with pytest.raises(
        UserError, match=r"no benchmark human_eval: there are humaneval, .* and per"
    ):
        options_of("human_eval", every())


def test_an_option_without_a_help_text_is_named(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Plain(Options):
        first: int = 3

    suite = dataclasses.replace(SUITES["humaneval"], options=Plain)
    monkeypatch.setitem(SUITES, "plain", suite)
    with pytest.raises(TypeError, match="option first of plain has no help text"):
        all_options()


def test_samples_of_a_beam_search_are_at_most_its_beams():
    Settings(samples=4, beams=4)
    with pytest.raises(UserError, match="--samples 5 is more than --beams 4, which find that many"):
        Settings(samples=5, beams=4)
    with pytest.raises(UserError, match=r"--beams 4 and --temperature 0\.2 exclude each other"):
        Settings(beams=4, temperature=0.2)
