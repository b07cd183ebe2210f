"""One evaluation of several quantizations: a table, and a folder for each."""

import dataclasses
import json

import pytest

from codellama_jax.benchmarks import quantization as comparison
from codellama_jax.benchmarks.found_model import FoundModel
from codellama_jax.benchmarks.generate import generate_samples
from codellama_jax.benchmarks.settings import Checking, Settings
from codellama_jax.benchmarks.suites import load
from codellama_jax.benchmarks.suites.perplexity import PerplexityOptions
from codellama_jax.errors import UserError
from codellama_jax.generation import speed
from codellama_jax.generation.quantize import quantized
from codellama_jax.generation.settings import Quantization

ONE = Checking(workers=1)
INT8, INT8_CACHE = Quantization("int8"), Quantization("none", "int8")


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the models whose speed is measured, and 100 tokens per second for each."""
    names: list[str] = []

    def decoding_speeds(models):
        names.extend(model.name for model in models.values())
        return dict.fromkeys(models, 100.0)

    monkeypatch.setattr(speed, "decoding_speeds", decoding_speeds)
    return names


def test_a_table_of_memory_speed_and_score(model, files, tmp_path, decoded, capsys):
    options, out, loaded = PerplexityOptions(files["filler"], (64,), 1), tmp_path / "out", []

    def load_model():
        loaded.append(model)
        return model

    schemes = [Quantization(scheme, "int8") for scheme in ("none", "int4")]
    request = "perplexity", options, Settings(), Checking()

    def find_model(scheme):
        return FoundModel(scheme.named(model.name), model.tokenizer)

    comparison.compare(*request, load_model, schemes, tmp_path / "out", find_model)
    assert len(loaded) == 1
    assert decoded == ["toy, int8 cache", "toy, int4 weights, int8 cache"]
    printed = capsys.readouterr().out
    for text in ("perplexity by quantization of the weights, int8 cache", "tokens/s", "100.0"):
        assert text in printed
    record = json.loads((out / "quantization.json").read_text())
    none, int4 = record["rows"]["none"], record["rows"]["int4"]
    assert int4["weights, bytes"] < none["weights, bytes"]
    # 2 layers of 2 heads: keys and values of 8 bytes and a scale each.
    assert none["cache, bytes per token"] == 2 * 2 * 2 * (8 + 4)
    assert none["measures"]["64 perplexity"] != int4["measures"]["64 perplexity"]
    for scheme, row in record["rows"].items():
        results = json.loads((out / scheme / "results.json").read_text())
        assert row["measures"] == results["measures"]


def test_samples_of_one_quantization_are_never_anothers(model, files, tmp_path):
    benchmark, settings = load("lcc", data=files["lcc"]), Settings(max_new_tokens=4)
    settings = dataclasses.replace(settings, temperature=0.0)

    def drawn(drawing):
        return generate_samples(drawing, benchmark, {"benchmark": "lcc"}, settings, tmp_path)

    int8, int8_cache = (quantized(model, each) for each in (INT8, INT8_CACHE))
    samples = drawn(int8)
    assert drawn(int8) == samples
    for other in (model, int8_cache):
        with pytest.raises(UserError, match=r"another way \(model: toy, int8 weights -> toy"):
            drawn(other)


def test_speeds_are_measured(model, monkeypatch):
    monkeypatch.setattr(speed, "NEW", 4)
    monkeypatch.setattr(speed, "ROUNDS", 1)
    other = dataclasses.replace(model, name="other")
    speeds = speed.decoding_speeds({"a": model, "b": other})
    assert list(speeds) == ["a", "b"] and min(speeds.values()) > 0
