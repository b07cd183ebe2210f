"""Kernels that the TPU compiler takes, where it is installed; one chip and small shapes, so that it takes seconds."""

import importlib

import jax.numpy as jnp
import pytest

pytest.importorskip("libtpu", reason="the TPU compiler is in the `tpu` extra")


@pytest.fixture(autouse=True)
def no_tpu_at_hand(monkeypatch):
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "1")


def test_cross_entropy_compiles():
    """The last blocks of tokens and of words are not full."""
    importlib.import_module("kernels.cross_entropy.static_passes").compile_for(
        "v5p", 900, 256, 1100
    )


@pytest.mark.parametrize("cache", [jnp.bfloat16, jnp.int8])
def test_decode_attention_compiles(cache):
    importlib.import_module("kernels.decode_attention.static_passes").compile_for(
        "v5p", 5000, 128, cache
    )
