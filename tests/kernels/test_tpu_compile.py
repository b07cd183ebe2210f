"""Kernels that the TPU compiler accepts, where it is installed: one chip and small shapes."""

import importlib

import pytest

pytest.importorskip("libtpu", reason="the TPU compiler is in the `tpu` extra")


@pytest.fixture(autouse=True)
def compiler_without_a_tpu(monkeypatch):
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "1")


def test_cross_entropy_compiles():
    """The last blocks of tokens and of the vocabulary are not full."""
    importlib.import_module("kernels.cross_entropy.static_passes").compile_for(
        "v5p", 900, 256, 1100
    )


@pytest.mark.parametrize("cache", ["bfloat16", "int8"])
def test_decode_attention_compiles(cache):
    """The last block of slots is not full."""
    passes = importlib.import_module("kernels.decode_attention.static_passes")
    passes.compile_for("v5p", 5000, 128, cache)
