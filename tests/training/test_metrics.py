"""The lines of metrics.jsonl that a stage keeps when it continues."""

import json

import pytest
import toy
from etils import epath

from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.training.metrics import Metrics, read_metrics


@pytest.mark.parametrize(
    ("start", "kept"),
    [
        pytest.param(0, [], id="killed before the first checkpoint"),
        pytest.param(2, [0, 1, 2], id="killed after a checkpoint"),
    ],
)
def test_steps_that_are_computed_again_have_one_line(tmp_path, start, kept):
    folder = StageFolder(epath.Path(tmp_path))
    lines = [json.dumps({"step": step, "loss": 1.0, "seconds": 0.5}) for step in range(4)]
    folder.metrics.write_text("\n".join([*lines, ""]))
    Metrics(folder, "main/code", toy.stage(), start).close()
    assert [line["step"] for line in read_metrics(folder.metrics)] == kept
