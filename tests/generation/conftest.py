"""A run that has trained, without parameters, for the commands that generate."""

import dataclasses
import json

import pytest
from toy import stage

from codellama_jax.config import Experiment, to_dict


@pytest.fixture
def write_run(tmp_path):
    """Returns a function that writes a run of a tokenizer, with changes of the stage's data."""

    def write(tokenizer, **data):
        toy = stage(seq_len=512)
        model = dataclasses.replace(toy.model, vocab_size=tokenizer.vocab_size)
        config = dataclasses.replace(toy, model=model, data=dataclasses.replace(toy.data, **data))
        run = tmp_path / "run"
        (run / "main" / "code" / "checkpoints").mkdir(parents=True)
        experiment = Experiment("run", "toy", {"main": {"code": config}})
        (run / "config.json").write_text(json.dumps(to_dict(experiment)))
        (run / "main" / "code" / "config.json").write_text(json.dumps(to_dict(config)))
        (run / "main" / "code" / "done.json").write_text("{}")
        tokenizer.save(run / "tokenizer.model")
        return run

    return write
