"""All names of one model mean the same place."""

import json

import pytest
import toy

from codellama_jax.alignment.model_names import place_of, repeated_model
from codellama_jax.config import CorpusConfig, Experiment, TokenizerConfig, to_dict


@pytest.mark.parametrize(
    ("model", "other"),
    [
        ("a", "a/"),
        ("a", "./a"),
        ("a", "b/../a"),
        ("a", "{folder}/a"),
        ("a", "link"),
        ("a", "hf:a"),
        ("hf:a/", "meta:{folder}/link"),
        ("gguf:m.gguf", "./m.gguf"),
        ("http://host:80/v1#m", "http://HOST:80/v1/#m"),
    ],
)
def test_two_names_of_one_model(model, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    other = other.format(folder=tmp_path)
    assert place_of(model) == place_of(other)
    assert repeated_model(["c", model, other]) == f"{other} ({model})"


def test_names_of_different_models():
    names = ["a", "b", "c:a", "http://h/v1#m", "http://h/v1#M", "http://h/v2#m", "https://h/v1#m"]
    assert not repeated_model(names)
    assert repeated_model(["a", "b", "a"]) == "a"


def test_a_url_that_cannot_be_read_is_left_to_the_command():
    assert repeated_model(["http://[::1/v1#m", "a", "http://[::1/v1#m"]) == "http://[::1/v1#m"


def test_a_run_and_its_trained_stage_are_one_model(tmp_path):
    stage = tmp_path / "run" / "main" / "code"
    stage.mkdir(parents=True)
    (stage / "config.json").write_text(json.dumps(to_dict(toy.stage())))
    experiment = Experiment(
        "x", "toy", {"main": {"code": toy.stage()}}, TokenizerConfig(), CorpusConfig()
    )
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_dict(experiment)))
    (stage / "done.json").write_text('{"step": 1, "tokens": 1}')
    assert repeated_model([str(tmp_path / "run"), f"{stage}/"])
