"""`launch.py kernels` and `compile` report a mistake before JAX starts."""

import importlib.util

import pytest

from codellama_jax import cli
from codellama_jax.compile.options import Kernels
from codellama_jax.errors import UserError


def test_a_missing_compiler_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[tpu\]' in the project's folder"):
        Kernels("flash_attention")()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chip": "v5p,v9"}, "--chip is 'v9': it must be one or several of v4, v5e, v5p"),
        ({"seq": 1500}, "--seq is 1500: it must be a multiple of 1,024"),
    ],
)
def test_a_wrong_value_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        Kernels("flash_attention", **options)()


@pytest.mark.parametrize("options", [{"cache": "int8"}, {"group": 1}])
def test_options_of_a_cache_are_refused_for_kernels_without_one(options):
    (name,) = options
    with pytest.raises(UserError, match=f"--{name} is given, but flash_attention reads no cache"):
        Kernels("flash_attention", **options)()


def test_a_search_for_a_program_without_its_settings_is_refused():
    """It was ignored, and the one mesh that was given was compiled."""
    message = "--search is given with --stage decode, but only train steps are searched: leave it"
    for others in ([], ["--code.steps", "5"]):
        words = ["compile", "quickstart", "--stage", "decode", "--search", *others]
        with pytest.raises(UserError, match=message):
            cli.parse(words, "launch.py")
    assert callable(cli.parse(["compile", "quickstart", "--search"], "launch.py"))
